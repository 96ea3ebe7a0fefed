"""Random sketches S of a receiver's output, as linear operators: S ∈ R^{n_s × n_f} per frame, E‖S v‖² = ‖v‖².

S = [s₁ … s_{n_s}]ᵀ / √n_s with independent s_i, E[s_i s_iᵀ] = I (WA-RDO section 3, "Jacobian approximation"). A vector
v is any pytree of float arrays with a leading axis N of frames; every frame has a sketch of its own.

`TopDct` sketches a projection P v of it instead: E‖S v‖² = ‖P v‖².

Keys: row i of frame n is drawn from ``fold_in(fold_in(key, n), i)``, n counted from the start of the sequence. So a
frame's sketch does not depend on the batch, chunk, device or run that it was drawn in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.scipy.fft import dctn

SketchKind = Literal["rademacher", "gaussian"]
SKETCHES: tuple[SketchKind, ...] = get_args(SketchKind)


@dataclasses.dataclass(frozen=True, slots=True)
class TopDct:
    """Sketch of each channel's largest DCT coefficients (FP-RDO section IV, "DCT channel-wise").

    P keeps, of each frame and channel of v, the ``coefficients`` entries of the orthonormal 2-D DCT-II that are largest
    in magnitude at z; Rademacher rows follow. P depends on the picture: h is the diagonal of Jᵀ M^½ Pᵀ P M^½ J, less
    than the whole diagonal, by what the dropped coefficients see. In v, ``spatial_axes`` of an array are the picture,
    (2, 3) for ``[N, C, H, W]``, and all further ones but the first channels; arrays without these axes are kept whole.
    """

    coefficients: int = 16
    spatial_axes: tuple[int, int] = (1, 2)

    def __post_init__(self) -> None:
        if min(self.spatial_axes) < 1 or len(set(self.spatial_axes)) != 2:
            raise ValueError(
                f"spatial axes {self.spatial_axes} were given to TopDct; wanted two different ones from 1 on (axis 0 "
                "is the frames)"
            )
        if self.coefficients < 1:
            raise ValueError(f"TopDct keeps at least 1 coefficient of each channel; {self.coefficients} was given")

    def select(self, v: Any) -> Any:
        """Where the kept coefficients are: per array of v with N frames, ``[N, …, k]`` flat positions in H × W."""

        def positions(leaf: jax.Array) -> jax.Array:
            if leaf.ndim <= max(self.spatial_axes):
                return jnp.zeros((leaf.shape[0], 0), jnp.int32)
            wide = jnp.moveaxis(leaf.astype(accumulator_dtype(leaf.dtype)), self.spatial_axes, (-2, -1))  # [N, …, H, W]
            size = wide.shape[-2] * wide.shape[-1]
            spectrum = dctn(wide, axes=(-2, -1), norm="ortho").reshape(*wide.shape[:-2], size)
            return jax.lax.top_k(jnp.abs(spectrum), min(self.coefficients, size))[1]

        return jax.tree.map(positions, v)

    def draw(self, key: jax.Array, kept: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """One row of an array of ``shape`` of one frame: Pᵀ of signs on the ``kept`` ``[…, k]``."""
        vertical, horizontal = (axis - 1 for axis in self.spatial_axes)
        if len(shape) <= max(vertical, horizontal):
            return _signs(key, shape, dtype)
        height, width, wide = shape[vertical], shape[horizontal], accumulator_dtype(dtype)
        signs = _signs(key, kept.shape, wide)[..., None]
        rows = signs * _cosines(kept // width, height, wide)  # […, k, H]
        columns = _cosines(kept % width, width, wide)  # […, k, W]
        picture = jnp.einsum("...kh,...kw->...hw", rows, columns)
        return jnp.moveaxis(picture, (-2, -1), (vertical, horizontal)).astype(dtype)


def _cosines(frequency: jax.Array, size: int, dtype: Any) -> jax.Array:
    """Rows of the orthonormal DCT-II matrix of this size: ``[…]`` → ``[…, size]``."""
    odd = (2 * jnp.arange(size, dtype=jnp.int32) + 1).reshape((1,) * frequency.ndim + (size,))
    turns = (frequency[..., None] * odd) % (4 * size)  # exact, unlike the angle
    scale = jnp.where(frequency == 0, 1 / math.sqrt(size), math.sqrt(2 / size)).astype(dtype)
    return scale[..., None] * jnp.cos(turns.astype(dtype) * (math.pi / (2 * size)))


def accumulator_dtype(dtype: Any) -> Any:
    """float32, or the dtype itself where it is wider: what half-precision quantities are drawn and summed in."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def check_sketch(kind: SketchKind | TopDct, rows: int) -> None:
    """Raises `ValueError` for an unknown kind of sketch or fewer than one row."""
    if not isinstance(kind, TopDct) and kind not in SKETCHES:
        raise ValueError(f"sketch {kind!r} was given; known: {', '.join(SKETCHES)}, and TopDct(coefficients)")
    if rows < 1:
        raise ValueError(f"{rows} sketches were asked for; at least 1 is needed (4 is usual)")


