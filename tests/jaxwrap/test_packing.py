"""Tiles against a loop over channels written from the design's words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.packing import TileLayout, from_tiles, pack, spread, to_tiles, unpack

LAYOUTS = [
    TileLayout(6, 5, 11),
    TileLayout(64, 8, 8),
    TileLayout(7, 3, 9),
    TileLayout(1, 16, 4),
    TileLayout(4, 3, 2, 1),
]


def latents_of(layout: TileLayout, n: int = 2) -> np.ndarray:
    shape = (n, layout.height, layout.width, layout.channels)
    return np.random.default_rng(layout.channels).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "pair"), [(64, (8, 8)), (1, (1, 1)), (7, (1, 7)), (12, (3, 4)), (48, (6, 8)), (256, (16, 16))]
)
def test_rows_and_columns_are_the_divisor_pair_nearest_a_square(channels, pair) -> None:
    layout = TileLayout(channels, 4, 4)
    assert (layout.rows, layout.cols) == pair
    pairs = [(r, channels // r) for r in range(1, channels + 1) if channels % r == 0]
    assert pair == min((p for p in pairs if p[0] <= p[1]), key=lambda p: p[1] - p[0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_channel_lies_in_its_tile_with_its_edge_repeated(layout) -> None:
    latents = latents_of(layout)
    frame = pack(latents, layout)
    assert frame.y.shape == (2, *layout.size)
    assert layout.tile_height % layout.multiple == layout.tile_width % layout.multiple == 0
    for c in range(layout.channels):
        top, left = c // layout.cols * layout.tile_height, c % layout.cols * layout.tile_width
        for row in range(layout.tile_height):
            for column in range(layout.tile_width):
                source = latents[:, min(row, layout.height - 1), min(column, layout.width - 1), c]
                np.testing.assert_array_equal(frame.y[:, top + row, left + column], source)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_unpacking_undoes_packing(layout) -> None:
    latents = latents_of(layout)
    frame = pack(latents, layout)
    assert isinstance(frame.y, np.ndarray)
    np.testing.assert_array_equal(unpack(frame, layout), latents)
    np.testing.assert_array_equal(from_tiles(to_tiles(frame, layout), layout).y, frame.y)
    traced = jax.jit(lambda x: unpack(pack(x, layout), layout))(jnp.asarray(latents))
    np.testing.assert_array_equal(traced, latents)


def test_spread_makes_each_tile_constant_with_its_padding() -> None:
    layout = TileLayout(6, 5, 11)
    latents = latents_of(layout)
    values = latents[:, 0, 0]
    frame = spread(values, layout)
    constant = np.broadcast_to(values[:, None, None], (2, 5, 11, 6))
    np.testing.assert_array_equal(frame.y, pack(constant, layout).y)
    np.testing.assert_array_equal(spread(jnp.asarray(values), layout).y, frame.y)


def test_what_does_not_fit_the_layout_is_refused() -> None:
    layout = TileLayout(6, 5, 11)
    with pytest.raises(ValueError, match=r"\(2, 5, 10, 6\).*\(5, 11, 6\)"):
        pack(np.zeros((2, 5, 10, 6)), layout)
    with pytest.raises(ValueError, match=r"y \(2, 16, 40\).*4:0:0 frames \[N, 16, 48\]"):
        unpack(Yuv400(np.zeros((2, 16, 40))), layout)
    with pytest.raises(ValueError, match="Yuv420"):
        unpack(Yuv420(np.zeros((2, 16, 48)), np.zeros((2, 8, 24)), np.zeros((2, 8, 24))), layout)
    with pytest.raises(ValueError, match=r"wanted \[N, 6\]"):
        spread(np.zeros((2, 5)), layout)
    for wrong in ({"channels": 0}, {"height": -1}, {"width": 2.0}, {"multiple": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            TileLayout(**{"channels": 1, "height": 1, "width": 1} | wrong)
