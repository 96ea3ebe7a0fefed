"""The sweep: clips × modes × methods × codecs × QPs → results rows, resumable at any point.

JAX works in this process (pre-processor, plan, post-processor), encoders in worker processes that never touch a
device. A point is stored in the cache as soon as it is measured, under a key made of everything that its figures
depend on: content of the clip, parameters and options, versions of codec and packages, `MEASUREMENT_VERSION`. A sweep
that was killed takes those points, their seconds included, and ends in the same CSV. Samples that several modes share
are encoded once. What fails is set aside with its error, and the rest goes on.

Files in the output folder: ``results.csv``, ``manifest.json`` (resolved configuration, versions, device, the
command of one encode per codec), ``failed.json`` (only where something failed), ``pictures.npz`` (one picture's maps
and decoded samples, for the report).
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from jaxwrap.arrays import Frame, check_frame, num_frames, size_of
from jaxwrap.codec import Codec, Config, EncodeRequest, EncodeResult, Weights, intra_period
from jaxwrap.codecs.files import write_atomically
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.metrics.distortion import mean_psnr, ms_ssim
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, denormalise, normalise, to_integers
from jaxwrap.train.evaluate.cache import Cache
from jaxwrap.train.evaluate.checks import ClipLike, ask_codecs, check_settings
from jaxwrap.train.evaluate.manifest import MEASURING_PACKAGES, claim, write_manifest
from jaxwrap.train.evaluate.manifest import versions as package_versions
from jaxwrap.train.evaluate.modes import BIT_DEPTH, Mode
from jaxwrap.train.evaluate.options import digest_of, fields_of, method_options, with_fields
from jaxwrap.train.evaluate.pictures import Pictures
from jaxwrap.train.evaluate.points import (
    MEASUREMENT_VERSION,
    Point,
    canonical_json,
    measurement_of,
    point_key,
    write_points,
)
from jaxwrap.train.evaluate.stopwatch import Stopwatch
from jaxwrap.train.evaluate.workers import Workers

PIXELS_PER_BATCH = 8_000_000
"""Luma samples of originals that a method sees at once (a clip is never divided)."""

MEMORY_BUDGET = 3 << 30
"""Bytes that the maps of a clip longer than that may take at once: it is then mapped a few frames at a time."""

PIXELS_PER_CALL = 4_000_000
"""Luma samples of originals that a pre- or post-processor sees at once: bounds memory at any length of clip."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A point that could not be measured, and why."""

    key: str
    sequence: str
    codec: str
    mode: str
    method: str
    qp: float
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class SweepResult:
    """All rows in their final order, what failed, and how much was encoded in this run."""

    points: list[Point]
    failures: list[Failure]
    encodes: int
    from_cache: int
    commands: dict[str, str]
    """By codec, how one of the streams was made."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """A clip as the sweep uses it: samples of the depth that is coded and compared, and the hash of their content."""

    name: str
    samples: Frame
    fps: float
    digest: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One row to be measured: its own key, and that of the measurement, which rows of other names may share."""

    key: str
    measurement: str
    source: _Source
    mode: Mode
    method: Method
    codec: Codec
    qp: float
    lambda_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Planned:
    """What is to be coded of one clip, in NumPy arrays and whole bits, and the seconds that it took."""

    plan: Plan
    pre_s: float
    plan_s: float


@dataclasses.dataclass(frozen=True)
class _Job:
    """One encode, and the rows that are measured on what it gives."""

    rows: list[Row]
    planned: Planned
    request: EncodeRequest

    @property
    def codec(self) -> Codec:
        return self.rows[0].codec

    @property
    def samples(self) -> Frame:
        return self.planned.plan.z