def sketch_row(
    key: jax.Array,
    index: int | jax.Array,
    like: Any,
    *,
    kind: SketchKind | TopDct = "rademacher",
    frame_offset: Any = 0,
    kept: Any = None,
) -> Any:
    """Draws s_i, E[s_i s_iᵀ] = I, for every frame: a pytree of the shapes and dtypes of ``like`` (leading axis N).

    ``like``: arrays or `jax.ShapeDtypeStruct`. ``frame_offset``: number in the sequence of the batch's first frame; or
    ``[N]``, added to each frame's place in the batch. ``kept``: what `TopDct.select` found in v; then E[s_i s_iᵀ] is
    Pᵀ P.
    """
    leaves: list[Any] = jax.tree.leaves(like)

    def one_frame(frame: jax.Array, places: list[jax.Array]) -> list[jax.Array]:
        row_key = jax.random.fold_in(jax.random.fold_in(key, frame), index)
        keys = [jax.random.fold_in(row_key, i) for i in range(len(leaves))]
        if isinstance(kind, TopDct):
            return [
                kind.draw(k, place, leaf.shape[1:], leaf.dtype)
                for k, place, leaf in zip(keys, places, leaves, strict=True)
            ]
        draw = _normals if kind == "gaussian" else _signs
        return [draw(k, leaf.shape[1:], leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]

    frames = jnp.arange(leaves[0].shape[0], dtype=jnp.int32) + jnp.asarray(frame_offset, jnp.int32)
    return jax.tree.unflatten(jax.tree.structure(like), jax.vmap(one_frame)(frames, jax.tree.leaves(kept)))


def _normals(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(key, shape, accumulator_dtype(dtype)).astype(dtype)


def _signs(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # One random word gives 32 signs: jax.random.rademacher spends a whole word on each.
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)  # [ceil(size / 32), 32]
    return (1 - 2 * bits.reshape(-1)[:size].reshape(shape).astype(jnp.int8)).astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """The operator S for the output pytree ``like`` (arrays or `jax.ShapeDtypeStruct`, leading axis N).

    ``rows`` is n_s. For `TopDct`, ``like`` holds the values v = M^½ r(z) whose largest coefficients are
    kept. ``frame_offset`` is the number in the sequence of the batch's first frame.
    """

    key: jax.Array
    like: Any
    rows: int
    kind: SketchKind | TopDct = "rademacher"
    frame_offset: int = 0

    def __post_init__(self) -> None:
        check_sketch(self.kind, self.rows)

    def row(self, index: int) -> Any:
        """s_i / √n_s: row i of S for every frame, as a pytree like the output."""
        kept = self.kind.select(self.like) if isinstance(self.kind, TopDct) else None
        s = sketch_row(self.key, index, self.like, kind=self.kind, frame_offset=self.frame_offset, kept=kept)
        return jax.tree.map(lambda leaf: leaf / jnp.sqrt(jnp.asarray(self.rows, leaf.dtype)), s)

    def mv(self, v: Any) -> jax.Array:
        """S v: an output pytree → ``[N, n_s]``."""
        return jnp.stack([_inner(self.row(i), v) for i in range(self.rows)], axis=1)

    def transpose_mv(self, u: jax.Array) -> Any:
        """Sᵀ u: ``[N, n_s]`` → an output pytree."""
        scaled = [
            jax.tree.map(
                lambda leaf, c=u[:, i]: leaf * c.astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1)), self.row(i)
            )
            for i in range(self.rows)
        ]
        return jax.tree.map(lambda *rows: sum(rows[1:], rows[0]), *scaled)


def _inner(a: Any, b: Any) -> jax.Array:
    """⟨a, b⟩ of every frame, ``[N]``."""
    products = [
        (x * y).reshape(x.shape[0], -1).sum(1) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return sum(products[1:], products[0])
