"""Stage ``dqp``: the weights of a plan steer a stock encoder through the QP of its blocks, ΔQP = −3 log₂ w.

From Δ² ∝ 2^(QP/3): a block whose errors weigh w times as much takes a quantiser step √w times finer, so that w D has
the same slope everywhere. The encoder moves λ along with the step; weighted RDO at a fixed QP (WA-RDO) is another
method. As the mean of w is 1, the mean of ΔQP over samples is ≥ 0; what becomes of the rate depends on where the bits
are. So a nominal QP gives another rate and another quality than without: compare over curves, never at equal QP.

A block has one offset for all its planes. Weights that differ between planes only, such as a calibrated map with one
weight per plane, leave every offset 0: fold is what gives planes a distortion of their own.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jaxwrap.codec import RowWeights, Weights
from jaxwrap.importance.blocks import frame_mean

_NO_ROWS = "dqp makes QP offsets of weights per sample, and idse gives rows: put wa, iwa, fwa or calibrated before it"


@dataclasses.dataclass(frozen=True)
class Dqp:
    """Weights of the distortion → weights that an encoder is to use as QP offsets of its blocks.

    It makes no map of its own: wa, iwa, fwa or calibrated stand before it in a `jaxwrap.methods.Chain`. ``strength`` s
    raises the weights to w^s, scaled so that the mean m of a frame's weights (1, unless their scope is the sequence)
    becomes m^s; 1 is the rule above, 0 is plain SSE.
    """

    name: ClassVar[str] = "dqp"
    draws: ClassVar[bool] = False

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not np.isfinite(self.strength) or self.strength < 0:
            raise ValueError(f"strength {self.strength} was given; wanted a finite number ≥ 0 (1: ΔQP = −3 log₂ w)")

    def reweigh(self, weights: Weights | RowWeights, key: jax.Array | None = None) -> Weights:
        """The same weights, raised to ``strength`` and applied as QP offsets. Raises `ValueError` for rows."""
        if isinstance(weights, RowWeights):
            raise ValueError(_NO_ROWS)
        planes = weights.planes
        if self.strength != 1.0:
            powers = jax.tree.map(lambda w: w**self.strength, planes)
            scale = frame_mean(planes) ** self.strength / frame_mean(powers)  # [N]
            planes = jax.tree.map(lambda w: w * scale[:, None, None], powers)
        return dataclasses.replace(weights, planes=planes, applied_as="qp_offset")
