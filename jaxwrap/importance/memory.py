"""How many frames a memory budget holds: by the compiler's own analysis of the very functions that will run.

Counted per device: arguments, results and temporaries of each compiled function, the receiver's parameters, and what
else is alive beside it. Not counted: maps that are done (they are the caller's), and the scratch memory of libraries
that the compiler calls. What is compiled to be analysed is not compiled again to run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxwrap.arrays import Frame, check_frame
from jaxwrap.importance.diagonal import FRAMES, OutputShape, add_sketch, finish, linearise, settle, start, unsettled
from jaxwrap.importance.receiver import Metric, Receiver, as_partial, float_dtype, output_of, root_metric
from jaxwrap.importance.sketch import SketchKind, TopDct


def frame_sharding(devices: Sequence[jax.Device] | None) -> NamedSharding | None:
    """The layout that gives each device a part of the frames; None for no devices."""
    if devices is None:
        return None
    if len(devices) == 0 or len(set(devices)) != len(devices):
        raise ValueError(
            f"{list(devices)} were given as devices; wanted 1 or more, each once (jax.devices() lists them)"
        )
    return NamedSharding(jax.sharding.Mesh(np.asarray(devices, object), (FRAMES,)), PartitionSpec(FRAMES))


def frames_within(
    receiver: Receiver,
    z: Frame,
    memory_budget: int,
    *,
    metric: Metric = None,
    sketch: SketchKind | TopDct = "rademacher",
    auto: bool = False,
    control: bool = False,
    frames: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """How many frames `importance_map` may take at once so that it needs at most ``memory_budget`` bytes per device.

    The analysis for 1 and 2 frames is extrapolated, the answer analysed in its turn, and lowered where it does not
    fit. Remembered per receiver, shapes and options: a stream pays once.

    Args:
      z: frames or `jax.ShapeDtypeStruct` of them; only the size and dtype of a frame count.
      metric: as for `importance_map`, for one frame.
      auto: whether ``sketches="auto"`` is meant, which keeps an estimate while it goes on.
      control: whether a control variate is meant, which linearises twice.
      frames: how many frames there are in all; then the answer makes the fewest chunks, as even as can be.
      devices: devices that share the frames; the answer is a multiple of their number.

    Raises:
      ValueError: a budget that is too small for one frame (per device); says how many bytes are needed.
    """
    check_frame(z)
    shape = jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape[1:]), float_dtype(p.dtype)), z)
    function = as_partial(receiver)
    root = root_metric(metric, output_of(function, shape))
    return chunk_frames(function, shape, root, memory_budget, 1, sketch, auto, control, frames, devices)


def chunk_frames(
    function: jax.tree_util.Partial,
    z: Frame,
    root: Any,
    memory_budget: int,
    root_frames: int,
    sketch: SketchKind | TopDct,
    auto: bool,
    control: bool,
    frames: int | None,
    devices: Sequence[jax.Device] | None,
) -> int:
    """`frames_within` for a metric's root that is known already, for ``root_frames`` frames."""
    if memory_budget < 1:
        raise ValueError(f"a memory budget of {memory_budget} bytes was given; wanted a number of bytes ≥ 1")
    leaves, structure = jax.tree.flatten((function, z, root))
    specs = tuple(jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf in map(_as_array, leaves))
    return _chunk_frames(
        structure, specs, int(memory_budget), root_frames, sketch, auto, control, frames, _tuple(devices)
    )


def _tuple(devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...] | None:
    return None if devices is None else tuple(devices)


def _as_array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)


