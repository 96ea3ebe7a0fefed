"""The second abstraction: an allocation method decides how bits are spent, as one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax

from jaxwrap.arrays import Frame
from jaxwrap.codec import Weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a method hands to the codec.

    ``z``: the samples to code, possibly changed (refine). ``weights``: per-sample weights for the encoder, or None.
    ``side_information_bits``: what the decoder must be told beside the stream, counted into the rate.
    """

    z: Frame
    weights: Weights | None = None
    side_information_bits: Any = 0


class Method(Protocol):
    """An allocation method: sse, dqp, refine, … ."""

    @property
    def name(self) -> str:
        """Short name used in results rows."""
        ...

    @property
    def draws(self) -> bool:
        """Whether its plan depends on the key."""
        ...

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        """Decides how z (real-valued samples) is to be coded for ``receiver`` (samples → any pytree of arrays)."""
        ...
