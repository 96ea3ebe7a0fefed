"""The sweep: clips × modes × methods × scales of λ × codecs × QPs → results rows, resumable at any point.

JAX works in this process (pre-processor, plan, post-processor, receiver), encoders in worker processes that never touch
a device, or on the workers of a Dask cluster. A point is stored in the cache as soon as it is measured, under a key
made of everything that its figures depend on: content of the clip, parameters and options, versions of codec and
packages, `MEASUREMENT_VERSION`. A sweep that was killed takes those points, their seconds included, and ends in the
same CSV. Samples that several modes share are encoded once. What fails is set aside with its log
(`jaxwrap.train.evaluate.quarantine`), and the rest goes on.

Files in the output folder: ``results.csv``, ``manifest.json`` (resolved configuration, versions, device, the
command of one encode per codec), ``failed.json`` and ``failed/`` (only where something failed), ``pictures.npz`` (one
picture's maps, coding units and decoded samples, for the report), ``predictions/KEY.json`` (what a task finds on each
row of a mode that has one).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from jaxwrap.arrays import Frame
from jaxwrap.codec import Codec, Config, EncodeRequest, EncodeResult
from jaxwrap.codecs.files import write_atomically
from jaxwrap.methods.plan import Method
from jaxwrap.train.evaluate import cost
from jaxwrap.train.evaluate.cache import Cache
from jaxwrap.train.evaluate.checks import (
    Combination,
    check_maps,
    check_numbers_of_maps,
    check_settings,
    combine,
    in_words,
    preset_of,
)
from jaxwrap.train.evaluate.cluster import ClusterWorkers
from jaxwrap.train.evaluate.manifest import claim, write_manifest
from jaxwrap.train.evaluate.mode import Measured, Mode
from jaxwrap.train.evaluate.networks import Networks, Planned
from jaxwrap.train.evaluate.nocodec import NoCodec
from jaxwrap.train.evaluate.options import fields_of
from jaxwrap.train.evaluate.pictures import Pictures
from jaxwrap.train.evaluate.points import Point, measurement_of, write_points
from jaxwrap.train.evaluate.quarantine import Failure, Quarantine
from jaxwrap.train.evaluate.rows import Row, Settings, batches_of, configuration, rows_of
from jaxwrap.train.evaluate.sources import BIT_DEPTH, ClipLike, Source
from jaxwrap.train.evaluate.workers import Workers


@dataclasses.dataclass(frozen=True, slots=True)
class SweepResult:
    """All rows in their final order, what failed, and how much was encoded in this run."""

    points: list[Point]
    failures: list[Failure]
    encodes: int
    from_cache: int
    commands: dict[str, str]
    """By codec, how one of the streams was made."""
    sums: dict[str, Sums]
    """By a row's key, what is pooled over clips; of rows of a task only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """What is added up over clips. ``energies``: signal and noise of columns in dB. ``clipped``: of the coded samples,
    how many lay outside the codec's range, and how many there are."""

    energies: dict[str, tuple[float, float]]
    clipped: tuple[int, int]


