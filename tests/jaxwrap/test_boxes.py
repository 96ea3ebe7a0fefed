"""Overlap and suppression against pycocotools and a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask

from jaxwrap.tasks.boxes import corners, overlap, suppress

RNG = np.random.default_rng(0)


def random_boxes(*shape: int) -> np.ndarray:
    low = RNG.uniform(0, 60, (*shape, 2))
    return np.concatenate([low, low + RNG.uniform(2, 40, (*shape, 2))], -1).astype(np.float32)


def widths(boxes: np.ndarray) -> np.ndarray:
    """As COCO writes boxes."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1).astype(np.float64)


def greedy(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, iou: float) -> list[int]:
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > threshold]
    kept: list[int] = []
    for i in order:
        rivals = [j for j in kept if classes[j] == classes[i]]
        found = mask.iou(widths(boxes[[i]]), widths(boxes[rivals]), [0] * len(rivals)) if rivals else np.zeros(1)
        if (found <= iou).all():
            kept.append(int(i))
    return kept


def suppressed(*arguments: np.ndarray, threshold: float, iou: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    given = {"threshold": jnp.float32(threshold), "iou": jnp.float32(iou)}
    indices, filled = jax.jit(suppress, static_argnames="limit")(*arguments, **given, limit=limit)
    return np.asarray(indices), np.asarray(filled)


def test_overlap_agrees_with_pycocotools() -> None:
    a, b = random_boxes(40), random_boxes(30)
    theirs = mask.iou(widths(a), widths(b), [0] * 30)
    np.testing.assert_allclose(jax.jit(overlap)(a[:, None], b[None]), theirs, atol=1e-6)
    empty = np.zeros(4, np.float32)
    assert overlap(empty, empty) == 0
    assert overlap(empty, a[0]) == 0
    assert np.isfinite(jax.grad(lambda x: overlap(x, empty))(empty)).all()


def test_corners_lie_half_a_size_from_the_centre() -> None:
    np.testing.assert_array_equal(corners(jnp.array([10.0, 20.0]), jnp.array([4.0, 6.0])), [8, 17, 12, 23])


@pytest.mark.parametrize("iou", [0.1, 0.4, 0.65])
@pytest.mark.parametrize("limit", [7, 300])
def test_suppression_is_greedy_and_class_wise(iou: float, limit: int) -> None:
    boxes, classes = random_boxes(5, 200), RNG.integers(0, 3, (5, 200)).astype(np.int32)
    scores = RNG.integers(0, 40, (5, 200)).astype(np.float32) / 40  # with ties
    scores[3] *= 0.05  # few boxes
    scores[4] = 0.0  # none
    indices, filled = suppressed(boxes, scores, classes, threshold=0.04, iou=iou, limit=limit)
    assert indices.shape == filled.shape == (5, min(limit, 200))
    for n in range(5):
        expected = greedy(boxes[n], scores[n], classes[n], 0.04, iou)[:limit]
        assert indices[n, filled[n]].tolist() == expected
        assert filled[n].sum() == len(expected)
        assert filled[n, : len(expected)].all()


def test_boxes_without_an_extent_go_one_by_one() -> None:
    boxes, classes = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4), np.int32)
    indices, filled = suppressed(boxes, np.full((1, 4), 0.5, np.float32), classes, threshold=0.1, iou=0.5, limit=4)
    assert filled.all()
    assert indices[0].tolist() == [0, 1, 2, 3]
