"""Detectors from their files: found, refused, and as good as their own runtime on real pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from jaxwrap.metrics.detection import average_precision
from jaxwrap.tasks.detector import COCO_CATEGORY_IDS, Detections, Detector
from jaxwrap.train.networks import load_detector

NUM_PICTURES = 16


def test_a_detector_is_looked_for_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="detector 'yolo' was given; supported: yolox-nano, yolo-fastestv2"):
        load_detector("yolo")
    monkeypatch.delenv("JAXWRAP_NETWORKS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"JAXWRAP_NETWORKS is not set\. Give the path of yolox_nano\.onnx"):
        load_detector("yolox-nano")
    monkeypatch.setenv("JAXWRAP_NETWORKS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no yolo-fastestv2\.npz"):
        load_detector("yolo-fastestv2")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_detector("yolo-fastestv2", tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("name", "file"), [("yolox-nano", "yolox_nano.onnx"), ("yolo-fastestv2", "yolo-fastestv2.npz")]
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"PK\x03\x04 not a network")
    with pytest.raises(ValueError, match=rf"{file}.* not a sound"):
        load_detector(name, tmp_path / file)


@pytest.mark.shared
def test_a_file_of_other_weights_is_refused_by_name(tmp_path: Path, shared_data: Path) -> None:
    np.savez(tmp_path / "other.npz", weight=np.ones(3, np.float32))
    with pytest.raises(
        ValueError, match=r"(?s)other\.npz: .*missing: backbone\.first_conv\.0\.weight.*unexpected: weight"
    ):
        load_detector("yolo-fastestv2", tmp_path / "other.npz")


# Real pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detectors(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Detector]:
    made = {}

    def detector(name: str) -> Detector:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("JAXWRAP_NETWORKS", str(shared_data / "weights"))
                made[name] = load_detector(name)
        return made[name]

    return detector


@pytest.fixture(scope="module")
def truth(shared_data: Path) -> dict[str, Any]:
    truth = json.loads((shared_data / "coco" / "instances_val2017.json").read_text())
    images = sorted(truth["images"], key=lambda image: image["id"])[:NUM_PICTURES]
    ids = {image["id"] for image in images}
    return {**truth, "images": images, "annotations": [a for a in truth["annotations"] if a["image_id"] in ids]}


@pytest.fixture(scope="module")
def pictures(shared_data: Path, truth: dict[str, Any]) -> list[np.ndarray]:
    folder = shared_data / "coco" / "val2017"
    return [np.asarray(Image.open(folder / image["file_name"]).convert("RGB"))[None] for image in truth["images"]]


def results_of(detector: Detector, found: Detections, truth: dict[str, Any]) -> list[dict[str, Any]]:
    results = []
    for n, image in enumerate(truth["images"]):
        one = jax.tree.map(lambda array, n=n: array[n : n + 1], found)
        boxes = detector.to_original(one, (image["height"], image["width"]))[0]
        for box, score, label in zip(boxes, np.asarray(one.scores[0]), np.asarray(one.classes[0]), strict=True):
            if score > 0:
                results.append(result(image["id"], label, box, score))
    return results


def result(image_id: int, label: int, box: np.ndarray, score: float) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(v) for v in box)
    category = COCO_CATEGORY_IDS[int(label)]
    return {"image_id": image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}


def yolox_results(
    session: onnxruntime.InferenceSession, image: dict[str, Any], planes: np.ndarray
) -> list[dict[str, Any]]:
    """By onnxruntime and the file's description, one picture and one box at a time."""
    (rows,) = session.run(None, {"images": planes[None]})[0]
    cells = [(s, x, y) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    ratio = min(416 / image["height"], 416 / image["width"])
    found = []
    for (stride, x, y), row in zip(cells, rows, strict=True):
        score = row[4] * row[5:].max()
        if score > 0.01:
            cx, cy, w, h = (row[0] + x) * stride, (row[1] + y) * stride, *(np.exp(row[2:4]) * stride)
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            found.append((score, int(row[5:].argmax()), box))
    kept: list[tuple[float, int, np.ndarray]] = []
    for score, label, box in sorted(found, key=lambda entry: -entry[0]):
        if all(label != other or overlap(box, rival) <= 0.65 for _, other, rival in kept):
            kept.append((score, label, box))
    limits = [image["width"], image["height"]] * 2
    return [result(image["id"], c, np.clip(box / ratio, 0, limits), s) for s, c, box in kept[:100]]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = max(width, 0) * max(height, 0)
    return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


@pytest.mark.shared
def test_yolox_nano_finds_what_onnxruntime_finds(
    detectors: Callable[[str], Detector], shared_data: Path, truth: dict[str, Any], pictures: list[np.ndarray]
) -> None:
    detector = detectors("yolox-nano")
    images = np.concatenate([detector.images(rgb) for rgb in pictures])
    assert images.shape == (NUM_PICTURES, 416, 416, 3)
    found = detector.detections(detector.outputs(detector.features(images)), threshold=0.01, iou=0.65)
    path = shared_data / "weights" / "yolox-nano" / "yolox_nano.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = [
        entry
        for image, planes in zip(truth["images"], images.transpose(0, 3, 1, 2), strict=True)
        for entry in yolox_results(session, image, planes)
    ]
    ours = results_of(detector, found, truth)
    assert len(ours) == pytest.approx(len(theirs), abs=2)  # scores beside the threshold
    scores, reference = average_precision(truth, ours), average_precision(truth, theirs)
    assert reference.ap > 0.3
    assert scores.ap == pytest.approx(reference.ap, abs=0.002)
    assert scores.ap50 == pytest.approx(reference.ap50, abs=0.002)