@functools.lru_cache(maxsize=256)
def _chunk_frames(
    structure: Any,
    specs: tuple[jax.ShapeDtypeStruct, ...],
    budget: int,
    root_frames: int,
    sketch: SketchKind | TopDct,
    auto: bool,
    control: bool,
    frames: int | None,
    devices: tuple[jax.Device, ...] | None,
) -> int:
    width = 1 if devices is None else len(devices)

    def needs(per_device: int) -> int:
        function, z, root = jax.tree.unflatten(structure, specs)
        return _bytes(function, z, root, per_device * width, root_frames, sketch, auto, control, devices)

    one = needs(1)
    if one > budget:
        raise ValueError(
            f"a memory budget of {budget:,} bytes was given; one frame of this receiver needs {one:,} bytes"
            f"{' on each device' if width > 1 else ''}: allow that much, or map smaller frames"
        )
    most = math.inf if frames is None else -(-frames // width)
    if most <= 1:
        return width
    slope = max(needs(2) - one, 1)
    number = min(1 + (budget - one) // slope, most)
    while number > 1:
        if frames is not None:  # as many chunks, of one size
            number = -(-most // -(-most // number))
        if (needed := needs(int(number))) <= budget:
            break
        number = min(number - 1, int(number * budget / needed))
    return max(int(number), 1) * width


def _bytes(
    function: Any,
    z: Frame,
    root: Any,
    frames: int,
    root_frames: int,
    sketch: SketchKind | TopDct,
    auto: bool,
    control: bool,
    devices: tuple[jax.Device, ...] | None,
) -> int:
    """Bytes on one device while a chunk of ``frames`` frames is mapped."""
    sharding = frame_sharding(devices)
    whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())

    def spec(leaf: Any, leading: int | None) -> jax.ShapeDtypeStruct:
        shape = leaf.shape if leading is None else (leading, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=whole if leading is None else sharding)

    function = jax.tree.map(lambda leaf: spec(leaf, None), function)
    z = jax.tree.map(lambda leaf: spec(leaf, frames), z)
    root = jax.tree.map(lambda leaf: spec(leaf, frames if leaf.shape[0] == root_frames > 1 else None), root)
    width = 1 if devices is None else len(devices)
    own = jax.tree.map(lambda p: jax.ShapeDtypeStruct((frames // width, *p.shape[1:]), p.dtype), z)
    like = OutputShape.of(output_of(function, own))

    def compiled(stage: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """A stage compiled, and what it returns."""
        options["sharding"] = sharding
        result = stage.eval_shape(*arguments, **options)
        placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), result)
        return stage.lower(*arguments, **options).compile(), placed

    forward, point = compiled(linearise, function, z, root=root, kind=sketch)
    begin, state = compiled(start, z, controlled=control)
    at = (point, point) if control else (point,)
    offsets = jax.ShapeDtypeStruct((frames,), np.int32, sharding=sharding)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
    sketched, _ = compiled(add_sketch, at, state, key, 0, offsets, root, kind=sketch, like=like)
    known = state[0].mean if control else None
    end, result = compiled(finish, state, 1, known, None)

    frame, output = _per_device(z, width, frames), _output(forward)
    held = _per_device((function, z, root), width, frames)
    if control:
        held += frame + _per_device(known, width, frames)
    points = len(at) * output
    peaks = [
        _total(forward) + (len(at) - 1) * (frame + output),
        held + points + _total(begin),
        held + _total(sketched),
        held + points + _total(end),
        _total(forward) + frame + _output(end),  # the search for mixed frames: a copy of z, beside the finished map
    ]
    if auto:
        going = jax.ShapeDtypeStruct((frames,), np.bool_, sharding=sharding)
        look, choose = unsettled.lower(result, 0.5, None).compile(), settle.lower(result, result, going).compile()
        beside = held + points + _output(begin)
        peaks += [beside + _total(look), beside + _total(choose), beside + _output(end) + _total(end)]
    return max(peaks)


def _per_device(tree: Any, width: int, frames: int) -> int:
    """Bytes of a tree on one device; arrays with all frames are spread over ``width`` devices."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size // width if leaf.ndim and leaf.shape[0] == frames else size
    return total


def _total(compiled: Any) -> int:
    m = compiled.memory_analysis()
    used = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return int(used + m.temp_size_in_bytes + m.generated_code_size_in_bytes)


def _output(compiled: Any) -> int:
    return int(compiled.memory_analysis().output_size_in_bytes)
