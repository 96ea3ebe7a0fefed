"""The sketched diagonal of one chunk of frames: what is compiled, and the loop around it.

A loop outside the compiled code, not inside: XLA's convolutions are several times slower in a while loop on CPU, and an
unrolled loop compiles anew for every number of sketches. The linearisation crosses the border as an ordinary pytree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxwrap.arrays import Frame
from jaxwrap.importance.blocks import BLOCK, block_means, frame_mean, frame_sum, spread_blocks
from jaxwrap.importance.checks import finite_frames
from jaxwrap.importance.receiver import weighted
from jaxwrap.importance.sketch import SketchKind, TopDct, accumulator_dtype, sketch_row


@dataclasses.dataclass(frozen=True)
class OutputShape:
    """Shapes and dtypes of a receiver's output, as a static argument of compiled functions."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @staticmethod
    def of(output: Any) -> OutputShape:
        """From a pytree of arrays or `jax.ShapeDtypeStruct`."""
        leaves, structure = jax.tree.flatten(output)
        return OutputShape(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))

    def tree(self) -> Any:
        """The pytree of `jax.ShapeDtypeStruct`."""
        return jax.tree.unflatten(self.structure, self.leaves)


FRAMES = "frames"
"""Name of the mesh axis that a batch is spread over."""

_SPREAD, _WHOLE = PartitionSpec(FRAMES), PartitionSpec()


def _on_each(local: Callable[..., Any], sharding: NamedSharding | None, specs: Any) -> Callable[..., Any]:
    """``local`` on each device's own frames: the program of one device, so the bytes of one device."""
    if sharding is None:
        return local
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=_SPREAD, check_vma=False)


def _root_specs(root: Any) -> Any:
    return jax.tree.map(lambda weight: _SPREAD if weight.shape[0] > 1 else _WHOLE, root)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linearised:
    """r at z: its pullback, what a `TopDct` keeps of r(z), and which frames of z and of r(z) are finite.

    Spread over devices, each array's leading axis joins what the devices hold, also where that is no axis of frames;
    ``scalars`` numbers the leaves of the pullback that got such an axis for the purpose.
    """

    pullback: Any
    kept: Any
    finite_z: jax.Array
    finite_output: jax.Array
    scalars: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def with_axes(self) -> Linearised:
        """Every array of the pullback with one axis or more."""
        leaves, structure = jax.tree.flatten(self.pullback)
        scalars = tuple(i for i, leaf in enumerate(leaves) if leaf.ndim == 0)
        pullback = jax.tree.unflatten(structure, [leaf[None] if leaf.ndim == 0 else leaf for leaf in leaves])
        return dataclasses.replace(self, pullback=pullback, scalars=scalars)

    def pull(self, cotangent: Any) -> Frame:
        """Jᵀ times a cotangent of the output."""
        leaves, structure = jax.tree.flatten(self.pullback)
        leaves = [leaf[0] if i in self.scalars else leaf for i, leaf in enumerate(leaves)]
        (gradient,) = jax.tree.unflatten(structure, leaves)(cotangent)
        return gradient


