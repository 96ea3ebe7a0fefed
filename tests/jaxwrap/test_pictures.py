"""What networks are fed, from RGB and from coded samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Yuv420
from jaxwrap.tasks.pictures import PictureInput

RNG = np.random.default_rng(0)


def resized(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """By JAX, which has the same grid."""
    shape = (len(rgb), height, width, 3)
    return np.asarray(jax.image.resize(rgb.astype(np.float32), shape, "linear", antialias=False))


def test_rgb_is_stretched_reordered_and_normalised() -> None:
    rgb = RNG.integers(0, 256, (2, 30, 50, 3)).astype(np.uint8)
    expects = PictureInput(64, 32, order="bgr", mean=(1.0, 2.0, 3.0), deviation=(4.0, 5.0, 6.0))
    planes = expects.images_of_rgb(rgb)
    assert isinstance(planes, np.ndarray)
    assert planes.dtype == np.float32
    wanted = (resized(rgb, 64, 32)[..., ::-1] - np.float32([1, 2, 3]).reshape(1, 1, 1, 3)) / np.float32(
        [4, 5, 6]
    ).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(planes.transpose(0, 2, 3, 1), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("height", "width", "inner"), [(30, 50, (38, 64)), (51, 20, (64, 25)), (64, 64, (64, 64))])
def test_a_letterbox_keeps_the_picture_at_the_top_left(height: int, width: int, inner: tuple[int, int]) -> None:
    rgb = RNG.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    expects = PictureInput(64, 64, fit="letterbox")
    assert expects.size_in(height, width) == inner
    planes = expects.images_of_rgb(rgb).transpose(0, 2, 3, 1)
    assert planes.shape == (1, 64, 64, 3)
    np.testing.assert_allclose(planes[:, : inner[0], : inner[1]], resized(rgb, *inner), rtol=1e-4, atol=1e-3)
    assert (planes[:, inner[0] :] == 114).all()
    assert (planes[:, :, inner[1] :] == 114).all()
    vertical, horizontal = expects.scale_in(height, width)
    assert vertical == horizontal == 64 / max(height, width)


def test_grey_is_the_same_from_rgb_and_from_samples() -> None:
    grey = RNG.integers(0, 256, (1, 20, 30)).astype(np.uint8)
    luma = (16 + grey * (219 / 255)).astype(np.float32)
    neutral = np.full((1, 10, 15), 128, np.float32)
    expects = PictureInput(32, 32, fit="letterbox", order="bgr")
    samples = expects.images(Yuv420(jnp.asarray(luma), jnp.asarray(neutral), jnp.asarray(neutral)))
    np.testing.assert_allclose(expects.images_of_rgb(np.stack([grey] * 3, -1)), samples, atol=1e-2)


@pytest.mark.parametrize("rgb", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32)])
def test_what_is_not_rgb_of_bytes_is_refused(rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"was given; wanted uint8 \[N, H, W, 3\]"):
        PictureInput().images_of_rgb(rgb)
