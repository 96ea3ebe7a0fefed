"""The receiver's Jacobian as a linear operator, and its sketched rows for codecs that see whole blocks.

`Jacobian` is M^½ J, so that ‖mv(q)‖² = ‖J q‖²_M is the error a small coding error q makes (FP-RDO equation 8). Its
rows S M^½ J (equation 12) keep what the diagonal drops, the interplay of the samples of a block: equation 14 compares
Σ_s (row_s · q)² per block. `cut_blocks` cuts rows into blocks, `transform_rows` takes them to a transform's domain
(equation 16), where an encoder has its quantisation errors.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of
from jaxwrap.importance.checks import finite_frames, refuse
from jaxwrap.importance.diagonal import Linearised, OutputShape, linearise
from jaxwrap.importance.receiver import Metric, Receiver, as_floats, as_partial, output_of, root_metric, weighted
from jaxwrap.importance.sketch import SketchKind, TopDct, accumulator_dtype, check_sketch, sketch_row

BLOCK_SIZES = (4, 8, 16, 32)


class Jacobian:
    """M^½ J of ``receiver`` at z, for every frame of a batch whose frames do not depend on one another.

    Compiled once per receiver and shape (pass parameters that change in a `jax.tree_util.Partial`). ``output`` holds
    the shapes of r(z), ``z`` the samples as floats.
    """

    def __init__(self, receiver: Receiver, z: Frame, metric: Metric = None) -> None:
        check_frame(z)
        self.z: Frame = as_floats(z)
        self.receiver = as_partial(receiver)
        self.output = output_of(self.receiver, self.z)
        self.root = root_metric(metric, self.output)

    def mv(self, q: Frame) -> Any:
        """M^½ J q: errors of the samples, like z → a pytree like the receiver's output. One forward derivative."""
        return forward(self.receiver, self.z, self.root, self._tangent(q))

    def transpose(self) -> TransposedJacobian:
        """Jᵀ M^½, from pytrees like the output to frames like z."""
        return TransposedJacobian(self)

    def as_matrix(self) -> jax.Array:
        """The dense matrices ``[N, outputs, samples]``, for tests: one forward derivative per sample of a frame.

        Outputs in the order of the flattened tree, samples plane by plane, both in raster order.
        """
        return _matrix(self.receiver, self.z, self.root)

    def _tangent(self, q: Frame) -> Frame:
        shapes = [tuple(p.shape) for p in self.z.planes]
        if type(q) is not type(self.z) or [tuple(p.shape) for p in q.planes] != shapes:
            raise ValueError(
                f"a {type(q).__name__} of planes {[tuple(p.shape) for p in q.planes]} was given; "
                f"wanted errors like z: {type(self.z).__name__} of {shapes}"
            )
        return jax.tree.map(lambda e, p: jnp.asarray(e, p.dtype), q, self.z)


class TransposedJacobian:
    """Jᵀ M^½, with the forward pass that its products share."""

    def __init__(self, jacobian: Jacobian) -> None:
        self._jacobian = jacobian
        self._point = linearise(jacobian.receiver, jacobian.z, jacobian.root, kind="rademacher")

    def mv(self, u: Any) -> Frame:
        """Jᵀ M^½ u: a pytree like the receiver's output → a frame like z. One backward pass."""
        output = self._jacobian.output
        came, wanted = (jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (u, output))
        if came != wanted:
            raise ValueError(f"a tree of shapes {came} was given; wanted one like the receiver's output: {wanted}")
        u = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), u, output)
        return _backward(self._point, self._jacobian.root, u)

    def transpose(self) -> Jacobian:
        """M^½ J again."""
        return self._jacobian


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class JacobianRows:
    """Rows S M^½ J of each frame: ``planes`` are ``[N, ℓ, H, W]``, signed, float32 or wider.

    Σ_s (row_s · q)², the inner product over all samples of all planes, estimates ‖J q‖²_M without bias for any error
    q; Σ_s row_s² is the sketched diagonal.
    """

    planes: Frame

    @property
    def rows(self) -> int:
        """ℓ, the number of rows per frame."""
        return int(self.planes.y.shape[1])


def sketched_rows(
    jacobian: Jacobian,
    key: jax.Array,
    rows: int,
    *,
    sketch: SketchKind | TopDct = "rademacher",
    frame_offset: int = 0,
) -> JacobianRows:
    """ℓ = ``rows`` rows of S M^½ J per frame, from the sketches that `importance_map` draws with the same key.

    One forward pass and ``rows`` backward passes; ℓ of 2 to 8 is usual (FP-RDO section IV). Raises `ValueError` for an
    unknown sketch, fewer than 1 row, and frames whose rows are not finite.
    """
    check_sketch(sketch, rows)
    linear = linearise(jacobian.receiver, jacobian.z, jacobian.root, kind=sketch)
    like = OutputShape.of(jacobian.output)
    drawn = [_row(linear, jacobian.root, key, i, frame_offset, like=like, kind=sketch) for i in range(rows)]
    stacked, finite = _stack(drawn)
    refuse(~finite, "the receiver's derivative is NaN or infinite in", frame_offset)
    return JacobianRows(stacked)


