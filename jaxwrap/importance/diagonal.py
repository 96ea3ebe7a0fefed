"""The sketched diagonal of one chunk of frames: what is compiled, and the loop around it.

A loop outside the compiled code, not inside: XLA's convolutions are several times slower in a while loop on CPU, and an
unrolled loop compiles anew for every number of sketches. The linearisation crosses the border as an ordinary pytree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxwrap.arrays import Frame
from jaxwrap.importance.blocks import block_means, frame_mean, spread_blocks
from jaxwrap.importance.checks import finite_frames
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linearised:
    """r at z: its pullback, what a `TopDct` keeps of r(z), and which frames of z and of r(z) are finite."""

    pullback: Any
    kept: Any
    finite_z: jax.Array
    finite_output: jax.Array


@partial(jax.jit, static_argnames="kind")
def linearise(function: jax.tree_util.Partial, z: Frame, root: Any, *, kind: SketchKind | TopDct) -> Linearised:
    """One forward pass that all sketches share."""
    y, pullback = jax.vjp(lambda frame: function(frame), z)
    kept = kind.select(_weighted(y, root)) if isinstance(kind, TopDct) else None
    return Linearised(pullback, kept, finite_frames(z), finite_frames(y))


def _weighted(output: Any, root: Any) -> Any:
    return jax.tree.map(lambda leaf, weight: leaf * weight.astype(leaf.dtype), output, root)


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

        def add_mean(mean: jax.Array, value: jax.Array) -> jax.Array:
            return mean + (value - mean) / count.astype(value.dtype)

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
            return jnp.sqrt(v / (n * (n - 1)))

        return mean, jax.tree.map(error, variance)

    def regression(self) -> list[jax.Array]:
        """β of each frame and plane that leaves the least variance over all its samples, ``[N, 1, 1]`` per plane."""
        assert self.control is not None
        _, square, product = self.control

        def slope(ac: jax.Array, cc: jax.Array) -> jax.Array:
            total = jnp.sum(cc, (1, 2), keepdims=True)
            return jnp.where(total > 0, jnp.sum(ac, (1, 2), keepdims=True) / jnp.where(total > 0, total, 1), 0)

        return [slope(ac, cc) for ac, cc in zip(product.planes, square.planes, strict=True)]


State = tuple[Moments, Moments]
"""Moments of samples and of block means."""


@partial(jax.jit, static_argnames=("controlled", "sharding"))
def start(z: Frame, *, controlled: bool, sharding: jax.sharding.Sharding | None) -> State:
    """The statistics of no sketch yet, laid out like z (their values alone would not say how)."""
    h = jax.tree.map(lambda p: jnp.zeros(p.shape, accumulator_dtype(p.dtype)), z)
    state = Moments.zeros(h, controlled), Moments.zeros(block_means(h), controlled)
    return state if sharding is None else jax.lax.with_sharding_constraint(state, sharding)


@partial(jax.jit, static_argnames=("kind", "like"), donate_argnames="state")
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
) -> State:
    """Adds (Jᵀ M^½ s)² of sketch ``index`` to the running statistics; ``at``: z, and the reference of a control."""
    s = sketch_row(key, index, like.tree(), kind=kind, frame_offset=offsets, kept=at[0].kept)
    cotangent = _weighted(s, root)

    def squared(point: Linearised) -> Frame:
        (gradient,) = point.pullback(cotangent)
        return jax.tree.map(lambda g: g.astype(accumulator_dtype(g.dtype)) ** 2, gradient)

    x = squared(at[0])
    control = squared(at[1]) if len(at) > 1 else None
    count = jnp.asarray(index) + 1
    blocks = block_means(x), None if control is None else block_means(control)
    return state[0].add(x, control, count), state[1].add(*blocks, count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """h with its errors (NaN from one sketch), the sketches that each frame took ``[N]``, its relative block error
    ``[N]``, and which frames are finite and alive ``[N]``."""

    h: Frame
    standard_error: Frame
    block_standard_error: Frame
    sketches: jax.Array
    relative_error: jax.Array
    finite: jax.Array
    alive: jax.Array


def relative_block_error(block_standard_error: Frame, h: Frame) -> jax.Array:
    """Root mean square of the block errors over the mean of h, all planes together, ``[N]``."""
    planes = block_standard_error.planes
    square = sum(jnp.sum(p * p, (1, 2)) for p in planes) / sum(p.shape[1] * p.shape[2] for p in planes)
    return jnp.sqrt(square) / frame_mean(h)


@jax.jit
def finish(state: State, count: Any, known: Frame | None, beta: Any) -> Diagonal:
    """The estimate after ``count`` sketches; ``known`` is a control variate's map, ``beta`` its factor or None."""
    samples, blocks = state
    count = jnp.asarray(count)
    slopes: list[jax.Array] = []
    if known is not None:
        slopes = (
            samples.regression() if beta is None else [jnp.full((1, 1, 1), beta, p.dtype) for p in samples.mean.planes]
        )
    h, error = samples.estimate(known, slopes, count)
    block_h, block_error = blocks.estimate(None if known is None else block_means(known), slopes, count)
    if known is not None:
        h = _without_negatives(h, block_h)
    frames = h.y.shape[0]
    return Diagonal(
        h,
        error,
        block_error,
        jnp.full((frames,), count, jnp.int32),
        relative_block_error(block_error, h),
        finite_frames(samples.mean),
        frame_mean(samples.mean) != 0,
    )


def _without_negatives(h: Frame, mean: Frame) -> Frame:
    """Sets negative samples to 0 and scales the rest of their block so that its mean stays what it was (0 if less)."""
    clipped = jax.tree.map(lambda p: jnp.maximum(p, 0), h)

    def factor(wanted: jax.Array, found: jax.Array) -> jax.Array:
        return jnp.where(found > 0, jnp.maximum(wanted, 0) / jnp.where(found > 0, found, 1), 0)

    factors = jax.tree.map(factor, mean, block_means(clipped))
    return jax.tree.map(jnp.multiply, clipped, spread_blocks(factors, h))


@jax.jit
def settle(before: Diagonal, now: Diagonal, target: Any) -> Diagonal:
    """Frames that had met the target (or cannot) keep what they had."""
    going = before.relative_error > target

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(going.reshape(-1, *(1,) * (a.ndim - 1)), b, a)

    return jax.tree.map(choose, before, now)


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
    sharding: jax.sharding.Sharding | None,
) -> Diagonal:
    """Adds sketches up to each of ``steps``; frames whose relative block error is within ``target`` at one stop there.

    The host looks at the errors once per step but the last.
    """
    state, result, count = start(z, controlled=known is not None, sharding=sharding), None, 0
    for step in steps:
        for index in range(count, step):
            state = add_sketch(at, state, key, index, offsets, root, kind=kind, like=like)
        count, now = step, finish(state, step, known, beta)
        result = now if result is None else settle(result, now, target)
        if step != steps[-1] and not (result.relative_error > target).any():
            break
    assert result is not None
    return result
