"""Importance maps: h = diag(Jᵀ M^½ Sᵀ S M^½ J), how much each sample's error matters to a receiver.

A *receiver* r is any pure function from a `Frame` of real-valued samples ``[N, H, W]`` to a pytree of float arrays
with the same leading axis N, frames independent of one another (a batch norm in training mode is not). J is its
Jacobian at z, M the metric of its output, S a random sketch with E[Sᵀ S] = I (`jaxwrap.importance.sketch`). For a
small coding error q of the samples, E[‖r(z + q) − r(z)‖²_M] ≈ Σ h_i q_i² when the entries of q are uncorrelated
(WA-RDO section 3, equations 5 and 6).

Unit of h: squared unit of the metric per squared sample step. E[h] is the exact diagonal of Jᵀ M J, at any number of
sketches. Relative standard deviation per sample: √(2/n_s) for Gaussian sketches; √(2 (1 − Σ J⁴ / (Σ J²)²) / n_s) for
Rademacher ones, Σ over the outputs that depend on the sample; so 0 for a pointwise receiver, about .7 for a deep one
at n_s = 4.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, crop_to, frame_of, num_frames, pad_to, size_of
from jaxwrap.importance.sketch import SketchKind, accumulator_dtype, check_sketch, sketch_row
from jaxwrap.metrics.distortion import PLANE_WEIGHTS

Receiver = Callable[[Frame], Any]

Metric = Any
"""Diagonal of M: None (1), a pytree of weights ≥ 0 that broadcast against the output (a prefix of its tree is enough),
or a function from the output (as `jax.ShapeDtypeStruct`) to such a pytree, for example `yuv_metric`."""

BLOCK = 16
"""Side, in luma samples, of the blocks whose mean has a standard error of its own (an encoder acts on such blocks)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class ImportanceMap:
    """A sketched diagonal and how far to trust it.

    ``h``: like z, ≥ 0, float32 or wider. ``standard_error``: of each sample of h, like z. ``block_standard_error``: of
    the means of h over 16×16 luma blocks and the chroma blocks at the same place, ``[N, ⌈H/16⌉, ⌈W/16⌉]`` per plane;
    blocks cut by the right or lower edge are filled by replication. Both errors come from the spread between sketches,
    and are None when ``sketches`` is 1.
    """

    h: Frame
    standard_error: Frame | None
    block_standard_error: Frame | None
    sketches: int = dataclasses.field(metadata={"static": True})

    def relative_block_error(self) -> jax.Array:
        """Root mean square of the block errors over the mean of h, all planes together, ``[N]``. Needs 2 sketches."""
        if self.block_standard_error is None:
            raise ValueError("a map from 1 sketch has no standard error: use 2 or more")
        planes = self.block_standard_error.planes
        square = sum(jnp.sum(p * p, (1, 2)) for p in planes) / sum(p.shape[1] * p.shape[2] for p in planes)
        return jnp.sqrt(square) / frame_mean(self.h)


def frame_mean(frame: Frame) -> jax.Array:
    """Mean over all samples of all planes of each picture, ``[N]``."""
    total = sum(jnp.sum(jnp.asarray(p), (1, 2)) for p in frame.planes)
    return total / sum(p.shape[1] * p.shape[2] for p in frame.planes)


def yuv_metric(output: Frame) -> Frame:
    """Weights that make ‖e‖²_M the YUV mean square error (6 MSE_Y + MSE_U + MSE_V) / 8; in 4:0:0, MSE_Y.

    SNW (section 4.1) weights the planes' PSNRs 6:1:1, which is a geometric mean of their squared errors. This is the
    arithmetic mean with the same weights (`PLANE_WEIGHTS`), because M has to be fixed before the errors are known.

    Takes the receiver's output (shapes are enough) and gives one scalar per plane: 6, 1, 1 over 8 times the plane's
    samples.
    """
    weights = PLANE_WEIGHTS[: len(output.planes)]
    return frame_of([w / sum(weights) / (p.shape[1] * p.shape[2]) for w, p in zip(weights, output.planes, strict=True)])


