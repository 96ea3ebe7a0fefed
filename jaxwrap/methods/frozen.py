"""Methods ``fwa`` and ``calibrated``: weights from one map that was made before, on training data.

FWA-RDO averages the maps of many pictures (WA-RDO section 3, "Architectural simplification"); a calibrated map weighs
by what an encoder's own errors did to the receiver (`jaxwrap.importance.calibration`). Neither needs the receiver when
a picture is coded. Encoder-side only: the decoder is told nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.codec import Weights
from jaxwrap.importance.maps import ImportanceMap
from jaxwrap.importance.weights import (
    DEFAULT_ALPHA,
    MapError,
    check_map,
    check_weighting,
    importance_weights,
    is_flat,
    raw_map,
)
from jaxwrap.methods.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Fwa:
    """One frozen map (`ImportanceMap` or its h, N = 1) → weights w of the distortion Σ w q², the same for all frames.

    ``alpha``: as in `importance_weights`. `Weights` in place of a map are taken as they are. A map that is constant in
    each plane serves frames of any size. None: still to be set, as a sweep does where the wrapper brings its own map.
    """

    name: ClassVar[str] = "fwa"
    draws: ClassVar[bool] = False
    weights_as: ClassVar[Literal["distortion"]] = "distortion"

    map: ImportanceMap | Frame | Weights | None
    alpha: float = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        check_weighting(self.alpha)
        if self.map is None:
            return
        h = raw_map(self.map)
        check_map(h)
        if num_frames(h) != 1:
            raise MapError(
                f"importance map: {num_frames(h)} maps were given to {self.name}, which holds 1: average them"
            )

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """z as it is, with weights for the encoder's distortion; receiver and key are not used. Raises `MapError` if
        the map does not fit z, or there is none."""
        if self.map is None:
            raise MapError(f"importance map: {self.name} has none yet; give it one that was made on training pictures")
        h = raw_map(self.map)
        if is_flat(h) and type(h) is type(z):
            h = jax.tree.map(lambda p, like: jnp.broadcast_to(p[:, :1, :1], (1, *like.shape[1:])), h, z)
        check_map(h, z)
        weights = Weights(h) if isinstance(self.map, Weights) else importance_weights(h, alpha=self.alpha)
        return Plan(z, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated(Fwa):
    """`Fwa` with a calibrated map."""

    name: ClassVar[str] = "calibrated"
