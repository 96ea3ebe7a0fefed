"""Stage 4: samples of d bits ↔ the normalised range of networks, and the project's one rounding rule.

Full code range, x = 2 s / (2^d − 1) − 1, for every plane. Rounding is **half away from zero** everywhere (NumPy's and
JAX's ``round`` go to even). Integer samples are uint8 for d = 8 and uint16 for d = 10.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Array, Frame

BIT_DEPTHS = (8, 10)


def max_sample(bit_depth: int) -> int:
    """2^d − 1. Raises `ValueError` for depths other than 8 and 10."""
    if bit_depth not in BIT_DEPTHS:
        raise ValueError(f"bit depth {bit_depth} was given; supported: {', '.join(map(str, BIT_DEPTHS))}")
    return (1 << bit_depth) - 1


def round_half_away(x: Array) -> Array:
    """Nearest integer, halves away from zero. NumPy in, NumPy out; JAX in, JAX out."""
    if isinstance(x, np.ndarray):
        return np.trunc(x + np.copysign(np.asarray(0.5, x.dtype), x))
    return jnp.trunc(x + jnp.copysign(jnp.asarray(0.5, x.dtype), x))


def normalise(frame: Frame, bit_depth: int) -> Frame:
    """Samples ``[0, 2^d − 1]`` of any dtype → float32 ``[−1, 1]`` (floats keep their dtype)."""
    scale = 2.0 / max_sample(bit_depth)

    def one(plane: Any) -> Any:
        xp = np if isinstance(plane, np.ndarray) else jnp
        if not xp.issubdtype(plane.dtype, xp.floating):
            plane = plane.astype(xp.float32)
        return plane * plane.dtype.type(scale) - plane.dtype.type(1.0)

    return jax.tree.map(one, frame)


def denormalise(frame: Frame, bit_depth: int) -> Frame:
    """Normalised ``[−1, 1]`` → real-valued samples, neither rounded nor clipped (the codec does both)."""
    half = 0.5 * max_sample(bit_depth)
    return jax.tree.map(lambda plane: (plane + plane.dtype.type(1.0)) * plane.dtype.type(half), frame)


def to_integers(frame: Frame, bit_depth: int) -> Frame:
    """Real-valued samples → clipped, rounded NumPy integers: uint8 (d = 8) or uint16 (d = 10)."""
    top = max_sample(bit_depth)
    dtype = np.uint8 if bit_depth == 8 else np.uint16

    def one(plane: Any) -> np.ndarray:
        values = np.asarray(plane)
        if np.issubdtype(values.dtype, np.floating):
            if not np.isfinite(values).all():
                raise ValueError("samples hold NaN or infinity; an encoder takes finite values in [0, 2^d − 1]")
            values = np.asarray(round_half_away(values))
        return np.clip(values, 0, top).astype(dtype)

    return jax.tree.map(one, frame)


def change_bit_depth(frame: Frame, bit_depth: int, new_bit_depth: int) -> Frame:
    """Integer samples to another depth by shift (8 → 10: × 4; 10 → 8: rounded and clipped). Returns NumPy integers."""
    max_sample(bit_depth), max_sample(new_bit_depth)
    shift = new_bit_depth - bit_depth
    if shift >= 0:
        return to_integers(jax.tree.map(lambda p: np.asarray(p).astype(np.uint16) << shift, frame), new_bit_depth)
    return to_integers(jax.tree.map(lambda p: np.asarray(p, np.float32) / 2.0**-shift, frame), new_bit_depth)