@pytest.mark.shared
def test_yolo_fastest_detects(
    detectors: Callable[[str], Detector], truth: dict[str, Any], pictures: list[np.ndarray]
) -> None:
    detector = detectors("yolo-fastestv2")
    images = np.concatenate([detector.images(rgb) for rgb in pictures])
    features = detector.features(images)
    assert {name: array.shape for name, array in features.items()} == {
        "C2": (NUM_PICTURES, 22, 22, 96),
        "C3": (NUM_PICTURES, 11, 11, 192),
    }
    found = detector.detections(detector.outputs(features), threshold=0.01, iou=0.4)
    # On all 64 pictures: .210, and .211 by the original code.
    assert average_precision(truth, results_of(detector, found, truth)).ap > 0.15
    assert len(detector.digest) == 16


@pytest.mark.shared
def test_pictures_in_a_batch_do_not_see_each_other(
    detectors: Callable[[str], Detector], pictures: list[np.ndarray]
) -> None:
    detector = detectors("yolo-fastestv2")
    images = np.concatenate([detector.images(rgb) for rgb in pictures])

    def found(images: np.ndarray) -> Detections:
        return detector.detections(detector.outputs(detector.features(images)), threshold=0.01, iou=0.4)

    others = np.concatenate([images[8:], images[8:]])  # other pictures before the same ones
    a, b = found(images), found(others)
    assert not np.array_equal(a.scores[:8], b.scores[:8])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[8:], y[8:]), a, b)


@pytest.mark.shared
def test_the_same_weights_have_the_same_digest_anywhere(shared_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npz"
    shutil.copyfile(shared_data / "weights" / "yolo-fastestv2.npz", copy)
    given = load_detector("yolo-fastestv2", shared_data / "weights" / "yolo-fastestv2.npz")
    assert load_detector("yolo-fastestv2", copy).digest == given.digest


@pytest.mark.shared
def test_boxes_return_to_the_picture_and_stay_in_it(detectors: Callable[[str], Detector]) -> None:
    boxes = np.array([[[-10, 35.2, 176, 400], [0, 0, 0, 0]]], np.float32)
    found = Detections(boxes, np.array([[0.5, 0.0]], np.float32), np.zeros((1, 2), np.int32))
    stretched = detectors("yolo-fastestv2").to_original(found, (240, 416))
    np.testing.assert_allclose(stretched[0, 0], [0, 24, 208, 240], rtol=1e-6)
    boxed = detectors("yolox-nano").to_original(found, (240, 832))
    np.testing.assert_allclose(boxed[0, 0], [0, 70.4, 352, 240], rtol=1e-6)
