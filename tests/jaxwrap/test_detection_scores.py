"""Against pycocotools' own evaluation, read by the book from files' contents."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode

from jaxwrap.metrics.detection import ApResampler, Kind, average_precision, pseudo_truth, results_of

# The library's decoder of masks, which only these tests use, is older than NumPy 2's rule.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SIZE = 96
CATEGORIES: list[dict[str, Any]] = [{"id": i, "name": f"kind {i}"} for i in (1, 3, 7, 44)]  # nothing is ever of kind 44


def rectangle(x: float, y: float, w: float, h: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (columns >= x) & (columns < x + w) & (rows >= y) & (rows < y + h)


def case(pictures: int = 12, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Made-up truth with crowds, and predictions: shifted objects, wrong categories, spurious and doubled ones."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    boxes, scores, classes, masks = [], [], [], []
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
    images: list[dict[str, Any]] = [
        {"id": 100 + i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in range(pictures)
    ]
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


def test_pictures_can_be_chosen() -> None:
    truth, results = case()
    chosen = [103, 104, 109]
    scores = average_precision(truth, results, image_ids=chosen)
    expected = by_the_book(truth, results, "bbox", imgIds=chosen)
    assert (scores.ap, scores.ap50, scores.ap75) == tuple(expected[:3])
    assert scores != average_precision(truth, results)


def test_only_the_hundred_best_of_a_picture_count() -> None:
    truth, results = case()
    one = next(a for a in truth["annotations"] if not a["iscrowd"])
    spurious = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": [90.0, 90.0, 1.0, 1.0]}
    results += [spurious | {"score": 2.0 + n} for n in range(99)]
    assert average_precision(truth, results).ap == by_the_book(truth, results, "bbox")[0] > 0
    results.append(spurious | {"score": 2.0})
    truth["annotations"] = [one]
    assert average_precision(truth, results).ap == 0


def test_annotations_without_ids_areas_and_crowd_flags_count() -> None:
    truth, results = case()
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    bare = [{k: v for k, v in a.items() if k not in ("id", "area", "iscrowd")} for a in truth["annotations"]]
    assert average_precision(truth | {"annotations": bare}, results) == average_precision(truth, results)


def test_nothing_found_scores_nothing() -> None:
    truth, results = case()
    unlisted = [r | {"category_id": 999} for r in results]
    for nothing in ([], unlisted):
        scores = average_precision(truth, nothing)
        assert (scores.ap, scores.ap50, scores.ap75) == (0, 0, 0)
        assert ApResampler(truth, nothing).score([101, 105]) == (0, 0)


def test_bad_input_is_named() -> None:
    truth, results = case()
    wrong = [
        results[0] | {"image_id": 7},
        {k: v for k, v in results[1].items() if k != "score"},
        results[2] | {"score": float("nan")},
    ]
    with pytest.raises(ValueError, match=r"of \d+ predictions 1 belong to .*picture 7.*1 lack score.*1 are not finite"):
        average_precision(truth, results + wrong)
    with pytest.raises(ValueError, match=r"pictures \[1, 2\] \(2\) are not in the truth, which has 12"):
        average_precision(truth, results, image_ids=[1, 2, 101])
    with pytest.raises(ValueError, match="no object in the truth of these 1 pictures"):
        average_precision(truth, results, image_ids=[100])
    crowds = [a | {"iscrowd": 1} for a in truth["annotations"]]
    with pytest.raises(ValueError, match="no object in the truth"):
        average_precision(truth | {"annotations": crowds}, results)
    with pytest.raises(ValueError, match=r"pictures \[3\] are not among the 12"):
        ApResampler(truth, results).score([101, 3])


def test_bad_masks_are_named() -> None:
    truth, results = case()
    small = results[0] | {"segmentation": results[0]["segmentation"] | {"size": [4, 5]}}
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in results[:3]]
    with pytest.raises(ValueError, match=r"1 have masks of another size.*3 lack segmentation"):
        average_precision(truth, [small, *boxes], "segm")
    bare = [a | {"segmentation": []} for a in truth["annotations"][:2]]
    with pytest.raises(ValueError, match=r"2 objects of the truth have no mask, in pictures \[10"):
        average_precision(truth | {"annotations": truth["annotations"][2:] + bare}, results, "segm")


def test_results_leave_out_empty_places_and_unknown_classes() -> None:
    boxes, masks = np.zeros((2, 3, 4)), np.zeros((2, 3, 5, 6))
    boxes[1, 1] = 1, 2, 4, 8
    boxes[0, 0] = np.nan
    masks[1, 1, 2:4, 1:3] = 1
    scores, classes = np.array([[0, 0.5, 0.25], [0.5, 0.75, 0]]), np.array([[0, 9, 0], [9, 2, 0]])
    first, second = results_of(boxes, scores, classes, [8, 9], {0: 1, 2: 44}, masks=list(masks))
    assert first["image_id"] == 8
    assert (first["category_id"], first["bbox"], first["score"]) == (1, [0, 0, 0, 0], 0.25)
    assert (second["image_id"], second["category_id"]) == (9, 44)
    assert (second["bbox"], second["score"]) == ([1, 2, 3, 6], 0.75)
    code = second["segmentation"] | {"counts": second["segmentation"]["counts"].encode()}
    np.testing.assert_array_equal(decode(code), masks[1, 1])
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_results_of_other_shapes_are_refused() -> None:
    boxes, scores, classes = np.zeros((2, 3, 4)), np.ones((2, 3)), np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r"2 arrays of boxes \[\(3, 4\)\], scores \(2, 3\), classes \(2, 3\) of 1 "):
        results_of(boxes, scores, classes, [1], {0: 1})
    with pytest.raises(ValueError, match=r"wanted 2 of \[3, height, width\]"):
        results_of(boxes, scores, classes, [1, 2], {0: 1}, masks=[np.zeros((2, 5, 5))] * 2)
    with pytest.raises(ValueError, match="picture 2: boxes or scores that are not finite"):
        results_of(np.where(np.arange(2)[:, None, None], np.inf, boxes), scores, classes, [1, 2], {0: 1})


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_every_picture_once_scores_as_the_whole(kind: Kind) -> None:
    truth, results = case()
    scores = average_precision(truth, results, kind)
    ids = [image["id"] for image in truth["images"]]
    np.testing.assert_allclose(ApResampler(truth, results, kind).score(ids), (scores.ap, scores.ap50), rtol=1e-12)


def test_repeated_pictures_score_as_copies_under_other_ids() -> None:
    truth, results = case(seed=1)
    rng = np.random.default_rng(2)
    draws = rng.integers(100, 112, (9, 12))  # more than are accumulated at once
    resampler = ApResampler(truth, results)
    for draw, found in zip(draws, resampler.scores(draws), strict=True):
        copied: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "results": []}
        for new, old in enumerate(draw):
            copied["images"] += [i | {"id": new} for i in truth["images"] if i["id"] == old]
            copied["annotations"] += [a | {"image_id": new} for a in truth["annotations"] if a["image_id"] == old]
            copied["results"] += [r | {"image_id": new} for r in results if r["image_id"] == old]
        copied["annotations"] = [a | {"id": n} for n, a in enumerate(copied["annotations"], start=1)]
        scores = average_precision(truth | copied, copied["results"])
        np.testing.assert_allclose(found, (scores.ap, scores.ap50), rtol=1e-12)
        assert tuple(found) == resampler.score(draw)


def test_pictures_without_objects_have_no_score() -> None:
    truth, results = case()
    assert np.isnan(ApResampler(truth, results).score([100, 100])).all()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_predictions_are_perfect_against_themselves(kind: Kind) -> None:
    truth, results = case()
    pseudo = pseudo_truth(truth["images"], truth["categories"], results, threshold=0.5)
    confident = [r for r in results if r["score"] >= 0.5]
    assert len(pseudo["annotations"]) == len(confident) < len(results)
    assert average_precision(pseudo, confident, kind).ap == pytest.approx(1, abs=1e-12)
    assert json.loads(json.dumps(pseudo)) == pseudo
    for annotation, result in zip(pseudo["annotations"], confident, strict=True):
        assert annotation["area"] == decode(result["segmentation"]).sum()
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in confident]
    first = pseudo_truth(truth["images"], truth["categories"], boxes)["annotations"][0]
    assert first["area"] == first["bbox"][2] * first["bbox"][3] > 0
