"""RoIAlign against its definition, written as loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.tasks.roi import pyramid_levels, pyramid_roi_align, roi_align

BOXES = np.array(
    [
        [3.0, 5.0, 41.0, 30.5],
        [0.0, 0.0, 64.0, 48.0],
        [-9.0, -7.0, 20.0, 11.0],  # begins outside
        [50.0, 40.0, 90.0, 75.0],  # ends outside by more than a sample
        [10.2, 10.4, 10.9, 11.0],  # smaller than a sample of the features
        [0.0, 0.0, 0.0, 0.0],  # an empty place
    ],
    np.float32,
)


def bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    """One point of ``[H, W, C]``."""
    height, width, channels = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    upper = features[y0, x0] * (1 - (x - x0)) + features[y0, x1] * (x - x0)
    lower = features[y1, x0] * (1 - (x - x0)) + features[y1, x1] * (x - x0)
    return upper * (1 - (y - y0)) + lower * (y - y0)


def roi_align_by_loops(features: np.ndarray, box: np.ndarray, size: int, stride: float, samples: int) -> np.ndarray:
    """One box in ``[H, W, C]`` → ``[size, size, C]``."""
    x0, y0, x1, y1 = box / stride
    width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    pooled = np.zeros((size, size, features.shape[-1]))
    for i, j, a, b in np.ndindex(size, size, samples, samples):
        y = y0 + (i + (a + 0.5) / samples) * height / size
        x = x0 + (j + (b + 0.5) / samples) * width / size
        pooled[i, j] += bilinear(features, y, x) / samples**2
    return pooled


@pytest.mark.parametrize(("size", "stride", "samples"), [(3, 4, 2), (2, 8, 1), (4, 4, 3)])
def test_it_is_the_mean_of_bilinear_samples(size: int, stride: int, samples: int) -> None:
    features = np.random.default_rng(0).normal(size=(2, 48 // stride, 64 // stride, 3)).astype(np.float32)
    pooled = jax.jit(roi_align, static_argnums=(2, 3, 4))(features, np.stack([BOXES, BOXES + 2]), size, stride, samples)
    for n, k in np.ndindex(2, len(BOXES)):
        expected = roi_align_by_loops(features[n], BOXES[k] + 2 * n, size, stride, samples)
        np.testing.assert_allclose(pooled[n, k], expected, atol=1e-5)


def test_the_level_follows_the_side_of_the_box() -> None:
    sides = np.array([0, 10, 111, 112, 223, 224, 447, 448, 5000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(pyramid_levels(jnp.asarray(boxes)), [2, 2, 2, 3, 3, 4, 4, 5, 5])


def test_each_box_is_read_from_its_scale() -> None:
    rng = np.random.default_rng(1)
    strides = (4, 8, 16)
    features = [rng.normal(size=(1, 512 // s, 640 // s, 2)).astype(np.float32) for s in strides]
    boxes = np.array([[[4, 8, 60, 90], [10, 20, 200, 150], [0, 0, 639, 511], [300, 40, 540, 300]]], np.float32)
    pooled = pyramid_roi_align([jnp.asarray(f) for f in features], strides, jnp.asarray(boxes), 3)
    levels = [0, 1, 2, 2]
    for k, level in enumerate(levels):
        expected = roi_align_by_loops(features[level][0], boxes[0, k], 3, strides[level], 2)
        np.testing.assert_allclose(pooled[0, k], expected, atol=1e-5)


def test_its_gradient_is_its_transpose() -> None:
    """⟨A f, u⟩ = ⟨f, Aᵀ u⟩, and A is linear."""
    rng = np.random.default_rng(2)
    features, boxes = jnp.asarray(rng.normal(size=(1, 12, 16, 3)), jnp.float32), jnp.asarray(BOXES[None])
    pooled, transpose = jax.vjp(lambda f: roi_align(f, boxes, 3, 4), features)
    u = jnp.asarray(rng.normal(size=pooled.shape), jnp.float32)
    np.testing.assert_allclose(jnp.vdot(pooled, u), jnp.vdot(features, transpose(u)[0]), rtol=1e-4)


def test_strides_that_do_not_double_are_refused() -> None:
    features = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="twice the one before"):
        pyramid_roi_align([features, features], (4, 16), jnp.zeros((1, 1, 4)), 2)
