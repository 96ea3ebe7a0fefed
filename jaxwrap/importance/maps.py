"""Importance maps: h = diag(Jᵀ M^½ Sᵀ S M^½ J), how much each sample's error matters to a receiver.

A *receiver* r is any pure function from a `Frame` of real-valued samples ``[N, H, W]`` to a pytree of float arrays
with the same leading axis N, frames independent of one another. J is its Jacobian at z, M the metric of its output, S a
random sketch with E[Sᵀ S] = I (`jaxwrap.importance.sketch`). For a small coding error q of the samples,
E[‖r(z + q) − r(z)‖²_M] ≈ Σ h_i q_i² when the entries of q are uncorrelated (WA-RDO section 3, equations 5 and 6).

Unit of h: squared unit of the metric per squared sample step. E[h] is the exact diagonal of Jᵀ M J, at any number of
sketches; of less than that for a `TopDct`, and not quite for a `ControlVariate`, see there. Relative standard deviation
per sample: √(2/n_s) for Gaussian sketches; √(2 (1 − Σ J⁴ / (Σ J²)²) / n_s) for Rademacher ones, Σ over the outputs that
depend on the sample; so 0 for a pointwise receiver, about .7 for a deep one at n_s = 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, num_frames
from jaxwrap.importance.blocks import block_means
from jaxwrap.importance.checks import check_independence, no_state_changes, refuse
from jaxwrap.importance.diagonal import Diagonal, OutputShape, linearise, relative_block_error, sketched_diagonal
from jaxwrap.importance.memory import chunk_frames, frame_sharding
from jaxwrap.importance.receiver import Metric, Receiver, as_partial, float_dtype, frames_of, output_of, root_metric
from jaxwrap.importance.sketch import SketchKind, TopDct, check_sketch
from jaxwrap.metrics.distortion import PLANE_WEIGHTS

FIRST_CHECK = 4
"""Sketches after which ``"auto"`` looks at the errors for the first time; then each time their number has doubled."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class ImportanceMap:
    """A sketched diagonal and how far to trust it.

    ``h``: like z, ≥ 0, float32 or wider. ``standard_error``: of each sample of h, like z. ``block_standard_error``: of
    the means of h over 16×16 luma blocks and the chroma blocks at the same place, ``[N, ⌈H/16⌉, ⌈W/16⌉]`` per plane;
    blocks cut by the right or lower edge are filled by replication. Both errors come from the spread between sketches,
    and are None when ``sketches`` is 1.

    ``sketches``: how many were asked for; with ``"auto"`` the most that were allowed, and ``frame_sketches``, ``[N]``
    integers, says how many each frame took (None where all took ``sketches``). ``controlled``: whether a
    `ControlVariate` corrected it, so that its errors are less than those of as many plain sketches.
    """

    h: Frame
    standard_error: Frame | None
    block_standard_error: Frame | None
    sketches: int = dataclasses.field(metadata={"static": True})
    frame_sketches: Any = None
    controlled: bool = dataclasses.field(default=False, metadata={"static": True})

    def relative_block_error(self) -> jax.Array:
        """Root mean square of the block errors over the mean of h, all planes together, ``[N]``. Needs 2 sketches."""
        return relative_block_error(self._known_error(), self.h)

    def sketch_spread(self) -> Frame:
        """Standard deviation between sketches of each block mean, ``[N, ⌈H/16⌉, ⌈W/16⌉]`` per plane.

        Raises `ValueError` for a map from 1 sketch, and for one with a control variate: its error is not that of plain
        sketches.
        """
        if self.controlled:
            raise ValueError(
                "a map made with a control variate does not tell the spread between plain sketches: make one without"
            )
        count = jnp.full((num_frames(self.h),), self.sketches) if self.frame_sketches is None else self.frame_sketches
        root = jnp.sqrt(jnp.asarray(count).astype(jnp.float32))[:, None, None]
        return jax.tree.map(lambda p: p * root.astype(p.dtype), self._known_error())

    def block_means(self) -> Frame:
        """Means of h over the same blocks as ``block_standard_error``."""
        return block_means(self.h)

    def _known_error(self) -> Frame:
        if self.block_standard_error is None:
            raise ValueError("a map from 1 sketch has no standard error: use 2 or more")
        return self.block_standard_error


