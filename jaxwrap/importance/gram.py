"""Second moments of feature channels, and the transforms of the channels made from them (fold).

A codec sees no redundancy between the tiles of a packed frame, and treats an error alike in all of them. Coding
z' = s A (z − mean) + offset instead, at every position, and undoing it after decoding gives both to any unmodified
codec: A = U, the channels' KLT, removes the redundancy; A = G^½ makes the codec's SSE the receiver's error, G the mean
over positions of the channels' Gram (JᵀMJ restricted to one position). U·G^p, 0 ≤ p ≤ ½, is both, with U the KLT of
what results after G^p. ``fold_into_last`` and ``fold_into_first`` hide it in the networks' own layers, where it costs
nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Array, Frame, Yuv400, Yuv420, frame_of
from jaxwrap.importance.jacobian import JacobianRows
from jaxwrap.packing import TileLayout, from_tiles, to_tiles, unpack
from jaxwrap.samples import max_sample

EIGENVALUE_FLOOR = 1e-6
"""Eigenvalues of a Gram below this part of the largest are raised to it, so that its root can be undone: a direction
that the receiver does not see at all would otherwise be lost for good."""


class ChannelMoments:
    """Streaming mean and covariance of C channels over positions and pictures, float64.

    ``mean`` is ``[C]``, ``count`` the number of positions so far. Merging parts in another order changes the last bits.
    """

    def __init__(self, layout: TileLayout) -> None:
        self.layout = layout
        self.count = 0
        self.mean: np.ndarray = np.zeros(layout.channels)
        self._deviations: np.ndarray = np.zeros((layout.channels, layout.channels))

    def update(self, frame: Frame) -> ChannelMoments:
        """Includes packed frames, padding left out; returns itself. Raises `ValueError` for NaN or infinity."""
        x = _positions(unpack(frame, self.layout), "packed frames")
        part = ChannelMoments(self.layout)
        part.count, part.mean = len(x), x.mean(0)
        part._deviations = (x - part.mean).T @ (x - part.mean)
        return self.merge(part)

    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Includes what another has seen (Chan's update); returns itself."""
        _same_layout(self.layout, other.layout)
        if other.count:
            total = self.count + other.count
            shift = other.mean - self.mean
            self._deviations = self._deviations + other._deviations
            self._deviations += np.outer(shift, shift) * (self.count * other.count / total)
            self.mean = self.mean + shift * (other.count / total)
            self.count = total
        return self

    def covariance(self) -> np.ndarray:
        """``[C, C]``, divided by count − 1. Raises `ValueError` before 2 positions were seen."""
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} positions was asked for: update with frames first")
        return self._deviations / (self.count - 1)


class ChannelGram:
    """Streaming mean over positions and pictures of the channels' Gram, from sketched rows, float64."""

    def __init__(self, layout: TileLayout) -> None:
        self.layout = layout
        self.count = 0
        self._sum: np.ndarray = np.zeros((layout.channels, layout.channels))

    def update(self, rows: JacobianRows) -> ChannelGram:
        """Includes the rows of a batch of packed frames; returns itself. Raises `ValueError` for NaN or infinity."""
        n, count, *size = rows.planes.y.shape
        planes = jax.tree.map(lambda p: p.reshape(n * count, *size), rows.planes)
        g = _positions(unpack(planes, self.layout), "Jacobian rows")
        self._sum = self._sum + g.T @ g  # a row's share 1/ℓ is in its scale
        self.count += len(g) // count
        return self

    def merge(self, other: ChannelGram) -> ChannelGram:
        """Includes what another has seen; returns itself."""
        _same_layout(self.layout, other.layout)
        self._sum, self.count = self._sum + other._sum, self.count + other.count
        return self

    def gram(self) -> np.ndarray:
        """G ``[C, C]``, symmetric, ≥ 0, of rank ≤ positions × rows. Raises `ValueError` before any row was seen."""
        if not self.count:
            raise ValueError("the Gram of no rows was asked for: update with sketched rows first")
        return self._sum / self.count


