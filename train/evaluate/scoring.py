"""Tasks: from a detector's features to predictions, and from the predictions of a data set to its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxwrap.metrics import detection, tracking
from jaxwrap.tasks.detector import Detections, Detector
from jaxwrap.tasks.masks import MaskHead, masks_for, paste_masks
from jaxwrap.tasks.network import Tensors
from jaxwrap.train.datasets.data import Task as Kind
from jaxwrap.train.datasets.data import TaskData
from jaxwrap.train.evaluate.mode import in_chunks
from jaxwrap.train.evaluate.modes import network_hash
from jaxwrap.train.evaluate.points import point_key
from jaxwrap.train.evaluate.sources import PictureSource

FRAMES_PER_CALL = 8
"""Pictures that a network looks at together."""

LEAST_SCORE: dict[Kind, float] = {"detection": 0.01, "segmentation": 0.01, "tracking": 0.1}
"""Of a box that is given out: that of the networks' published figures, and the least that the tracker looks at."""

OVERLAP = {"yolo-fastestv2": 0.4}
"""At which a detector's own publication suppresses boxes of a class, where it is not `COMMON_OVERLAP`."""

COMMON_OVERLAP = 0.65

PSEUDO_SCORE = 0.3
"""Least score of a box that is taken for the truth."""

SCORES: dict[Kind, tuple[str, ...]] = {
    "detection": ("ap", "ap50"),
    "segmentation": ("ap", "ap50", "mask_ap"),
    "tracking": ("mota", "idf1", "hota"),
}
"""Columns of a `Point` that a task fills."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a detector is for, on one data set.

    ``class_ids``: the detector's classes → categories of the truth. ``masks``: for segmentation.
    """

    kind: Kind
    detector: Detector
    class_ids: Mapping[int, int]
    masks: MaskHead | None = None

    def __post_init__(self) -> None:
        if (self.kind == "segmentation") != (self.masks is not None):
            wanted = "a mask head: give --mask-head" if self.masks is None else "no mask head: leave it out"
            raise ValueError(f"task {self.kind} wants {wanted}")

    @property
    def digest(self) -> str:
        """Identifies what is made of features, beside the detector itself."""
        settings = [self.kind, sorted(self.class_ids.items()), LEAST_SCORE[self.kind], self._overlap]
        return network_hash(settings, self.masks)

    @property
    def _overlap(self) -> float:
        return OVERLAP.get(self.detector.name, COMMON_OVERLAP)

    def images(self, rgb: np.ndarray) -> np.ndarray:
        """RGB uint8 ``[N, H, W, 3]`` → what the detector is fed."""
        return self.detector.images(rgb)

    def features(self, rgb: np.ndarray) -> Tensors:
        """RGB uint8 ``[N, H, W, 3]`` → the features where the detector is cut, a few pictures at a time."""
        return in_chunks(self.detector.features, self.images(rgb), FRAMES_PER_CALL)

    def predictions(self, features: Tensors, source: PictureSource) -> list[Any]:
        """Features of a source's pictures → a COCO results list (boxes to 1/1000 pixel); for tracking rows of a
        MOTChallenge file."""
        raw = in_chunks(self.detector.outputs, features, FRAMES_PER_CALL)
        find = partial(self.detector.detections, threshold=LEAST_SCORE[self.kind], iou=self._overlap)
        found: Detections = in_chunks(find, raw, FRAMES_PER_CALL)
        boxes = self.detector.to_original(found, source.size)
        scores, classes = np.asarray(found.scores), np.asarray(found.classes)
        if self.kind == "tracking":
            wanted = (scores > 0) & np.isin(classes, list(self.class_ids))
            pictures = ((b[w], s[w]) for b, s, w in zip(boxes, scores, wanted, strict=True))
            return [[_short(v) for v in row] for row in tracking.track(pictures, source.fps).tolist()]
        masks = None
        if self.masks is not None:
            look = partial(_masks, self.masks)
            logits = np.asarray(in_chunks(look, (dict(features), found.boxes), FRAMES_PER_CALL))
            (height, width), (inner_height, inner_width) = source.size, self.detector.expects.size_in(*source.size)
            # Not clipped to the picture, unlike the boxes that are given out: the grid is of the whole box.
            whole = np.asarray(found.boxes) * np.array([width / inner_width, height / inner_height] * 2, np.float32)
            masks = [paste_masks(grid, own, source.size) for grid, own in zip(logits, whole, strict=True)]
        results = detection.results_of(boxes, scores, classes, source.image_ids, self.class_ids, masks)
        return [{**r, "bbox": [_short(v) for v in r["bbox"]], "score": _short(r["score"], 7)} for r in results]


def _masks(head: MaskHead, both: tuple[Tensors, Any]) -> Any:
    return masks_for(head, *both)


def _short(value: float, digits: int = 3) -> float:
    return round(float(value), digits)


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What predictions are scored against: a COCO dict, or rows by sequence for tracking. ``pseudo``: the network's own
    output on the originals."""

    kind: Kind
    content: dict[str, Any]
    pseudo: bool

    @property
    def digest(self) -> str:
        """Identifies it."""
        content = self.content
        if self.kind == "tracking":
            content = {name: rows.tolist() for name, rows in content.items()}
        return point_key({"kind": self.kind, "truth": content})

    def scores(self, predictions: Mapping[str, list[Any]]) -> dict[str, float]:
        """Columns of a `Point` for a data set: ``predictions`` by the names of its sequences."""
        if self.kind == "tracking":
            tracks = tracking.tracking_scores(self.content, {name: rows_of(p) for name, p in predictions.items()})
            return dataclasses.asdict(tracks)
        results = [prediction for own in predictions.values() for prediction in own]
        boxes = detection.average_precision(self.content, results, "bbox")
        found = {"ap": boxes.ap, "ap50": boxes.ap50}
        if self.kind == "segmentation":
            found["mask_ap"] = detection.average_precision(self.content, results, "segm").ap
        return found


def rows_of(predictions: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of a MOTChallenge file ``[R, 10]`` as an array."""
    return np.asarray(predictions, np.float64).reshape(-1, 10)


def true_truth(data: TaskData) -> Truth:
    """The annotations. Raises `ValueError` where there are none, naming the data."""
    if data.task == "tracking":
        there = any(tracking.targets(rows).any() for rows in data.truth.values())
    else:
        there = any(not a.get("iscrowd") for a in data.truth["annotations"])
    if not there:
        raise ValueError(
            f"the annotations of {data.name} hold no object: nothing can be right or wrong; give those of these "
            "pictures, or --truth pseudo"
        )
    return Truth(data.task, data.truth, False)


def pseudo_truth(data: TaskData, local: Mapping[str, list[Any]]) -> Truth:
    """What the network finds on the originals, ``local`` by the names of the sequences. Raises `ValueError` where it
    finds nothing."""
    if data.task == "tracking":
        content: dict[str, Any] = tracking.pseudo_truth({name: rows_of(p) for name, p in local.items()})
        there = any(len(rows) for rows in content.values())
    else:
        results = [prediction for own in local.values() for prediction in own]
        content = detection.pseudo_truth(data.truth["images"], data.truth["categories"], results, PSEUDO_SCORE)
        there = bool(content["annotations"])
    if not there:
        raise ValueError(f"the network finds nothing in {data.name}: its own output is no truth to compare with")
    return Truth(data.task, content, True)