@dataclasses.dataclass(frozen=True)
class ControlVariate:
    """A place whose map is known: sketch errors there, seen through the same sketches, are taken off those at z.

    h = mean(a) − β (mean(c) − h_ref), a = (Jᵀ M^½ s)² at z and c at the reference. The variance falls by 1 − ρ², ρ the
    correlation of a and c between sketches, and the cost doubles: worth it where ρ² > ½, that is where the receiver is
    nearly the same function of the samples at both places. Errors at 8 sketches, over those without, measured on a
    random restoration network and a random ReLU network, 200 sketches at the reference: static camera .28 and .41 one
    frame later, .31 and .46 sixteen frames later; sports at 50 Hz .57 and .90 one frame later, .97 and 1 after sixteen.

    ``reference``: samples, N frames like z or 1 that serves them all. ``h``: its map, exact or from many sketches, of
    the same receiver and metric; its own error, times β, comes on top of the one that is stated. ``beta``: β; with a
    number the estimate is unbiased until it is clipped. None estimates it for each frame and plane by regression over
    all samples from the same sketches, which leaves a bias of the order of the correction over the number of
    independent samples. Then samples that came out negative are set to 0, and the rest of their 16×16 block is scaled
    so that its mean is not changed (or 0, where that was negative): weights have to be ≥ 0, and blocks are what
    encoders act on. So with a number for β means of blocks stay unbiased where they are not themselves clipped, samples
    do not. Not for `TopDct`, which keeps other coefficients at z than at the reference.
    """

    reference: Frame
    h: Frame
    beta: float | None = None


def yuv_metric(output: Frame) -> Frame:
    """Weights that make ‖e‖²_M the YUV mean square error (6 MSE_Y + MSE_U + MSE_V) / 8; in 4:0:0, MSE_Y.

    SNW (section 4.1) weights the planes' PSNRs 6:1:1, which is a geometric mean of their squared errors. This is the
    arithmetic mean with the same weights (`PLANE_WEIGHTS`), because M has to be fixed before the errors are known.

    Takes the receiver's output (shapes are enough) and gives one scalar per plane: 6, 1, 1 over 8 times the plane's
    samples.
    """
    if not hasattr(output, "planes"):
        raise ValueError(
            f"yuv_metric weighs the planes of a frame; the receiver gives a {jax.tree.structure(output)}: give weights "
            "of its own outputs as the metric, or None"
        )
    weights = PLANE_WEIGHTS[: len(output.planes)]
    return frame_of([w / sum(weights) / (p.shape[1] * p.shape[2]) for w, p in zip(weights, output.planes, strict=True)])