def channel_gram(rows: JacobianRows, layout: TileLayout) -> np.ndarray:
    """G ``[C, C]`` float64: the mean over positions (and frames) of the channels' C × C block of JᵀMJ.

    From the rows of `sketched_rows` of a receiver of packed frames; without bias, trace(G) / C is the mean of the map.
    For more rows than memory holds, see `ChannelGram`.
    """
    return ChannelGram(layout).update(rows).gram()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ChannelTransform:
    """z' = s A (z − mean) + offset at every position of a packed frame, and its inverse. Made by `channel_transform`,
    `root_weights`, `klt` and `klt_gram`.

    ``matrix`` A and ``inverse`` A⁻¹ ``[C, C]``, ``mean`` and ``offset`` ``[C]``, ``scale`` s: float64 on the host. A
    pytree, so that compiled code is shared by transforms of one layout.
    """

    matrix: Any
    inverse: Any
    mean: Any
    scale: Any
    offset: Any
    layout: TileLayout = dataclasses.field(metadata={"static": True})

    def apply(self, frame: Frame) -> Yuv400:
        """Packed samples z → z'. The padding of the tiles is transformed alike. `ValueError` for another layout."""
        return self._affine(frame, self.scale * self.matrix, self.mean, self.offset)

    def undo(self, frame: Frame) -> Yuv400:
        """z' → z: the inverse of `apply` up to rounding, on decoded samples (integers are taken as float32)."""
        return self._affine(frame, self.inverse / self.scale, self.offset, self.mean)

    def _affine(self, frame: Frame, matrix: Any, before: Any, after: Any) -> Yuv400:
        y = jnp.asarray(frame.y)
        y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.float32)
        a, b, c = (jnp.asarray(v).astype(y.dtype) for v in (matrix, before, after))
        tiles = to_tiles(type(frame)(y, *frame.planes[1:]), self.layout) - b[None, None, None]
        return from_tiles(jnp.einsum("nhwc,dc->nhwd", tiles, a, precision="highest") + c[None, None, None], self.layout)

    def qp_shift(self) -> float:
        """ΔQP that leaves the receiver's error what it was: 6 log₂(s ‖A‖_F / √C), so 6 log₂ s for an orthonormal A.

        Where quantisation errors are white, that is exact for the KLT, for √diag(G) and for p = ½. QPs shifted by it
        reach about the qualities that the unshifted ones reach without the transform.
        """
        gain = float(self.scale) * float(np.linalg.norm(self.matrix)) / self.layout.channels**0.5
        return 6.0 * float(np.log2(gain))

    def fitted(self, frames: Frame, bit_depth: int, coverage: float = 0.9999) -> ChannelTransform:
        """The same A with the one scale s, and the offsets, that bring ``coverage`` of the samples of training
        ``frames`` (packed, before `apply`) into ``[0, 2^d − 1]``.

        Each channel's range is centred by its own offset; the scale is common, so that the codec's SSE keeps its
        meaning. Raises `ValueError` for a coverage outside (0, 1], frames of another layout, NaN, and constant frames.
        """
        if not 0 < coverage <= 1:
            raise ValueError(f"coverage {coverage} was given; wanted a part of the samples in (0, 1], such as 0.9999")
        x = _positions(unpack(frames, self.layout), "training frames")
        y = (x - self.mean) @ np.asarray(self.matrix).T  # [positions, C]
        tail = (1 - coverage) / 2
        centre = np.quantile(y, [tail, 1 - tail], axis=0, method="nearest").mean(0)
        reach = float(np.quantile(np.abs(y - centre), coverage, method="higher"))
        if reach == 0:
            raise ValueError("the training frames are constant: no scale follows from them; give pictures")
        half = max_sample(bit_depth) / 2
        scale = half / reach
        return dataclasses.replace(self, scale=scale, offset=half - scale * centre)

    def conjugate(self, gain: float, offset: float) -> ChannelTransform:
        """The transform that acts on x where this one acts on z = gain · x + offset: for a layer that gives normalised
        values x instead of samples z (``gain`` = ``offset`` = (2^d − 1) / 2)."""
        if gain == 0:
            raise ValueError("gain 0 was given: samples would not depend on the layer's output")
        mean, shifted = (self.mean - offset) / gain, (self.offset - offset) / gain
        return dataclasses.replace(self, mean=mean, offset=shifted)

    def of_zero(self) -> np.ndarray:
        """What `apply` makes of z = 0, ``[C]``: what a convolution's border has to be padded with once the transform is
        folded into it."""
        return np.asarray(self.offset - self.scale * (self.matrix @ self.mean))