def run_sweep(
    clips: Sequence[ClipLike],
    modes: Sequence[Mode],
    codecs: Sequence[Codec],
    qps: Sequence[float],
    methods: Sequence[Method],
    out: Path,
    *,
    dataset: str = "user",
    processes: int = 2,
    config: Config = "intra",
    preset: str | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Measures every combination that is not in the cache, and writes ``out/results.csv``.

    Args:
      clips: integer frames; those of one size are planned as one batch.
      modes: see `jaxwrap.train.evaluate.modes`; ``sse`` runs in all, other methods where both sides are networks.
      codecs: picklable codecs; they run in worker processes.
      qps: on the specification's scale.
      methods: allocation methods, whose fields named in `jaxwrap.train.evaluate.options.SET_BY_SWEEP` are set here.
      out: output folder, made if absent. dataset: name for the column of that name. processes:
      number of worker processes. config: coding configuration of every encode. preset: effort of every encode; None
      is the codec's default. seed: of the methods' random sketches. cache: folder of measured points, shared between
      runs; default: ``cache`` beside ``out``. progress: a running `rich` progress bar, to which a task is added.

    Raises:
      ValueError: nothing to do, unknown or repeated names, QPs out of range, what a codec cannot take
      (`Codec.check`), an encoder that is missing, or an output folder of another
      configuration (the settings that differ are named). OSError: the disk is full; points measured before are kept.
    """
    pairs = check_settings(clips, modes, codecs, qps, methods, config, processes)
    ask_codecs(clips, pairs, codecs, [EncodeRequest(qp, config, BIT_DEPTH, preset=preset) for qp in qps])
    settings = _Settings(pairs, list(codecs), [float(qp) for qp in qps], dataset, config, preset, seed)
    sources = [_source(clip) for clip in clips]
    configuration = _configuration(sources, settings)
    out.mkdir(parents=True, exist_ok=True)
    claim(out, configuration)
    started = time.perf_counter()
    sweep = _Sweep(sources, settings, Cache(cache or out.parent / "cache"), out / "pictures.npz", progress)
    result = sweep.run(processes)
    write_points(out / "results.csv", result.points)
    failed = out / "failed.json"
    if result.failures:
        write_atomically(failed, json.dumps([dataclasses.asdict(f) for f in result.failures], indent=2).encode())
    else:
        failed.unlink(missing_ok=True)
    run = {
        "seconds": round(time.perf_counter() - started, 1),
        "processes": processes,
        "encodes": result.encodes,
        "rows_from_cache": result.from_cache,
        "failed": len(result.failures),
    }
    write_manifest(out, configuration, run, result.commands)
    return result


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all rows of a sweep have in common."""

    pairs: list[tuple[Mode, Method]]
    codecs: list[Codec]
    qps: list[float]
    dataset: str
    config: Config
    preset: str | None
    seed: int


class _Sweep:
    """The state of one run."""

    def __init__(
        self, sources: list[_Source], settings: _Settings, cache: Cache, pictures: Path, progress: Progress | None
    ) -> None:
        self.settings, self.cache, self.progress = settings, cache, progress
        self.batches = _batches(sources)
        order = {source.name: i for i, source in enumerate(sources)}
        rows = [row for batch in self.batches for row in self._rows_of(batch)]
        # Stable: codecs, modes, methods and QPs stay in the order that they were given in.
        self.rows = sorted(rows, key=lambda row: order[row.source.name])
        self.pictures = Pictures(pictures, self.rows)
        self.points: dict[str, Point] = {}
        self.commands: dict[str, str] = {}
        self.failures: dict[str, Failure] = {}
        self.encodes = 0
        self._sandwiches: dict[tuple[str, tuple[int, int]], tuple[Sandwich, Any, Any]] = {}
        self._bottleneck: tuple[Any, Frame, float] | None = None

    def run(self, processes: int) -> SweepResult:
        todo = set()
        for row in self.rows:
            record = self.cache.get(row.measurement)
            if record is not None:
                self.points[row.key] = Point(**self._names(row), **record["point"])
                self.commands.setdefault(row.codec.name, record["command"])
            if record is None or self.pictures.wants(row):
                todo.add(row.key)
        from_cache = len(self.points)
        self._say(f"{len(self.rows)} points, {from_cache} of them measured before")
        if todo:
            self._measure(todo, processes)
        self.pictures.write()
        points = [self.points[row.key] for row in self.rows if row.key in self.points]
        failures = [self.failures[row.key] for row in self.rows if row.key in self.failures]
        return SweepResult(points, failures, self.encodes, from_cache, self.commands)

    def _measure(self, todo: set[str], processes: int) -> None:
        streams = len({self._stream(row) for row in self.rows if row.key in todo})
        self._say(f"{streams} streams to encode")
        bar = self.progress
        task = bar.add_task("encode", total=streams, note="") if bar is not None else None
        started, encode_s, done = time.perf_counter(), 0.0, 0
        with Workers(processes) as workers:
            for job, outcome in workers.encode(self._jobs(todo)):
                done += 1
                if isinstance(outcome, Exception):
                    _raise_if_disk_full(outcome)
                    self._fail(job.rows, outcome)
                else:
                    self.encodes += 1
                    encode_s += outcome.seconds
                    self._finish(job, outcome)
                if bar is not None and task is not None:
                    bar.update(task, completed=done, note=f"{len(self.failures)} failed" if self.failures else "")
                if done == max(3 * processes, streams // 10) < streams:
                    minutes = (time.perf_counter() - started) / done * streams / 60
                    self._say(
                        f"{streams} encodes × {encode_s / max(self.encodes, 1):.2f} s on {processes} processes, with "
                        f"networks and metrics: about {minutes:.1f} min, judging by the first {done}"
                    )

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text, highlight=False)

    # What is to be done.

    def _rows_of(self, batch: list[_Source]) -> Iterator[Row]:
        settings = self.settings
        versions = package_versions()
        for (place, source), codec, (mode, method) in itertools.product(
            enumerate(batch), settings.codecs, settings.pairs
        ):
            depends_on = {
                "clip": [source.digest, source.fps],
                "codec": [codec.name, codec.version, settings.config, settings.preset],
                "mode": [mode.bits, mode.pre_hash, mode.post_hash],
                "method": [method.name, method_options(method)],
                # A method sees the whole batch, and draws by a picture's place in it.
                "batch": [] if method.name == "sse" else [place, *(s.digest for s in batch)],
                "seed": settings.seed if method.draws else None,
                "versions": {name: versions[name] for name in (*MEASURING_PACKAGES, "device")},
                "measurement_version": MEASUREMENT_VERSION,
            }
            for qp in settings.qps:
                measurement = point_key({**depends_on, "qp": qp})
                names = [settings.dataset, source.name, mode.name, settings.seed]
                key = point_key({"measurement": measurement, "names": names})
                yield Row(key, measurement, source, mode, method, codec, qp)

    def _names(self, row: Row) -> dict[str, Any]:
        return {
            "key": row.key,
            "dataset": self.settings.dataset,
            "sequence": row.source.name,
            "mode": row.mode.name,
            "seed": self.settings.seed,
        }

    def _stream(self, row: Row) -> tuple[Any, ...]:
        """Identity of the stream that a row is measured on: modes with one pre-processor share theirs under sse."""
        if row.method.name == "sse":
            return row.source.digest, row.source.fps, row.mode.pre_hash, row.codec.name, row.qp
        return row.source.name, row.mode.name, id(row.method), row.codec.name, row.qp

    def _jobs(self, todo: set[str]) -> Iterator[_Job]:
        """Plans batch by batch, lazily: encoders work while the next plan is made."""
        for batch in self.batches:
            streams: dict[Any, list[Row]] = {}
            for row in self.rows:
                if row.key in todo and row.source in batch:
                    streams.setdefault(self._stream(row), []).append(row)
            plans: dict[Any, list[list[Row]]] = {}
            for rows in streams.values():
                first = rows[0]
                fields = fields_of(first.method)
                qp = first.qp if "qp" in fields else None
                codec = first.codec if "encoder" in fields else None
                plans.setdefault((first.mode, id(first.method), qp, id(codec)), []).append(rows)
            for members in plans.values():
                first = members[0][0]
                try:
                    planned = self._plan(batch, first)
                except Exception as error:
                    for rows in members:
                        self._fail(rows, error)
                    continue
                for rows in members:
                    yield self._job(rows, planned[rows[0].source.name])

    def _request(self, row: Row) -> EncodeRequest:
        settings = self.settings
        return EncodeRequest(row.qp, settings.config, BIT_DEPTH, fps=row.source.fps, preset=settings.preset)

    def _job(self, rows: list[Row], planned: Planned) -> _Job:
        sandwich, _, _ = self._functions(rows[0].mode, size_of(rows[0].source.samples))
        trace = any(self.pictures.traces(row) for row in rows)
        request = dataclasses.replace(self._request(rows[0]), trace=trace)
        return _Job(rows, planned, sandwich.request(request, planned.plan))

    # Networks.

    def _functions(self, mode: Mode, size: tuple[int, int]) -> tuple[Sandwich, Any, Any]:
        """The mode's sandwich for this size, its compiled front (samples → samples) and its compiled back (a plan's
        ``undo``, samples → samples)."""
        if (mode.name, size) not in self._sandwiches:
            sandwich = mode.sandwich(*size)
            front = jax.jit(lambda samples: sandwich.bottleneck(normalise(samples, BIT_DEPTH)))
            back = jax.jit(
                lambda undo, samples: denormalise(sandwich.receive(Plan(samples, undo=undo).undone(samples)), BIT_DEPTH)
            )
            self._sandwiches[mode.name, size] = sandwich, front, back
        return self._sandwiches[mode.name, size]

    def _plan(self, batch: list[_Source], row: Row) -> dict[str, Planned]:
        """Plans the clips of a row's batch together, so that its method sees all pictures at once."""
        mode, method = row.mode, row.method
        size = size_of(batch[0].samples)
        sandwich, front, _ = self._functions(mode, size)
        samples = _concatenate([source.samples for source in batch])
        total = num_frames(samples)
        if self._bottleneck is None or self._bottleneck[0] != (mode.name, batch[0].name):
            with Stopwatch() as watch:
                z = _in_chunks(front, samples, PIXELS_PER_CALL // (size[0] * size[1]))
            self._bottleneck = (mode.name, batch[0].name), z, watch.seconds
        _, z, pre_s = self._bottleneck
        fields = fields_of(method)
        values = {
            "qp": row.qp,
            "clips": tuple(num_frames(source.samples) for source in batch),
            "period": intra_period(self.settings.config, row.source.fps),
            "encoder": row.codec,
            "request": self._request(row),
        }
        if total * size[0] * size[1] > PIXELS_PER_BATCH:
            values["memory_budget"] = MEMORY_BUDGET
        if "target" in fields:
            values["target"] = normalise(jax.tree.map(jnp.asarray, samples), BIT_DEPTH)
        method = with_fields(method, values)
        with Stopwatch() as watch:
            plan = sandwich.plan(z, method, key=jax.random.key(self.settings.seed))
            plan = jax.block_until_ready(plan)
        coded = to_integers(plan.z, BIT_DEPTH)
        side = np.asarray(plan.side_information_bits)
        planned, start = {}, 0
        for source in batch:
            count = num_frames(source.samples)
            part = slice(start, start + count)
            start += count
            bits = side[part].sum() if side.ndim else side * count / total
            its_own = Plan(
                jax.tree.map(lambda plane, part=part: plane[part], coded),
                _weights_of(plan.weights, part, total),
                math.ceil(bits),
                plan.undo,
            )
            planned[source.name] = Planned(
                its_own,
                pre_s * count / total,
                watch.seconds * count / total,
            )
        return planned

    # What came of it.

    def _finish(self, job: _Job, result: EncodeResult) -> None:
        for row in job.rows:
            try:
                point = self._point(row, job, result)
            except Exception as error:
                self._fail([row], error)
                continue
            if self.pictures.wants(row):
                self.pictures.add(row, job.planned, result, point.bits)
            if row.key not in self.points:
                self.cache.put(row.measurement, {"point": measurement_of(point), "command": result.command})
                self.points[row.key] = point
                self.commands.setdefault(row.codec.name, result.command)

    def _point(self, row: Row, job: _Job, result: EncodeResult) -> Point:
        source, settings, planned = row.source, self.settings, job.planned
        height, width = size_of(source.samples)
        _, _, back = self._functions(row.mode, (height, width))
        with Stopwatch() as watch:
            undo = planned.plan.undo
            frames = _in_chunks(partial(back, undo), result.decoded, PIXELS_PER_CALL // (height * width))
        received = to_integers(frames, BIT_DEPTH)
        psnr_y, psnr_yuv = mean_psnr(source.samples, received, BIT_DEPTH)
        count = num_frames(source.samples)
        bits = int(np.sum(np.asarray(result.bits))) + planned.plan.side_information_bits + row.mode.bits
        return Point(
            **self._names(row),
            codec=row.codec.name,
            codec_version=row.codec.version,
            config=settings.config,
            method=row.method.name,
            method_options=canonical_json(method_options(row.method)),
            lambda_scale=1.0,
            qp=row.qp,
            frames=count,
            bits=bits,
            header_bits=int(result.header_bits),
            kbps=bits * source.fps / (1000.0 * count),
            bpp=bits / (count * height * width),
            psnr_y=psnr_y,
            psnr_yuv=psnr_yuv,
            ms_ssim=ms_ssim(source.samples, received, BIT_DEPTH),
            encode_s=round(result.seconds, 6),
            map_s=None if planned.plan.weights is None else round(planned.plan_s, 6),
            method_s=round(planned.plan_s, 6),
            wrapper_s=round(planned.pre_s + watch.seconds, 6),
            verified=bool(result.verified),
            mode_bits=row.mode.bits,
        )

    def _fail(self, rows: list[Row], error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        for row in rows:
            self.failures[row.key] = Failure(
                row.key, row.source.name, row.codec.name, row.mode.name, row.method.name, row.qp, text
            )


def _source(clip: ClipLike) -> _Source:
    check_frame(clip.frames)
    samples = change_bit_depth(jax.tree.map(np.asarray, clip.frames), clip.bit_depth, BIT_DEPTH)
    return _Source(clip.name, samples, float(clip.fps), digest_of(*samples.planes))


def _batches(sources: list[_Source]) -> list[list[_Source]]:
    """Clips of one size, chroma format and frame rate together, in the given order, up to `PIXELS_PER_BATCH`."""
    alike: dict[Any, list[list[_Source]]] = {}
    for source in sources:
        height, width = size_of(source.samples)
        groups = alike.setdefault((height, width, len(source.samples.planes), source.fps), [[]])
        if sum(num_frames(s.samples) for s in (*groups[-1], source)) * height * width > PIXELS_PER_BATCH and groups[-1]:
            groups.append([])
        groups[-1].append(source)
    return [batch for groups in alike.values() for batch in groups]


def _concatenate(frames: list[Frame]) -> Frame:
    return jax.tree.map(lambda *planes: np.concatenate(planes), *frames)


def _in_chunks(function: Any, samples: Frame, frames_per_call: int) -> Frame:
    """Applies a compiled function to a few frames at a time, always the same number, so that it is compiled once."""
    count = num_frames(samples)
    size = max(1, min(frames_per_call, count))
    parts = []
    for start in range(0, count, size):
        indices = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(jax.block_until_ready(function(jax.tree.map(lambda plane, i=indices: plane[i], samples))))
    return jax.tree.map(lambda *planes: jnp.concatenate(planes)[:count], *parts)


def _weights_of(weights: Weights | None, part: slice, total: int) -> Weights | None:
    """A clip's share of the weights, as NumPy arrays; a single map serves all clips."""
    if weights is None:
        return None
    single = num_frames(weights.planes) == 1 and total > 1
    chosen = slice(0, 1) if single else part
    return Weights(jax.tree.map(lambda plane: np.asarray(plane)[chosen], weights.planes), weights.applied_as)


def _raise_if_disk_full(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(
            error.errno,
            f"the disk is full ({error.filename or 'while encoding'}): points measured before are kept; "
            "free some space and run the same command again",
        ) from error


# The output folder.


def _configuration(sources: list[_Source], settings: _Settings) -> dict[str, Any]:
    modes = {mode.name: mode for mode, _ in settings.pairs}
    methods = {canonical_json([m.name, method_options(m)]): m for _, m in settings.pairs}
    return {
        "dataset": settings.dataset,
        "clips": {
            s.name: {
                "width": size_of(s.samples)[1],
                "height": size_of(s.samples)[0],
                "frames": num_frames(s.samples),
                "fps": s.fps,
                "sha256": s.digest,
            }
            for s in sources
        },
        "modes": {
            name: {"pre": mode.pre_hash, "post": mode.post_hash, "bits": mode.bits} for name, mode in modes.items()
        },
        "methods": [{"name": m.name, **method_options(m)} for m in methods.values()],
        "codecs": [codec.name for codec in settings.codecs],
        "config": settings.config,
        "preset": settings.preset,
        "qps": settings.qps,
        "seed": settings.seed,
        "coded_bit_depth": BIT_DEPTH,
    }
