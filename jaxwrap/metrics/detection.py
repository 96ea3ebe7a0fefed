"""Average precision of detected boxes and masks by COCO's protocol (pycocotools), and its bootstrap over pictures.

Truth is a COCO dict (``images``, ``annotations``, ``categories``), predictions are a COCO results list: dicts of
``image_id``, ``category_id``, ``bbox`` ``[x, y, width, height]`` in the picture's own pixels, ``score`` and, for masks,
``segmentation``, a run-length code that JSON can hold. Scores of average precision are in ``[0, 1]``.

The protocol (cocodataset.org, "detection evaluation"): in each picture and category the 100 most confident predictions
are matched to the truth at ten overlaps, .50 … .95; precision is made monotone and read at 101 recalls; the mean goes
over recalls, overlaps, and the categories that the truth has. Regions with ``iscrowd`` are ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Kind = Literal["bbox", "segm"]
Result = dict[str, Any]
Truth = Mapping[str, Any]

MAX_DETECTIONS = 100
"""Most predictions that count in one picture and category."""

_DRAWS = 8
"""Draws of pictures that are accumulated at once: more take memory, and little less time."""


@dataclasses.dataclass(frozen=True, slots=True)
class DetectionScores:
    """Average precision over overlaps .50 … .95, at .50 alone, and at .75 alone; in ``[0, 1]``."""

    ap: float
    ap50: float
    ap75: float


def results_of(
    boxes: Sequence[ArrayLike] | np.ndarray,
    scores: ArrayLike,
    classes: ArrayLike,
    image_ids: Sequence[int],
    class_ids: Mapping[int, int],
    masks: Sequence[ArrayLike] | None = None,
) -> list[Result]:
    """Detections of N pictures as a COCO results list.

    Args:
      boxes: ``[N, K, 4]``, corners x0, y0, x1, y1 in each picture's own pixels.
      scores: ``[N, K]``; places with score 0 are empty and left out.
      classes: ``[N, K]``, class indices.
      image_ids: of the N pictures.
      class_ids: class index → category id of the truth. Classes that it lacks are left out: the truth does not know
        them.
      masks: one array ``[K, height, width]`` per picture, in its own pixels; what is not 0 belongs to the object.

    Raises:
      ValueError: shapes that differ, or numbers that are not finite.
    """
    pictures = len(image_ids)
    confidences, indices = np.asarray(scores, np.float64), np.asarray(classes)
    corners = [np.asarray(b, np.float64) for b in boxes]
    if (
        confidences.ndim != 2
        or indices.shape != confidences.shape
        or [b.shape for b in corners] != [(confidences.shape[1], 4)] * pictures
        or len(confidences) != pictures
    ):
        raise ValueError(
            f"{len(corners)} arrays of boxes {sorted({b.shape for b in corners})}, scores {confidences.shape}, classes "
            f"{indices.shape} of {pictures} pictures: wanted [N, K, 4], [N, K] and [N, K] with N = {pictures}"
        )
    shapes = [] if masks is None else [np.shape(m) for m in masks]
    if masks is not None and [(len(s), *s[:1]) for s in shapes] != [(3, confidences.shape[1])] * pictures:
        raise ValueError(
            f"masks of shapes {sorted(set(shapes))}: wanted {pictures} of [{confidences.shape[1]}, height, width]"
        )
    results = []
    for n, image_id in enumerate(image_ids):
        (kept,) = np.nonzero((confidences[n] != 0) & np.isin(indices[n], list(class_ids)))
        if not (np.isfinite(corners[n][kept]).all() and np.isfinite(confidences[n][kept]).all()):
            raise ValueError(f"picture {image_id}: boxes or scores that are not finite")
        codes = None if masks is None else _run_lengths(np.asarray(masks[n])[kept])
        for place, k in enumerate(kept):
            x0, y0, x1, y1 = corners[n][k].tolist()
            result: Result = {
                "image_id": image_id,
                "category_id": class_ids[int(indices[n, k])],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(confidences[n, k]),
            }
            results.append(result if codes is None else result | {"segmentation": codes[place]})
    return results


def average_precision(
    truth: Truth, results: Iterable[Result], kind: Kind = "bbox", image_ids: Iterable[int] | None = None
) -> DetectionScores:
    """Average precision of boxes (``"bbox"``) or masks (``"segm"``), as pycocotools' ``COCOeval`` states it.

    Predictions in categories that the truth does not list count nowhere; none at all give 0. Neither argument is
    changed, and annotations may carry any ids: the library takes one of id 0 for no match, so they are numbered anew.

    Args:
      truth: COCO dict.
      results: COCO results list.
      kind: what overlaps are measured on.
      image_ids: the pictures that count; default: all of the truth.

    Raises:
      ValueError: predictions for pictures that the truth lacks, or without a box, mask or finite score; pictures that
        the truth lacks; no object in it; for masks, objects without one.
    """
    evaluation = _matched(truth, results, kind, image_ids)
    with _quiet():
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # [overlap, recall, category]; −1: no such object
    fifty, seventy_five = (int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, t))[0]) for t in (0.5, 0.75))
    return DetectionScores(*(float(np.mean(p[p > -1])) for p in (precision, precision[fifty], precision[seventy_five])))


class ApResampler:
    """Average precision of any multiset of pictures, for a bootstrap: matched once, accumulated many times.

    pycocotools finds the matches, which do not depend on what other pictures are drawn. Accumulating them is ours only
    because no library at hand weights pictures: the same precision at the same 101 recalls, in whole numbers of
    pictures. Where predictions in one picture have equal scores, a repeated picture's copies stay side by side, while
    the library would rank them by the order of the copies.

    Args and errors as in `average_precision`.
    """

    def __init__(
        self, truth: Truth, results: Iterable[Result], kind: Kind = "bbox", image_ids: Iterable[int] | None = None
    ) -> None:
        evaluation = _matched(truth, results, kind, image_ids)
        parameters = evaluation.params
        pictures, categories = len(parameters.imgIds), len(parameters.catIds)
        self._image_ids = np.asarray(parameters.imgIds)
        self._recalls: np.ndarray = parameters.recThrs
        self._fifty = int(np.flatnonzero(np.isclose(parameters.iouThrs, 0.5))[0])
        self._objects = np.zeros((categories, pictures), np.int64)
        image, hits, misses, self._ends = [], [], [], [0]
        for k in range(categories):
            found = [
                (i, e) for i, e in enumerate(evaluation.evalImgs[k * pictures : (k + 1) * pictures]) if e is not None
            ]
            for i, e in found:
                self._objects[k, i] = np.count_nonzero(e["gtIgnore"] == 0)
            scores = np.concatenate([np.zeros(0), *(e["dtScores"] for _, e in found)])
            if self._objects[k].any():
                order = np.argsort(-scores, kind="stable")
                matched = np.concatenate([e["dtMatches"] for _, e in found], axis=1)[:, order] > 0
                counts = ~np.concatenate([e["dtIgnore"] for _, e in found], axis=1)[:, order].astype(bool)
                image.append(np.concatenate([np.full(len(e["dtScores"]), i) for i, e in found])[order])
                hits.append(matched & counts)
                misses.append(~matched & counts)
                self._ends.append(self._ends[-1] + len(scores))
        self._objects = self._objects[self._objects.any(axis=1)]
        # Categories lie one after the other, each from its most to its least confident prediction.
        self._image = np.concatenate(image)  # [D]
        self._hits = np.concatenate(hits, axis=1)  # [overlap, D]
        self._misses = np.concatenate(misses, axis=1)

    def score(self, image_ids: Iterable[int]) -> tuple[float, float]:
        """AP over overlaps .50 … .95 and AP at .50, of pictures that may repeat; NaN where these hold no object.

        Raises `ValueError` for pictures that the evaluation lacks.
        """
        ap, ap50 = self.scores([list(image_ids)])[0].tolist()
        return ap, ap50

    def scores(self, draws: Iterable[Iterable[int]]) -> np.ndarray:
        """`score` of each draw, ``[draws, 2]``; many at once take a fraction of the time."""
        copies = np.stack([self._copies(draw) for draw in draws])
        return np.concatenate([self._scores(copies[n : n + _DRAWS]) for n in range(0, len(copies), _DRAWS)])

    def _copies(self, image_ids: Iterable[int]) -> np.ndarray:
        """How often each picture is drawn ``[pictures]``."""
        drawn = np.asarray(list(image_ids))
        places = np.searchsorted(self._image_ids, drawn).clip(max=len(self._image_ids) - 1)
        if len(unknown := drawn[self._image_ids[places] != drawn]):
            raise ValueError(f"pictures {unknown[:5].tolist()} are not among the {len(self._image_ids)} evaluated")
        return np.bincount(places, minlength=len(self._image_ids))

    def _scores(self, copies: np.ndarray) -> np.ndarray:
        """From ``[draws, pictures]`` to ``[draws, 2]``."""
        objects = copies @ self._objects.T  # [draws, category]
        total = np.zeros((len(copies), len(self._hits)))  # [draws, overlap]
        for k, (start, end) in enumerate(itertools.pairwise(self._ends)):
            weights = copies[:, None, self._image[start:end]]
            hits, misses = ((m[:, start:end] * weights).cumsum(axis=-1) for m in (self._hits, self._misses))
            total += self._interpolated(hits, misses, objects[:, k])
        present = np.count_nonzero(objects, axis=1)[:, None]
        with np.errstate(invalid="ignore"):  # 0 / 0: no object
            mean = total / present
        return np.stack([mean.mean(axis=1), mean[:, self._fifty]], axis=1)

    def _interpolated(self, hits: np.ndarray, misses: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Mean over the recalls of the monotone precision; 0 for no object.

        From running counts ``[draws, overlap, D]`` and objects ``[draws]`` to ``[draws, overlap]``.
        """
        precision = hits / (hits + misses + np.spacing(1))
        monotone = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
        # A recall is read where it is first reached; so each place counts as often as it reaches new ones.
        found = np.arange(objects.max() + 1) / np.maximum(objects, 1)[:, None]  # recall by draw and number of hits
        reached = np.searchsorted(self._recalls, found, side="right")[np.arange(len(objects))[:, None, None], hits]
        return (monotone * np.diff(reached, prepend=0, axis=-1)).sum(axis=-1) / len(self._recalls)


