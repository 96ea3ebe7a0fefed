"""What detection ranks and places by, as real numbers: the head of task-aware importance maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxwrap.tasks.detector import Candidates, Detector


def ranking_head(detector: Detector) -> jax.tree_util.Partial:
    """Features by name → ``scores [N, A]`` of all anchors, and ``places [N, A, 4]``: their boxes in units of the box's
    own size √(w h), times the score; size and score are held constant in these factors.

    A box that moves by a share of its size loses that much overlap, and counts as much as its score says: the boxes of
    the thousands of anchors that find nothing are arbitrary, and would rule the map. The weights of part 2 are
    arguments of compiled code.
    """
    return jax.tree_util.Partial(_Ranked(detector.decode), detector.part2)


@dataclasses.dataclass(frozen=True)
class _Ranked:
    decode: Callable[[dict[str, jax.Array]], Candidates]

    def __call__(self, part2: Callable[[Any], Any], features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        boxes, scores, _ = self.decode(part2(features))
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        weight = jax.lax.stop_gradient(scores / jnp.sqrt(jnp.maximum(area, 1.0)))
        return {"scores": scores, "places": boxes * weight[..., None]}
