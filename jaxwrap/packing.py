"""Stage 3: feature channels ↔ one packed 4:0:0 frame of tiles.

Latents are ``[N, h, w, C]``, of any real values; a packed frame is a `Yuv400` with planes ``[N, rows · tile_height,
cols · tile_width]`` and the same values: mapping them to samples of d bits comes after. Channel c is the tile at row
c // cols, column c % cols; rows × cols is the divisor pair of C nearest a square, rows ≤ cols. Tiles are padded at the
bottom and right, by edge replication, to a multiple of 8, so that no coding block straddles two channels.

NumPy in, NumPy out; JAX in, JAX out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Array, Frame, Yuv400


@dataclasses.dataclass(frozen=True, slots=True)
class TileLayout:
    """Where C channels of ``height × width`` lie in a packed frame; hashable. ``multiple``: what tile sides are padded
    to. Raises `ValueError` for numbers that are not whole and ≥ 1."""

    channels: int
    height: int
    width: int
    multiple: int = 8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"tile layout: {field.name} is {value!r}; wanted a whole number ≥ 1")

    @property
    def rows(self) -> int:
        """Rows of tiles: the largest divisor of the channels that is ≤ their square root."""
        return next(r for r in range(math.isqrt(self.channels), 0, -1) if self.channels % r == 0)

    @property
    def cols(self) -> int:
        """Columns of tiles."""
        return self.channels // self.rows

    @property
    def tile_height(self) -> int:
        """Height of a tile with its padding."""
        return -(-self.height // self.multiple) * self.multiple

    @property
    def tile_width(self) -> int:
        """Width of a tile with its padding."""
        return -(-self.width // self.multiple) * self.multiple

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the packed frame."""
        return self.rows * self.tile_height, self.cols * self.tile_width


def pack(latents: Array, layout: TileLayout) -> Yuv400:
    """Latents ``[N, h, w, C]`` → packed frame. Raises `ValueError` where they are not the layout's."""
    wanted = (layout.height, layout.width, layout.channels)
    if len(latents.shape) != 4 or tuple(latents.shape[1:]) != wanted:
        raise ValueError(f"latents of shape {tuple(latents.shape)} were given; wanted [N, h, w, C] = [N, *{wanted}]")
    bottom, right = layout.tile_height - layout.height, layout.tile_width - layout.width
    padded = _namespace(latents).pad(latents, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
    return from_tiles(padded, layout)


def unpack(frame: Frame, layout: TileLayout) -> Any:
    """Packed frame → latents ``[N, h, w, C]``; the padding is dropped. Raises `ValueError` where it does not fit."""
    return to_tiles(frame, layout)[:, : layout.height, : layout.width]


def to_tiles(frame: Frame, layout: TileLayout) -> Any:
    """Packed frame → its tiles with their padding, ``[N, tile_height, tile_width, C]``. Errors as in `unpack`."""
    if not isinstance(frame, Yuv400) or len(frame.y.shape) != 3 or tuple(frame.y.shape[1:]) != layout.size:
        (height, width), shape = layout.size, tuple(frame.y.shape)
        raise ValueError(
            f"a {type(frame).__name__} with y {shape} was given; {layout.channels} tiles of {layout.width}×"
            f"{layout.height} are packed into 4:0:0 frames [N, {height}, {width}]"
        )
    split = frame.y.reshape(-1, layout.rows, layout.tile_height, layout.cols, layout.tile_width)
    tiles = split.transpose(0, 2, 4, 1, 3)  # [N, tile_height, tile_width, rows, cols]
    return tiles.reshape(*tiles.shape[:3], layout.channels)


def from_tiles(tiles: Array, layout: TileLayout) -> Yuv400:
    """Inverse of `to_tiles`."""
    n = tiles.shape[0]
    split = tiles.reshape(n, layout.tile_height, layout.tile_width, layout.rows, layout.cols)
    return Yuv400(split.transpose(0, 3, 1, 4, 2).reshape(n, *layout.size))


def spread(values: Array, layout: TileLayout) -> Yuv400:
    """One value per channel ``[N, C]`` → a packed frame that is constant on each tile, padding included."""
    if len(values.shape) != 2 or values.shape[1] != layout.channels:
        raise ValueError(f"values of shape {tuple(values.shape)} were given; wanted [N, {layout.channels}]")
    shape = (values.shape[0], layout.tile_height, layout.tile_width, layout.channels)
    return from_tiles(_namespace(values).broadcast_to(values[:, None, None], shape), layout)


def _namespace(array: Array) -> Any:
    return np if isinstance(array, np.ndarray) else jnp
