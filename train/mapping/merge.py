"""The last pass of a map run: raw maps of all shards → weights for an encoder, one map in memory at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.codecs.weightmap import MapInfo, MapWriter
from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.weights import Scope, check_weighting, importance_weights
from jaxwrap.train.mapping import parts
from jaxwrap.train.mapping.collect import Statistics, merged_sums, read_record, record_bytes, unpack_arrays
from jaxwrap.train.mapping.plan import FROZEN, Plan, Shard

LEVEL = 0.95
"""Of confidence intervals."""


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A pair of files, what they hold, and what should be known about it."""

    path: Path
    info: MapInfo
    notes: tuple[str, ...]


def check_output(plan: Plan, out: Path, size: tuple[int, int] | None = None) -> None:
    """Raises `ValueError` where the plan's maps cannot go to ``out``: a ``.dat`` file holds maps of one size, the files
    of a folder have names of their own, and ``size`` is for calibrated maps only."""
    calibrated = plan.mode == "calibrated"
    if size is not None and (not calibrated or min(size) < 2 or size[0] % 2 or size[1] % 2):
        raise ValueError(
            f"a size of {size[1]}×{size[0]} was given; wanted an even width and height, and mode calibrated, whose map "
            "is one number per plane"
        )
    if calibrated and size is None:
        plan.require_one_size("one calibrated map", "say with --size WIDTHxHEIGHT at which it is to be written")
    if plan.mode == "fwa":
        plan.require_one_size("one frozen map", "give clips of one size, or mode wa and a folder as the output")
    if plan.mode not in FROZEN and out.suffix == ".dat":
        plan.require_one_size(f"the file {out}", "give clips of one size, or a folder as the output")
    if plan.mode not in FROZEN and out.suffix != ".dat":
        clips: dict[Path, str] = {}
        for clip in plan.clips:
            path = _path(out, clip.name)
            if (other := clips.setdefault(path, clip.name)) != clip.name:
                raise ValueError(
                    f"the maps of {other} and those of {clip.name} would both go to {path}: rename one of the clips, "
                    "or map them into folders of their own"
                )


def make_place(out: Path) -> None:
    """Makes the folder that ``out`` is, or that a ``.dat`` file is in, before hours are spent on its content."""
    (out.parent if out.suffix == ".dat" else out).mkdir(parents=True, exist_ok=True)


def merge(
    folder: Path, shards: int, out: Path, *, alpha: float, scope: Scope, size: tuple[int, int] | None = None
) -> list[Written]:
    """Weights of the maps in ``folder`` (all shards of it), to a ``.dat`` file or to a folder with a file per clip; the
    parts are removed afterwards.

    Args:
      alpha: see `importance_weights`.
      scope: ``"frame"``, or ``"sequence"``: all maps of a clip divided by one mean.
      size: (height, width) at which a calibrated map is written; default: that of the clips' maps.

    Raises:
      ValueError: shards that are missing, unfinished or of another run, or as `check_output`.
    """
    if shards < 1:
        raise ValueError(f"{shards} shards were asked for; wanted 1 or more")
    check_weighting(alpha, scope)
    plan = parts.read_plan(folder, shards)
    check_output(plan, out, size)
    make_place(out)
    run = _Merge(plan, folder, shards, out, alpha, scope)
    written = [run.frozen(size)] if plan.mode in FROZEN else run.per_frame()
    parts.remove(folder)
    return written


@dataclasses.dataclass(frozen=True, slots=True)
class _Map:
    """One map on its way from a part to a file."""

    clip: int
    statistics: Statistics
    h: Frame


