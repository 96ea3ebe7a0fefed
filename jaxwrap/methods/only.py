"""Stage ``only:…``: which decisions of a patched encoder use the weights, for ablations (``wa+only:sse:rdoq``)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxwrap.codec import DECISIONS, Decision, RowWeights, Weights

PREFIX = "only:"


@dataclasses.dataclass(frozen=True)
class Only:
    """Weights of the stage before it for ``decisions`` alone, see `jaxwrap.codec.DECISIONS`; none of them is of use
    behind dqp, where the QPs then move alone (``wa+dqp+only:none``)."""

    draws: ClassVar[bool] = False

    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        unknown = [name for name in self.decisions if name not in DECISIONS]
        if unknown or len({*self.decisions}) < len(self.decisions):
            raise ValueError(
                f"decisions {', '.join(self.decisions)} were given; wanted some of {', '.join(DECISIONS)}, once each"
            )
        object.__setattr__(self, "decisions", tuple(name for name in DECISIONS if name in self.decisions))

    @property
    def name(self) -> str:
        """``only:`` and the decisions, ``none`` where there are none."""
        return PREFIX + (":".join(self.decisions) or "none")

    @staticmethod
    def named(name: str) -> Only:
        """The stage of this name. Raises `ValueError` for decisions that are unknown or given twice."""
        words = name.removeprefix(PREFIX).split(":")
        return Only(() if words == ["none"] else tuple(words))  # type: ignore[arg-type]  # Only itself names the known

    def reweigh(self, weights: Weights | RowWeights, key: jax.Array | None) -> Weights | RowWeights:
        """The same weights for these decisions."""
        return dataclasses.replace(weights, decisions=self.decisions)
