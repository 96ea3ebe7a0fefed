"""The paired bootstrap over a data set: over its pictures, over its videos, or over pieces of few videos.

An accuracy is one figure of a whole data set, so that there is no mean over sequences to resample. Instead units are
drawn with replacement, their bits summed and their predictions scored together; every curve is drawn alike, so that the
two sides of a comparison always rest on the same pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxwrap.codecs.files import write_atomically
from jaxwrap.metrics.bjontegaard import AccuracyCurve, accuracy_curve
from jaxwrap.metrics.detection import ApResampler
from jaxwrap.metrics.tracking import TrackingScores, pooled_scores, tracking_counts, tracking_scores
from jaxwrap.train.datasets.motchallenge import read_truth
from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.report.curves import Series, Setting, series_of
from jaxwrap.train.report.task_results import TaskResults, place_of

DRAWS = 200
"""Draws of the bootstrap: a 95 % interval then ends at the fifth draw from either end."""

FEW_SEQUENCES = 20
SEGMENT = 20
"""Where there are fewer videos than `FEW_SEQUENCES`, pieces of `SEGMENT` frames are drawn: about a second, within which
one frame says little that another does not."""

_LARGEST_DIFFERENCE = 1e-6
"""Of a score in scores.csv and of the same score found again from the predictions."""

Scorer = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Numbers of drawn units ``[draw, unit]`` → scores in [0, 1] of every draw, by name."""


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """What is drawn: frames ``start`` … ``stop`` − 1 of a sequence. Its share of the sequence's bits is that of its
    frames, since rows have the sum only."""

    sequence: str
    number: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Curves of every draw: measure → (setting, series) → one per draw, None where a draw gives none.

    ``units``: what was drawn from. ``local``: measure → scores of local inference, one per draw, in points.
    """

    units: tuple[Unit, ...]
    curves: dict[str, dict[tuple[Setting, Series], list[AccuracyCurve | None]]]
    local: dict[str, np.ndarray]

    @property
    def unit_name(self) -> str:
        """What the units are, for people."""
        if any(unit.number for unit in self.units):
            return f"pieces of {SEGMENT} frames"
        return "pictures" if all(unit.stop == 1 for unit in self.units) else "videos"


def draw_curves(results: TaskResults, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draws units ``draws`` times and scores every curve on each draw.

    Points that lack a sequence, or a file of predictions, take no part; nor do curves that are left with too few. What
    was drawn is kept in ``draws.npz`` beside the truth, for the next time. Raises `ValueError` where a score is not
    what its predictions give, or a file is damaged.
    """
    members = results.members()
    frames = {name: row.frames for name, row in sorted(max(members.values(), key=len, default={}).items())}
    units = _units(frames)
    if results.truth is None or not units:
        return Draws((), {}, {})
    drawn = np.random.default_rng(seed).integers(0, len(units), (draws, len(units)))
    times = np.stack([np.bincount(one, minlength=len(units)) for one in drawn])  # [draw, unit]
    scorer_of = _tracks(results.truth, units) if results.kind == "tracking" else _detections(results.truth, units)
    kept = _Kept(results.truth.parent / "draws.npz", units, draws, seed)
    at: dict[str, dict[tuple[Setting, Series], list[tuple[np.ndarray, np.ndarray]]]] = {}
    local: dict[str, np.ndarray] = {}
    for score in results.scores:
        rows = members.get(place_of(score), {})
        files = {name: results.predictions[row.key] for name, row in rows.items() if row.key in results.predictions}
        if set(files) != set(frames):
            continue
        if score.key not in kept.scores:
            kept.scores[score.key] = scorer_of(files, score)(drawn)
        values = {name: 100.0 * value for name, value in kept.scores[score.key].items()}
        if score is results.local:
            local |= values
            continue
        bits = np.array([rows[u.sequence].bits * (u.stop - u.start) / frames[u.sequence] for u in units])
        rate = times @ bits / (times @ (bits / np.array([rows[unit.sequence].bpp for unit in units])))
        series = Setting(score.codec, score.config), series_of(score)
        for name, value in values.items():
            at.setdefault(name, {}).setdefault(series, []).append((rate, value))
    kept.write()
    curves = {
        name: {series: _curves_of(points, draws) for series, points in by_series.items()}
        for name, by_series in at.items()
    }
    return Draws(units, curves, local)


def _units(frames: Mapping[str, int]) -> tuple[Unit, ...]:
    if len(frames) >= FEW_SEQUENCES or all(count == 1 for count in frames.values()):
        return tuple(Unit(name, 0, 0, count) for name, count in frames.items())
    return tuple(
        Unit(name, number, start, min(start + SEGMENT, count))
        for name, count in frames.items()
        for number, start in enumerate(range(0, count, SEGMENT))
    )


