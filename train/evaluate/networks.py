"""What JAX does in a sweep: samples for the encoders, plans of the methods, and what came of it.

All of it in the sweep's own process, compiled once per mode and picture size, a few pictures at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, num_frames, size_of
from jaxwrap.codec import EncodeResult, RowWeights, Weights, intra_period
from jaxwrap.importance.receiver import as_partial, root_metric
from jaxwrap.methods.plan import Plan
from jaxwrap.metrics.distortion import mean_psnr, ms_ssim
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import denormalise, normalise, to_integers
from jaxwrap.train.evaluate import rows as rows_module
from jaxwrap.train.evaluate.modes import BIT_DEPTH, Mode, receiver_metric
from jaxwrap.train.evaluate.options import fields_of, method_options, with_fields
from jaxwrap.train.evaluate.points import Point, canonical_json
from jaxwrap.train.evaluate.rows import Row, Settings, Source
from jaxwrap.train.evaluate.stopwatch import Stopwatch

MEMORY_BUDGET = 3 << 30
"""Bytes that the maps of a clip longer than `PIXELS_PER_BATCH` may take at once: it is then mapped a few frames at a
time."""

PIXELS_PER_CALL = 4_000_000
"""Luma samples of originals that a pre- or post-processor sees at once: bounds memory at any length of clip."""


class Reference:
    """A clip's samples z before any method, and what receivers make of them: each is asked once, when first wanted."""

    def __init__(self, z: Frame) -> None:
        self.z = z
        self._outputs: dict[str, Any] = {}

    def output(self, mode: Mode, receive: Callable[[Frame], Any]) -> Any:
        """r(z) of the mode's receiver, as NumPy arrays."""
        if mode.name not in self._outputs:
            self._outputs[mode.name] = receive(self.z)
        return self._outputs[mode.name]


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be coded of one clip, in NumPy arrays and whole bits, and the seconds that it took."""

    plan: Plan
    reference: Reference
    pre_s: float
    plan_s: float


class Networks:
    """The modes' networks, compiled, for the rows of one sweep."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bottleneck: tuple[Any, Frame, dict[str, Reference], float] | None = None

    def sandwich(self, row: Row) -> Sandwich:
        """The row's mode for pictures of its size."""
        return row.mode.sandwich(*size_of(row.source.samples))

    def plan(self, batch: list[Source], row: Row) -> dict[str, Planned]:
        """Plans the clips of a row's batch together, so that its method sees all pictures at once; by their names."""
        mode, method = row.mode, row.method
        size = size_of(batch[0].samples)
        sandwich = mode.sandwich(*size)
        samples = jax.tree.map(lambda *planes: np.concatenate(planes), *[source.samples for source in batch])
        counts = [num_frames(source.samples) for source in batch]
        parts = [slice(end - count, end) for count, end in zip(counts, np.cumsum(counts).tolist(), strict=True)]
        total = sum(counts)
        if self._bottleneck is None or self._bottleneck[0] != (mode.name, batch[0].name):
            with Stopwatch() as watch:
                z = _in_chunks(partial(_bottleneck, sandwich), samples, PIXELS_PER_CALL // (size[0] * size[1]))
            own = jax.device_get(z)
            references = {
                source.name: Reference(jax.tree.map(lambda plane, part=part: plane[part], own))
                for source, part in zip(batch, parts, strict=True)
            }
            self._bottleneck = (mode.name, batch[0].name), z, references, watch.seconds
        _, z, references, pre_s = self._bottleneck
        values = {
            "qp": row.qp,
            "clips": tuple(counts),
            "period": intra_period(self._settings.config, row.source.fps),
            "encoder": row.codec,
            "request": row.request(self._settings),
        }
        if total * size[0] * size[1] > rows_module.PIXELS_PER_BATCH:
            values["memory_budget"] = MEMORY_BUDGET
        if "target" in fields_of(method):
            # What the receiver should give: the original frames, or what a network makes of the original samples.
            values["target"] = (
                normalise(jax.tree.map(jnp.asarray, samples), BIT_DEPTH)
                if mode.receiver is None
                else _in_chunks(
                    partial(_receive, as_partial(mode.receiver), None), z, PIXELS_PER_CALL // (size[0] * size[1])
                )
            )
        method = with_fields(method, values)
        with Stopwatch() as watch:
            plan = sandwich.plan(z, method, receiver=mode.receiver, key=jax.random.key(self._settings.seed))
            plan = jax.block_until_ready(plan)
        coded = to_integers(plan.z, BIT_DEPTH)
        side = np.asarray(plan.side_information_bits)
        planned = {}
        for source, part, count in zip(batch, parts, counts, strict=True):
            bits = side[part].sum() if side.ndim else side * count / total
            its_own = Plan(
                jax.tree.map(lambda plane, part=part: plane[part], coded),
                _weights_of(plan.weights, part, total),
                math.ceil(bits),
                plan.undo,
            )
            planned[source.name] = Planned(
                its_own, references[source.name], pre_s * count / total, watch.seconds * count / total
            )
        return planned

    def point(self, row: Row, planned: Planned, result: EncodeResult) -> Point:
        """Everything that is measured on a stream, but what an encoder's own time is."""
        source = row.source
        height, width = size_of(source.samples)
        back = partial(_frames, self.sandwich(row))
        per_call = PIXELS_PER_CALL // (height * width)
        undo = planned.plan.undo
        with Stopwatch() as watch:
            normalised = _in_chunks(partial(back, undo), result.decoded, per_call)
        received = to_integers(denormalise(normalised, BIT_DEPTH), BIT_DEPTH)
        receiver_snr = None
        if row.mode.receiver is not None:
            judge = partial(_receive, as_partial(row.mode.receiver))
            judged = jax.device_get(_in_chunks(partial(judge, undo), result.decoded, per_call))
            wanted = planned.reference.output(
                row.mode, lambda z: jax.device_get(_in_chunks(partial(judge, None), z, per_call))
            )
            receiver_snr = signal_to_noise(wanted, judged)
        elif row.mode.has_receiver:
            wanted = planned.reference.output(
                row.mode, lambda z: jax.device_get(_in_chunks(partial(back, None), z, per_call))
            )
            receiver_snr = signal_to_noise(wanted, jax.device_get(normalised))
        psnr_y, psnr_yuv = mean_psnr(source.samples, received, BIT_DEPTH)
        count = num_frames(source.samples)
        bits = int(np.sum(np.asarray(result.bits))) + planned.plan.side_information_bits + row.mode.bits
        return Point(
            **row.names(self._settings),
            codec=row.codec.name,
            codec_version=row.codec.version,
            config=self._settings.config,
            method=row.method.name,
            method_options=canonical_json(method_options(row.method)),
            lambda_scale=row.lambda_scale,
            qp=row.qp,
            frames=count,
            bits=bits,
            header_bits=int(result.header_bits),
            kbps=bits * source.fps / (1000.0 * count),
            bpp=bits / (count * height * width),
            psnr_y=psnr_y,
            psnr_yuv=psnr_yuv,
            ms_ssim=ms_ssim(source.samples, received, BIT_DEPTH),
            receiver_snr=receiver_snr,
            encode_s=round(result.seconds, 6),
            map_s=None if planned.plan.weights is None else round(planned.plan_s, 6),
            method_s=round(planned.plan_s, 6),
            wrapper_s=round(planned.pre_s + watch.seconds, 6),
            verified=bool(result.verified),
            mode_bits=row.mode.bits,
        )


def signal_to_noise(wanted: Any, received: Any) -> float | None:
    """10 log₁₀(‖r(z)‖²_M / ‖r(ẑ) − r(z)‖²_M) in dB over all frames, M from `receiver_metric`; None where one of the two
    is 0."""
    output = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
    root = root_metric(receiver_metric, output, on_host=True)

    def energy(tree: Any) -> float:
        squares = jax.tree.map(lambda leaf, r: float(np.sum(np.square(np.asarray(leaf * r, np.float64)))), tree, root)
        return sum(jax.tree.leaves(squares))

    signal = energy(wanted)
    noise = energy(jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a, np.float64), wanted, received))
    return 10.0 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


