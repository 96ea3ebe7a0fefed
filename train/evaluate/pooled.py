"""The sweep of a task: rows of every sequence as in any other, and of the data set one score per point of a curve.

Average precision and tracking scores are statistics of a data set, not means over its pictures. So the predictions of
every row are kept, and pooled: ``scores.csv`` has the columns of ``results.csv``, its rows the sequence `ALL`, bits and
frames summed, SNR from summed energies. A score is of the sequences that all of its curve's rows have; where some of
them failed there is none.

More files in the output folder: ``scores.csv``; ``truth.json`` (COCO) or ``truth/NAME.txt`` (MOTChallenge): what the
predictions were scored against; ``predictions/KEY.txt``, for tracking, beside ``predictions/KEY.json``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxwrap.codec import Codec
from jaxwrap.codecs.files import write_atomically
from jaxwrap.methods import Sse
from jaxwrap.methods.plan import Method
from jaxwrap.train.datasets.data import TaskData
from jaxwrap.train.datasets.motchallenge import write_rows
from jaxwrap.train.evaluate.cache import Cache
from jaxwrap.train.evaluate.features import LocalMode, TaskMode
from jaxwrap.train.evaluate.mode import decibels
from jaxwrap.train.evaluate.points import Point, point_key, write_points
from jaxwrap.train.evaluate.scoring import Truth, pseudo_truth, rows_of, true_truth
from jaxwrap.train.evaluate.sources import PictureSource
from jaxwrap.train.evaluate.sweep import SweepResult, predictions_path, run_sweep

ALL = "(all)"
"""The sequence of a pooled row."""

CLIPPED_TOO_MUCH = 1e-3
"""Share of samples outside the codec's range that is worth a warning."""

TruthKind = Literal["true", "pseudo"]
"""Annotations, or what the network finds on the originals."""

_ALIKE = ("codec", "codec_version", "config", "mode", "method", "method_options", "lambda_scale", "qp", "network")
"""Columns that the rows of one pooled row share."""

_SECONDS = ("encode_s", "map_s", "method_s", "decode_s", "wrapper_s")


@dataclasses.dataclass(frozen=True, slots=True)
class TaskResult:
    """A sweep's rows, the pooled ones, what could not be pooled, and the share of samples that were clipped, by mode
    and method."""

    sweep: SweepResult
    scores: list[Point]
    incomplete: list[str]
    clipped: dict[str, float]


def run_task_sweep(
    data: TaskData,
    modes: Sequence[TaskMode],
    codecs: Sequence[Codec],
    qps: Sequence[float],
    methods: Sequence[Method],
    out: Path,
    *,
    truth: TruthKind = "true",
    **options: Any,
) -> TaskResult:
    """`run_sweep` of a data set's sequences, and its scores.

    ``truth``: the annotations, or what the network finds on the originals; the mode `LocalMode` is then added where it
    is missing. ``options`` as in `run_sweep`. Raises as that does, and `ValueError` for annotations without an object
    and sequences that change size.
    """
    if truth == "pseudo" and not any(isinstance(mode, LocalMode) for mode in modes):
        modes = [*modes, LocalMode(modes[0].task)]
    given = true_truth(data) if truth == "true" else None
    sources = [PictureSource.of_sequence(sequence) for sequence in data.sequences]
    about = {"kind": data.task, "truth": truth, "annotations": None if given is None else given.digest}
    result: list[TaskResult] = []

    def summarise(sweep: SweepResult, cache: Cache) -> Mapping[str, Any]:
        against = given
        if against is None:
            local = [point for point in sweep.points if point.mode == "local"]
            if len(local) < len(sources):
                raise ValueError(
                    f"local inference failed on {len(sources) - len(local)} of {len(sources)} sequences, and its "
                    f"output is the truth; logs are in {out / 'failed'}, and --retry-failed tries again"
                )
            against = pseudo_truth(data, _predictions(out, local))
        _write_truth(out, against)
        scores, incomplete = pooled(sweep, sources, against, out, cache)
        write_points(out / "scores.csv", scores)
        clipped = clipped_shares(sweep)
        result.append(TaskResult(sweep, scores, incomplete, clipped))
        return {"clipped": {name: round(share, 9) for name, share in clipped.items()}}

    if not any(method.name == "sse" for method in methods):
        methods = [Sse(), *methods]  # the baselines run under it
    run_sweep(sources, modes, codecs, qps, methods, out, about={"task": about}, summarise=summarise, **options)
    return result[0]