def pseudo_truth(
    truth_images: Iterable[Mapping[str, Any]],
    categories: Iterable[Mapping[str, Any]],
    results: Iterable[Result],
    threshold: float = 0.3,
) -> dict[str, Any]:
    """Predictions from uncompressed pictures as COCO truth: what a coded picture should not change.

    Args:
      truth_images: ``images`` of the truth; those without a prediction stay, as pictures of no object.
      categories: ``categories`` of the truth.
      results: COCO results list, with masks or without.
      threshold: least score of an object. By default that from which YOLOX's and Yolo-FastestV2's own programs show
        boxes. Average precision is of all predictions, most of which are no object: of 3065 of YOLOX-nano on 64
        pictures of COCO, with 440 objects in truth, 294 reach it.
    """
    from pycocotools import mask

    annotations = []
    for number, result in enumerate((r for r in results if r["score"] >= threshold), start=1):
        kept = {key: value for key, value in result.items() if key != "score"}
        code = kept.get("segmentation")
        area = kept["bbox"][2] * kept["bbox"][3] if code is None else float(mask.area(code))
        annotations.append(kept | {"id": number, "area": area, "iscrowd": 0})
    images, kinds = ([dict(d) for d in dicts] for dicts in (truth_images, categories))
    return {"images": images, "annotations": annotations, "categories": kinds}