class _Merge:
    """What the two kinds of output have in common."""

    def __init__(self, plan: Plan, folder: Path, shards: int, out: Path, alpha: float, scope: Scope) -> None:
        self.plan, self.folder, self.shards, self.out = plan, folder, shards, out
        self.alpha, self.scope = alpha, scope
        self.counts = self._counts()

    def per_frame(self) -> list[Written]:
        """Modes wa and iwa: to one file, or one per clip."""
        means = self._means() if self.scope == "sequence" else None
        single = self.out.suffix == ".dat"
        written: list[Written] = []
        maps = self._maps()
        pending = next(maps, None)
        while pending is not None:
            first = pending.clip
            path = self.out if single else _path(self.out, self.plan.clips[first].name)
            totals = _Totals()
            with MapWriter(path, size=self.plan.clips[first].map_size, chroma="420") as writer:
                while pending is not None and (single or pending.clip == first):
                    mean = None if means is None else float(means[pending.clip])
                    writer.append(importance_weights(pending.h, alpha=self.alpha, mean=mean).planes)
                    totals.add(pending.statistics)
                    pending = next(maps, None)
                clips = range(len(self.plan.clips)) if single else [first]
                written.append(self._finish(writer, path, totals.details(), totals, clips))
        return written

    def frozen(self, size: tuple[int, int] | None) -> Written:
        """Modes fwa and calibrated: one map."""
        path = self.out if self.out.suffix == ".dat" else _path(self.out, self.plan.mode)
        size = size or self.plan.clips[0].map_size
        h, details, totals = self._frozen_mean() if self.plan.mode == "fwa" else self._calibrated(size)
        with MapWriter(path, size=size, chroma="420") as writer:
            writer.append(importance_weights(h, alpha=self.alpha).planes)
            return self._finish(writer, path, details, totals, range(len(self.plan.clips)))

    def _frozen_mean(self) -> tuple[Frame, dict[str, Any], _Totals]:
        mean, totals = MapMean(), _Totals()
        for record in parts.read_records(self.folder, self.plan, self.shards):
            if sum(record.entry.counts):
                mean.merge(MapMean.from_arrays(unpack_arrays(record.data)))
                totals.sketches = max(totals.sketches, record.entry.sketches)
        h = mean.mean()
        level = float(np.mean(np.concatenate([np.ravel(p) for p in h.planes])))
        details: dict[str, Any] = {}
        if sum(self.counts) > 1:
            error = np.concatenate([np.ravel(p) for p in mean.standard_error().planes])
            low, high = mean.interval(LEVEL)
            width = np.concatenate([np.ravel(b - a) for a, b in zip(low.planes, high.planes, strict=True)])
            totals.relative_error = float(np.sqrt(np.mean(np.square(error)))) / level
            details["interval_level"] = LEVEL
            details["relative_half_width_of_interval_if_frames_are_independent"] = float(np.mean(width)) / 2 / level
        return h, details, totals

    def _calibrated(self, size: tuple[int, int]) -> tuple[Frame, dict[str, Any], _Totals]:
        sums = None
        for record in parts.read_records(self.folder, self.plan, self.shards):
            if sum(record.entry.counts):
                sums = merged_sums(sums, unpack_arrays(record.data))
        assert sums is not None  # every clip has a first frame: opening it decoded that
        calibration = Calibration.from_arrays(sums, "plane", size, 3)
        errors = calibration.standard_error()
        details = {
            "codec": self.plan.codec,
            "qp": self.plan.qp,
            "plane_weights": calibration.signed_weights().tolist(),
            "plane_standard_errors": errors.tolist() if np.isfinite(errors).all() else None,
            "negative_planes": calibration.negative.tolist(),
        }
        return calibration.map(), details, _Totals()

    def _finish(
        self, writer: MapWriter, path: Path, details: dict[str, Any], totals: _Totals, clips: range | list[int]
    ) -> Written:
        notes = tuple(note for i in clips if (note := self._note(i)))
        if self.plan.mode == "calibrated" and details["negative_planes"]:
            names = ", ".join("yuv"[i] for i in details["negative_planes"])
            notes += (f"the weight of plane {names} came out negative and was set to 0",)
        if self.plan.mode == "fwa" and max(self.counts) > 1:
            notes += (
                "the interval takes frames of one clip for independent pictures, and is too narrow for that; "
                "--max-frames 1 gives an honest one, over the clips' first frames",
            )
        details = {
            "alpha": self.alpha,
            "scope": self.scope,
            "frames": sum(self.counts[i] for i in clips),
            "period": self.plan.period,
            "network": self.plan.network,
            "platform": self.plan.platform,
            "clips": {self.plan.clips[i].name: self.counts[i] for i in clips},
            **details,
        }
        info = writer.finish(
            mode=self.plan.mode,
            receiver=self.plan.receiver,
            sketches=totals.sketches,
            standard_error=totals.relative_error,
            seed=self.plan.seed,
            details=details,
        )
        return Written(path, info, notes)

    def _note(self, clip: int) -> str:
        planned, wanted = self.plan.clips[clip], self.plan.maps_of(clip)
        if self.counts[clip] == wanted:
            return ""
        what = "map" if self.plan.period == 1 else f"map (every {self.plan.period} frames)"
        return (
            f"{planned.name}: its file says that it holds {planned.frames} frames; {self.counts[clip]} of {wanted} "
            f"{what}s could be made of those that decode"
        )

    def _counts(self) -> list[int]:
        """Maps that each clip gave. Raises `ValueError` where shards do not agree on where a clip ends."""
        counts, units = [0] * len(self.plan.clips), self.plan.units()
        for record in self._entries():
            pieces = [piece for chunk in units[record.unit] for piece in chunk]
            for piece, count in zip(pieces, record.counts, strict=True):
                if count and counts[piece.clip] != piece.start:
                    raise ValueError(
                        f"{self.plan.clips[piece.clip].name} gave {counts[piece.clip]} maps to one shard and goes on "
                        f"at {piece.start} in the next: the shards did not see the same file; run them again"
                    )
                counts[piece.clip] += count
        return counts

    def _entries(self) -> Iterator[parts.Entry]:
        units = self.plan.units()
        for shard in (Shard(n, self.shards) for n in range(1, self.shards + 1)):
            yield from parts.journal(self.folder, shard, shard.share(units))

    def _means(self) -> np.ndarray:
        """Mean of h over all maps of each clip."""
        sums = np.zeros(len(self.plan.clips))
        for found in self._maps():
            sums[found.clip] += found.statistics.mean
        return sums / np.maximum(self.counts, 1)

    def _maps(self) -> Iterator[_Map]:
        units = self.plan.units()
        for record in parts.read_records(self.folder, self.plan, self.shards):
            pieces = [piece for chunk in units[record.entry.unit] for piece in chunk]
            start = 0
            for piece, count in zip(pieces, record.entry.counts, strict=True):
                clip = self.plan.clips[piece.clip]
                for _ in range(count):
                    stop = start + record_bytes(clip)
                    yield _Map(piece.clip, *read_record(record.data[start:stop], clip))
                    start = stop


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '_')}.dat"


class _Totals:
    """What the ``.json`` says about how well the maps are known."""

    def __init__(self) -> None:
        self.sketches = 0
        self.relative_error: float | None = None
        self._sums, self._count = np.zeros(3), 0

    def add(self, statistics: Statistics) -> None:
        """Includes a map."""
        self.sketches, self._count = max(self.sketches, int(statistics.sketches)), self._count + 1
        relative = math.sqrt(statistics.square_error) / statistics.mean
        self._sums += [relative, statistics.block_error, statistics.sketches]

    def details(self) -> dict[str, Any]:
        """Means over the maps; None where a single sketch tells nothing."""
        relative, block, sketches = (self._sums / self._count).tolist()
        known = not math.isnan(relative)
        self.relative_error = relative if known else None
        return {"relative_standard_error_of_16x16_means": block if known else None, "mean_sketches": sketches}