def importance_map(
    receiver: Receiver,
    z: Frame,
    *,
    key: jax.Array,
    sketches: int | Literal["auto"] = 4,
    metric: Metric = None,
    sketch: SketchKind | TopDct = "rademacher",
    frame_offset: int | Sequence[int] = 0,
    target_error: float = 0.05,
    max_sketches: int = 64,
    control: ControlVariate | None = None,
    memory_budget: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    own_sizes: Sequence[tuple[int, int]] | None = None,
) -> ImportanceMap:
    """Sketched diagonal of ``receiver`` at z, for every frame of the batch at once.

    Cost: one forward pass and ``sketches`` backward passes (input gradients only) that share it; at the first call for
    a receiver and shape two forward passes more, which look for frames that depend on one another. Compiled
    once per receiver and shape, whatever the number of sketches. Parameters may change where the receiver is a Flax
    module, a method of one, or a ``jax.tree_util.Partial(f, parameters)``; arrays in a closure, and modules inside
    other objects, are read when the receiver is compiled and taken for constant, as by `jax.jit`.

    ``sketches="auto"`` takes 4, 8, 16, … sketches until the frame's relative block error
    (`ImportanceMap.relative_block_error`) is at most ``target_error``, or ``max_sketches`` is reached: then the map
    comes back as it is, its error being stated in it. Each frame decides for itself, so its map does not depend on its
    batch; a batch goes on until its last frame is done.

    With ``memory_budget`` the frames are taken in chunks that fit (`frames_within`); with ``devices`` each chunk is
    spread over them. Both bring the map back to the host as NumPy arrays, which are the caller's and outside the
    budget. On CPU neither changes a byte of it, for receivers whose compiled arithmetic does not depend on the size of
    the batch, as that of convolutions, matrix products and everything per sample does not.

    Args:
      receiver: pure function, samples → pytree of float arrays ``[N, …]``.
      z: samples ``[N, H, W]`` per plane; integers are taken as float32.
      key: random key. The map of a frame depends on it and on the frame's number only, not on the rest of the batch.
      sketches: n_s ≥ 1, 2 or more for standard errors; or ``"auto"``.
      metric: diagonal of M, see `Metric`.
      sketch: ``"rademacher"`` (smaller variance), ``"gaussian"``, or a `TopDct`.
      frame_offset: number in the sequence of the batch's first frame; or the numbers of all its frames, ``[N]``, where
        they do not follow one another.
      target_error: relative block error > 0 at which ``"auto"`` stops.
      max_sketches: the most that ``"auto"`` takes, ≥ 2.
      control: a control variate; needs 2 sketches where its β is to be estimated.
      memory_budget: bytes per device, see `jaxwrap.importance.memory`; None: all frames at once.
      devices: devices that share the frames; None: where z lies.
      own_sizes: luma height and width of each frame's own picture, at the top left of padded ones: all that ``"auto"``
        looks at; None: all of z.

    Raises:
      ValueError: unknown sketch, fewer than 1 sketch, a receiver that draws random numbers, an output that is not float
        or has another leading axis, a metric that does not fit or is negative, a control variate of another size or
        with a `TopDct`, frame numbers or own sizes that do not fit the frames, a budget too small for one frame;
        ``"auto"``, ``memory_budget`` or ``devices`` inside an outer `jax.jit`. And, unless traced by one: NaN or
        infinity in z, output or map, frames whose output does not depend on z, and frames that depend on one another
        (see `jaxwrap.importance.checks` for what cannot be found).
    """
    steps = _steps(sketches, target_error, max_sketches, control)
    check_sketch(sketch, steps[-1])
    check_frame(z)
    n, auto = num_frames(z), sketches == "auto"
    if control is not None:
        control = _checked_control(control, z, sketch)
    special = auto or memory_budget is not None or devices is not None
    if special and any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((z, key, receiver))):
        raise ValueError(
            'sketches="auto", memory_budget and devices need values: call importance_map outside jax.jit, or without'
        )
    function = as_partial(receiver)
    shape = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, float_dtype(p.dtype)), z)
    root = root_metric(metric, output_of(function, shape), on_host=memory_budget is not None)
    sharding = frame_sharding(devices)
    numbers = _frame_numbers(frame_offset, n)
    own = None if own_sizes is None else _checked_sizes(own_sizes, z)
    size = n
    if memory_budget is not None:
        one = jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape[1:]), p.dtype), shape)
        size = chunk_frames(
            frames_of(function, [0]), one, root, memory_budget, n, sketch, auto, control is not None, n, devices
        )
    elif sharding is not None:
        size = -(-n // sharding.num_devices) * sharding.num_devices
    if sharding is not None:
        whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        function, key = jax.device_put((function, key), whole)
    parts = []
    for first in range(0, n, size):
        part = _map_chunk(
            function,
            _Chunk(first, min(size, n - first), size, n, sharding),
            z,
            root,
            key=key,
            sketch=sketch,
            steps=steps,
            target=target_error if auto else 0.0,
            control=control,
            numbers=numbers,
            own_sizes=own,
        )
        parts.append(part if memory_budget is None and sharding is None else jax.device_get(part))
    done = parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: np.concatenate(p), *parts)
    known = steps[-1] > 1
    return ImportanceMap(
        done.h,
        done.standard_error if known else None,
        done.block_standard_error if known else None,
        steps[-1],
        done.sketches if auto else None,
        control is not None,
    )


