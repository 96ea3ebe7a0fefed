"""RGB ↔ Y'CbCr 4:2:0 (ITU-R BT.601, limited range), for pictures that come as RGB.

Video files keep the planes they carry; only RGB sources and pictures for the eye pass here. Chroma is the 2×2 mean
(sited at the centre of the four luma samples) and is repeated 2×2 on the way back.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, Yuv420, pad_to_multiple
from jaxwrap.samples import max_sample, to_integers

# BT.601-7, section 2.5.1, for E' in [0, 1] → 8-bit codes; the rows give Y' (16 … 235), Cb, Cr (16 … 240).
_RGB_TO_YUV = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_OFFSET = np.array([16.0, 128.0, 128.0])
_YUV_TO_RGB = np.linalg.inv(_RGB_TO_YUV)


def rgb_to_yuv420(rgb: np.ndarray, *, bit_depth: int = 8) -> Yuv420:
    """RGB uint8 ``[N, H, W, 3]`` → integer 4:2:0 samples of ``bit_depth`` bits; odd sizes are edge-padded to even
    ones."""
    if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"RGB of shape {rgb.shape}, {rgb.dtype} was given; wanted uint8 [N, H, W, 3]")
    max_sample(bit_depth)
    yuv = rgb.astype(np.float64) / 255.0 @ _RGB_TO_YUV.T + _OFFSET
    yuv *= 1 << (bit_depth - 8)
    full = pad_to_multiple(Yuv420(yuv[..., 0], yuv[..., 1], yuv[..., 2]), 2)
    n, h, w = full.y.shape
    u, v = (p.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4)) for p in full.planes[1:])  # [N, H/2, W/2]
    result = to_integers(Yuv420(full.y, u, v), bit_depth)
    assert isinstance(result, Yuv420)
    return result


def rgb_from_yuv(frame: Frame, *, bit_depth: int = 8) -> Any:
    """Samples ``[0, 2^d − 1]`` (4:2:0, or 4:0:0 taken as neutral chroma) → real RGB ``[N, H, W, 3]``, nominally
    ``[0, 255]``, neither rounded nor clipped: linear, so a network that looks at pictures stays differentiable.

    NumPy in, NumPy out; JAX in, JAX out, in the planes' own real type (float32 for integers).
    """
    max_sample(bit_depth)
    xp = np if isinstance(frame.y, np.ndarray) else jnp

    def scaled(plane: Any) -> Any:
        real = plane if xp.issubdtype(plane.dtype, xp.floating) else plane.astype(np.float32)
        return real * real.dtype.type(1.0 / (1 << (bit_depth - 8)))

    y = scaled(frame.y)
    if isinstance(frame, Yuv420):
        u, v = (scaled(p).repeat(2, 1).repeat(2, 2) for p in (frame.u, frame.v))
    else:
        u = v = xp.full_like(y, 128.0)
    # Sums rather than a matrix product, which a GPU may round to ten bits.
    rgb = [
        sum(plane * y.dtype.type(255.0 * a) for plane, a in zip((y, u, v), row, strict=True))
        - y.dtype.type(255.0 * (row @ _OFFSET))
        for row in _YUV_TO_RGB
    ]
    return xp.stack(rgb, -1)


def yuv_to_rgb(frame: Frame, *, bit_depth: int = 8) -> np.ndarray:
    """Samples (4:2:0, or 4:0:0 taken as neutral chroma) → RGB uint8 ``[N, H, W, 3]`` for display."""
    rgb = rgb_from_yuv(jax.tree.map(lambda plane: np.asarray(plane, np.float64), frame), bit_depth=bit_depth)
    return np.clip(np.floor(rgb + 0.5), 0, 255).astype(np.uint8)
