"""From importance maps h to the weights w of an encoder's distortion Σ w q²: w = (h / mean(h) + α) / (1 + α), mean 1.

The divisor is one mean over all samples of all planes, without padding, so that the encoder keeps its own λ: with D =
Σ (h + τ) q², τ = α mean(h) and λ = (mean(h) + τ) λ_SSE (WA-RDO section 3, its norm read as a mean), dividing D + λ R
by mean(h) + τ leaves Σ w q² + λ_SSE R. α → ∞ is plain SSE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, size_of
from jaxwrap.codec import Weights
from jaxwrap.importance.blocks import BLOCK, frame_mean
from jaxwrap.importance.maps import ImportanceMap

DEFAULT_ALPHA = 1.0
"""α of the weights: half importance, half plain SSE.

On eight pictures of coco/train2017 under the shipped pair, ``dqp`` cost +1.0, +0.5, +0.2 % of rate in x264 and +0.8,
+0.5, +0.5 % in x265 at α = 0, 0.25, 1, against plain SSE at equal PSNR-YUV: on a wrapper that was trained through a
transform codec the map has nothing to give, and this α does the least harm.
"""

Scope = Literal["frame", "sequence"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


Norm = Literal["mean", "l2", "frobenius"]
NORMS: tuple[Norm, ...] = get_args(Norm)


class MapError(ValueError):
    """Not a map for these frames: wrong size, format or number; or values that are negative, NaN or all 0."""


def check_weighting(alpha: float, scope: str = "frame") -> None:
    """Raises `ValueError` unless α is finite and ≥ 0 and the scope is known."""
    if not np.isfinite(alpha) or alpha < 0:
        raise ValueError(f"alpha {alpha} was given; wanted a finite number ≥ 0 (0: the map alone, large: plain SSE)")
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} was given; known: {', '.join(SCOPES)}")


def importance_weights(
    importance: ImportanceMap | Frame,
    *,
    alpha: float = DEFAULT_ALPHA,
    scope: Scope = "frame",
    clips: Sequence[int] | None = None,
    mean: float | None = None,
    applied_as: Literal["distortion", "qp_offset"] = "distortion",
) -> Weights:
    """Normalised weights of raw maps h, ``[N, H, W]`` per plane, all samples of which count in the mean (crop padding
    off first).

    Args:
      importance: a map or its h; N maps, or 1 that serves all frames.
      alpha: α ≥ 0, the share of plain SSE; 0 follows the map alone.
      scope: ``"frame"`` divides each map by its own mean, which removes importance *between* frames; ``"sequence"``
        divides all maps of a clip by one mean and keeps it.
      clips: number of frames of each clip in the batch, for ``"sequence"``; None: all are one clip.
      mean: of the h of a whole sequence, by which this part of its maps is divided, whatever ``scope`` says; None:
        found here.
      applied_as: how an encoder is to use the weights, see `jaxwrap.codec.Weights`.

    Raises:
      ValueError: α negative or not finite, unknown scope, clips of other lengths than the batch's. `MapError`: a map
        with NaN, negative values, or zeros only.
    """
    check_weighting(alpha, scope)
    h = raw_map(importance)
    check_map(h)
    means = frame_mean(h)  # [N]
    if mean is not None:
        means = jnp.full_like(means, mean)
    elif scope == "sequence":
        ends = clip_ends(clips, means.shape[0])
        parts = jnp.split(means, ends[:-1])
        means = jnp.concatenate([jnp.broadcast_to(part.mean(keepdims=True), part.shape) for part in parts])
    return Weights(jax.tree.map(lambda p: (p / means[:, None, None] + alpha) / (1.0 + alpha), h), applied_as)


@dataclasses.dataclass(frozen=True, slots=True)
class LiteralWeights:
    """A published rule in our normalisation: ``weights`` of mean 1, and ``lambda_factor`` ``[N]``, by which an encoder
    that minimises Σ w q² + λ R must multiply its own λ_SSE to do what the rule says."""

    weights: Weights
    lambda_factor: jax.Array


def literal_weights(importance: ImportanceMap | Frame, *, norm: Norm, alpha: float) -> LiteralWeights:
    """The papers' regularisation as printed, for comparison: D = Σ (h + τ) q² and λ = c λ_SSE, each picture by itself.

    Args:
      importance: as in `importance_weights`.
      norm: what is read into the rule, with n_p samples in a picture:

        * ``"mean"``: τ = α mean(h), c = mean(h) + τ. Ours: `importance_weights` and a factor of 1.
        * ``"l2"``: τ = α ‖h‖₂, c = ‖h‖₂ / n_p + τ, as printed in WA-RDO section 3. At α = 0 the factor is
          ‖h‖₂ / (n_p mean(h)), between 1/√n_p and 1: a uniform map would be coded at a λ √n_p times too small. As α
          grows it goes to 1 and, ‖h‖₂ being about √n_p mean(h), the map vanishes at far smaller α than in ours.
        * ``"frobenius"``: τ = α times the mean over 16×16 luma blocks, with the chroma at the same place, of
          ‖J_block‖_F = √(Σ h) (FP-RDO section IV, equation 17; there α = 1). It is in another unit than h, so that the
          weights depend on the receiver's unit. c is not printed ("include the SSE in the normalization"); mean(h) + τ
          is taken, hence a factor of 1.
      alpha: α ≥ 0.

    Raises:
      ValueError: unknown norm; and as `importance_weights`.
    """
    check_weighting(alpha)
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} was given; known: {', '.join(NORMS)}")
    h = raw_map(importance)
    check_map(h)
    mean = frame_mean(h)  # [N]
    num_samples = sum(p.shape[1] * p.shape[2] for p in h.planes)
    if norm == "l2":
        size = jnp.sqrt(sum(jnp.sum(p * p, (1, 2)) for p in h.planes))
    else:
        size = mean if norm == "mean" else jnp.sqrt(_block_sums(h)).mean((1, 2))
    tau = alpha * size
    multiplier = (size / num_samples if norm == "l2" else mean) + tau
    scale = mean + tau
    weights = jax.tree.map(lambda p: (p + tau[:, None, None]) / scale[:, None, None], h)
    return LiteralWeights(Weights(weights), multiplier / scale)


def _block_sums(h: Frame) -> jax.Array:
    """Sums of h over 16×16 luma blocks and the chroma at the same place, ``[N, ⌈H/16⌉, ⌈W/16⌉]``."""
    height, width = size_of(h)
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    total = jnp.zeros((h.y.shape[0], rows, columns), h.y.dtype)
    for plane in h.planes:
        side = BLOCK * plane.shape[1] // height
        padding = ((0, 0), (0, rows * side - plane.shape[1]), (0, columns * side - plane.shape[2]))
        total += jnp.pad(plane, padding).reshape(-1, rows, side, columns, side).sum((2, 4))
    return total


def raw_map(importance: ImportanceMap | Frame | Weights) -> Frame:
    """h of a map, or the planes themselves, as JAX arrays."""
    if isinstance(importance, ImportanceMap):
        importance = importance.h
    return jax.tree.map(jnp.asarray, importance.planes if isinstance(importance, Weights) else importance)


def is_flat(planes: Frame) -> bool:
    """Whether each plane holds one value throughout: weights between planes only, which fit frames of any size."""
    return all(bool((p == p[0, 0, 0]).all()) for p in planes.planes)


def clip_ends(clips: Sequence[int] | None, num: int) -> list[int]:
    """Where each clip of a batch of ``num`` frames ends. Raises `ValueError` where the lengths do not add up to it."""
    lengths = (num,) if clips is None else tuple(clips)
    if sum(lengths) != num or min(lengths, default=0) < 1:
        raise ValueError(f"clips of {', '.join(map(str, lengths))} frames were given for a batch of {num} frames")
    return np.cumsum(lengths).tolist()


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
