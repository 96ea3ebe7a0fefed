"""From importance maps h to the weights w of an encoder's distortion Σ w q²: w = (h / mean(h) + α) / (1 + α), mean 1.

The divisor is one mean over all samples of all planes, without padding, so that the encoder keeps its own λ: with D =
Σ (h + τ) q², τ = α mean(h) and λ = (mean(h) + τ) λ_SSE (WA-RDO section 3, its norm read as a mean), dividing D + λ R
by mean(h) + τ leaves Σ w q² + λ_SSE R. α → ∞ is plain SSE.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, size_of
from jaxwrap.codec import Weights
from jaxwrap.importance.maps import ImportanceMap, frame_mean

DEFAULT_ALPHA = 1.0
"""α of the weights: half importance, half plain SSE.

On eight pictures of coco/train2017 under the shipped pair, ``dqp`` cost +1.0, +0.5, +0.2 % of rate in x264 and +0.8,
+0.5, +0.5 % in x265 at α = 0, 0.25, 1, against plain SSE at equal PSNR-YUV: on a wrapper that was trained through a
transform codec the map has nothing to give, and this α does the least harm.
"""

Scope = Literal["frame", "sequence"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class MapError(ValueError):
    """Not a map for these frames: wrong size, format or number; or values that are negative, NaN or all 0."""


def importance_weights(
    importance: ImportanceMap | Frame,
    *,
    alpha: float = DEFAULT_ALPHA,
    scope: Scope = "frame",
    applied_as: Literal["distortion", "qp_offset"] = "distortion",
) -> Weights:
    """Normalised weights of raw maps h, ``[N, H, W]`` per plane, all samples of which count in the mean (crop padding
    off first).

    Args:
      importance: a map or its h; N maps, or 1 that serves all frames.
      alpha: α ≥ 0, the share of plain SSE; 0 follows the map alone.
      scope: ``"frame"`` divides each map by its own mean, which removes importance *between* frames; ``"sequence"``
        divides all by one mean and keeps it.
      applied_as: how an encoder is to use the weights, see `jaxwrap.codec.Weights`.

    Raises:
      ValueError: α negative or not finite, unknown scope. `MapError`: a map with NaN, negative values, or zeros only.
    """
    if not np.isfinite(alpha) or alpha < 0:
        raise ValueError(f"alpha {alpha} was given; wanted a finite number ≥ 0 (0: the map alone, large: plain SSE)")
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} was given; known: {', '.join(SCOPES)}")
    h = jax.tree.map(jnp.asarray, importance.h if isinstance(importance, ImportanceMap) else importance)
    check_map(h)
    mean = frame_mean(h)  # [N]
    if scope == "sequence":
        mean = jnp.broadcast_to(mean.mean(keepdims=True), mean.shape)
    return Weights(jax.tree.map(lambda p: (p / mean[:, None, None] + alpha) / (1.0 + alpha), h), applied_as)


def average_map(maps: ImportanceMap | Frame) -> Frame:
    """Frozen map of FWA-RDO: the mean of raw maps over frames, ``[1, H, W]`` per plane; normalise it afterwards."""
    h = maps.h if isinstance(maps, ImportanceMap) else maps
    check_map(h)
    return jax.tree.map(lambda p: jnp.asarray(p).mean(0, keepdims=True), h)


def check_map(planes: Frame, like: Frame | None = None) -> None:
    """Raises `MapError` unless ``planes`` is a map: finite, ≥ 0, not all 0 in any picture; and fits the frames
    ``like``, if given.

    A map fits frames of its chroma format and size when it holds 1 map or one per frame. Values are not looked at
    under `jax.jit`.
    """
    try:
        check_frame(planes)
    except ValueError as error:
        raise MapError(f"importance map: {error}") from error
    if like is not None:
        _check_fit(planes, like)
    if any(isinstance(p, jax.core.Tracer) for p in planes.planes):
        return
    for name, plane in zip("yuv", (np.asarray(p) for p in planes.planes), strict=False):
        if not np.isfinite(plane).all():
            raise MapError(f"importance map: plane {name} holds NaN or infinity; wanted finite values ≥ 0")
        if (plane < 0).any():
            raise MapError(
                f"importance map: plane {name} holds negative values (least {plane.min():.3g}); wanted values ≥ 0"
            )
    if (np.asarray(frame_mean(planes)) == 0).any():
        raise MapError(
            "importance map: a picture's map is 0 everywhere, which says nothing; code that picture without a map"
        )


def _check_fit(planes: Frame, like: Frame) -> None:
    if type(planes) is not type(like):
        raise MapError(
            f"importance map: {type(planes).__name__} was given for {type(like).__name__} frames; map those frames"
        )
    (h, w), (height, width) = size_of(planes), size_of(like)
    if (h, w) != (height, width):
        raise MapError(
            f"importance map: {w}×{h} was given for frames of {width}×{height}; map the frames that are coded"
        )
    if planes.y.shape[0] not in (1, like.y.shape[0]):
        raise MapError(
            f"importance map: {planes.y.shape[0]} maps given for {like.y.shape[0]} frames; wanted 1, or one per frame"
        )
