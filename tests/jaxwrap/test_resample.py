"""Resampling against PIL and against a dense matrix built from the kernel's definition."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.wrappers.resample import KINDS, RATIOS, Kind, resample, resample_plane

ALL_RATIOS = sorted({*RATIOS, *(1 / r for r in RATIOS)})


def dense_matrix(size: int, new_size: int, kind: Kind) -> np.ndarray:
    """[new_size, size] by definition: the stretched kernel at half-pixel centres, normalised, folded at the border."""
    matrix = np.zeros((new_size, size))
    stretch = max(1.0, size / new_size)
    taps = np.arange(-5 * size, 6 * size)
    for i in range(new_size):
        x = (taps - ((i + 0.5) * size / new_size - 0.5)) / stretch
        if kind == "bilinear":
            values = np.maximum(0.0, 1.0 - np.abs(x))
        else:
            values = np.where(np.abs(x) < 4, np.sinc(x) * np.sinc(x / 4), 0.0)
        np.add.at(matrix[i], taps.clip(0, size - 1), values / values.sum())
    return matrix


@pytest.mark.parametrize("ratio", ALL_RATIOS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_resampling_equals_the_dense_matrix_of_the_kernel(kind: Kind, ratio: Fraction) -> None:
    h, w = 12, 24
    plane = np.random.default_rng(0).uniform(-1, 1, (2, h, w)).astype(np.float32)
    new_h, new_w = int(h * ratio), int(w * ratio)
    expected = dense_matrix(h, new_h, kind) @ plane @ dense_matrix(w, new_w, kind).T
    got = resample_plane(jnp.asarray(plane), new_h, new_w, kind)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("ratio", ALL_RATIOS, ids=str)
def test_bilinear_equals_pillow_away_from_the_border(ratio: Fraction) -> None:
    # Pillow renormalises at the border instead of replicating it: what the kernel's support touches is left out.
    h, w = 36, 48
    plane = np.random.default_rng(1).uniform(0, 255, (h, w)).astype(np.float32)
    size = (int(w * ratio), int(h * ratio))
    expected = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
    got = np.asarray(resample_plane(jnp.asarray(plane), size[1], size[0], "bilinear"))
    margin = max(2, int(2 * ratio))
    inner = (slice(margin, -margin), slice(margin, -margin))
    np.testing.assert_allclose(got[inner], expected[inner], atol=1e-3)


def test_planes_of_a_frame_are_resampled_alike() -> None:
    y, u, v = jnp.ones((1, 16, 24)), jnp.full((1, 8, 12), 2.0), jnp.full((1, 8, 12), 3.0)
    frame = resample(Yuv420(y, u, v), 8, 12, "lanczos4")
    for plane, shape, value in zip(frame.planes, [(1, 8, 12), (1, 4, 6), (1, 4, 6)], [1, 2, 3], strict=True):
        assert plane.shape == shape
        np.testing.assert_allclose(plane, value, rtol=1e-6)
    assert resample(Yuv400(y), 32, 48, "bilinear").y.shape == (1, 32, 48)


def test_gradient_of_resampling_is_its_transposed_matrix() -> None:
    matrix = dense_matrix(12, 8, "lanczos4")
    cotangent = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    _, pullback = jax.vjp(lambda p: resample_plane(p, 8, 6, "lanczos4"), jnp.zeros((12, 9)))
    np.testing.assert_allclose(
        pullback(jnp.asarray(cotangent))[0], matrix.T @ cotangent @ dense_matrix(9, 6, "lanczos4"), atol=2e-6
    )


def test_unknown_kernels_and_wild_ratios_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'cubic'.*bilinear, lanczos4"):
        resample_plane(jnp.zeros((4, 4)), 2, 2, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ratio of 5/13"):
        resample_plane(jnp.zeros((13, 13)), 5, 5, "bilinear")
    with pytest.raises(ValueError, match="even width"):
        resample(Yuv420(jnp.zeros((1, 4, 4)), jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2))), 3, 4, "bilinear")