def importance_map(
    receiver: Receiver,
    z: Frame,
    *,
    key: jax.Array,
    sketches: int = 4,
    metric: Metric = None,
    sketch: SketchKind = "rademacher",
    frame_offset: int = 0,
) -> ImportanceMap:
    """Sketched diagonal of ``receiver`` at z, for every frame of the batch at once.

    Cost: one forward pass and ``sketches`` backward passes (input gradients only) that share it. Traced and compiled
      once per receiver and shape, whatever the number of sketches; pass parameters that change as
      ``jax.tree_util.Partial(f, parameters)`` to keep the compiled code when they do.

    Args:
      receiver: pure function, samples → pytree of float arrays ``[N, …]``.
      z: samples ``[N, H, W]`` per plane; integers are taken as float32.
      key: random key. The map of frame n depends on it and on ``frame_offset + n`` only, not on the rest of the batch.
      sketches: n_s ≥ 1; 2 or more for standard errors.
      metric: diagonal of M, see `Metric`.
      sketch: ``"rademacher"`` (smaller variance) or ``"gaussian"``.
      frame_offset: number in the sequence of the batch's first frame.

    Raises:
      ValueError: unknown sketch, fewer than 1 sketch, an output that is not float or has another leading axis, a
        metric that does not fit or is negative; and, unless traced by an outer `jax.jit`, NaN or infinity in z, output
        or map, and frames whose output does not depend on z.
    """
    check_sketch(sketch, sketches)
    check_frame(z)
    z = jax.tree.map(_as_float, z)
    function = as_partial(receiver)
    output = jax.eval_shape(apply, function, z)
    _check_output(output, num_frames(z))
    root = root_metric(metric, output)

    y, pullback, finite_z, finite_y = _linearise(function, z)
    _refuse(~finite_z, "z holds NaN or infinity in", frame_offset)
    _refuse(~finite_y, "the receiver's output holds NaN or infinity in", frame_offset)
    state = _start(z)
    # A loop out here, not in the compiled code: XLA's convolutions are several times slower inside a while loop on
    # CPU, and an unrolled loop compiles anew for every number of sketches. The linearisation crosses the border as an
    # ordinary pytree.
    for i in range(sketches):
        state = _add_sketch(pullback, state, key, i, frame_offset, y, root, kind=sketch)
    result, finite, alive = _finish(state, sketches)
    _refuse(~finite, "the receiver's derivative is NaN or infinite in", frame_offset)
    _refuse(
        ~alive,
        "the receiver's output does not depend on z (a stop_gradient or a rounding inside, saturated activations, or a "
        "metric of zeros) in",
        frame_offset,
    )
    return result


@jax.jit
def _linearise(function: jax.tree_util.Partial, z: Frame) -> tuple[Any, Any, jax.Array, jax.Array]:
    """r(z), its pullback, and which frames of z and of r(z) are finite."""
    y, pullback = jax.vjp(lambda frame: function(frame), z)
    return y, pullback, _finite_frames(z), _finite_frames(y)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Spread:
    """Running mean and sum of squared deviations (Welford): never negative, unlike E[x²] − E[x]²."""

    mean: Frame
    deviations: Frame

    def add(self, x: Frame, count: jax.Array) -> _Spread:
        """Includes x as value number ``count`` (from 1)."""

        def add_mean(mean: jax.Array, value: jax.Array) -> jax.Array:
            return mean + (value - mean) / count.astype(value.dtype)

        def add_deviation(deviations: jax.Array, mean: jax.Array, value: jax.Array) -> jax.Array:
            n = count.astype(value.dtype)
            return deviations + (value - mean) ** 2 * ((n - 1) / n)

        return _Spread(jax.tree.map(add_mean, self.mean, x), jax.tree.map(add_deviation, self.deviations, self.mean, x))


@jax.jit
def _start(z: Frame) -> tuple[_Spread, _Spread]:
    def zeros(like: Frame) -> _Spread:
        return _Spread(jax.tree.map(jnp.zeros_like, like), jax.tree.map(jnp.zeros_like, like))

    h = jax.tree.map(_accumulator, z)
    return zeros(h), zeros(_block_means(h))


