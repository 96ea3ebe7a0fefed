"""Features of boxes: RoIAlign on one scale and on a feature pyramid.

He et al. 2017, "Mask R-CNN", section 3; Lin et al. 2017, "Feature pyramid networks", equation 1.

Features are ``[N, H, W, C]``, boxes ``[N, K, 4]`` as (x0, y0, x1, y1) in pixels of the network's input; what comes
back is ``[N, K, size, size, C]``. Conventions are those of torchvision's region-based networks (``aligned=False``):
input pixel x lies at x / stride on the grid of features, without a shift by half a sample, and a box is taken as at
least one sample wide and high.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def roi_align(features: jax.Array, boxes: jax.Array, size: int, stride: float, samples: int = 2) -> jax.Array:
    """Bilinear samples of ``features [N, H, W, C]`` in each of ``boxes [N, K, 4]``, averaged over ``size²`` bins
    → ``[N, K, size, size, C]``.

    ``samples²`` points stand regularly in each bin. A point more than one sample outside the grid counts as zero, one
    nearer is moved to the border. Differentiable in the features; boxes are taken as constants (as in torchvision).
    """
    level = jnp.zeros(boxes.shape[:2], jnp.int32)
    return _align((features,), (stride,), boxes, level, size, samples)


def pyramid_roi_align(
    features: Sequence[jax.Array], strides: Sequence[float], boxes: jax.Array, size: int, samples: int = 2
) -> jax.Array:
    """`roi_align` in a pyramid, finest scale first: each box is read from the scale `pyramid_levels` gives it
    → ``[N, K, size, size, C]``. Strides are powers of two, each twice the one before."""
    lowest = round(np.log2(strides[0]))
    if any(stride != 2 ** (lowest + i) for i, stride in enumerate(strides)) or len(features) != len(strides):
        raise ValueError(
            f"{len(features)} scales of features at strides {tuple(strides)} were given; each needs a stride, a power "
            "of two and twice the one before"
        )
    return _align(
        features, strides, boxes, pyramid_levels(boxes, lowest, lowest + len(strides) - 1) - lowest, size, samples
    )


def pyramid_levels(
    boxes: jax.Array, lowest: int = 2, highest: int = 5, *, canonical_level: int = 4, canonical_size: float = 224.0
) -> jax.Array:
    """The scale of a feature pyramid that a box ``[…, 4]`` is read from: floor(k₀ + log₂(√area / 224)), within lowest
    … highest, int32 ``[…]`` (Lin et al. 2017, equation 1); level k has stride 2^k."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    side = jnp.sqrt(jnp.maximum(width * height, np.finfo(np.float32).tiny))  # of an empty place: no logarithm of 0
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)  # torchvision adds it against rounding
    return jnp.clip(level, lowest, highest).astype(jnp.int32)


def _align(
    features: Sequence[jax.Array],
    strides: Sequence[float],
    boxes: jax.Array,
    level: jax.Array,
    size: int,
    samples: int,
) -> jax.Array:
    """All scales lie in one table of samples, so that each box costs one scale and not all of them."""
    heights, widths = ([f.shape[axis] for f in features] for axis in (1, 2))
    offsets = np.cumsum([0, *(h * w for h, w in zip(heights, widths, strict=True))])[:-1]
    table = jnp.concatenate([f.reshape(f.shape[0], -1, f.shape[3]) for f in features], axis=1)  # [N, ΣHW, C]
    height, width, offset = (jnp.asarray(np.asarray(v, np.int32))[level] for v in (heights, widths, offsets))
    scale = jnp.asarray(1 / np.asarray(strides), jnp.float32)[level]
    box = jax.lax.stop_gradient(boxes) * scale[..., None]
    y, weight_y = _taps(box[..., 1], box[..., 3], height, size, samples)
    x, weight_x = _taps(box[..., 0], box[..., 2], width, size, samples)

    def add_tap(total: jax.Array, tap: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        """One of the (2 · samples)² samples that each bin sums."""
        y, weight_y, x, weight_x = tap  # [N, K, size]
        index = offset[..., None, None] + y[..., :, None] * width[..., None, None] + x[..., None, :]
        weight = weight_y[..., :, None] * weight_x[..., None, :]  # [N, K, size, size]
        read = jnp.take_along_axis(table, index.reshape(index.shape[0], -1, 1), axis=1).reshape(*index.shape, -1)
        return total + weight[..., None].astype(read.dtype) * read, None

    count = y.shape[0]
    pairs = (
        *(jnp.repeat(v, count, axis=0) for v in (y, weight_y)),
        *(jnp.tile(v, (count, 1, 1, 1)) for v in (x, weight_x)),
    )
    none = jnp.zeros((*boxes.shape[:2], size, size, table.shape[-1]), table.dtype)
    return jax.lax.scan(add_tap, none, pairs)[0]


def _taps(begin: jax.Array, end: jax.Array, length: jax.Array, size: int, samples: int) -> tuple[jax.Array, jax.Array]:
    """Along one axis: the samples that each bin reads and their weights, both ``[2 · samples, N, K, size]``.

    ``begin``, ``end``: of the boxes, in samples; ``length``: of the grid that each is read from.
    """
    step = jnp.maximum(end - begin, 1.0) / size
    place = jnp.asarray(
        np.arange(size, dtype=np.float32) + (np.arange(samples, dtype=np.float32)[:, None] + 0.5) / samples
    )  # [samples, size], in bins
    position = begin[None, ..., None] + place[:, None, None, :] * step[None, ..., None]  # [samples, N, K, size]
    last = (length - 1)[None, ..., None]
    inside = (position >= -1) & (position <= (last + 1).astype(position.dtype))
    position = jnp.clip(position, 0, last.astype(position.dtype))
    low = jnp.floor(position).astype(jnp.int32)
    fraction = position - low.astype(position.dtype)
    share = inside.astype(position.dtype) / samples
    index = jnp.concatenate([low, jnp.minimum(low + 1, last)])
    return index, jnp.concatenate([(1 - fraction) * share, fraction * share])
