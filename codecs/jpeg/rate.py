"""The size of a baseline JPEG, counted exactly on the device, without a host callback.

Planes are ``[N, H, W]`` with integer values in 0…255 (of any real dtype), each its own grayscale JPEG with the
Huffman codes of Annex K, as libjpeg writes it by default. Sizes that are not multiples of 8 are completed by edge
replication, as libjpeg does. Quantisation tables are ``[64]`` or one per picture ``[N, 64]``, in natural order,
integers in 1…255.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxwrap.codecs.jpeg.dct import islow_dct
from jaxwrap.codecs.jpeg.tables import AC_LENGTHS, DC_LENGTHS, END_OF_BLOCK, ZERO_RUN, ZIGZAG

from jaxwrap.arrays import Array


def entropy_coded_bits(plane: Array, table: Array) -> jax.Array:
    """Bits ``[N]`` int32 of the Huffman-coded data of each picture: exact, before byte stuffing and padding.

    See the module for ``plane`` and ``table``. This is what the proxy codec calls in every training step: the integer
    DCT, the quantiser and the count run in one fused loop over blocks.
    """
    levels = _quantise(plane, table)
    return _ac_bits(levels) + _dc_bits(levels[0])


def _quantise(plane: Array, table: Array) -> list[jax.Array]:
    """Quantised coefficients in zigzag order: 64 float32 arrays ``[N, H/8, W/8]`` of integers."""
    plane, table = jnp.asarray(plane, jnp.float32), jnp.asarray(table, jnp.float32)
    if plane.ndim != 3:
        raise ValueError(f"a plane of shape {plane.shape} was given; the JPEG rate wants [N, H, W]")
    n, h, w = plane.shape
    if table.shape not in ((64,), (n, 64)):
        raise ValueError(
            f"a quantisation table of shape {table.shape} was given; wanted [64] or [{n}, 64] in natural order"
        )
    table = jnp.broadcast_to(table, (n, 64))
    plane = jnp.pad(plane, ((0, 0), (0, -h % 8), (0, -w % 8)), mode="edge")
    coefficients = islow_dct(plane - 128.0)

    def level(index: int) -> jax.Array:
        c = coefficients[index // 8][index % 8]
        q = jnp.broadcast_to(table[:, index, None, None], c.shape)
        # (|c| + 4q) // 8q. Half a unit in the numerator keeps the rounded product on the right side of every integer.
        magnitude = jnp.floor((jnp.abs(c).astype(jnp.float32) + (4.0 * q + 0.5)) * (1.0 / (8.0 * q)))
        return jnp.where(c < 0, -magnitude, magnitude)

    return [level(int(index)) for index in ZIGZAG]


def _size(level: jax.Array) -> jax.Array:
    """Number of bits of |level| (0 for 0), int32: read from the exponent of the float32."""
    exponent = (jax.lax.bitcast_convert_type(jnp.abs(level), jnp.int32) >> 23) - 126
    return jnp.maximum(exponent, 0)


def _ac_bits(levels: list[jax.Array]) -> jax.Array:
    # Unrolled over the scan, elementwise over blocks: `run` and `bits` stay in registers of the one loop that XLA
    # makes of it.
    run = bits = jnp.zeros(levels[0].shape, jnp.int32)
    for level in levels[1:]:
        size = _size(level)
        zero_runs = int(AC_LENGTHS[ZERO_RUN]) * (run >> 4)
        bits = bits + jnp.where(size > 0, zero_runs + _ac_length(run & 15, size) + size, 0)
        run = jnp.where(size > 0, 0, run + 1)
    bits = bits + jnp.where(run > 0, int(AC_LENGTHS[END_OF_BLOCK]), 0)
    return jnp.sum(bits, axis=(1, 2))


def _dc_bits(level: jax.Array) -> jax.Array:
    n = level.shape[0]
    raster = level.reshape(n, -1)
    size = _size(jnp.diff(raster, axis=1, prepend=jnp.zeros((n, 1), raster.dtype)))
    return jnp.sum(jnp.asarray(DC_LENGTHS)[size] + size, axis=1)


def _nibbles(size: int, first_run: int) -> int:
    """Code lengths − 1 of eight runs at one size, 4 bits each, as a signed 32-bit number."""
    word = sum((int(AC_LENGTHS[16 * (first_run + i) + size]) - 1) << (4 * i) for i in range(8))
    return int(np.uint32(word).astype(np.int32))


_ALL_SIXTEEN = -1  # eight nibbles of 15: a code of 16 bits for every run
_SHORT_RUN_WORDS = {size: word for size in range(1, 11) if (word := _nibbles(size, 0)) != _ALL_SIXTEEN}
_LONG_RUN_WORDS = {size: word for size in range(1, 11) if (word := _nibbles(size, 8)) != _ALL_SIXTEEN}


def _ac_length(run: jax.Array, size: jax.Array) -> jax.Array:
    """Length of the Huffman code of (run 0…15, size 1…10).

    Selects and shifts on packed constants: XLA vectorises them, where a gather from the 16 × 10 table runs element by
    element (measured on CPU: the whole count takes 3.6 times as long with the gather).
    """
    short = long = jnp.full_like(run, _ALL_SIXTEEN)
    for value, word in _SHORT_RUN_WORDS.items():
        short = jnp.where(size == value, word, short)
    for value, word in _LONG_RUN_WORDS.items():
        long = jnp.where(size == value, word, long)
    return ((jnp.where(run < 8, short, long) >> ((run & 7) << 2)) & 15) + 1
