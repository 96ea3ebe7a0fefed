"""Method ``dqp``: an importance map steers a stock encoder through the QP of its blocks, ΔQP = −3 log₂ w.

From Δ² ∝ 2^(QP/3): a block whose errors weigh w times as much takes a quantiser step √w times finer, so that w D has
the same slope everywhere. The encoder moves λ along with the step; weighted RDO at a fixed QP (WA-RDO) is another
method. As the mean of w is 1, the mean of ΔQP is ≥ 0: the rate at a nominal QP falls a little, so compare over curves,
never at equal QP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.importance.maps import ImportanceMap, Metric, importance_map
from jaxwrap.importance.sketch import SketchKind, check_sketch
from jaxwrap.importance.weights import DEFAULT_ALPHA, Scope, check_map, importance_weights
from jaxwrap.methods.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Dqp:
    """Importance map → weights w → QP offsets of the encoder's blocks.

    ``sketches``, ``metric``, ``sketch``: as in `importance_map`. ``alpha``, ``scope``: as in `importance_weights`.
    ``strength`` s raises the weights to w^s, renormalised to mean 1; 1 is the rule above, 0 is plain SSE. ``map``: a
    map made before (`ImportanceMap` or its h, 1 or N maps), used instead of a new one: neither receiver nor key is
    then looked at.
    """

    name: ClassVar[str] = "dqp"

    sketches: int = 4
    strength: float = 1.0
    alpha: float = DEFAULT_ALPHA
    metric: Metric = None
    sketch: SketchKind = "rademacher"
    scope: Scope = "frame"
    map: ImportanceMap | Frame | None = None

    @property
    def draws(self) -> bool:
        """Unless a map is given."""
        return self.map is None

    def __post_init__(self) -> None:
        check_sketch(self.sketch, self.sketches)
        if not np.isfinite(self.strength) or self.strength < 0:
            raise ValueError(f"strength {self.strength} was given; wanted a finite number ≥ 0 (1: ΔQP = −3 log₂ w)")

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """z as it is, with weights for the encoder's QP offsets.

        Raises `ValueError` as `importance_map` does (a key is needed unless ``map`` is given), and `MapError` if
        ``map`` does not fit z.
        """
        importance = self.map
        if importance is not None:
            check_map(importance.h if isinstance(importance, ImportanceMap) else importance, z)
        elif key is None:
            raise ValueError("dqp draws random sketches: give plan a key (jax.random.key(0)), or Dqp a map made before")
        else:
            importance = importance_map(
                receiver, z, key=key, sketches=self.sketches, metric=self.metric, sketch=self.sketch
            )
        weights = importance_weights(importance, alpha=self.alpha, scope=self.scope, applied_as="qp_offset")
        if self.strength != 1.0:
            powers = jax.tree.map(lambda w: w**self.strength, weights.planes)
            weights = importance_weights(powers, alpha=0.0, scope=self.scope, applied_as="qp_offset")
        return Plan(z, weights)
