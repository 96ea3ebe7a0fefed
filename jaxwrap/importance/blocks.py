"""Means of planes: over whole pictures, and over the 16×16 blocks that an encoder acts on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxwrap.arrays import Frame, crop_to, pad_to, size_of

BLOCK = 16
"""Side, in luma samples, of the blocks whose mean has a standard error of its own (an encoder acts on such blocks)."""


def fixed_sum(x: jax.Array, axis: int) -> jax.Array:
    """Sum along an axis, by halves: in an order that does not depend on the other axes.

    A compiler chooses the order of an ordinary sum by the array's whole shape: the bytes would change with the batch.
    """
    x = jnp.moveaxis(x, axis, 0)
    size = 1 << (x.shape[0] - 1).bit_length()
    x = jnp.pad(x, ((0, size - x.shape[0]), *((0, 0),) * (x.ndim - 1)))
    while size > 1:
        size //= 2
        x = x[:size] + x[size:]
    return x[0]


def frame_sum(plane: jax.Array) -> jax.Array:
    """Sum of each picture of a plane, ``[N]``."""
    return fixed_sum(fixed_sum(plane, 1), 1)


@jax.jit
def frame_mean(frame: Frame) -> jax.Array:
    """Mean over all samples of all planes of each picture, ``[N]``; does not depend on the batch, to the last bit."""
    total = sum(frame_sum(jnp.asarray(p)) for p in frame.planes)
    return total / sum(p.shape[1] * p.shape[2] for p in frame.planes)


def block_means(frame: Frame) -> Frame:
    """Means over 16×16 luma blocks and the chroma blocks at the same place, ``[N, ⌈H/16⌉, ⌈W/16⌉]`` per plane.

    Blocks cut by the right or lower edge are filled by replication.
    """
    height, width = size_of(frame)
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)

    def means(plane: jax.Array) -> jax.Array:
        n, h, w = plane.shape
        blocks = plane.reshape(n, rows, h // rows, cols, w // cols)
        return fixed_sum(fixed_sum(blocks, 4), 2) / (h // rows * (w // cols))

    return jax.tree.map(means, pad_to(frame, rows * BLOCK, cols * BLOCK))


def spread_blocks(blocks: Frame, like: Frame) -> Frame:
    """One value per block → every sample of the block, at the size of ``like``: the way back of `block_means`."""
    height, width = size_of(like)
    side = [BLOCK * p.shape[1] // height for p in like.planes]
    whole = [jnp.repeat(jnp.repeat(p, n, 1), n, 2) for p, n in zip(blocks.planes, side, strict=True)]
    return crop_to(type(like)(*whole), height, width)