def _frame_numbers(frame_offset: Any, n: int) -> Any:
    """The number in the sequence of each of n frames, ``[n]`` int32."""
    xp = jnp if isinstance(frame_offset, jax.core.Tracer) else np
    offset = xp.asarray(frame_offset, np.int32)
    if offset.ndim and offset.shape != (n,):
        raise ValueError(
            f"frame numbers of shape {offset.shape} were given for {n} frames; wanted one per frame, or the first one's"
        )
    return offset if offset.ndim else xp.arange(n, dtype=np.int32) + offset


def _checked_sizes(own_sizes: Sequence[tuple[int, int]], z: Frame) -> np.ndarray:
    own, (n, *size) = np.asarray(own_sizes, np.int32), z.y.shape
    if own.shape != (n, 2) or (own < 1).any() or (own > np.asarray(size)).any():
        raise ValueError(
            f"own sizes {own.tolist()} were given for {n} frames of {size[1]}×{size[0]}; wanted a luma height and "
            "width of each, within that"
        )
    return own


def _steps(
    sketches: int | str, target_error: float, max_sketches: int, control: ControlVariate | None
) -> tuple[int, ...]:
    """Numbers of sketches at which the errors are looked at; the last is the most."""
    if sketches == "auto":
        if max_sketches < 2 or not 0 < target_error < np.inf:
            raise ValueError(
                f'sketches="auto" was given with target_error {target_error} and max_sketches {max_sketches}; '
                "wanted a finite error > 0 and at least 2 sketches"
            )
        doubling = [FIRST_CHECK << i for i in range(max_sketches.bit_length())]
        return (*(step for step in doubling if step < max_sketches), max_sketches)
    if isinstance(sketches, bool) or not isinstance(sketches, int | np.integer):
        raise ValueError(f'{sketches!r} sketches were asked for; wanted a whole number ≥ 1 or "auto"')
    if control is not None and control.beta is None and sketches < 2:
        raise ValueError("the control variate's beta cannot be estimated from 1 sketch: use 2 or more, or give beta")
    return (sketches,)


def _checked_control(control: ControlVariate, z: Frame, sketch: SketchKind | TopDct) -> ControlVariate:
    if isinstance(sketch, TopDct):
        raise ValueError(
            "a control variate was given with a TopDct, which keeps other coefficients at z than at the reference, so "
            "that its known map is of another projection: use a rademacher or gaussian sketch, or no control"
        )
    for name, frame in (("reference", control.reference), ("map", control.h)):
        check_frame(frame)
        if (
            type(frame) is not type(z)
            or frame.y.shape[1:] != z.y.shape[1:]
            or num_frames(frame) not in (1, num_frames(z))
        ):
            raise ValueError(
                f"the control variate's {name} is a {type(frame).__name__} of {tuple(frame.y.shape)}; z is a "
                f"{type(z).__name__} of {tuple(z.y.shape)}: wanted the same, or 1 frame of it"
            )
    known = [p for p in control.h.planes if not isinstance(p, jax.core.Tracer)]
    if not all(np.isfinite(np.asarray(p)).all() for p in known):
        raise ValueError("the control variate's map holds NaN or infinity; wanted the map at its reference")
    if control.beta is not None and not np.isfinite(control.beta):
        raise ValueError(
            f"the control variate's beta is {control.beta}; wanted a finite number, or None to estimate it"
        )
    return control


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Frames ``first`` … ``first + real`` of n, padded to ``size`` by repeating the last one."""

    first: int
    real: int
    size: int
    n: int
    sharding: jax.sharding.NamedSharding | None

    def samples(self, frame: Frame) -> Frame:
        """The chunk's part of float or integer planes ``[n, H, W]``; planes of 1 frame serve all."""
        return jax.tree.map(lambda p: self._take(p, float_dtype(p.dtype)), frame)

    def weights(self, root: Any) -> Any:
        """The chunk's part of weights; those without an axis of n frames serve as they are."""
        return jax.tree.map(lambda p: self._take(p, p.dtype) if p.shape[0] == self.n > 1 else jnp.asarray(p), root)

    def numbers(self, numbers: Any) -> Any:
        """The chunk's part of the frames' numbers in the sequence, ``[size]``."""
        return numbers[self.places]

    @property
    def places(self) -> np.ndarray:
        """The chunk's frames among all n, ``[size]``."""
        return np.minimum(self.first + np.arange(self.size), self.n - 1)

    def offsets(self, numbers: Any) -> jax.Array:
        """What takes a frame's place among its device's frames to its number in the sequence, ``[size]``."""
        places = np.arange(self.size, dtype=np.int32) % self.per_device
        return self._placed(jnp.asarray(self.numbers(numbers) - places, jnp.int32))

    def own_sizes(self, sizes: np.ndarray) -> jax.Array:
        """The chunk's part of the pictures' own sizes, ``[size, 2]``."""
        return self._take(sizes, jnp.int32)

    @property
    def per_device(self) -> int:
        """Frames that one device has."""
        return self.size if self.sharding is None else self.size // self.sharding.num_devices

    def _take(self, array: Any, dtype: Any) -> jax.Array:
        if array.shape[0] == 1:
            part = jnp.broadcast_to(jnp.asarray(array, dtype), (self.size, *array.shape[1:]))
        elif self.real == self.n == self.size:
            part = jnp.asarray(array, dtype)
        else:
            part = jnp.asarray(array[self.first : self.first + self.real], dtype)
            part = jnp.concatenate([part, *[part[-1:]] * (self.size - self.real)])
        return self._placed(part)

    def _placed(self, array: jax.Array) -> jax.Array:
        return array if self.sharding is None else jax.device_put(array, self.sharding)


