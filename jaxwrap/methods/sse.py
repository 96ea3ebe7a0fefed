"""Method ``sse``: the codec's own choice. z is coded as it is, with the codec's own sum of squared errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxwrap.arrays import Frame
from jaxwrap.methods.plan import Plan


@dataclasses.dataclass(frozen=True)
class Sse:
    """The baseline that every other method is compared with."""

    name: ClassVar[str] = "sse"
    draws: ClassVar[bool] = False
    weights_as: ClassVar[None] = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """z, unweighted."""
        return Plan(z)
