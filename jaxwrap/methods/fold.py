"""Method ``fold``: the samples go through an invertible linear transform before the codec, and back after it.

A codec minimises plain squared error in the samples that it is given. With z' = A z + b, an error q' of z' is an error
A⁻¹ q' of z: so where A = √W, plain SSE on z' is the weighted distortion on z, for any encoder unmodified; and where A
decorrelates channels that lie in separate tiles, it hands the codec what it cannot see itself. A and b are constants of
the wrapper, chosen on training data, which fold into its last and first layers: the decoder is told nothing per
picture, and the side information is 0 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import as_partial
from jaxwrap.methods.plan import Plan


class Transform(Protocol):
    """An invertible map of frames: `jaxwrap.importance.gram` has √w per plane and linear maps of packed channels."""

    def apply(self, frame: Frame) -> Frame:
        """z → z'."""
        ...

    def undo(self, frame: Frame) -> Frame:
        """z' → z, exactly but for rounding of floats."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """z' = transform.apply(z), undone before the receiver. ``transform``: constants that encoder and decoder share;
    None: still to be set, as a sweep does where the wrapper brings its own."""

    name: ClassVar[str] = "fold"
    draws: ClassVar[bool] = False
    weights_as: ClassVar[None] = None

    transform: Transform | None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """The transformed samples and what undoes them; receiver and key are not used. Raises `ValueError` where there
        is no transform yet."""
        if self.transform is None:
            raise ValueError("fold has no transform yet; give it one that was made on training pictures")
        return Plan(self.transform.apply(z), undo=as_partial(self.transform.undo))