@partial(jax.jit, static_argnames=("kind", "sharding"))
def linearise(
    function: jax.tree_util.Partial,
    z: Frame,
    root: Any,
    *,
    kind: SketchKind | TopDct,
    sharding: NamedSharding | None = None,
) -> Linearised:
    """One forward pass that all sketches share."""

    def local(function: jax.tree_util.Partial, z: Frame, root: Any) -> Linearised:
        y, pullback = jax.vjp(lambda frame: function(frame), z)
        kept = kind.select(weighted(y, root)) if isinstance(kind, TopDct) else None
        point = Linearised(pullback, kept, finite_frames(z), finite_frames(y))
        return point if sharding is None else point.with_axes()

    return _on_each(local, sharding, (_WHOLE, _SPREAD, _root_specs(root)))(function, z, root)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Running mean and sum of squared deviations (Welford: never negative, unlike E[x²] − E[x]²) of (Jᵀ M^½ s)².

    With a control variate also those of the same sketches at the reference, and the sum of products of deviations.
    """

    mean: Frame
    square: Frame
    control: tuple[Frame, Frame, Frame] | None

    @staticmethod
    def zeros(like: Frame, controlled: bool) -> Moments:
        """Of no sketch yet; arrays of their own, so that each can be donated."""

        def zero() -> Frame:
            return jax.tree.map(jnp.zeros_like, like)

        return Moments(zero(), zero(), (zero(), zero(), zero()) if controlled else None)

    def add(self, x: Frame, control: Frame | None, count: jax.Array) -> Moments:
        """Includes x as value number ``count`` (from 1)."""

        # Factors, not divisors: a compiler may turn division by a scalar into a product with its rounded inverse.
        def add_mean(mean: jax.Array, value: jax.Array) -> jax.Array:
            return mean + (value - mean) * (1 / count.astype(value.dtype))

        def add_product(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            n = count.astype(total.dtype)
            return total + a * b * ((n - 1) / n)

        deviation = jax.tree.map(jnp.subtract, x, self.mean)
        mean, square = (
            jax.tree.map(add_mean, self.mean, x),
            jax.tree.map(add_product, self.square, deviation, deviation),
        )
        if self.control is None or control is None:
            return Moments(mean, square, None)
        control_mean, control_square, product = self.control
        other = jax.tree.map(jnp.subtract, control, control_mean)
        controls = (
            jax.tree.map(add_mean, control_mean, control),
            jax.tree.map(add_product, control_square, other, other),
            jax.tree.map(add_product, product, deviation, other),
        )
        return Moments(mean, square, controls)

    def estimate(self, known: Frame | None, beta: Sequence[jax.Array], count: jax.Array) -> tuple[Frame, Frame]:
        """The mean, corrected by the control variate, and its standard error (NaN for a count of 1)."""
        if self.control is None or known is None:
            mean, variance = jax.tree.map(jnp.copy, self.mean), self.square
        else:
            reference, square, product = self.control
            planes = zip(self.mean.planes, reference.planes, known.planes, beta, strict=True)
            mean = type(self.mean)(*(a - b * (c - exact) for a, c, exact, b in planes))
            planes = zip(self.square.planes, product.planes, square.planes, beta, strict=True)
            variance = type(self.mean)(*(jnp.maximum(aa - 2 * b * ac + b * b * cc, 0) for aa, ac, cc, b in planes))

        def error(v: jax.Array) -> jax.Array:
            n = count.astype(v.dtype)
            return jnp.sqrt(v * (1 / (n * (n - 1))))

        return mean, jax.tree.map(error, variance)

    def regression(self) -> list[jax.Array]:
        """β of each frame and plane that leaves the least variance over all its samples, ``[N, 1, 1]`` per plane."""
        assert self.control is not None
        _, square, product = self.control

        def slope(ac: jax.Array, cc: jax.Array) -> jax.Array:
            total = frame_sum(cc)
            return jnp.where(total > 0, frame_sum(ac) / jnp.where(total > 0, total, 1), 0)[:, None, None]

        return [slope(ac, cc) for ac, cc in zip(product.planes, square.planes, strict=True)]


State = tuple[Moments, Moments]
"""Moments of samples and of block means."""


@partial(jax.jit, static_argnames=("controlled", "sharding"))
def start(z: Frame, *, controlled: bool, sharding: NamedSharding | None = None) -> State:
    """The statistics of no sketch yet."""

    def local(z: Frame) -> State:
        h = jax.tree.map(lambda p: jnp.zeros(p.shape, accumulator_dtype(p.dtype)), z)
        return Moments.zeros(h, controlled), Moments.zeros(block_means(h), controlled)

    return _on_each(local, sharding, (_SPREAD,))(z)


@partial(jax.jit, static_argnames=("kind", "like", "sharding"), donate_argnames="state")
def add_sketch(
    at: tuple[Linearised, ...],
    state: State,
    key: jax.Array,
    index: Any,
    offsets: jax.Array,
    root: Any,
    *,
    kind: SketchKind | TopDct,
    like: OutputShape,
    sharding: NamedSharding | None = None,
) -> State:
    """Adds (Jᵀ M^½ s)² of sketch ``index`` to the running statistics.

    ``at``: z, and the reference of a control variate. ``offsets``: what takes a frame's place among its device's frames
    to its number in the sequence, ``[N]``. ``like``: the output for one device's frames.
    """

    def local(
        at: tuple[Linearised, ...], state: State, key: jax.Array, index: jax.Array, offsets: jax.Array, root: Any
    ) -> State:
        s = sketch_row(key, index, like.tree(), kind=kind, frame_offset=offsets, kept=at[0].kept)
        cotangent = weighted(s, root)

        def squared(point: Linearised) -> Frame:
            # Behind the barrier, squares are rounded once: no compiler folds them into the sums that follow, or not.
            return jax.lax.optimization_barrier(
                jax.tree.map(lambda g: g.astype(accumulator_dtype(g.dtype)) ** 2, point.pull(cotangent))
            )

        x = squared(at[0])
        control = squared(at[1]) if len(at) > 1 else None
        blocks = block_means(x), None if control is None else block_means(control)
        return state[0].add(x, control, index + 1), state[1].add(*blocks, index + 1)

    specs = (_SPREAD, _SPREAD, _WHOLE, _WHOLE, _SPREAD, _root_specs(root))
    return _on_each(local, sharding, specs)(at, state, key, jnp.asarray(index), offsets, root)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """h with its errors (NaN from one sketch), the sketches that each frame took ``[N]``, and which frames are finite
    and not all 0 ``[N]``."""

    h: Frame
    standard_error: Frame
    block_standard_error: Frame
    sketches: jax.Array
    finite: jax.Array
    alive: jax.Array


@jax.jit
def relative_block_error(block_standard_error: Frame, h: Frame, own_sizes: jax.Array | None = None) -> jax.Array:
    """Root mean square of the block errors over the mean of h, all planes together, ``[N]``.

    ``own_sizes``: luma height and width ``[N, 2]`` of the part at the top left that counts; None: all.
    """
    squares = jax.tree.map(lambda p: p * p, block_standard_error)
    if own_sizes is None:
        return jnp.sqrt(frame_mean(squares)) / frame_mean(h)
    height = h.y.shape[1]
    mean_square = _part_mean(squares, own_sizes, [BLOCK] * len(squares.planes))
    return jnp.sqrt(mean_square) / _part_mean(h, own_sizes, [height // p.shape[1] for p in h.planes])


def _part_mean(frame: Frame, own_sizes: jax.Array, steps: Sequence[int]) -> jax.Array:
    """Mean over a part of each picture, ``[N]``; ``steps``: luma samples from one value of a plane to the next."""
    total, count = [], []
    for plane, step in zip(frame.planes, steps, strict=True):
        rows, columns = (jnp.arange(n)[None] * step < own_sizes[:, i : i + 1] for i, n in enumerate(plane.shape[1:]))
        inside = rows[:, :, None] & columns[:, None, :]
        total.append(frame_sum(jnp.where(inside, plane, 0)))
        count.append(inside.sum((1, 2)))
    return sum(total[1:], total[0]) / sum(count[1:], count[0]).astype(total[0].dtype)


@partial(jax.jit, static_argnames="sharding")
def finish(
    state: State, count: Any, known: Frame | None, beta: Any, *, sharding: NamedSharding | None = None
) -> Diagonal:
    """The estimate after ``count`` sketches; ``known`` is a control variate's map, ``beta`` its factor or None."""

    def local(state: State, count: jax.Array, known: Frame | None, beta: jax.Array | None) -> Diagonal:
        samples, blocks = state
        slopes: list[jax.Array] = []
        if known is not None and beta is None:
            slopes = samples.regression()
        elif known is not None and beta is not None:
            slopes = [jnp.full((1, 1, 1), beta, p.dtype) for p in samples.mean.planes]
        h, error = samples.estimate(known, slopes, count)
        block_h, block_error = blocks.estimate(None if known is None else block_means(known), slopes, count)
        if known is not None:
            h = _without_negatives(h, block_h)
        return Diagonal(
            h,
            error,
            block_error,
            jnp.full(h.y.shape[:1], count, jnp.int32),
            finite_frames(samples.mean),
            jnp.stack([(p != 0).any((1, 2)) for p in samples.mean.planes]).any(0),
        )

    beta = None if beta is None else jnp.asarray(beta)
    return _on_each(local, sharding, (_SPREAD, _WHOLE, _SPREAD, _WHOLE))(state, jnp.asarray(count), known, beta)