def predictions_path(out: Path, key: str) -> Path:
    """Where the predictions of a row lie: a COCO results list, or the rows of a MOTChallenge file as lists."""
    return out / "predictions" / f"{key}.json"


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
    clips: Sequence[ClipLike | Source],
    modes: Sequence[Mode],
    codecs: Sequence[Codec],
    qps: Sequence[float],
    methods: Sequence[Method],
    out: Path,
    *,
    lambda_scales: Sequence[float] = (1.0,),
    dataset: str = "user",
    processes: int = 2,
    scheduler: str | None = None,
    config: Config = "intra",
    preset: str | Mapping[str, str] | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
    summarise: Callable[[SweepResult, Cache], Mapping[str, Any]] | None = None,
) -> SweepResult:
    """Measures every combination that is not in the cache, and writes ``out/results.csv``.

    Args:
      clips: integer frames; those of one size are planned as one batch.
      modes: see `jaxwrap.train.evaluate.modes`; ``sse`` runs in all, other methods where `Mode.takes_methods` says so.
      codecs: picklable codecs; they run in worker processes. One that does not take a method's weights, or a scale of
        λ, runs without: a stock encoder is an anchor beside a patched one.
      qps: on the specification's scale.
      methods: allocation methods, whose fields named in `jaxwrap.train.evaluate.options.SET_BY_SWEEP` are set here.
      out: output folder, made if absent.
      lambda_scales: factors of the encoder's own λ that every method runs with.
      dataset: name for the column of that name. processes: number of worker processes. scheduler: address of a Dask
        scheduler, whose workers encode instead; they need the same encoders. config: coding configuration of every
        encode. preset: effort of every encode, or by codecs' names; None is the codec's default. seed: of the methods'
        random draws.
      retry_failed: try again what failed in this folder before; otherwise it is left alone.
      cache: folder of measured points, shared between runs; default: ``cache`` beside ``out``. progress: a running
        `rich` progress bar, to which a task is added.
      about: more to state, and to hold fixed, in the manifest. summarise: called in the end; what it gives is stated
        of the run.

    Raises:
      ValueError: nothing to do, unknown or repeated names, QPs out of range, what a codec cannot take
      (`Codec.check`), an encoder that is missing, or an output folder of another configuration (the settings that
      differ are named). OSError: the disk is full; points measured before are kept. RuntimeError: the cluster was lost.
    """
    pairs = check_settings(clips, modes, codecs, qps, methods, lambda_scales, config, processes)
    requests = {
        codec.name: [EncodeRequest(qp, config, BIT_DEPTH, preset=preset_of(preset, codec)) for qp in qps]
        for codec in codecs
    }
    sources = [Source.of(clip) for clip in clips]
    check_maps(sources, pairs)
    sent = [(mode, method) for mode, method in pairs if mode.sends]
    combinations, left_out = combine(sources, sent, codecs, requests, lambda_scales)
    combinations += [Combination(NoCodec(), mode, method, 1.0) for mode, method in pairs if not mode.sends]
    settings = Settings(combinations, [float(qp) for qp in qps], dataset, config, preset, seed)
    check_numbers_of_maps(batches_of(sources), pairs, config)
    asked = {**configuration(sources, settings), **(about or {})}
    out.mkdir(parents=True, exist_ok=True)
    claim(out, asked)
    started = time.perf_counter()
    quarantine = Quarantine(out)
    if not retry_failed:
        quarantine.read()
    store = Cache(cache or out.parent / "cache")
    sweep = _Sweep(sources, settings, store, quarantine, out, progress)
    for line in in_words(left_out):
        sweep.say(line)
    result = sweep.run(processes, scheduler)
    write_points(out / "results.csv", result.points)
    run = {
        "seconds": round(time.perf_counter() - started, 1),
        "processes": processes,
        "encodes": result.encodes,
        "rows_from_cache": result.from_cache,
        "failed": len(result.failures),
        **(summarise(result, store) if summarise is not None else {}),
    }
    write_manifest(out, asked, run, result.commands)
    return result


