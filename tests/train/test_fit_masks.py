from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from pycocotools import mask as codes

from jaxwrap.parameters import named_parameters
from jaxwrap.tasks.detector import Candidates, Detector
from jaxwrap.tasks.masks import masks_for, paste_masks
from jaxwrap.tasks.network import IMAGES, Network, Tensors
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.datasets.data import TaskData, still
from jaxwrap.train.datasets.pennfudan import pennfudan_data
from jaxwrap.train.fit import masks
from jaxwrap.train.fit.loop import Progress
from jaxwrap.train.fit.masks import MaskFitConfig, feature_scales, fit_mask_head, load_mask_head
from jaxwrap.train.networks import load_detector

TINY = MaskFitConfig(
    steps=60, pictures=4, boxes=2, views=2, held_out=3, width=6, fine_width=6, blocks=0, learning_rate=0.02,
    log_every=10, checkpoint_every=25, validate_every=30,
)  # fmt: skip


class Pool(nnx.Module):
    """Means of blocks of the input."""

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        return x.reshape(n, h // self.stride, self.stride, w // self.stride, self.stride, c).mean(axis=(2, 4))


def no_boxes(raw: Tensors) -> Candidates:
    raise AssertionError("training needs no detections")


def detector(digest: str = "abc") -> Detector:
    """Its features are the picture, smaller."""
    layers: list[Any] = [("p2", (IMAGES,), Pool(4)), ("p3", ("p2",), Pool(2)), ("out", ("p2", "p3"), Pool(1))]
    network = Network("tiny", layers, outputs=("out",), multiple=8)
    expects = PictureInput(64, 64, fit="letterbox", padding=0.0, deviation=(255.0, 255.0, 255.0))
    return Detector("tiny", network, expects, "p3", no_boxes, digest)


@pytest.fixture(scope="module", autouse=True)
def programs_once(programs_on_disk: None) -> None:
    """All runs below share their programs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    """Bright ellipses in the dark, none at the same place."""
    folder = tmp_path_factory.mktemp("ellipses")
    rng = np.random.default_rng(2)
    sequences, images, annotations = [], [], []
    for image_id in range(1, 10):
        height, width = (60, 90) if image_id % 2 else (64, 64)
        rgb = rng.integers(0, 60, (height, width, 3), np.uint8)
        for left in (4, width // 2 + 2):
            w, h = (int(v) for v in rng.integers(18, 28, 2))
            top = int(rng.integers(0, height - h))
            t = np.linspace(0, 2 * np.pi, 60)
            polygon = np.stack([left + w / 2 * (1 + np.cos(t)), top + h / 2 * (1 + np.sin(t))], -1)
            y, x = np.mgrid[:height, :width] + 0.5
            rgb[((x - left - w / 2) / (w / 2)) ** 2 + ((y - top - h / 2) / (h / 2)) ** 2 <= 1] = 255
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": w * h * 0.78,
                 "bbox": [left, top, w, h], "segmentation": [polygon.ravel().tolist()]}
            )  # fmt: skip
        path = folder / f"{image_id}.png"
        Image.fromarray(rgb).save(path)
        sequences.append(still(path, image_id, (height, width)))
        images.append({"id": image_id, "height": height, "width": width, "file_name": path.name})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    return TaskData("ellipses", "segmentation", tuple(sequences), truth, {0: 1}, video=False)


@pytest.fixture(scope="module")
def whole(data: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    fit_mask_head(TINY, detector(), data, folder)
    return folder


def parameters(folder: Path, name: str = "last") -> dict[str, np.ndarray]:
    return named_parameters(load_mask_head(folder / f"{name}.head.npz")[0])


def log(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def interrupt(step: int) -> Callable[[Progress], None]:
    """Ctrl-C at the first report of this step."""

    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def test_scales_of_a_detector_are_found_finest_first() -> None:
    assert feature_scales(detector()) == (("p2", 4, 3), ("p3", 8, 3))


def test_training_learns_to_tell_objects_from_their_boxes(whole: Path) -> None:
    overlaps = [float(row["validation_iou"]) for row in log(whole) if row["validation_iou"]]
    # A filled box overlaps its ellipse by π/4; the head starts there.
    assert overlaps[0] == pytest.approx(np.pi / 4, abs=0.03)
    assert overlaps[-1] > 0.88
    _, notes = load_mask_head(whole)
    assert notes["validation_iou"] == max(overlaps)
    assert (notes["features"], notes["training_pictures"], notes["training_objects"]) == ("of the detector", 6, 12)


def test_an_interrupted_run_resumes_to_bit_identical_parameters(data: TaskData, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_mask_head(TINY, detector(), data, tmp_path, report=interrupt(40))  # 15 steps after the last state
    assert not (tmp_path / "last.head.npz").exists()
    fit_mask_head(TINY, detector(), data, tmp_path)
    for name in ("last", "best"):
        wanted, found = parameters(whole, name), parameters(tmp_path, name)
        assert wanted.keys() == found.keys()
        for key in wanted:
            np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)

    assert [row | {"seconds": ""} for row in log(tmp_path)] == [row | {"seconds": ""} for row in log(whole)]


def test_other_features_make_another_run(data: TaskData, whole: Path, tmp_path: Path) -> None:
    keys = []

    def restored(images: jax.Array, key: jax.Array) -> Tensors:
        keys.append(tuple(np.asarray(jax.random.key_data(key))))
        return jax.tree.map(lambda x: x + 1.0, detector().features(images))

    with pytest.raises(ValueError, match="pictures:"):
        fit_mask_head(TINY, detector(), data, whole, features=restored)
    assert len(keys) == len(set(keys)) == 6 * 2 + 3  # of two views each, and of those held out
    with pytest.raises(KeyboardInterrupt):
        fit_mask_head(
            TINY, detector(), data, tmp_path, features=restored, notes={"features": "plus one"}, report=interrupt(0)
        )
    assert load_mask_head(tmp_path)[1]["features"] == "plus one"


def test_a_head_goes_on_from_another(data: TaskData, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit_mask_head(dataclasses.replace(TINY, init=str(whole)), detector(), data, tmp_path, report=interrupt(0))
    for key, wanted in parameters(whole, "best").items():
        np.testing.assert_array_equal(parameters(tmp_path, "best")[key], wanted)


@pytest.mark.parametrize("view", range(4))
def test_masks_and_boxes_move_with_the_picture(view: int) -> None:
    rng = np.random.default_rng(view)
    rgb = np.zeros((40, 50, 3), np.uint8)
    mask = rng.random((9, 7)) < 0.7
    mask[0] = mask[:, 0] = mask[-1] = mask[:, -1] = True
    rgb[20:29, 5:12] = np.where(mask[..., None], 255, 0)
    item = masks._Object(np.array([5.0, 20, 12, 29]), mask, (5, 20))
    canvas, bounds, (seen,) = masks._canvas(rgb, [item], view, 2.0, 114.0, rng)
    x0, y0, x1, y1 = seen.box.astype(int)
    np.testing.assert_array_equal(canvas[y0:y1, x0:x1, 0] == 255, seen.mask)
    assert (x0, y0) == seen.origin
    left, top, right, bottom = bounds
    assert canvas[top:bottom, left:right].sum() == rgb.sum()
    canvas[top:bottom, left:right] = 114
    assert (canvas == 114).all()
    assert (canvas.shape == rgb.shape) == (view < 2)


def test_pictures_without_masks_are_refused(data: TaskData, tmp_path: Path) -> None:
    bare = TaskData("bare", "segmentation", data.sequences[:3], data.truth | {"annotations": []}, {0: 1}, False)
    with pytest.raises(ValueError, match="0 pictures with masks to train on and 0 held out"):
        fit_mask_head(TINY, detector(), bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(data: TaskData, tmp_path: Path) -> None:
    def broken(images: jax.Array, key: jax.Array) -> Tensors:
        number = broken.calls = getattr(broken, "calls", 0) + 1  # type: ignore[attr-defined]
        scale = jnp.float32(jnp.nan if number > 1 else 1)  # the first picture is the one held out
        return jax.tree.map(lambda x: x * scale, detector().features(images))

    three = TaskData("three", "segmentation", data.sequences[:3], data.truth, {0: 1}, False)
    with pytest.raises(FloatingPointError, match=r"the loss is nan .* at step 1;"):
        fit_mask_head(TINY, detector(), three, tmp_path, features=broken)


def test_bad_settings_are_listed_at_once() -> None:
    with pytest.raises(ValueError, match=r"steps=0[\s\S]*held_out=1[\s\S]*jitter=0\.5[\s\S]*canvas=0\.5"):
        MaskFitConfig(steps=0, held_out=1, jitter=0.5, canvas=0.5)


def test_heads_of_other_networks_and_other_files_are_refused(whole: Path, tmp_path: Path) -> None:
    load_mask_head(whole, detector=detector())
    with pytest.raises(ValueError, match=r"was trained for tiny split after p3, weights abc; given: .* weights def"):
        load_mask_head(whole, detector=detector("def"))
    (tmp_path / "x.head.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no mask head"):
        load_mask_head(tmp_path / "x.head.npz")
    with pytest.raises(FileNotFoundError, match="mask-yolox-nano"):
        load_mask_head(tmp_path / "nothing")


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools 2.0.11
def test_the_shipped_head_finds_the_shapes_of_pedestrians(shared_data: Path) -> None:
    """In the boxes of the truth, on pictures that it never saw, better than an ellipse does that fills the box."""
    network = load_detector("yolox-nano", next(shared_data.rglob("yolox_nano.onnx")))
    head, _ = load_mask_head("mask-yolox-nano", detector=network)
    pedestrians = pennfudan_data(shared_data / "pennfudan")
    line = (np.arange(28) - 13.5) / 14
    ellipse = np.where(line[:, None] ** 2 + line**2 <= 1, 9.0, -9.0)[None]
    overlaps = []
    for sequence in pedestrians.sequences[:6]:
        annotations = [a for a in pedestrians.truth["annotations"] if a["image_id"] == sequence.image_ids[0]]
        boxes = np.array([a["bbox"] for a in annotations], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        inner = network.expects.size_in(*sequence.size)
        scale = np.tile(np.array(inner, np.float32)[::-1] / np.array(sequence.size, np.float32)[::-1], 2)
        places = np.zeros((1, 8, 4), np.float32)
        places[0, : len(boxes)] = boxes * scale
        features = network.features(jnp.asarray(network.images(sequence.rgb())))
        logits = masks_for(head, features, jnp.asarray(places))[0, : len(boxes)]
        truth = np.stack([codes.decode(a["segmentation"]).astype(bool) for a in annotations])
        for grids in (logits, np.repeat(ellipse, len(boxes), axis=0)):
            found = paste_masks(grids, boxes, sequence.size)
            overlaps.append((found & truth).sum(axis=(1, 2)) / (found | truth).sum(axis=(1, 2)))
    learnt, drawn = (np.concatenate(overlaps[n::2]) for n in (0, 1))
    assert np.mean(learnt) > np.mean(drawn) + 0.05, (learnt, drawn)