def channel_transform(matrix: Any, mean: Any, layout: TileLayout) -> ChannelTransform:
    """A transform from any invertible A ``[C, C]`` and mean ``[C]``, with scale 1 and the mean kept as offset.

    Raises `ValueError` for other shapes, NaN, and matrices so near singular that float32 could not undo them.
    """
    a, m = np.asarray(matrix, np.float64), np.asarray(mean, np.float64)
    channels = layout.channels
    if a.shape != (channels, channels) or m.shape != (channels,):
        raise ValueError(
            f"a matrix {a.shape} and a mean {m.shape} were given; wanted {(channels, channels)} and {(channels,)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(m).all()):
        raise ValueError("the matrix or the mean holds NaN or infinity")
    condition = np.linalg.cond(a)
    if not condition < 1e5:
        raise ValueError(
            f"the matrix has condition number {condition:.3g}: its inverse would magnify rounding beyond use (a "
            "channel that is constant, or that the receiver ignores?); raise the small eigenvalues or drop the channel"
        )
    return ChannelTransform(a, np.linalg.inv(a), m, 1.0, m, layout)


def root_weights(weights: Any, layout: TileLayout, mean: Any = None) -> ChannelTransform:
    """A = diag(√w): weights w ``[C]`` > 0 of the channels, such as the diagonal of G, moved into the samples.

    The SSE of z' is then Σ w q². ``mean`` ``[C]``: what stays where it is (default 0).
    """
    w = np.asarray(weights, np.float64)
    if not (np.isfinite(w).all() and (w > 0).all()):
        raise ValueError("the channels' weights hold NaN, infinity or values ≤ 0: a channel of weight 0 would be lost")
    return channel_transform(np.diag(np.sqrt(w)), np.zeros(layout.channels) if mean is None else mean, layout)


def klt(moments: ChannelMoments) -> ChannelTransform:
    """A = U: the channels' eigenvectors of the covariance as rows, largest variance first."""
    return klt_gram(moments, np.eye(moments.layout.channels), 0.0)


def klt_gram(moments: ChannelMoments, gram: np.ndarray, p: float) -> ChannelTransform:
    """A = U·G^p: G^p, then the KLT of what results. p = ½ makes the SSE of z' the Gram-weighted error qᵀ G q.

    Eigenvectors have their largest entry positive, so that one covariance gives one transform everywhere. Eigenvalues
    of G under `EIGENVALUE_FLOOR` of the largest are raised to it. Raises `ValueError` for p outside [0, ½] and a G that
    is not symmetric, ≥ 0, ``[C, C]``.
    """
    if not 0 <= p <= 0.5:
        raise ValueError(f"p = {p} was given; the root of the Gram lies in [0, 0.5] (0: the KLT alone)")
    root = gram_power(gram, p)
    if len(root) != moments.layout.channels:
        raise ValueError(f"a Gram of {len(root)} channels was given for {moments.layout.channels}")
    _, vectors = np.linalg.eigh(root @ moments.covariance() @ root)
    u = vectors.T[::-1]  # rows, largest variance first
    signs = np.sign(u[np.arange(len(u)), np.abs(u).argmax(1)])
    return channel_transform((signs[:, None] * u) @ root, moments.mean, moments.layout)


def gram_power(gram: np.ndarray, p: float) -> np.ndarray:
    """G^p ``[C, C]``, symmetric; eigenvalues under `EIGENVALUE_FLOOR` of the largest are raised to it.

    Raises `ValueError` for a G that is not symmetric and ≥ 0.
    """
    gram = np.asarray(gram, np.float64)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not np.isfinite(gram).all():
        raise ValueError(f"a Gram of shape {gram.shape} was given; wanted finite values [C, C]")
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    tolerance = 1e-9 * max(abs(values[-1]), abs(values[0]))
    if not np.allclose(gram, gram.T, atol=tolerance) or values[0] < -tolerance or values[-1] <= 0:
        raise ValueError("the Gram is not symmetric and ≥ 0, or it is 0: a Gram of Jacobian rows always is")
    return (vectors * np.maximum(values, EIGENVALUE_FLOOR * values[-1]) ** p) @ vectors.T


@dataclasses.dataclass(frozen=True, slots=True)
class PlaneScale:
    """√w per plane of 4:2:0 frames: z' = s (z − 2^(d − 1)) + 2^(d − 1). ``scales`` s of y, u, v in (0, 1].

    Shrinking the planes that matter less, never stretching one, keeps every sample in range.
    """

    scales: tuple[float, float, float]
    bit_depth: int = 10

    def __post_init__(self) -> None:
        max_sample(self.bit_depth)
        if len(self.scales) != 3 or not all(0 < s <= 1 for s in self.scales):
            raise ValueError(f"scales {self.scales} were given; wanted three in (0, 1], for y, u and v")

    @classmethod
    def from_weights(cls, weights: tuple[float, float, float], bit_depth: int = 10) -> PlaneScale:
        """√(w / max w): the SSE of z' is Σ w q² over the largest weight. Weights of y, u, v, all > 0."""
        if len(weights) != 3 or not all(np.isfinite(w) and w > 0 for w in weights):
            raise ValueError(f"weights {weights} were given; wanted three finite ones > 0, for y, u and v")
        y, u, v = (float(np.sqrt(w / max(weights))) for w in weights)
        return cls((y, u, v), bit_depth)

    def apply(self, frame: Frame) -> Yuv420:
        """Samples z → z'."""
        return self._scale(frame, self.scales)

    def undo(self, frame: Frame) -> Yuv420:
        """z' → z: the inverse of `apply` up to rounding, on decoded samples (integers are taken as float32)."""
        y, u, v = self.scales
        return self._scale(frame, (1 / y, 1 / u, 1 / v))

    def _scale(self, frame: Frame, scales: tuple[float, float, float]) -> Yuv420:
        if not isinstance(frame, Yuv420):
            raise ValueError(f"a {type(frame).__name__} was given; planes are weighed against each other in 4:2:0")
        centre = float(1 << (self.bit_depth - 1))

        def one(plane: Any, scale: float) -> jax.Array:
            plane = jnp.asarray(plane)
            plane = plane if jnp.issubdtype(plane.dtype, jnp.floating) else plane.astype(jnp.float32)
            return (plane - centre) * scale + centre

        return Yuv420(*(one(p, s) for p, s in zip(frame.planes, scales, strict=True)))

    def qp_shift(self) -> float:
        """ΔQP that gives luma the quantiser that it had, 6 log₂ s_y."""
        return 6.0 * float(np.log2(self.scales[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class MapScale:
    """√w per sample, of a frozen map: z' = s (z − 2^(d − 1)) + 2^(d − 1), s = √(w / max w). Made by `from_weights`.

    ``scales`` s in (0, 1], N = 1, float32 planes like the frames'. Samples shrink where they matter less and are
    stretched nowhere, so every sample stays in range. s should be smooth, or constant over blocks: what varies from
    sample to sample makes texture of its own.
    """

    scales: Frame
    bit_depth: int = 10

    @classmethod
    def from_weights(cls, weights: Frame, bit_depth: int = 10) -> MapScale:
        """Of weights w > 0, one picture of planes. Raises `ValueError` for others."""
        max_sample(bit_depth)
        planes = [np.asarray(p, np.float64) for p in weights.planes]
        if any(p.shape[0] != 1 or not (np.isfinite(p).all() and (p > 0).all()) for p in planes):
            raise ValueError(
                "weights that are not one map of finite values > 0 were given: regularise them (alpha > 0)"
            )
        largest = max(float(p.max()) for p in planes)
        return cls(frame_of([np.sqrt(p / largest).astype(np.float32) for p in planes]), bit_depth)

    def apply(self, frame: Frame) -> Frame:
        """Samples z → z'. Raises `ValueError` for frames of another size or chroma format."""
        return self._scale(frame, lambda plane, s: plane * s)

    def undo(self, frame: Frame) -> Frame:
        """z' → z: the inverse of `apply` up to rounding, on decoded samples (integers are taken as float32)."""
        return self._scale(frame, lambda plane, s: plane / s)

    def qp_shift(self) -> float:
        """ΔQP that gives luma, on the mean of its logarithm, the quantiser that it had: 6 · mean(log₂ s_y)."""
        return 6.0 * float(np.mean(np.log2(np.asarray(self.scales.y, np.float64))))

    def _scale(self, frame: Frame, scaled: Callable[[jax.Array, jax.Array], jax.Array]) -> Frame:
        if [p.shape[1:] for p in frame.planes] != [s.shape[1:] for s in self.scales.planes]:
            raise ValueError(
                f"planes of {[p.shape[1:] for p in frame.planes]} were given; these scales are of "
                f"{[s.shape[1:] for s in self.scales.planes]}"
            )
        centre = float(1 << (self.bit_depth - 1))

        def one(plane: Any, s: Any) -> jax.Array:
            plane = jnp.asarray(plane)
            plane = plane if jnp.issubdtype(plane.dtype, jnp.floating) else plane.astype(jnp.float32)
            return scaled(plane - centre, jnp.asarray(s, plane.dtype)) + centre

        return frame_of([one(p, s) for p, s in zip(frame.planes, self.scales.planes, strict=True)])


def fold_into_last(kernel: Array, bias: Array, transform: ChannelTransform) -> tuple[np.ndarray, np.ndarray]:
    """The last layer of the reducing network with `ChannelTransform.apply` inside: (kernel, bias).

    ``kernel`` ``[kh, kw, C_in, C]``, any size, stride and padding; ``bias`` ``[C]``. The layer must give z itself:
    where a normalisation follows it, fold the transform's `ChannelTransform.conjugate`. Same dtypes as came.
    """
    k, b = _layer(kernel, bias, 3, transform)
    a = transform.scale * transform.matrix
    return (k @ a.T).astype(kernel.dtype), (a @ (b - transform.mean) + transform.offset).astype(bias.dtype)


def fold_into_first(
    kernel: Array, bias: Array, transform: ChannelTransform, *, zero_padding: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The first layer of the restoring network with `ChannelTransform.undo` inside: (kernel, bias).

    ``kernel`` ``[kh, kw, C, C_out]``, ``bias`` ``[C_out]``. ``zero_padding``: whether the layer pads its input with
    zeros ("SAME"). Beyond the border z = 0 is z' = `ChannelTransform.of_zero`, so a kernel wider than 1 × 1 under zero
    padding is the same function only where that is 0. Raises `ValueError` otherwise: pad z' with ``of_zero()`` by hand
    and run the layer without padding ("VALID").
    """
    k, b = _layer(kernel, bias, 2, transform)
    zero = transform.of_zero()
    if zero_padding and k.shape[:2] != (1, 1) and np.abs(zero).max() > 1e-9 * np.abs(transform.offset).max():
        raise ValueError(
            f"a {k.shape[0]}×{k.shape[1]} kernel under zero padding cannot take the transform in: z = 0 beyond the "
            f"border is z' = {float(np.abs(zero).max()):.3g} at most, not 0; pad z' with transform.of_zero() and run "
            'the layer with padding "VALID" (zero_padding=False), or fold into a 1×1 layer'
        )
    inverse = transform.inverse / transform.scale
    constant = transform.mean - inverse @ transform.offset
    folded = np.einsum("hwio,ij->hwjo", k, inverse)
    return folded.astype(kernel.dtype), (b + np.einsum("hwio,i->o", k, constant)).astype(bias.dtype)


def _layer(kernel: Array, bias: Array, axis: int, transform: ChannelTransform) -> tuple[np.ndarray, np.ndarray]:
    k, b = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    channels = transform.layout.channels
    if k.ndim != 4 or k.shape[axis] != channels or b.shape != k.shape[3:]:
        raise ValueError(
            f"a kernel {k.shape} with bias {b.shape} was given; wanted [kh, kw, in, out] with {channels} channels in "
            f"axis {axis}, and a bias of its last axis"
        )
    return k, b


def _positions(latents: Any, what: str) -> np.ndarray:
    """``[N, h, w, C]`` → float64 ``[positions, C]``."""
    x = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
    if not np.isfinite(x).all():
        raise ValueError(f"{what} hold NaN or infinity")
    return x


def _same_layout(mine: TileLayout, other: TileLayout) -> None:
    if mine != other:
        raise ValueError(f"statistics of {other} cannot be merged into those of {mine}")