class _Sweep:
    """The state of one run."""

    def __init__(
        self,
        sources: list[Source],
        settings: Settings,
        cache: Cache,
        quarantine: Quarantine,
        out: Path,
        progress: Progress | None,
    ) -> None:
        self.settings, self.cache, self.quarantine, self.progress = settings, cache, quarantine, progress
        self.batches = batches_of(sources)
        order = {source.name: i for i, source in enumerate(sources)}
        rows = [row for batch in self.batches for row in rows_of(batch, settings)]
        # Stable: codecs, modes, methods, scales and QPs stay in the order that they were given in.
        self.rows = sorted(rows, key=lambda row: order[row.source.name])
        self.out = out
        self.pictures = Pictures(out / "pictures.npz", self.rows)
        self.networks = Networks(settings)
        self.points: dict[str, Point] = {}
        self.sums: dict[str, Sums] = {}
        self.commands: dict[str, str] = {}
        self.encodes = 0

    def run(self, processes: int, scheduler: str | None) -> SweepResult:
        todo = set()
        for row in self.rows:
            record = self.cache.get(row.measurement)
            if record is not None:
                self.points[row.key] = Point(**row.names(self.settings), **record["point"])
                self.commands.setdefault(row.codec.name, record["command"])
                self._keep(row, record.get("task"))
                self.quarantine.failures.pop(row.key, None)
            if record is None or self.pictures.wants(row):
                todo.add(row.key)
        failed = todo & {*self.quarantine.failures}
        todo -= failed
        from_cache = len(self.points)
        left_alone = f", {len(failed)} left alone because they failed before" if failed else ""
        self.say(f"{len(self.rows)} points, {from_cache} of them measured before{left_alone}")
        if todo:
            with Workers(processes) if scheduler is None else ClusterWorkers(scheduler) as workers:
                self._measure(todo, workers)
        self.pictures.write()
        self.quarantine.keep_only(row.key for row in self.rows)
        points = [self.points[row.key] for row in self.rows if row.key in self.points]
        failures = [self.quarantine.failures[row.key] for row in self.rows if row.key in self.quarantine.failures]
        return SweepResult(points, failures, self.encodes, from_cache, self.commands, self.sums)

    def _measure(self, todo: set[str], workers: Workers | ClusterWorkers) -> None:
        """First a few streams that tell the time, where nothing else does; then all others."""
        streams: dict[tuple[object, ...], Row] = {}
        for row in self.rows:
            if row.key in todo:
                streams.setdefault(row.stream, row)
        self.say(f"{len(streams)} streams to encode")
        bar = self.progress
        task = bar.add_task("encode", total=len(streams), note="") if bar is not None else None
        done = 0

        def encode(keys: Collection[str]) -> None:
            nonlocal done
            for job, outcome in workers.encode(self._jobs(keys)):
                done += 1
                if isinstance(outcome, Exception):
                    _raise_if_disk_full(outcome)
                    self.quarantine.add(job.rows, outcome)
                else:
                    self.encodes += 1
                    self._finish(job, outcome)
                if bar is not None and task is not None:
                    failed = len(self.quarantine.failures)
                    bar.update(task, completed=done, note=f"{failed} failed" if failed else "")

        first = cost.probes(list(streams.values()), self._rates(), workers.processes)
        chosen = {row.stream for row in first}
        before = {row.key for row in self.rows if row.key in todo and row.stream in chosen}
        if before:
            encode(before)
        rest = [row for stream, row in streams.items() if stream not in chosen]
        if estimate := cost.estimate(rest, self._rates(), workers.processes):
            self.say(str(estimate))
        encode(todo - before)

    def _rates(self) -> dict[str, float]:
        return cost.seconds_per_sample((row, self.points[row.key]) for row in self.rows if row.key in self.points)

    def say(self, text: str) -> None:
        """A line beside the progress bar."""
        if self.progress is not None:
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _jobs(self, todo: Collection[str]) -> Iterator[_Job]:
        """Plans batch by batch, lazily: encoders work while the next plan is made."""
        for batch in self.batches:
            streams: dict[object, list[Row]] = {}
            for row in self.rows:
                if row.key in todo and row.source in batch:
                    streams.setdefault(row.stream, []).append(row)
            plans: dict[object, list[list[Row]]] = {}
            for rows in streams.values():
                first = rows[0]
                fields = fields_of(first.method)
                qp = first.qp if "qp" in fields else None
                encoder = (id(first.codec), first.lambda_scale) if "encoder" in fields else None
                plans.setdefault((first.mode, id(first.method), qp, encoder), []).append(rows)
            for members in plans.values():
                try:
                    planned = self.networks.plan(batch, members[0][0])
                except Exception as error:
                    for rows in members:
                        self.quarantine.add(rows, error)
                    continue
                for rows in members:
                    yield self._job(rows, planned[rows[0].source.name])

    def _job(self, rows: list[Row], planned: Planned) -> _Job:
        trace = any(self.pictures.traces(row) for row in rows)
        request = dataclasses.replace(rows[0].request(self.settings), trace=trace)
        return _Job(rows, planned, planned.request(request))

    def _finish(self, job: _Job, result: EncodeResult) -> None:
        for row in job.rows:
            try:
                point, measured = self.networks.point(row, job.planned, result)
            except Exception as error:
                self.quarantine.add([row], error)
                continue
            if self.pictures.wants(row):
                self.pictures.add(row, job.planned, result, point.bits)
            if row.key not in self.points:
                task = _record_of(measured, job.planned)
                record = {"point": measurement_of(point), "command": result.command}
                self.cache.put(row.measurement, record if task is None else {**record, "task": task})
                self._keep(row, task)
                self.points[row.key] = point
                self.commands.setdefault(row.codec.name, result.command)

    def _keep(self, row: Row, task: Mapping[str, Any] | None) -> None:
        """What a task made of a row: sums here, predictions in their file."""
        if task is None:
            return
        energies = {name: (signal, noise) for name, (signal, noise) in task["energies"].items()}
        outside, samples = task["clipped"]
        self.sums[row.key] = Sums(energies, (outside, samples))
        path = predictions_path(self.out, row.key)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, json.dumps(task["predictions"], separators=(",", ":")).encode())


def _record_of(measured: Measured, planned: Planned) -> dict[str, Any] | None:
    if measured.predictions is None:
        return None
    return {"energies": measured.energies, "clipped": planned.clipped, "predictions": measured.predictions}


def _raise_if_disk_full(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(
            error.errno,
            f"the disk is full ({error.filename or 'while encoding'}): points measured before are kept; "
            "free some space and run the same command again",
        ) from error
