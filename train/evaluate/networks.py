"""What JAX does in a sweep: samples for the encoders, plans of the methods, and what came of it.

All of it in the sweep's own process, compiled once per mode and picture size, a few pictures at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.codec import EncodeRequest, EncodeResult, RowWeights, Weights, intra_period
from jaxwrap.methods import Chain, stages_of
from jaxwrap.methods.chain import WeightStage
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import max_sample, to_integers
from jaxwrap.train.evaluate import rows as rows_module
from jaxwrap.train.evaluate.mode import Measured, Prepared
from jaxwrap.train.evaluate.options import fields_of, method_options, with_fields
from jaxwrap.train.evaluate.points import Point, canonical_json
from jaxwrap.train.evaluate.rows import Row, Settings
from jaxwrap.train.evaluate.sources import Source
from jaxwrap.train.evaluate.stopwatch import Stopwatch

MEMORY_BUDGET = 3 << 30
"""Bytes that the maps of a clip longer than `PIXELS_PER_BATCH` may take at once: it is then mapped a few frames at a
time."""


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be coded of one clip, in NumPy arrays and whole bits, and the seconds that it took.

    ``reference``: what the mode's measurement needs. ``map_s``: the part of ``plan_s`` that made weights, if any did.
    ``clipped``: how many samples lay outside the codec's range, and of how many.
    """

    plan: Plan
    sandwich: Sandwich
    reference: Any
    pre_s: float
    plan_s: float
    map_s: float | None
    clipped: tuple[int, int]

    def request(self, request: EncodeRequest) -> EncodeRequest:
        """With what the plan and the mode say."""
        return self.sandwich.request(request, self.plan)


class Networks:
    """The modes' networks, compiled, for the rows of one sweep."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prepared: tuple[Any, Prepared] | None = None

    def plan(self, batch: list[Source], row: Row) -> dict[str, Planned]:
        """Plans the clips of a row's batch together, so that its method sees all pictures at once; by their names."""
        mode, method = row.mode, row.method
        height, width = batch[0].size
        counts = [source.num_frames for source in batch]
        parts = [slice(end - count, end) for count, end in zip(counts, np.cumsum(counts).tolist(), strict=True)]
        total = sum(counts)
        if self._prepared is None or self._prepared[0] != (mode.name, batch[0].name):
            self._prepared = (mode.name, batch[0].name), mode.prepare(batch)
        prepared = self._prepared[1]
        values = {
            "qp": row.qp,
            "clips": tuple(counts),
            "period": intra_period(self._settings.config, row.source.fps),
            "encoder": row.codec,
            "request": row.request(self._settings),
        }
        if total * height * width > rows_module.PIXELS_PER_BATCH:
            values["memory_budget"] = MEMORY_BUDGET
        if "target" in fields_of(method):
            values["target"] = prepared.target()
        method, weighing = _timed(with_fields(method, values, mode.settings_of))
        with Stopwatch() as watch:
            key = jax.random.key(self._settings.seed)
            plan = prepared.sandwich.plan(prepared.z, method, receiver=prepared.receiver, key=key)
            plan = jax.block_until_ready(plan)
        depth = prepared.sandwich.bit_depth
        coded = to_integers(plan.z, depth)
        side = np.asarray(plan.side_information_bits)  # of each picture, or of all together
        side_of_mode = np.broadcast_to(prepared.side_bits, (total,))
        planned = {}
        for place, (source, part, count) in enumerate(zip(batch, parts, counts, strict=True)):
            bits = side_of_mode[part].sum() + (side[part].sum() if side.ndim else side * count / total)
            its_own = Plan(
                jax.tree.map(lambda plane, part=part: plane[part], coded),
                _weights_of(plan.weights, part, total),
                math.ceil(bits),
                plan.undo,
            )
            planned[source.name] = Planned(
                its_own,
                prepared.sandwich,
                prepared.references[place],
                prepared.seconds * count / total,
                watch.seconds * count / total,
                None if plan.weights is None else (weighing or watch).seconds * count / total,
                _clipped(jax.tree.map(lambda plane, part=part: plane[part], plan.z), depth),
            )
        return planned

    def point(self, row: Row, planned: Planned, result: EncodeResult) -> tuple[Point, Measured]:
        """Everything that is measured on a stream, but what an encoder's own time is."""
        source = row.source
        height, width = source.size
        measured = row.mode.measure(source, planned.reference, planned.plan.undo, result.decoded)
        count = source.num_frames
        bits = int(np.sum(np.asarray(result.bits))) + planned.plan.side_information_bits + row.mode.bits
        point = Point(
            **row.names(self._settings),
            **measured.figures,
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
            encode_s=round(result.seconds, 6),
            map_s=None if planned.map_s is None else round(planned.map_s, 6),
            method_s=round(planned.plan_s, 6),
            wrapper_s=round(planned.pre_s + measured.seconds, 6),
            verified=bool(result.verified),
            mode_bits=row.mode.bits,
        )
        return point, measured


class _Timed:
    """A stage that weighs, and the seconds that it took."""

    def __init__(self, stage: Method) -> None:
        self._stage, self.seconds = stage, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        """That of the stage."""
        jax.block_until_ready(z)
        with Stopwatch() as watch:
            plan = jax.block_until_ready(self._stage.plan(receiver, z, key))
        self.seconds = watch.seconds
        return plan


def _timed(method: Method) -> tuple[Method, _Timed | None]:
    """A chain with its stage that weighs, if any, replaced by one that takes its time; other methods as they are."""
    for place, stage in enumerate(method.stages if isinstance(method, Chain) else ()):
        if not isinstance(stage, WeightStage) and stage.weights_as is not None:
            timed = _Timed(stage)
            return Chain((*stages_of(method)[:place], timed, *stages_of(method)[place + 1 :])), timed
    return method, None


def _clipped(samples: Frame, bit_depth: int) -> tuple[int, int]:
    """How many samples no integer of the codec's range is nearest to, and how many there are."""
    planes = [np.asarray(plane) for plane in samples.planes]
    outside = sum(int(((plane < -0.5) | (plane > max_sample(bit_depth) + 0.5)).sum()) for plane in planes)
    return outside, sum(plane.size for plane in planes)


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
