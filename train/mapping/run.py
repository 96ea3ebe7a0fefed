"""A map run: plan, shards, merge.

    work = prepare(mode_of(wrapper), clips, mode="wa", …)          # decides everything, computes nothing
    map_shard(work, folder, Shard(2, 8))                  # in any order, on any machine, again after an interruption
    merge(folder, 8, out, alpha=1.0, scope="frame")       # weights for an encoder

`map_clips` is all three for one process. Memory does not grow with the length of the clips: frames are decoded a batch
ahead, maps are on disk when they are made, and the merge reads one at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import jax

from jaxwrap.arrays import Frame, stack_frames
from jaxwrap.codec import Codec, EncodeRequest
from jaxwrap.codecs.weightmap import Mode
from jaxwrap.importance.sketch import check_sketch
from jaxwrap.importance.weights import Scope
from jaxwrap.train.doctor import version_of
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.mapping import parts
from jaxwrap.train.mapping.collect import Batch, CalibratedSums, Collector, FrozenMean, MapRecords
from jaxwrap.train.mapping.merge import Written, merge
from jaxwrap.train.mapping.networks import BottleneckMaps, Group, ModeLike
from jaxwrap.train.mapping.plan import FROZEN, Plan, PlannedClip, Shard, Sketches, choose_canvases
from jaxwrap.train.prefetch import prefetch

DEFAULT_MEMORY = 2 << 30
"""Bytes that the maps of one batch may take beside the program."""


class Readable(Protocol):
    """What a map run asks of a clip: `jaxwrap.train.media.ClipReader` and `Clip` are such."""

    @property
    def name(self) -> str:
        """Unique among the clips of a run."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), even."""
        ...

    @property
    def num_frames(self) -> int:
        """As many as it says that it has; reading may give fewer or more."""
        ...

    @property
    def bit_depth(self) -> int:
        """8 or 10."""
        ...

    def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
        """Frames start, start + step, …, one by one."""
        ...

    def fingerprint(self) -> str:
        """Tells its content from others'."""
        ...


@dataclasses.dataclass(frozen=True)
class Work:
    """A plan with what it takes to carry it out."""

    plan: Plan
    clips: Sequence[Readable]
    maps: BottleneckMaps
    codec: Codec | None = None


def prepare(
    networks: ModeLike,
    clips: Sequence[Readable],
    *,
    mode: Mode,
    receiver: str,
    sketches: Sketches = 4,
    seed: int = 0,
    period: int = 1,
    memory: int = DEFAULT_MEMORY,
    devices: Sequence[jax.Device] | None = None,
    codec: Codec | None = None,
    qp: float = 32.0,
    check: Callable[[Plan], None] = lambda plan: None,
) -> Work:
    """Plans the maps of a sandwich's post-processor for these clips.

    Pictures of one size share batches, in the order of their sizes; those of many sizes are padded to common canvases.

    Args:
      networks: a wrapper, as the mode that it is (`jaxwrap.train.evaluate.modes.mode_of`).
      mode: see `jaxwrap.codecs.weightmap.Mode`.
      receiver: how the post-processor is named in the files.
      sketches: of each map, or ``"auto"``; not used by mode calibrated.
      period: distance of the frames that mode iwa maps.
      memory: bytes that the maps of one batch may take on each device.
      devices: that share each batch; None: the default one.
      codec, qp: whose errors mode calibrated weighs.
      check: is shown the plan, all but its batches, before anything is compiled to find these; may raise.

    Raises:
      ValueError: unknown mode, fewer than 1 sketch, period below 1, or too little memory for one frame.
    """
    calibrated = mode == "calibrated"
    if sketches != "auto":
        check_sketch("rademacher", sketches)
    if period < 1:
        raise ValueError(f"a period of {period} frames was given; wanted 1 or more")
    if calibrated and codec is None:
        raise ValueError("a calibrated map wants a codec, whose errors it weighs")
    maps = BottleneckMaps(networks, sketches=sketches, seed=seed, devices=devices)
    if calibrated and codec is not None:
        for clip in clips:
            codec.check(maps.map_size(clip.size), EncodeRequest(qp, "intra", BIT_DEPTH))
    arranged = _arranged(clips, period, padded=mode not in FROZEN)
    planned = [
        PlannedClip(
            name=clip.name,
            fingerprint=clip.fingerprint(),
            frames=clip.num_frames,
            size=clip.size,
            map_size=maps.map_size(clip.size),
            canvas=canvas,
            batch=1,
        )
        for clip, canvas in arranged
    ]
    plan = Plan(
        mode=mode,
        sketches=0 if calibrated else sketches,
        seed=seed,
        period=period,
        receiver=receiver,
        network=maps.network,
        platform=platform(),
        clips=tuple(planned),
        codec=f"{codec.name} {codec.version}" if calibrated and codec else None,
        qp=qp if calibrated else None,
    )
    check(plan)
    # Batches of one size in place of full ones and a rest, so that little is computed in vain.
    together: dict[tuple[int, int], int] = {}
    for i, item in enumerate(planned):
        key, count = item.canvas or item.size, plan.maps_of(i)
        together[key] = together.get(key, 0) + 1 if count == 1 else max(together.get(key, 0), count)
    canvases = {item.canvas for item in planned}
    batches = {key: maps.frames_within(key, memory, count, padded=key in canvases) for key, count in together.items()}
    sized = tuple(dataclasses.replace(item, batch=batches[item.canvas or item.size]) for item in planned)
    return Work(dataclasses.replace(plan, clips=sized), [clip for clip, _ in arranged], maps, codec)