@partial(jax.jit, static_argnames="kind", donate_argnames="state")
def _add_sketch(
    pullback: Any,
    state: tuple[_Spread, _Spread],
    key: jax.Array,
    index: jax.Array,
    frame_offset: jax.Array,
    y: Any,
    root_m: Any,
    *,
    kind: SketchKind,
) -> tuple[_Spread, _Spread]:
    """Adds (Jᵀ M^½ s)² of one sketch to the running statistics of samples and of blocks."""
    s = sketch_row(key, index, y, kind=kind, frame_offset=frame_offset)
    (gradient,) = pullback(jax.tree.map(lambda leaf, root: leaf * root.astype(leaf.dtype), s, root_m))
    squared = jax.tree.map(lambda g: _accumulator(g) ** 2, gradient)
    count = jnp.asarray(index) + 1
    return state[0].add(squared, count), state[1].add(_block_means(squared), count)


@partial(jax.jit, static_argnums=1)
def _finish(state: tuple[_Spread, _Spread], sketches: int) -> tuple[ImportanceMap, jax.Array, jax.Array]:
    """The map, and which of its frames are finite and not all 0."""
    samples, blocks = state
    flags = _finite_frames(samples.mean), frame_mean(samples.mean) != 0
    if sketches == 1:
        return ImportanceMap(samples.mean, None, None, sketches), *flags

    def error(spread: _Spread) -> Frame:
        return jax.tree.map(lambda d: jnp.sqrt(d / (sketches * (sketches - 1))), spread.deviations)

    return ImportanceMap(samples.mean, error(samples), error(blocks), sketches), *flags


