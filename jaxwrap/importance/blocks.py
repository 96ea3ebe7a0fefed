"""Means of planes: over whole pictures, and over the 16×16 blocks that an encoder acts on."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxwrap.arrays import Frame, crop_to, pad_to, size_of

BLOCK = 16
"""Side, in luma samples, of the blocks whose mean has a standard error of its own (an encoder acts on such blocks)."""


def frame_mean(frame: Frame) -> jax.Array:
    """Mean over all samples of all planes of each picture, ``[N]``."""
    total = sum(jnp.sum(jnp.asarray(p), (1, 2)) for p in frame.planes)
    return total / sum(p.shape[1] * p.shape[2] for p in frame.planes)


def block_means(frame: Frame) -> Frame:
    """Means over 16×16 luma blocks and the chroma blocks at the same place, ``[N, ⌈H/16⌉, ⌈W/16⌉]`` per plane.

    Blocks cut by the right or lower edge are filled by replication.
    """
    height, width = size_of(frame)
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    padded = pad_to(frame, rows * BLOCK, cols * BLOCK)
    return jax.tree.map(
        lambda p: p.reshape(p.shape[0], rows, p.shape[1] // rows, cols, p.shape[2] // cols).mean((2, 4)), padded
    )


def spread_blocks(blocks: Frame, like: Frame) -> Frame:
    """One value per block → every sample of the block, at the size of ``like``: the way back of `block_means`."""
    height, width = size_of(like)
    side = [BLOCK * p.shape[1] // height for p in like.planes]
    whole = [jnp.repeat(jnp.repeat(p, n, 1), n, 2) for p, n in zip(blocks.planes, side, strict=True)]
    return crop_to(type(like)(*whole), height, width)
