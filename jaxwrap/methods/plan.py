"""The second abstraction: an allocation method decides how bits are spent, as one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax

from jaxwrap.arrays import Frame
from jaxwrap.codec import RowWeights, Weights

WeightsAs = Literal["distortion", "qp_offset", "rows"]
"""The two uses of `jaxwrap.codec.Weights`, and `jaxwrap.codec.RowWeights`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a method hands to the codec.

    ``z``: the samples to code, possibly changed (refine, fold). ``weights``: per-sample weights or Jacobian rows for
    the encoder, or None. ``side_information_bits``: what the decoder must be told beside the stream, counted into the
    rate. ``undo``: decoded samples → samples in the receiver's domain, where z is not in it (fold); a
    `jax.tree_util.Partial`, or None.
    """

    z: Frame
    weights: Weights | RowWeights | None = None
    side_information_bits: Any = 0
    undo: jax.tree_util.Partial | None = None

    def undone(self, decoded: Frame) -> Frame:
        """Decoded samples in the receiver's domain: real-valued after an ``undo``, otherwise as they are."""
        return decoded if self.undo is None else self.undo(decoded)


class Method(Protocol):
    """An allocation method: sse, wa, fold, refine, … ."""

    @property
    def name(self) -> str:
        """Short name used in results rows."""
        ...

    @property
    def draws(self) -> bool:
        """Whether its plan depends on the key."""
        ...

    @property
    def weights_as(self) -> WeightsAs | None:
        """What the plan's weights are to the encoder; None where there are none."""
        ...

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        """Decides how z (real-valued samples) is to be coded for ``receiver`` (samples → any pytree of arrays)."""
        ...
