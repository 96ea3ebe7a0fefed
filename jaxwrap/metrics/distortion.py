"""Distortion of decoded frames: MSE, PSNR per plane, YUV-PSNR 6:1:1, MS-SSIM of luma, receiver SNR.

Frames are integer samples ``[0, 2^d − 1]`` with planes ``[N, H, W]``; source and reconstruction have the same size and
the same depth d, whose peak is 2^d − 1. Squared errors are summed as integers, so PSNR is exact to float64. Everything
here is NumPy on the host but `ms_ssim`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.samples import max_sample

PSNR_CAP_DB = 100.0
"""PSNR given to a plane that equals its source: infinity would swallow every mean that it enters."""

PLANE_WEIGHTS = (6.0, 1.0, 1.0)
"""Weights of Y, U and V in YUV-PSNR (SNW section 4.1; common for 4:2:0), and in the metric of importance maps."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang, Simoncelli, Bovik 2003, section 3.2)."""

MS_SSIM_MIN_SIDE = 161
"""Smallest side for which the coarsest of five scales still holds one 11×11 window."""

_WINDOW, _SIGMA = 11, 1.5


def mse(source: Frame, decoded: Frame) -> np.ndarray:
    """Mean squared error of each picture and plane, in squared sample units.

    Returns float64 ``[N, planes]``. Raises `ValueError` where sizes or chroma formats differ or samples are not
    integers.
    """
    _check_pair(source, decoded)
    columns = []
    for a, b in zip(source.planes, decoded.planes, strict=True):
        error = np.asarray(a).astype(np.int32) - np.asarray(b).astype(np.int32)
        columns.append(np.mean(np.square(error, dtype=np.int64), axis=(1, 2), dtype=np.float64))
    return np.stack(columns, axis=1)


def psnr(source: Frame, decoded: Frame, bit_depth: int) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture and plane in dB, 10 log₁₀((2^d − 1)² / MSE), at most `PSNR_CAP_DB`.

    Returns float64 ``[N, planes]``.
    """
    error = mse(source, decoded)
    peak = float(max_sample(bit_depth)) ** 2
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(peak / error), PSNR_CAP_DB)


def mean_psnr(source: Frame, decoded: Frame, bit_depth: int) -> tuple[float, float]:
    """(PSNR-Y, YUV-PSNR) of a clip in dB: the means of the frames' PSNRs, Y, U and V weighted 6:1:1 (4:0:0: Y alone).

    Frame PSNRs are averaged, not their errors, as the common test conditions of HEVC and VVC do.
    """
    planes = psnr(source, decoded, bit_depth).mean(axis=0)
    weights = np.asarray(PLANE_WEIGHTS[: planes.size])
    return float(planes[0]), float(planes @ weights / weights.sum())


def receiver_snr(wanted: Any, received: Any) -> float:
    """Signal-to-noise ratio at a receiver's output in dB, 10 log₁₀(‖y‖² / ‖y − ŷ‖²), over all leaves of two pytrees.

    Returns `PSNR_CAP_DB` at most, as for PSNR. Raises `ValueError` where shapes differ or y is zero throughout.
    """
    pairs = list(zip(jax.tree.leaves(wanted), jax.tree.leaves(received), strict=True))
    signal = noise = 0.0
    for y, y_hat in pairs:
        a, b = np.asarray(y, np.float64), np.asarray(y_hat, np.float64)
        if a.shape != b.shape:
            raise ValueError(
                f"receiver outputs of shapes {a.shape} and {b.shape} cannot be compared; they must be alike"
            )
        signal += float(np.sum(a * a))
        noise += float(np.sum((a - b) ** 2))
    if signal == 0.0:
        raise ValueError("the wanted receiver output is zero throughout, so it has no signal-to-noise ratio")
    return PSNR_CAP_DB if noise == 0.0 else min(10.0 * float(np.log10(signal / noise)), PSNR_CAP_DB)


def ms_ssim(source: Frame, decoded: Frame, bit_depth: int) -> float | None:
    """Multi-scale structural similarity of luma, mean over the pictures (Wang, Simoncelli, Bovik 2003, equation 7).

    Five scales, 11×11 Gaussian window of σ = 1.5 without padding, K = (0.01, 0.03), luminance at the coarsest scale
    only. Between scales 2×2 means; an odd last row or column is repeated first. Negative contrast-structure means count
    as 0. ``None`` where a side is below `MS_SSIM_MIN_SIDE`, since the coarsest scale would hold no window.
    """
    _check_pair(source, decoded)
    if min(source.y.shape[1:]) < MS_SSIM_MIN_SIDE:
        return None
    scale = np.float32(1.0 / max_sample(bit_depth))
    x, y = (np.asarray(frame.y).astype(np.float32) * scale for frame in (source, decoded))
    # One picture at a time: memory stays that of a picture, and a clip of any length reuses one compiled program.
    return float(np.mean([float(_ms_ssim_picture(a, b)) for a, b in zip(x, y, strict=True)]))


@jax.jit
def _ms_ssim_picture(x: jax.Array, y: jax.Array) -> jax.Array:
    """MS-SSIM of two pictures ``[H, W]`` in [0, 1]."""
    value = jnp.ones((), jnp.float32)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, contrast_structure = _ssim_terms(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = jnp.mean(luminance * contrast_structure) if last else jnp.mean(contrast_structure)
        value = value * jnp.maximum(term, 0.0) ** weight
        if not last:
            x, y = _halve(x), _halve(y)
    return value


def _ssim_terms(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Luminance l and contrast-structure c·s of every full window; their product is SSIM."""
    c1, c2 = 0.01**2, 0.03**2
    # The five moments in one stack: one filter to compile instead of five.
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _window_mean(jnp.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), (2 * cov + c2) / (var_x + var_y + c2)


@functools.cache
def _window() -> np.ndarray:
    taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def _window_mean(x: jax.Array) -> jax.Array:
    """Separable Gaussian mean over full windows, ``[..., H − 10, W − 10]``.

    Written as shifted adds: XLA on CPU is slow at convolutions of one channel.
    """
    for axis in (-2, -1):
        kept = x.shape[axis] - _WINDOW + 1
        shifted = (t * jax.lax.slice_in_dim(x, i, i + kept, axis=axis) for i, t in enumerate(_window()))
        x = sum(shifted, start=jnp.zeros((), x.dtype))
    return x


def _halve(x: jax.Array) -> jax.Array:
    h, w = x.shape
    x = jnp.pad(x, ((0, h % 2), (0, w % 2)), mode="edge")
    return x.reshape((h + 1) // 2, 2, (w + 1) // 2, 2).mean((1, 3))  # [⌈H/2⌉, ⌈W/2⌉]


def _check_pair(source: Frame, decoded: Frame) -> None:
    shapes = [[tuple(p.shape) for p in frame.planes] for frame in (source, decoded)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"source planes {shapes[0]} and decoded planes {shapes[1]} differ; crop or resample one of them first"
        )
    for plane in (*source.planes, *decoded.planes):
        if not np.issubdtype(plane.dtype, np.integer):
            raise ValueError(
                f"samples of dtype {plane.dtype} were given; distortion is measured on integer samples: "
                "use jaxwrap.samples.to_integers"
            )
