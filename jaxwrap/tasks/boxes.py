"""Boxes ``(x0, y0, x1, y1)`` in pixels, x to the right, y down; a box covers x1 − x0 by y1 − y0, without a further
pixel."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp

_State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def corners(centres: jax.Array, sizes: jax.Array) -> jax.Array:
    """Boxes ``[…, 4]`` around centres ``[…, 2]`` (x, y) of sizes ``[…, 2]`` (width, height)."""
    return jnp.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)


def overlap(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union (IoU) of boxes ``[…, 4]`` and ``[…, 4]`` of broadcastable leading axes, in [0, 1]; 0
    where both are empty."""
    sides = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0.0)
    shared = sides[..., 0] * sides[..., 1]
    united = area(a) + area(b) - shared
    return jnp.where(united > 0, shared / jnp.where(united > 0, united, 1.0), 0.0)


def area(boxes: jax.Array) -> jax.Array:
    """Areas ``[…]`` of boxes ``[…, 4]``; 0 for those with a negative side."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def suppress(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, *, threshold: jax.Array, iou: jax.Array, limit: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy class-wise non-maximum suppression of each picture, exactly: ``boxes [N, A, 4]``, ``scores [N, A]`` ≥ 0,
    ``classes [N, A]`` → indices ``[N, K]`` of the ``limit`` = K best survivors, best first (of equal scores the first),
    and which places of K are filled ``[N, K]``.

    Of the boxes that score above ``threshold`` the best one survives, those of its class that overlap it by more than
    ``iou`` go, and so on. One survivor is found per step, of all pictures at once: N · A overlaps, where a matrix of
    candidates would take a square of A, or a cut that changes the result. It stops when no picture has a box left.
    """
    limit = min(limit, boxes.shape[1])
    start = (
        jnp.zeros((), jnp.int32),
        jnp.where(scores > threshold, scores, -1.0),  # [N, A], −1: gone
        jnp.zeros((boxes.shape[0], limit), jnp.int32),
        jnp.zeros((boxes.shape[0], limit), bool),
    )

    def unfinished(state: _State) -> jax.Array:
        step, left, _, _ = state
        return (step < limit) & (left >= 0).any()

    def keep_best(state: _State) -> _State:
        step, left, indices, filled = state
        best = jnp.argmax(left, axis=1)[:, None]  # [N, 1]
        found = jnp.take_along_axis(left, best, axis=1) >= 0
        box = jnp.take_along_axis(boxes, best[..., None], axis=1)  # [N, 1, 4]
        same = classes == jnp.take_along_axis(classes, best, axis=1)
        gone = (same & (overlap(boxes, box) > iou)) | (jnp.arange(left.shape[1])[None] == best)
        indices = jax.lax.dynamic_update_index_in_dim(indices, best[:, 0].astype(jnp.int32), step, axis=1)
        filled = jax.lax.dynamic_update_index_in_dim(filled, found[:, 0], step, axis=1)
        return step + 1, jnp.where(gone, -1.0, left), indices, filled

    _, _, indices, filled = jax.lax.while_loop(unfinished, keep_best, start)
    return indices, filled