def pooled(
    sweep: SweepResult, sources: Sequence[PictureSource], truth: Truth, out: Path, cache: Cache
) -> tuple[list[Point], list[str]]:
    """Rows of the whole data set, and in words which there are none of. Scores come from the cache where the same rows
    were scored before."""
    by_name = {source.name: source for source in sources}
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in sweep.points:
        groups.setdefault(tuple(getattr(point, name) for name in _ALIKE), []).append(point)
    scores, incomplete = [], []
    for points in groups.values():
        first = points[0]
        if len(points) < len(sources):
            incomplete.append(
                f"{first.codec}, {first.mode}, {first.method}, QP {first.qp:g}: {len(sources) - len(points)} of "
                f"{len(sources)} sequences are missing"
            )
            continue
        key = point_key({"points": sorted(point.key for point in points), "truth": truth.digest})
        record = cache.get(key)
        if record is None:
            record = truth.scores(_predictions(out, points))
            cache.put(key, record)
        scores.append(_pool(points, by_name, sweep, key, record))
    return scores, incomplete


def clipped_shares(sweep: SweepResult) -> dict[str, float]:
    """Share of the coded samples outside the codec's range, by mode and method."""
    counts: dict[str, tuple[int, int]] = {}
    for point in sweep.points:
        if point.key in sweep.sums and sweep.sums[point.key].clipped[1]:
            name = f"{point.mode}, {point.method}"
            before = counts.get(name, (0, 0))
            outside, samples = sweep.sums[point.key].clipped
            counts[name] = before[0] + outside, before[1] + samples
    return {name: outside / samples for name, (outside, samples) in counts.items()}


def _pool(
    points: Sequence[Point],
    sources: Mapping[str, PictureSource],
    sweep: SweepResult,
    key: str,
    scores: Mapping[str, float],
) -> Point:
    own = [sources[point.sequence] for point in points]
    bits, frames = sum(point.bits for point in points), sum(point.frames for point in points)
    seconds = sum(source.num_frames / source.fps for source in own)
    pixels = sum(source.num_frames * source.size[0] * source.size[1] for source in own)
    sums = [sweep.sums[point.key].energies for point in points]

    def of_frames(name: str) -> float | None:
        values = [getattr(point, name) for point in points]
        return None if None in values else sum(v * p.frames for v, p in zip(values, points, strict=True)) / frames

    def snr(name: str) -> float | None:
        if not all(name in energies for energies in sums):
            return None
        return decibels(*(sum(energies[name][i] for energies in sums) for i in (0, 1)))

    def total(name: str) -> float | None:
        values = [getattr(point, name) for point in points]
        return None if None in values else round(sum(values), 6)

    return dataclasses.replace(
        points[0],
        key=key,
        sequence=ALL,
        frames=frames,
        bits=bits,
        header_bits=sum(point.header_bits for point in points),
        kbps=bits / (1000.0 * seconds),
        bpp=bits / pixels,
        psnr_y=of_frames("psnr_y"),
        psnr_yuv=of_frames("psnr_yuv"),
        ms_ssim=of_frames("ms_ssim"),
        receiver_snr=snr("receiver_snr"),
        feature_snr=snr("feature_snr"),
        **{name: total(name) for name in _SECONDS},  # type: ignore[arg-type]
        **scores,  # type: ignore[arg-type]
        verified=all(point.verified for point in points),
        mode_bits=sum(point.mode_bits for point in points),
    )


def _predictions(out: Path, points: Sequence[Point]) -> dict[str, list[Any]]:
    return {point.sequence: json.loads(predictions_path(out, point.key).read_bytes()) for point in points}


def _write_truth(out: Path, truth: Truth) -> None:
    if truth.kind != "tracking":
        write_atomically(out / "truth.json", json.dumps(truth.content).encode())
        return
    (out / "truth").mkdir(exist_ok=True)
    for name, rows in truth.content.items():
        write_rows(out / "truth" / f"{name}.txt", rows)
    for path in (out / "predictions").glob("*.json"):
        write_rows(path.with_suffix(".txt"), rows_of(json.loads(path.read_bytes())))