def cut_blocks(rows: JacobianRows, size: int) -> Frame:
    """Rows cut into blocks of ``size`` × ``size`` samples of each plane, ``[N, ℓ, ⌈H/b⌉, ⌈W/b⌉, b, b]``.

    ``size`` is 4, 8, 16 or 32. Blocks that the right or lower edge cuts are filled with 0: there are no samples.
    """
    if size not in BLOCK_SIZES:
        raise ValueError(f"blocks of {size} were asked for; known sizes: {', '.join(map(str, BLOCK_SIZES))}")

    def cut(plane: jax.Array) -> jax.Array:
        n, count, height, width = plane.shape
        down, across = -(-height // size), -(-width // size)
        padded = jnp.pad(plane, ((0, 0), (0, 0), (0, down * size - height), (0, across * size - width)))
        return padded.reshape(n, count, down, size, across, size).swapaxes(3, 4)  # [N, ℓ, H/b, W/b, b, b]

    return jax.tree.map(cut, rows.planes)


def dct_matrix(size: int) -> np.ndarray:
    """Orthonormal DCT-II as the matrix D whose **columns** are the basis functions: y = Dᵀ x, ``[size, size]`` float64.

    √(2/size) cos((2n + 1) k π / (2 size)) in row n and column k, column 0 over √2.
    """
    n, k = np.ogrid[:size, :size]
    basis = np.sqrt(2 / size) * np.cos((2 * n + 1) * k * np.pi / (2 * size))
    basis[:, 0] /= np.sqrt(2)
    return basis


def transform_rows(blocks: Frame, column: np.ndarray, row: np.ndarray) -> Frame:
    """B = S M^½ J D for the separable transform Y = D_cᵀ X D_r of a block X (FP-RDO equation 16).

    ``blocks`` ``[…, b, b]`` per plane. ``column`` D_c transforms the columns of a block, ``row`` D_r its rows; both
    ``[b, b]``, orthogonal, with one basis function per **column**, as `dct_matrix` has them. A matrix T with one basis
    function per row, Y = T X Tᵀ, as codecs' standards print them, is to be given as ``T.T``: the wrong way round it is
    orthogonal too, and nothing can tell. For an error q of a block and its transform e = D_cᵀ q D_r the inner products
    are the same: ⟨R, q⟩ = ⟨D_cᵀ R D_r, e⟩. Raises `ValueError` for matrices that are not orthogonal or of another size.
    """
    size = blocks.y.shape[-1]
    for name, matrix in (("column", column), ("row", row)):
        if np.shape(matrix) != (size, size):
            raise ValueError(f"the {name} transform has shape {np.shape(matrix)}; blocks of {size} want {size}×{size}")
        if not np.allclose(np.asarray(matrix).T @ np.asarray(matrix), np.eye(size), atol=1e-5):
            raise ValueError(f"the {name} transform is not orthogonal: equation 15 would not hold (scale its columns)")

    def one(plane: jax.Array) -> jax.Array:
        d_c, d_r = jnp.asarray(column, plane.dtype), jnp.asarray(row, plane.dtype)
        return jnp.einsum("ki,...kl,lj->...ij", d_c, plane, d_r, precision="highest")

    return jax.tree.map(one, blocks)


def flatten(tree: Any) -> jax.Array:
    """A pytree of arrays ``[N, …]`` as ``[N, all values]``."""
    return jnp.concatenate([jnp.reshape(leaf, (leaf.shape[0], -1)) for leaf in jax.tree.leaves(tree)], axis=1)


@jax.jit
def forward(function: jax.tree_util.Partial, z: Frame, root: Any, q: Frame) -> Any:
    """M^½ J q."""
    _, tangent = jax.jvp(lambda frame: function(frame), (z,), (q,))
    return weighted(tangent, root)


@jax.jit
def _matrix(function: jax.tree_util.Partial, z: Frame, root: Any) -> jax.Array:
    sizes = [p.shape[1] * p.shape[2] for p in z.planes]

    def column(unit: jax.Array) -> jax.Array:
        parts = jnp.split(unit, np.cumsum(sizes)[:-1])
        planes = [jnp.broadcast_to(u.reshape(1, *p.shape[1:]), p.shape) for u, p in zip(parts, z.planes, strict=True)]
        return flatten(forward(function, z, root, frame_of(planes)))

    return jax.vmap(column, out_axes=2)(jnp.eye(sum(sizes), dtype=z.y.dtype))


@jax.jit
def _backward(point: Linearised, root: Any, u: Any) -> Frame:
    """Jᵀ M^½ u."""
    return point.pull(weighted(u, root))


@partial(jax.jit, static_argnames=("like", "kind"))
def _row(
    point: Linearised,
    root: Any,
    key: jax.Array,
    index: Any,
    frame_offset: Any,
    *,
    like: OutputShape,
    kind: SketchKind | TopDct,
) -> Frame:
    """One row, unscaled."""
    s = sketch_row(key, index, like.tree(), kind=kind, frame_offset=frame_offset, kept=point.kept)
    return _backward(point, root, s)


@jax.jit
def _stack(rows: list[Frame]) -> tuple[Frame, jax.Array]:
    """Rows as ``[N, ℓ, H, W]``, divided by √ℓ, and which frames are finite."""

    def one(*planes: jax.Array) -> jax.Array:
        stacked = jnp.stack([p.astype(accumulator_dtype(p.dtype)) for p in planes], axis=1)
        return stacked / jnp.sqrt(jnp.asarray(len(planes), stacked.dtype))

    stacked = jax.tree.map(one, *rows)
    return stacked, finite_frames(stacked)
