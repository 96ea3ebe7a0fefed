"""What sweeps of a task left in their folders: pooled scores, the rows of every sequence, the truth, and predictions.

``scores.csv`` has a row per point of a curve, of the sequence ``(all)``: bits and frames summed, one score of the whole
data set. ``predictions/KEY.json`` (a COCO results list, or a list of MOTChallenge rows) is of the row KEY of
``results.csv``; ``truth.json``, or ``truth/NAME.txt`` of each sequence, is what they were scored against.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxwrap.train.evaluate.points import Point, read_points
from jaxwrap.train.report.curves import LOCAL_MODE, is_of_a_task

_PLACE = ("codec", "codec_version", "config", "mode", "method", "method_options", "lambda_scale", "qp", "network")

Place = tuple[Any, ...]
"""What a pooled row shares with the rows that it is of."""


@dataclasses.dataclass(frozen=True, eq=False)
class TaskResults:
    """Results on one data set against one truth, of one sweep or several.

    ``scores``: pooled rows. ``points``: rows of every sequence, of modes of a task. ``truth``: the file ``truth.json``
    or the folder ``truth``; None where there is neither. ``is_pseudo``: the truth is what the network makes of the
    originals. ``predictions``: key of a row → its file, of those that exist.
    """

    name: str
    scores: tuple[Point, ...]
    points: tuple[Point, ...]
    truth: Path | None
    is_pseudo: bool
    predictions: dict[str, Path]

    @property
    def title(self) -> str:
        """Name of the data set, and of its truth where that is no annotation."""
        return f"{self.name}, pseudo truth" if self.is_pseudo else self.name

    @property
    def kind(self) -> Literal["detection", "segmentation", "tracking"]:
        """The task, by its scores."""
        if any(score.mota is not None for score in self.scores):
            return "tracking"
        return "segmentation" if any(score.mask_ap is not None for score in self.scores) else "detection"

    @property
    def local(self) -> Point | None:
        """Scores of local inference: what there is to lose."""
        return next((score for score in self.scores if score.mode == LOCAL_MODE), None)

    @property
    def coded(self) -> tuple[Point, ...]:
        """Scores that have a rate."""
        return tuple(score for score in self.scores if score.mode != LOCAL_MODE)

    def members(self) -> dict[Place, dict[str, Point]]:
        """Rows of each pooled row's place, by sequence."""
        found: dict[Place, dict[str, Point]] = {}
        for point in self.points:
            found.setdefault(place_of(point), {})[point.sequence] = point
        return found


def place_of(point: Point) -> Place:
    """Codec, mode, method and all else that tells a point of a curve from others of its data set."""
    return tuple(getattr(point, name) for name in _PLACE)


def read_task_results(results: Sequence[Path]) -> list[TaskResults]:
    """Results of tasks among those given (folders of sweeps, or CSV files in them); folders without ``scores.csv`` are
    passed over. Those of one data set and one truth are joined, equal rows taken once.

    Raises as `jaxwrap.train.evaluate.points.read_points`.
    """
    found: dict[tuple[str, str], TaskResults] = {}
    for path in results:
        folder = path if path.is_dir() else path.parent
        if not (folder / "scores.csv").is_file():
            continue
        scores = read_points(folder / "scores.csv")
        points = [point for point in read_points(folder / "results.csv") if is_of_a_task(point.mode)]
        kept = {file.stem: file for file in sorted((folder / "predictions").glob("*.json"))}
        truth = next((folder / name for name in ("truth.json", "truth") if (folder / name).exists()), None)
        for name in dict.fromkeys(score.dataset for score in scores):
            key = (name, _digest(truth))
            known = found.get(key, TaskResults(name, (), (), truth, _is_pseudo(folder), {}))
            found[key] = dataclasses.replace(
                known,
                scores=_joined(known.scores, [score for score in scores if score.dataset == name]),
                points=_joined(known.points, [point for point in points if point.dataset == name]),
                predictions=known.predictions | kept,
            )
    return list(found.values())


def _joined(known: Sequence[Point], more: Sequence[Point]) -> tuple[Point, ...]:
    return tuple({point.key: point for point in (*more, *known)}.values())


def _is_pseudo(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return bool(manifest["configuration"]["task"]["truth"] == "pseudo")
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'manifest.json'} is no manifest of a task's sweep ({error}); evaluate again"
        ) from error


def _digest(truth: Path | None) -> str:
    files = [] if truth is None else sorted(truth.iterdir()) if truth.is_dir() else [truth]
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()