def _matched(truth: Truth, results: Iterable[Result], kind: Kind, image_ids: Iterable[int] | None) -> Any:
    """A ``COCOeval`` of objects of all sizes whose predictions are matched."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = {image["id"]: image for image in truth["images"]}
    chosen = set(images if image_ids is None else image_ids)
    if unknown := sorted(chosen - set(images)):
        raise ValueError(f"pictures {unknown[:5]} ({len(unknown)}) are not in the truth, which has {len(images)}")
    rows = list(results)
    _check_results(rows, images, kind)
    rows = [{**r, "id": n, "area": 0.0, "iscrowd": 0} for n, r in enumerate(rows, start=1) if r["image_id"] in chosen]
    # Areas only matter to scores by size, and old files lack them.
    objects = [
        {"area": 0.0, "iscrowd": 0, **a, "id": n}
        for n, a in enumerate((a for a in truth["annotations"] if a["image_id"] in chosen), start=1)
    ]
    listed = {category["id"] for category in truth["categories"]}
    if not any(not a["iscrowd"] and a["category_id"] in listed for a in objects):
        raise ValueError(
            f"no object in the truth of these {len(chosen)} pictures (of {len(truth['annotations'])} annotations): "
            "average precision is not defined; give annotations of these pictures"
        )
    if kind == "segm" and (bare := [a for a in objects if not a.get("segmentation")]):
        pictures = sorted({a["image_id"] for a in bare})
        raise ValueError(
            f"{len(bare)} objects of the truth have no mask, in pictures {pictures[:5]} ({len(pictures)}): "
            "leave these pictures out, or score boxes"
        )
    with _quiet():
        evaluation = COCOeval(*(_indexed(COCO(), truth, a) for a in (objects, rows)), kind)
        evaluation.params.imgIds = sorted(chosen)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    return evaluation


def _indexed(coco: Any, truth: Truth, annotations: list[dict[str, Any]]) -> Any:
    """The library's index of these annotations (its own reader of results fails without any)."""
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco


def _check_results(results: Sequence[Result], images: Mapping[int, Mapping[str, Any]], kind: Kind) -> None:
    faults: Counter[str] = Counter()
    example: dict[str, Any] = {}
    shape = "bbox" if kind == "bbox" else "segmentation"
    for result in results:
        if missing := {"image_id", "category_id", "score", shape} - set(result):
            fault = f"lack {', '.join(sorted(missing))}"
        elif result["image_id"] not in images:
            fault = "belong to pictures that the truth lacks"
        elif not np.isfinite([result["score"], *(result["bbox"] if kind == "bbox" else ())]).all():
            fault = "are not finite"
        elif kind == "segm" and result["segmentation"]["size"] != [
            images[result["image_id"]][s] for s in ("height", "width")
        ]:
            fault = "have masks of another size than their picture"
        else:
            continue
        faults[fault] += 1
        example.setdefault(fault, result.get("image_id"))
    if faults:
        text = "; ".join(f"{count} {fault} (first: picture {example[fault]})" for fault, count in faults.items())
        raise ValueError(f"of {len(results)} predictions {text}")


def _run_lengths(masks: np.ndarray) -> list[dict[str, Any]]:
    """COCO's compressed run-length codes of masks ``[K, height, width]``."""
    from pycocotools import mask

    codes = mask.encode(np.asfortranarray((masks != 0).transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(s) for s in c["size"]], "counts": c["counts"].decode("ascii")} for c in codes]


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """The library prints its progress."""
    return contextlib.redirect_stdout(None)
