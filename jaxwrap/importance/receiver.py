"""Receivers and metrics as arguments of compiled functions.

A *receiver* r is any pure function from a `Frame` of real-valued samples ``[N, H, W]`` to a pytree of float arrays
with the same leading axis N, frames independent of one another. The metric M of its output is diagonal.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.importance.checks import check_output, draws_nothing, no_state_changes
from jaxwrap.importance.sketch import accumulator_dtype

Receiver = Callable[[Frame], Any]

Metric = Any
"""Diagonal of M: None (1), a pytree of weights ≥ 0 that broadcast against the output (a prefix of its tree is enough),
or a function from the output (as `jax.ShapeDtypeStruct`) to such a pytree, for example `yuv_metric`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class PerFrame:
    """Parameters of a receiver that differ from frame to frame: arrays ``[N, …]``, N as in the frames that it is given.

    ``jax.tree_util.Partial(f, PerFrame(statistics))``, f(statistics, frame): whoever hands a receiver some of the
    frames takes their part of these (`frames_of`).
    """

    values: Any


def frames_of(function: jax.tree_util.Partial, numbers: Any) -> jax.tree_util.Partial:
    """The receiver of the frames of these places: parts of all `PerFrame` in it, the rest as it is."""

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, PerFrame):
            return leaf
        return PerFrame(jax.tree.map(lambda array: array[np.asarray(numbers)], leaf.values))

    return jax.tree.map(part, function, is_leaf=lambda leaf: isinstance(leaf, PerFrame))


def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """A function as an argument for `jax.jit`: equal ones share compiled code.

    Traced, so that they may change: the parameters of a `jax.tree_util.Partial`, and those of a Flax module that is
    called itself or by one of its methods. All else that a function holds (a closure's arrays, modules inside other
    objects) is read when it is compiled and taken for constant, as by `jax.jit`.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    method, instance = (function.__func__, function.__self__) if inspect.ismethod(function) else (None, function)
    if isinstance(instance, nnx.Module):
        graph, state = nnx.split(instance)
        return jax.tree_util.Partial(_Network(graph, method or type(instance).__call__), state)
    if inspect.ismethod(function):
        function = _Method(function.__func__, function.__self__)
    try:
        hash(function)
    except TypeError:
        function = _ById(function)
    return jax.tree_util.Partial(function)


@dataclasses.dataclass(frozen=True)
class _Method:
    """A bound method that is equal to another where their objects are; Python's own wants the same object."""

    function: Callable[..., Any]
    instance: Any

    def __call__(self, *args: Any) -> Any:
        return self.function(self.instance, *args)


@dataclasses.dataclass(frozen=True)
class _Network:
    """A method of a Flax module whose parameters come as an argument."""

    graph: nnx.GraphDef[Any]
    method: Callable[..., Any]

    def __call__(self, state: Any, *args: Any) -> Any:
        return self.method(nnx.merge(self.graph, state), *args)


@dataclasses.dataclass(frozen=True, eq=False)
class _ById:
    """A callable that cannot be hashed, or is bound to something that cannot: equal to itself only."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def _identity(self) -> tuple[int, ...]:
        f = self.function
        return (id(f.function), id(f.instance)) if isinstance(f, _Method) else (id(f),)

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self._identity() == other._identity()


@jax.jit
def apply(function: jax.tree_util.Partial, z: Frame) -> Any:
    """r(z), compiled."""
    return function(z)


def output_of(function: jax.tree_util.Partial, z: Frame) -> Any:
    """What r(z) looks like, as a pytree of `jax.ShapeDtypeStruct`; z may be such a pytree too.

    Remembers what it has traced. Raises `ValueError` for outputs that are not float arrays ``[N, …]``, for receivers
    that draw random numbers, and for those that change the state of a network while they run.
    """
    with no_state_changes():
        traced = apply.trace(function, jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), z))
    output = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), traced.out_info)
    check_output(output, num_frames(z))
    draws_nothing(traced.jaxpr)
    return output


def float_dtype(dtype: Any) -> Any:
    """What samples of this dtype are computed in: their own, or float32 for integers."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(jnp.float32)


def as_floats(z: Frame) -> Frame:
    """Samples on the device, in the dtype that they are computed in."""
    return jax.tree.map(lambda p: jnp.asarray(p, float_dtype(p.dtype)), z)


def map_prefix(function: Callable[..., Any], prefix: Any, tree: Any, *more: Any) -> Any:
    """Maps over ``tree`` (and ``more`` like it); a leaf of ``prefix`` serves the whole subtree in its place."""
    structure: Any = jax.tree.structure(prefix)
    try:
        below = structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"the metric is a {structure}, the receiver's output a {jax.tree.structure(tree)}: "
            "give the same tree, a prefix of it, or a function of the output"
        ) from error
    spread = [leaf for leaf, part in zip(jax.tree.leaves(prefix), below, strict=True) for _ in jax.tree.leaves(part)]
    return jax.tree.map(function, jax.tree.unflatten(jax.tree.structure(tree), spread), tree, *more)


def root_metric(metric: Metric, output: Any, *, on_host: bool = False) -> Any:
    """M^½ as a pytree like the output, each array with the output's number of axes.

    ``on_host``: as NumPy arrays, for weights that are known and too many for the device.
    """
    if callable(metric):
        metric = metric(output)

    def root(weight: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        shape = np.shape(weight)
        if len(shape) > leaf.ndim or any(m not in (1, n) for m, n in zip(shape[::-1], leaf.shape[::-1], strict=False)):
            raise ValueError(
                f"a metric of shape {shape} was given for an output of shape {leaf.shape}: it must broadcast against it"
            )
        if not isinstance(weight, jax.core.Tracer):
            values = np.asarray(weight)
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(
                    "the metric holds negative, NaN or infinite weights: its diagonal must be finite and ≥ 0"
                )
        xp = np if on_host else jnp
        wide = xp.asarray(weight, accumulator_dtype(leaf.dtype))
        return xp.sqrt(wide).reshape((1,) * (leaf.ndim - len(shape)) + shape)

    return map_prefix(root, 1.0 if metric is None else metric, output)


def weighted(tree: Any, root: Any) -> Any:
    """M^½ times a tree like the output, in the tree's dtypes; ``root`` from `root_metric`."""
    return jax.tree.map(lambda leaf, weight: leaf * weight.astype(leaf.dtype), tree, root)