@partial(jax.jit, static_argnums=0)
def _bottleneck(sandwich: Sandwich, samples: Frame) -> Frame:
    return sandwich.bottleneck(normalise(samples, BIT_DEPTH))


@partial(jax.jit, static_argnums=0)
def _frames(sandwich: Sandwich, undo: Any, samples: Frame) -> Frame:
    """Normalised frames at the far end."""
    return sandwich.receive(Plan(samples, undo=undo).undone(samples))


@jax.jit
def _receive(receiver: jax.tree_util.Partial, undo: Any, samples: Frame) -> Any:
    return receiver(Plan(samples, undo=undo).undone(jax.tree.map(lambda p: p.astype(jnp.float32), samples)))


def _in_chunks(function: Any, samples: Frame, frames_per_call: int) -> Any:
    """Applies a compiled function to a few frames at a time, always the same number, so that it is compiled once."""
    count = num_frames(samples)
    size = max(1, min(frames_per_call, count))
    parts = []
    for start in range(0, count, size):
        indices = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(jax.block_until_ready(function(jax.tree.map(lambda plane, i=indices: plane[i], samples))))
    return jax.tree.map(lambda *planes: jnp.concatenate(planes)[:count], *parts)


def _weights_of(weights: Weights | RowWeights | None, part: slice, total: int) -> Weights | RowWeights | None:
    """A clip's share of the weights, as NumPy arrays; a single map serves all clips."""
    if weights is None:
        return None
    planes = weights.planes if isinstance(weights, Weights) else weights.rows
    chosen = slice(0, 1) if num_frames(planes) == 1 and total > 1 else part
    own = jax.tree.map(lambda plane: np.asarray(plane)[chosen], planes)
    if isinstance(weights, Weights):
        return dataclasses.replace(weights, planes=own)
    return dataclasses.replace(weights, rows=own)