def _curves_of(points: Sequence[tuple[np.ndarray, np.ndarray]], draws: int) -> list[AccuracyCurve | None]:
    rates, values = (np.stack(column, axis=-1) for column in zip(*points, strict=True))  # [draw, point]

    def curve(i: int) -> AccuracyCurve | None:
        try:
            return accuracy_curve(rates[i], values[i])
        except ValueError:
            return None

    return [curve(i) for i in range(draws)]


def _detections(path: Path, units: Sequence[Unit]) -> Callable[[Mapping[str, Path], Point], Scorer]:
    truth = _read_json(path)
    of_sequences = _image_ids(truth, {unit.sequence for unit in units})
    ids = [of_sequences[unit.sequence][unit.start : unit.stop] for unit in units]
    every = [one for of_unit in ids for one in of_unit]

    def scorer(files: Mapping[str, Path], score: Point) -> Scorer:
        predictions = [prediction for file in files.values() for prediction in _read_json(file)]
        boxes = ApResampler(truth, predictions, "bbox", every)
        masks = None if score.mask_ap is None else ApResampler(truth, predictions, "segm", every)

        def scores(drawn: np.ndarray) -> dict[str, np.ndarray]:
            pictures = [[one for place in draw for one in ids[place]] for draw in drawn]
            found = dict(zip(("ap", "ap50"), boxes.scores(pictures).T, strict=True))
            return found if masks is None else found | {"mask_ap": masks.scores(pictures)[:, 0]}

        whole = scores(np.arange(len(units))[None])
        _check({name: float(value[0]) for name, value in whole.items()}, score, files)
        return scores

    return scorer


def _tracks(folder: Path, units: Sequence[Unit]) -> Callable[[Mapping[str, Path], Point], Scorer]:
    truth = {name: read_truth(folder / f"{name}.txt") for name in dict.fromkeys(unit.sequence for unit in units)}
    segment = SEGMENT if any(unit.number for unit in units) else None

    def scorer(files: Mapping[str, Path], score: Point) -> Scorer:
        rows = {name: np.asarray(_read_json(file), np.float64).reshape(-1, 10) for name, file in files.items()}
        _check(dataclasses.asdict(tracking_scores(truth, rows)), score, files)
        counts = tracking_counts(truth, rows, segment=segment)
        # A piece in which nobody is, and nobody was found, has no counts and changes no score.
        of_units = [counts.get((unit.sequence, unit.number)) for unit in units]

        def scores(drawn: np.ndarray) -> dict[str, np.ndarray]:
            chosen = [[one for place in draw if (one := of_units[place]) is not None] for draw in drawn]
            found = [pooled_scores(units) if units else TrackingScores(np.nan, np.nan, np.nan) for units in chosen]
            return {name: np.array([getattr(one, name) for one in found]) for name in ("mota", "idf1", "hota")}

        return scores

    return scorer


def _check(whole: Mapping[str, float], score: Point, files: Mapping[str, Path]) -> None:
    for name, value in whole.items():
        known = getattr(score, name)
        if known is None or abs(value - known) > _LARGEST_DIFFERENCE:
            raise ValueError(
                f"{next(iter(files.values())).parent}: the predictions of {score.codec}, {score.mode}, {score.method}, "
                f"QP {score.qp:g} give {name} = {value:.6f}, but scores.csv has {known}; the files are of different "
                "sweeps: evaluate again"
            )


def _image_ids(truth: Mapping[str, Any], names: set[str]) -> dict[str, list[int]]:
    """Pictures of each sequence: the one that bears its name, or those in the folder of its name."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for image in truth["images"]:
        path = PurePosixPath(image["file_name"])
        name = path.with_suffix("").as_posix()
        name = name if name in names else path.parent.as_posix()
        if name in names:
            found[name].append(image["id"])
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate again, or report without its folder") from error


class _Kept:
    """Scores of draws by the key of their pooled row, in a file; of other draws, or damaged, it is made anew."""

    def __init__(self, path: Path, units: Sequence[Unit], draws: int, seed: int) -> None:
        self._path = path
        self._about = json.dumps([[dataclasses.astuple(unit) for unit in units], draws, seed])
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as archive:
            if str(archive["about"]) == self._about:
                for name in archive.files:
                    key, _, measure = name.partition("/")
                    if measure:
                        self.scores.setdefault(key, {})[measure] = archive[name]
        self._known = set(self.scores)

    def write(self) -> None:
        """Writes what is new; where that cannot be, it is found again the next time."""
        if set(self.scores) == self._known:
            return
        arrays = {f"{key}/{name}": value for key, found in self.scores.items() for name, value in found.items()}
        content = io.BytesIO()
        np.savez_compressed(content, about=np.array(self._about), **arrays)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            write_atomically(self._path, content.getvalue())