def map_shard(
    work: Work,
    folder: Path,
    shard: Shard,
    *,
    patience: float = parts.PATIENCE,
    advance: Callable[[int], None] = lambda maps: None,
) -> None:
    """Computes what is left of a shard's units into ``folder``. ``advance`` is told, batch by batch, how many maps were
    made; ``patience`` and errors are those of `jaxwrap.train.mapping.parts.Part`."""
    plan = work.plan
    units = plan.units()
    with (
        parts.Part(folder, plan, shard, patience=patience) as part,
        contextlib.closing(prefetch(_read(plan, work.clips, part.todo), depth=1)) as batches,
    ):
        collector = _collector(work)
        for number, members in itertools.groupby(batches, key=lambda item: item[0]):
            counts, sketches = [0] * sum(len(chunk) for chunk in units[number]), 0
            for _, batch in members:
                if batch is None:
                    continue
                sketches = max(sketches, collector.add(batch))
                for piece, group in zip(batch.pieces, batch.groups, strict=True):
                    counts[piece] += group.num_frames
                advance(sum(group.num_frames for group in batch.groups))
            part.append(collector.take(), counts=tuple(counts), sketches=sketches)


def map_clips(
    work: Work,
    out: Path,
    *,
    alpha: float,
    scope: Scope,
    size: tuple[int, int] | None = None,
    advance: Callable[[int], None] = lambda maps: None,
) -> list[Written]:
    """All maps in this process, and their weights to ``out``: a ``.dat`` file, or a folder with a file per clip."""
    folder = parts_folder(out)
    map_shard(work, folder, Shard(), advance=advance)
    return merge(folder, 1, out, alpha=alpha, scope=scope, size=size)


def parts_folder(out: Path) -> Path:
    """Where the parts of an output lie until they are merged."""
    return out.with_name(f"{out.name}.parts")


def platform() -> str:
    """Versions and kind of device, which the last bits of maps depend on."""
    return ", ".join([jax.default_backend(), *(f"{name} {version_of(name)}" for name in ("jax", "jaxwrap"))])


def _maps_of(clip: Readable, period: int) -> int:
    return -(-clip.num_frames // period)


def _arranged(clips: Sequence[Readable], period: int, *, padded: bool) -> list[tuple[Readable, tuple[int, int] | None]]:
    """Clips with their canvases. Those of one map change places among themselves, so that alike ones share batches."""
    single = [clip for clip in clips if _maps_of(clip, period) == 1]
    canvases = choose_canvases([clip.size for clip in single]) if padded else {}
    ranked = iter(sorted(single, key=lambda clip: (canvases.get(clip.size) or clip.size, clip.size)))
    arranged: list[tuple[Readable, tuple[int, int] | None]] = []
    for clip in clips:
        if _maps_of(clip, period) == 1:
            chosen = next(ranked)
            arranged.append((chosen, canvases.get(chosen.size)))
        else:
            arranged.append((clip, None))
    return arranged


def _collector(work: Work) -> Collector:
    if work.plan.mode == "fwa":
        return FrozenMean(work.maps)
    if work.plan.mode == "calibrated":
        assert work.codec is not None
        assert work.plan.qp is not None
        return CalibratedSums(work.maps, work.codec, work.plan.qp)
    return MapRecords(work.maps)


def _read(plan: Plan, clips: Sequence[Readable], todo: range) -> Iterator[tuple[int, Batch | None]]:
    """The batches of these units with their units' numbers; ``None`` ends each unit, also one without any frame.

    A clip that goes on in the next chunk is decoded further, not again. The last chunk of a clip takes what is left,
    also where that is more than its file said.
    """
    offsets, units = plan.offsets(), plan.units()
    stream: Iterator[Frame] = iter(())
    place: tuple[int, int] | None = None
    for number in todo:
        pieces = itertools.count()
        for chunk in units[number]:
            if len(chunk) > 1:
                groups = tuple(_only_frame(clips[piece.clip], plan.period) for piece in chunk)
                indices = tuple(next(pieces) for _ in chunk)
                places = tuple(offsets[piece.clip] for piece in chunk)
                yield number, Batch(number, indices, groups, plan.clips[chunk[0].clip], places)
                continue
            (piece,) = chunk
            clip, planned, index = clips[piece.clip], plan.clips[piece.clip], next(pieces)
            if place != (piece.clip, piece.start):
                stream = clip.read(piece.start * plan.period, step=plan.period)
            start, wanted = piece.start, piece.stop - piece.start
            while frames := list(itertools.islice(stream, wanted)):
                group = Group(stack_frames(frames), clip.bit_depth)
                places = tuple(offsets[piece.clip] + plan.period * (start + i) for i in range(len(frames)))
                yield number, Batch(number, (index,), (group,), planned, places)
                start, wanted = start + len(frames), planned.batch
                if not piece.last:
                    break
            place = piece.clip, piece.stop
        yield number, None


def _only_frame(clip: Readable, period: int) -> Group:
    frames = list(itertools.islice(clip.read(step=period), 2))
    if len(frames) != 1:
        raise ValueError(f"{clip.name} says that it holds {clip.num_frames} frames, and does not: write the file again")
    return Group(frames[0], clip.bit_depth)
