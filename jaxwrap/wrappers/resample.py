"""Separable linear resampling of planes ``[..., H, W]`` by a rational ratio, written as a few shifted weighted adds
(polyphase).

Sample i of n sits at i + ½ (half-pixel centres), so both grids cover the same picture; each plane of a 4:2:0 frame is
resampled on its own, which keeps chroma sited at the centre of its four luma samples. Shrinking stretches the kernel
by the ratio (antialiasing), the border is replicated, and taps are normalised to sum 1. Values keep their range up to
the kernel's overshoot (none for bilinear); dtype in, same dtype out.

A ratio p/q has p phases, each one a dot product of a few input samples at stride q: unlike `jax.image.resize`, which
multiplies by a dense [out, in] matrix, the cost per sample does not grow with the picture.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, size_of

Kind = Literal["bilinear", "lanczos4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

RATIOS = (Fraction(1), Fraction(2, 3), Fraction(1, 2), Fraction(1, 4))
"""Bottleneck size over original size, the four modes of SNW section 3.1."""

_RADIUS = {"bilinear": 1, "lanczos4": 4}
_LARGEST_TERM = 8  # every phase is unrolled: an arbitrary pair of sizes would unroll into thousands of adds


def check_kind(kind: str) -> None:
    """Raises `ValueError` for an unknown kernel."""
    if kind not in KINDS:
        raise ValueError(f"resampling kernel {kind!r} was given; supported: {', '.join(KINDS)}")


def kernel_value(kind: Kind, x: float) -> float:
    """The continuous kernel at distance x: the triangle 1 − |x|, or sinc(x)·sinc(x/4) windowed to |x| < 4 (Lanczos, a
    = 4).
    """
    if abs(x) >= _RADIUS[kind]:
        return 0.0
    if kind == "bilinear":
        return 1.0 - abs(x)
    return float(np.sinc(x) * np.sinc(x / 4))


@functools.cache
def phase_taps(kind: Kind, ratio: Fraction) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """For each of the p phases of ``ratio`` = p/q: (offset of the first tap, taps).

    Output sample p·m + φ is Σ_t taps[t] · input[q·m + offset + t].
    """
    p, q = ratio.numerator, ratio.denominator
    stretch = max(1.0, q / p)
    phases = []
    for phase in range(p):
        centre = (phase + 0.5) * q / p - 0.5
        first = math.floor(centre - _RADIUS[kind] * stretch)
        last = math.ceil(centre + _RADIUS[kind] * stretch)
        taps = np.array([kernel_value(kind, (t - centre) / stretch) for t in range(first, last + 1)])
        used = np.flatnonzero(np.abs(taps) > 1e-12)
        taps = taps[used[0] : used[-1] + 1]
        phases.append((first + int(used[0]), tuple((taps / taps.sum()).tolist())))
    return tuple(phases)


def resample_plane(plane: jax.Array, height: int, width: int, kind: Kind) -> jax.Array:
    """Resamples ``[..., H, W]`` to ``[..., height, width]``.

    Raises `ValueError` where a side's ratio does not reduce to p/q with p, q ≤ 8, or a side is no whole number of
    cells.
    """
    check_kind(kind)
    # Rows are contiguous: the vertical pass is cheap, and goes first where it makes less work for the horizontal one.
    axes = (-2, -1) if height <= plane.shape[-2] else (-1, -2)
    for axis in axes:
        plane = _resample_axis(plane, {-2: height, -1: width}[axis], axis, kind)
    return plane


def resample(frame: Frame, height: int, width: int, kind: Kind) -> Frame:
    """Resamples every plane of a frame so that luma becomes ``height × width`` (even in 4:2:0)."""
    h, _ = size_of(frame)

    def one(plane: jax.Array) -> jax.Array:
        scale = h // plane.shape[-2]
        if height % scale or width % scale:
            raise ValueError(f"target size {width}×{height} was given; 4:2:0 wants even width and height")
        return resample_plane(plane, height // scale, width // scale, kind)

    return jax.tree.map(one, frame)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _resample_axis(x: jax.Array, size: int, axis: int, kind: Kind) -> jax.Array:
    ratio = Fraction(size, x.shape[axis])
    p, q = ratio.numerator, ratio.denominator
    if p == q:
        return x
    if max(p, q) > _LARGEST_TERM:
        raise ValueError(
            f"resampling {x.shape[axis]} to {size} samples is a ratio of {ratio}; supported: p/q with "
            f"p, q ≤ {_LARGEST_TERM} (pad the picture to a multiple first)"
        )
    cells = size // p
    phases = phase_taps(kind, ratio)
    before = max(0, -min(first for first, _ in phases))
    last = max(q * (cells - 1) + first + len(taps) - 1 for first, taps in phases)
    after = max(0, last - (x.shape[axis] - 1))
    pad = [(0, 0)] * x.ndim
    pad[axis] = (before, after)
    x = jnp.pad(x, pad, mode="edge")

    def tap(index: int) -> jax.Array:
        start = index + before
        return jax.lax.slice_in_dim(x, start, start + q * (cells - 1) + 1, q, axis % x.ndim)

    outputs = [sum(tap(first + t) * x.dtype.type(w) for t, w in enumerate(taps)) for first, taps in phases]
    if p == 1:
        return jnp.asarray(outputs[0])
    interleaved = jnp.stack(outputs, axis=x.ndim if axis == -1 else x.ndim - 1)  # [..., cells, p(, W)]
    shape = list(x.shape)
    shape[axis] = size
    return interleaved.reshape(shape)


def interpolate(x: Any, positions: np.ndarray, axis: int) -> Any:
    """Linear interpolation along ``axis`` at ``positions`` on its grid (sample i at i), the border replicated.

    For sizes of any ratio, without antialiasing: what detectors' own scaling does, where `resample_plane` serves
    networks that are trained with it. Two gathers; on CPU 5 … 20 times faster than `jax.image.resize`, which
    multiplies by a dense matrix. NumPy in, NumPy out.
    """
    xp = np if isinstance(x, np.ndarray) else jnp
    axis %= x.ndim
    positions = np.clip(positions, 0, x.shape[axis] - 1)
    low = np.floor(positions).astype(np.int32)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    part = (positions - low).reshape((1,) * axis + (-1,) + (1,) * (x.ndim - 1 - axis)).astype(x.dtype)
    return xp.take(x, low, axis, mode="clip") * (1 - part) + xp.take(x, high, axis, mode="clip") * part