def _map_chunk(
    function: jax.tree_util.Partial,
    chunk: _Chunk,
    z: Frame,
    root: Any,
    *,
    key: jax.Array,
    sketch: SketchKind | TopDct,
    steps: tuple[int, ...],
    target: float,
    control: ControlVariate | None,
    numbers: Any,
    own_sizes: np.ndarray | None,
) -> Diagonal:
    """The map of one chunk, without its padding."""
    z, root = chunk.samples(z), chunk.weights(root)
    if chunk.size != chunk.n:
        function = frames_of(function, chunk.places)
    own = jax.tree.map(lambda p: jax.ShapeDtypeStruct((chunk.per_device, *p.shape[1:]), p.dtype), z)
    like = OutputShape.of(output_of(function, own))
    run = partial(linearise, function, root=root, kind=sketch, sharding=chunk.sharding)
    with no_state_changes():
        at = (run(z),) if control is None else (run(z), run(chunk.samples(control.reference)))
    flags = [(point.finite_z, point.finite_output) for point in at]
    result = sketched_diagonal(
        at,
        z,
        key=key,
        offsets=chunk.offsets(numbers),
        root=root,
        like=like,
        kind=sketch,
        steps=steps,
        target=target,
        known=None if control is None else chunk.samples(control.h),
        beta=None if control is None else control.beta,
        own_sizes=None if own_sizes is None else chunk.own_sizes(own_sizes),
        sharding=chunk.sharding,
    )
    del at  # the residuals of the forward pass: nothing needs them while the checks run
    named = chunk.numbers(numbers)
    if chunk.real < chunk.size:
        result = jax.tree.map(lambda p: p[: chunk.real], result)

    def check(good: jax.Array, what: str) -> None:
        if not isinstance(good, jax.core.Tracer):
            refuse(~np.asarray(good)[: chunk.real], what, named)

    for (finite_z, finite_output), place in zip(flags, ("", "at the control variate's reference "), strict=False):
        check(finite_z, f"{place}z holds NaN or infinity in")
        check(finite_output, f"{place}the receiver's output holds NaN or infinity in")
    check(result.finite, "the receiver's derivative is NaN or infinite in")
    check(
        result.alive,
        "the receiver's output does not depend on z (a stop_gradient or a rounding inside, saturated activations, or a "
        "metric of zeros) in",
    )
    check_independence(function, z, lambda spoilt: run(spoilt).finite_output, named)
    return result