def _block_means(frame: Frame) -> Frame:
    height, width = size_of(frame)
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    padded = pad_to(frame, rows * BLOCK, cols * BLOCK)
    return jax.tree.map(
        lambda p: p.reshape(p.shape[0], rows, p.shape[1] // rows, cols, p.shape[2] // cols).mean((2, 4)), padded
    )


def batched_importance_maps(
    make_receiver: Callable[[int, int], Receiver],
    zs: Sequence[Frame],
    *,
    key: jax.Array,
    sketches: int = 4,
    metric: Callable[[Any], Any] | None = None,
    sketch: SketchKind = "rademacher",
) -> list[ImportanceMap]:
    """Maps of pictures of different sizes in one batch: padded to a common size, padding masked out of the metric,
    maps cropped back.

    Output arrays of three axes or more are taken as ``[N, H', W', …]``, H' and W' in proportion to z; the part that
    belongs to the padding has weight 0. Smaller outputs (class scores) count whole, and see the padding. A picture's
    edge meets replicated samples instead of the receiver's own border rule, so its map differs from the one alone
    within half a receptive field of the right and lower edges. The work grows with the largest height times the
    largest width: group pictures of similar size.

    Args:
      make_receiver: (luma height, luma width of the padded batch) → receiver for frames of that size.
      zs: frames of one chroma format, each with N ≥ 1 pictures; frames are numbered through in this order for ``key``.
      metric: function from an output of one frame (as `jax.ShapeDtypeStruct`, at the picture's own size) to weights,
        such as `yuv_metric`; None for 1.

    Returns:
      One map per member of ``zs``, at its own size. Errors as in `importance_map`.
    """
    if not zs:
        raise ValueError("no frames were given: batched_importance_maps wants at least one")
    formats = {type(z).__name__ for z in zs}
    if len(formats) > 1:
        raise ValueError(
            f"frames of different chroma formats were given ({', '.join(sorted(formats))}): map each on its own"
        )
    for z in zs:
        check_frame(z)
    sizes = [size_of(z) for z in zs]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = jax.tree.map(
        lambda *p: jnp.concatenate(p), *(pad_to(jax.tree.map(_as_float, z), height, width) for z in zs)
    )
    receiver = make_receiver(height, width)
    output = jax.eval_shape(apply, as_partial(receiver), batch)
    _check_output(output, num_frames(batch))

    def own_part(shape: tuple[int, ...], h: int, w: int) -> tuple[int, ...]:
        spatial = (-(-h * shape[1] // height), -(-w * shape[2] // width)) if len(shape) >= 3 else shape[1:3]
        return (1, *spatial, *shape[3:])

    def weights_of(z: Frame) -> Any:
        own = jax.tree.map(lambda y: jax.ShapeDtypeStruct(own_part(y.shape, *size_of(z)), y.dtype), output)
        given = 1.0 if metric is None else metric(own)

        def fill(weight: Any, part: jax.ShapeDtypeStruct, whole: jax.ShapeDtypeStruct) -> np.ndarray:
            full = np.zeros((num_frames(z), *whole.shape[1:]), np.float32)
            full[tuple(slice(0, n) for n in (num_frames(z), *part.shape[1:]))] = weight
            return full

        return _map_prefix(fill, given, own, output)

    masked = jax.tree.map(lambda *w: np.concatenate(w), *(weights_of(z) for z in zs))
    whole = importance_map(receiver, batch, key=key, sketches=sketches, metric=masked, sketch=sketch)
    maps, start = [], 0
    for z, (h, w) in zip(zs, sizes, strict=True):
        part = slice(start, start + num_frames(z))
        blocks = (part, slice(0, -(-h // BLOCK)), slice(0, -(-w // BLOCK)))
        maps.append(
            ImportanceMap(
                crop_to(_index(whole.h, part), h, w),
                None if whole.standard_error is None else crop_to(_index(whole.standard_error, part), h, w),
                None if whole.block_standard_error is None else _index(whole.block_standard_error, blocks),
                sketches,
            )
        )
        start = part.stop
    return maps


def _index(frame: Frame, index: Any) -> Frame:
    return jax.tree.map(lambda p: p[index], frame)


def as_partial(function: Callable[..., Any]) -> jax.tree_util.Partial:
    """A function as an argument for `jax.jit`: equal ones share compiled code, a Partial's parameters are traced."""
    if isinstance(function, jax.tree_util.Partial):
        return function
    if inspect.ismethod(function):
        function = _Method(function.__func__, function.__self__)
    try:
        hash(function)
    except TypeError:  # bound to something unhashable: identity is all that is left
        return jax.tree_util.Partial(lambda *args: function(*args))
    return jax.tree_util.Partial(function)


@dataclasses.dataclass(frozen=True)
class _Method:
    """A bound method that is equal to another where their objects are; Python's own wants the same object."""

    function: Callable[..., Any]
    instance: Any

    def __call__(self, *args: Any) -> Any:
        return self.function(self.instance, *args)


@jax.jit
def apply(function: jax.tree_util.Partial, z: Frame) -> Any:
    """r(z), compiled; `jax.eval_shape` of it remembers what it has traced."""
    return function(z)


def _as_float(plane: Any) -> jax.Array:
    plane = jnp.asarray(plane)
    return plane if jnp.issubdtype(plane.dtype, jnp.floating) else plane.astype(jnp.float32)


def _accumulator(plane: jax.Array) -> jax.Array:
    return plane.astype(accumulator_dtype(plane.dtype))


def _check_output(output: Any, num: int) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(output)
    if not leaves:
        raise ValueError("the receiver returned no arrays: there is nothing whose error could be measured")
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path) or "output"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"the receiver's {name} is {leaf.dtype}: an importance map needs real outputs that have a derivative "
                "(return scores rather than indices, and leave rounding out)"
            )
        if leaf.ndim < 1 or leaf.shape[0] != num:
            raise ValueError(
                f"the receiver's {name} has shape {leaf.shape}: the leading axis must be the {num} frames of z"
            )


def _map_prefix(function: Callable[..., Any], prefix: Any, tree: Any, *more: Any) -> Any:
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


def root_metric(metric: Metric, output: Any) -> Any:
    """M^½ as a pytree like the output, each array with the output's number of axes."""
    if callable(metric):
        metric = metric(output)

    def root(weight: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
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
        wide = jnp.asarray(weight, accumulator_dtype(leaf.dtype))
        return jnp.sqrt(wide).reshape((1,) * (leaf.ndim - len(shape)) + shape)

    return _map_prefix(root, 1.0 if metric is None else metric, output)


def _finite_frames(tree: Any) -> jax.Array:
    flags = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(flags).all(0)


def _refuse(bad: jax.Array, what: str, frame_offset: int) -> None:
    """Raises for the flagged frames, named by their numbers in the sequence; nothing is known while tracing."""
    if isinstance(bad, jax.core.Tracer) or not bad.any():
        return
    numbers = [str(int(i) + frame_offset) for i in np.flatnonzero(bad)]
    listed = ", ".join(numbers[:8]) + (" …" if len(numbers) > 8 else "")
    raise ValueError(f"{what} frame{'s' if len(numbers) > 1 else ''} {listed}")