def _without_negatives(h: Frame, mean: Frame) -> Frame:
    """Sets negative samples to 0 and scales the rest of their block so that its mean stays what it was (0 if less)."""
    clipped = jax.tree.map(lambda p: jnp.maximum(p, 0), h)

    def factor(wanted: jax.Array, found: jax.Array) -> jax.Array:
        return jnp.where(found > 0, jnp.maximum(wanted, 0) / jnp.where(found > 0, found, 1), 0)

    factors = jax.tree.map(factor, mean, block_means(clipped))
    return jax.tree.map(jnp.multiply, clipped, spread_blocks(factors, h))


@jax.jit
def unsettled(result: Diagonal, target: Any, own_sizes: jax.Array | None) -> jax.Array:
    """Frames whose relative block error is above the target, ``[N]``; those without one (NaN, zeros) are not."""
    return relative_block_error(result.block_standard_error, result.h, own_sizes) > target


@jax.jit
def settle(before: Diagonal, now: Diagonal, going: jax.Array) -> Diagonal:
    """Frames that were settled keep what they had."""
    return jax.tree.map(lambda a, b: jnp.where(going.reshape(-1, *(1,) * (a.ndim - 1)), b, a), before, now)


def sketched_diagonal(
    at: tuple[Linearised, ...],
    z: Frame,
    *,
    key: jax.Array,
    offsets: jax.Array,
    root: Any,
    like: OutputShape,
    kind: SketchKind | TopDct,
    steps: Sequence[int],
    target: float,
    known: Frame | None,
    beta: float | None,
    own_sizes: jax.Array | None,
    sharding: NamedSharding | None,
) -> Diagonal:
    """Adds sketches up to each of ``steps``; frames whose relative block error is within ``target`` at one stop there.

    The host looks at the errors once per step but the last.
    """
    state = start(z, controlled=known is not None, sharding=sharding)
    result, going, count = None, None, 0
    for step in steps:
        for index in range(count, step):
            state = add_sketch(at, state, key, index, offsets, root, kind=kind, like=like, sharding=sharding)
        count, now = step, finish(state, step, known, beta, sharding=sharding)
        result = now if result is None else settle(result, now, going)
        if step != steps[-1] and not (going := unsettled(result, target, own_sizes)).any():
            break
    assert result is not None
    return result
