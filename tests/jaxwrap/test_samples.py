from __future__ import annotations

import decimal

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxwrap.arrays import Yuv400
from jaxwrap.colour import rgb_to_yuv420, yuv_to_rgb
from jaxwrap.samples import change_bit_depth, denormalise, normalise, round_half_away, to_integers


@pytest.mark.parametrize("library", [np, jnp])
def test_halves_round_away_from_zero_as_decimal_half_up_does(library) -> None:  # type: ignore[no-untyped-def]
    values = [-2.5, -1.5, -0.5, -0.4, 0.0, 0.5, 1.5, 2.4999, 2.5]
    wanted = [float(decimal.Decimal(v).quantize(decimal.Decimal(1), rounding=decimal.ROUND_HALF_UP)) for v in values]
    np.testing.assert_array_equal(np.asarray(round_half_away(library.asarray(values, np.float32))), np.float32(wanted))


@pytest.mark.parametrize("bit_depth", [8, 10])
def test_every_sample_survives_normalising_and_back(bit_depth: int) -> None:
    samples = np.arange(1 << bit_depth, dtype=np.uint16).reshape(1, 16, -1)
    x = normalise(Yuv400(samples), bit_depth)
    assert x.y.min() == -1.0
    assert x.y.max() == 1.0
    np.testing.assert_array_equal(to_integers(denormalise(x, bit_depth), bit_depth).y, samples)


def test_eight_bits_become_ten_by_shift_and_come_back() -> None:
    samples = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    ten = change_bit_depth(Yuv400(samples), 8, 10)
    np.testing.assert_array_equal(ten.y, samples.astype(np.uint16) * 4)
    np.testing.assert_array_equal(change_bit_depth(ten, 10, 8).y, samples)


def test_samples_that_are_not_finite_never_reach_an_encoder() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_integers(Yuv400(np.full((1, 8, 8), np.nan, np.float32)), 10)


def test_unsupported_depths_are_named() -> None:
    with pytest.raises(ValueError, match="bit depth 12"):
        normalise(Yuv400(np.zeros((1, 8, 8), np.uint16)), 12)


def test_colour_conversion_agrees_with_pillow_up_to_the_range_of_its_codes() -> None:
    # Pillow converts to full-range BT.601; limited-range codes are 16 + 219/255 of it for luma, 128 + 224/255 for
    # chroma. 1.5 codes: we round by up to 0.5, Pillow's sum of three rounded table entries is off by up to 1.
    rng = np.random.default_rng(0)
    rgb = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 2, 0), 2, 1)
    full = np.asarray(Image.fromarray(rgb).convert("YCbCr"), np.float64)
    ours = rgb_to_yuv420(rgb[None])
    assert np.abs(ours.y[0] - (16 + full[..., 0] * 219 / 255)).max() <= 1.5
    assert np.abs(ours.u[0] - (128 + (full[::2, ::2, 1] - 128) * 224 / 255)).max() <= 1.5
    assert np.abs(ours.v[0] - (128 + (full[::2, ::2, 2] - 128) * 224 / 255)).max() <= 1.5


@pytest.mark.parametrize("bit_depth", [8, 10])
def test_flat_colours_come_back_through_4_2_0(bit_depth: int) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (200, 30, 90)):
        rgb = np.broadcast_to(np.array(colour, np.uint8), (1, 6, 5, 3))
        back = yuv_to_rgb(rgb_to_yuv420(rgb, bit_depth=bit_depth), bit_depth=bit_depth)
        assert back.shape == (1, 6, 6, 3)
        assert np.abs(back.astype(int) - colour).max() <= 2
