"""Against pycocotools' own evaluation, read by the book from files' contents."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jaxwrap.metrics.detection import ApResampler, Kind, average_precision, pseudo_truth, results_of

SIZE = 96
CATEGORIES = [{"id": i, "name": f"kind {i}"} for i in (1, 3, 7, 44)]  # nothing is ever of kind 44


def rectangle(x: float, y: float, w: float, h: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)


def case(pictures: int = 12, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Made-up truth with crowds, and predictions: shifted objects, wrong categories, spurious and doubled ones."""
    rng = np.random.default_rng(seed)
    annotations, boxes, scores, classes, masks = [], [], [], [], []
    for image in range(pictures):
        found = np.zeros((24, 4))
        kinds, confidences = rng.integers(0, 3, 24), rng.permutation(24) / 24 + rng.uniform(0.001, 0.03, 24)
        for n in range(rng.integers(0, 7) if image else 0):
            x, y, w, h = rng.integers(0, 60), rng.integers(0, 60), rng.integers(8, 36), rng.integers(8, 36)
            kind = rng.integers(0, 3)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": CATEGORIES[kind]["id"],
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h),
                    "iscrowd": int(rng.uniform() < 0.15),
                    "segmentation": [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]],
                }
            )
            for copy_of in (2 * n, 2 * n + 1):
                found[copy_of] = np.array([x, y, x + w, y + h]) + rng.normal(0, 1.5, 4)
                kinds[copy_of] = kind if rng.uniform() < 0.9 else rng.integers(0, 3)
        spurious = found.sum(axis=1) == 0
        corner = rng.uniform(0, 70, (24, 2))
        found[spurious] = np.concatenate([corner, corner + rng.uniform(5, 25, (24, 2))], axis=1)[spurious]
        confidences[rng.uniform(size=24) < 0.3] = 0
        boxes.append(found)
        scores.append(confidences)
        classes.append(kinds)
        masks.append(np.stack([rectangle(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in found]))
    for annotation in annotations:
        if annotation["iscrowd"]:
            code = masks_code(rectangle(*annotation["bbox"]))
            annotation["segmentation"] = code
    images = [{"id": 100 + i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(pictures)]
    ids = {i: c["id"] for i, c in enumerate(CATEGORIES)}
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    return truth, results_of(boxes, np.stack(scores), np.stack(classes), [i["id"] for i in images], ids, masks)


def masks_code(mask: np.ndarray) -> dict[str, Any]:
    """Plain run lengths, column by column, zeros first."""
    values = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    starts = np.flatnonzero(np.diff(values))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], starts])).tolist()}


def by_the_book(truth: dict[str, Any], results: list[dict[str, Any]], kind: Kind, **options: Any) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), kind)
        for name, value in options.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_scores_are_those_of_pycocotools_to_the_last_digit(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = case()
    before = copy.deepcopy((truth, results))
    scores = average_precision(truth, results, kind)
    expected = by_the_book(truth, results, kind)
    assert (scores.ap, scores.ap50, scores.ap75) == tuple(expected[:3])
    assert 0.1 < scores.ap < scores.ap50 < 1
    assert (truth, results) == before
    assert capsys.readouterr().out == ""
