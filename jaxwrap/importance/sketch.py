"""Random sketches S of a receiver's output, as linear operators: S ∈ R^{n_s × n_f} per frame, E‖S v‖² = ‖v‖².

S = [s₁ … s_{n_s}]ᵀ / √n_s with independent s_i, E[s_i s_iᵀ] = I (WA-RDO section 3, "Jacobian approximation"). A vector
v is any pytree of float arrays with a leading axis N of frames; every frame has a sketch of its own.

Keys: row i of frame n is drawn from ``fold_in(fold_in(key, n), i)``, n counted from the start of the sequence. So a
frame's sketch does not depend on the batch, chunk, device or run that it was drawn in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

SketchKind = Literal["rademacher", "gaussian"]
SKETCHES: tuple[SketchKind, ...] = get_args(SketchKind)


def accumulator_dtype(dtype: Any) -> Any:
    """float32, or the dtype itself where it is wider: what half-precision quantities are drawn and summed in."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def check_sketch(kind: str, rows: int) -> None:
    """Raises `ValueError` for an unknown kind of sketch or fewer than one row."""
    if kind not in SKETCHES:
        raise ValueError(f"sketch {kind!r} was given; known: {', '.join(SKETCHES)}")
    if rows < 1:
        raise ValueError(f"{rows} sketches were asked for; at least 1 is needed (4 is usual)")


def sketch_row(
    key: jax.Array, index: int | jax.Array, like: Any, *, kind: SketchKind = "rademacher", frame_offset: Any = 0
) -> Any:
    """Draws s_i, E[s_i s_iᵀ] = I, for every frame: a pytree of the shapes and dtypes of ``like`` (leading axis N).

    ``like``: arrays or `jax.ShapeDtypeStruct`. ``frame_offset``: number in the sequence of the batch's first frame.
    """
    leaves: list[Any] = jax.tree.leaves(like)

    def one_frame(frame: jax.Array) -> list[jax.Array]:
        row_key = jax.random.fold_in(jax.random.fold_in(key, frame), index)
        return [
            _draw(jax.random.fold_in(row_key, i), leaf.shape[1:], leaf.dtype, kind) for i, leaf in enumerate(leaves)
        ]

    frames = jnp.arange(leaves[0].shape[0]) + frame_offset
    return jax.tree.unflatten(jax.tree.structure(like), jax.vmap(one_frame)(frames))


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: Any, kind: SketchKind) -> jax.Array:
    if kind == "gaussian":
        return jax.random.normal(key, shape, accumulator_dtype(dtype)).astype(dtype)
    # One random word gives 32 signs: jax.random.rademacher spends a whole word on each.
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)  # [ceil(size / 32), 32]
    return (1 - 2 * bits.reshape(-1)[:size].reshape(shape).astype(jnp.int8)).astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Sketch:
    """The operator S for the output pytree ``like`` (arrays or `jax.ShapeDtypeStruct`, leading axis N).

    ``rows`` is n_s. ``frame_offset`` is the number in the sequence of the batch's first frame.
    """

    key: jax.Array
    like: Any
    rows: int
    kind: SketchKind = "rademacher"
    frame_offset: int = 0

    def __post_init__(self) -> None:
        check_sketch(self.kind, self.rows)

    def row(self, index: int) -> Any:
        """s_i / √n_s: row i of S for every frame, as a pytree like the output."""
        s = sketch_row(self.key, index, self.like, kind=self.kind, frame_offset=self.frame_offset)
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
