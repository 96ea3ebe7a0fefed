"""Stage ``shuffle``: the control of every gain by weights. The same weights, elsewhere in the picture.

A map changes two things at once: where bits go, and (through the spread of its values) what the encoder's λ amounts to.
With its 16×16 blocks permuted the values stay, block by block, and what they had to do with the picture is gone.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import size_of
from jaxwrap.codec import RowWeights, Weights
from jaxwrap.importance.blocks import BLOCK

_STREAM = 0x5F1E
"""Keeps the permutation apart from the sketches that are drawn from the same key."""


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """Permutes the 16×16 luma blocks of the weights, or of the rows, of the stage before it, with the chroma blocks at
    the same place. One permutation, from the key, for all frames: what is held over frames stays held.

    Blocks that the right or lower edge cuts change places among those of their size, so that a frame keeps its weights
    to the last one. Weights that differ between planes only, such as a calibrated map's, are not changed by it.
    """

    name: ClassVar[str] = "shuffle"
    draws: ClassVar[bool] = True

    def reweigh(self, weights: Weights | RowWeights, key: jax.Array | None) -> Weights | RowWeights:
        """The permuted weights. Raises `ValueError` without a key."""
        if key is None:
            raise ValueError("shuffle draws a permutation: give plan a key (jax.random.key(0))")
        planes = weights.planes if isinstance(weights, Weights) else weights.rows
        height, width = size_of(planes)
        order = _permutation(key, height, width)
        moved = jax.tree.map(lambda p: _move(p, order, BLOCK * p.shape[-2] // height), planes)
        if isinstance(weights, Weights):
            return dataclasses.replace(weights, planes=moved)
        return dataclasses.replace(weights, rows=moved)


def _permutation(key: jax.Array, height: int, width: int) -> np.ndarray:
    """Which block comes to each place, ``[⌈H/16⌉, ⌈W/16⌉]``, by numbers in raster order."""
    order = np.arange(-(-height // BLOCK) * -(-width // BLOCK)).reshape(-(-height // BLOCK), -1)
    whole_rows, whole_columns = height // BLOCK, width // BLOCK
    groups = [(slice(0, whole_rows), slice(whole_rows, None)), (slice(0, whole_columns), slice(whole_columns, None))]
    for number, place in enumerate((rows, columns) for rows in groups[0] for columns in groups[1]):
        group = order[place]
        drawn = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, _STREAM), number), group.size)
        order[place] = group.ravel()[np.asarray(drawn)].reshape(group.shape)
    return order


def _move(plane: jax.Array, order: np.ndarray, side: int) -> jax.Array:
    height, width = plane.shape[-2:]
    rows, columns = order.shape
    padding = [(0, 0)] * (plane.ndim - 2) + [(0, rows * side - height), (0, columns * side - width)]
    blocks = jnp.pad(jnp.asarray(plane), padding).reshape(*plane.shape[:-2], rows, side, columns, side)
    blocks = blocks.swapaxes(-2, -3).reshape(*plane.shape[:-2], rows * columns, side, side)  # [… blocks, b, b]
    moved = blocks[..., order.ravel(), :, :].reshape(*plane.shape[:-2], rows, columns, side, side)
    return moved.swapaxes(-2, -3).reshape(*plane.shape[:-2], rows * side, columns * side)[..., :height, :width]
