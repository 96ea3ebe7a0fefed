"""Miniature trees in CompressAI-Vision's folders, and how kinds of data are told apart."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from jaxwrap.metrics.tracking import targets
from jaxwrap.train.datasets.coco import COCO_NAMES
from jaxwrap.train.datasets.compressai_vision import hieve_data, open_images_data, sfu_data, tvd_data
from jaxwrap.train.datasets.data import Task, TaskData
from jaxwrap.train.datasets.open import open_task_data

# pycocotools decodes through an __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What the published files call COCO's classes, where they call them otherwise.
RENAMED = {32: "Football", 58: "Houseplant", 13: "Man"}
CATEGORIES = [{"id": n, "name": RENAMED.get(n, name.capitalize())} for n, name in enumerate(COCO_NAMES)]
SEQINFO = "[Sequence]\nname=x\nimDir=img1\nframeRate=50\nseqLength=2\nimWidth=16\nimHeight=10\nimExt=.png\n"


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 16, 3), value, np.uint8)).save(path)


def sfu_tree(root: Path, names: tuple[str, ...] = ("BasketballPass_416x240_50_val",)) -> Path:
    for place, name in enumerate(names):
        for n in range(2):
            picture(root / name / "images" / f"{name}_{n:03d}.png", 10 * place + n)
        (root / name / "seqinfo.ini").write_text(SEQINFO)
        # Ids are floats from 0, boxes x, y, width, height though bbox_mode says otherwise.
        content = {
            "images": [{"file_name": f"{name}_{n:03d}.png", "width": 16, "height": 10, "id": float(n)} for n in (1, 0)],
            "categories": CATEGORIES,
            "annotations": [
                {"bbox": [1.5, 2, 3, 4], "bbox_mode": 0, "category_id": 32, "id": 1, "image_id": 1.0, "area": 12.0}
            ],
        }
        (root / name / "annotations").mkdir()
        (root / name / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return root


def tracking_tree(root: Path, name: str, truth: str) -> Path:
    for n in (1, 2):
        picture(root / name / "img1" / f"{n:06d}.png", n)
    (root / name / "seqinfo.ini").write_text(SEQINFO.replace("name=x", f"name={name}"))
    (root / name / "gt").mkdir()
    (root / name / "gt" / "gt.txt").write_text(truth)
    return root


def open_images_tree(root: Path, **changes: Any) -> Path:
    """One picture with a houseplant and a Man, a place that no COCO class of OpenImages fills."""
    picture(root / "images" / "0001eeaf4aed83f9.jpg")
    mask = np.zeros((10, 16), np.uint8, order="F")
    mask[2:6, 1:4] = 1
    runs = rle.encode(mask)
    segmentation = {"size": [10, 16], "counts": base64.b64encode(runs["counts"]).decode()}
    content = {
        "images": [{"id": "0001eeaf4aed83f9", "file_name": "0001eeaf4aed83f9.jpg", "width": 16, "height": 10}],
        "categories": CATEGORIES,
        "annotations": [
            {
                "image_id": "0001eeaf4aed83f9",
                "category_id": category,
                "bbox": [1, 2, 3, 4],
                "segmentation": segmentation,
            }
            for category in (58, 13)
        ],
        "oic_labelmap": [{"id": 1, "name": "houseplant"}, {"id": 2, "name": "wine_glass"}],
        "oic_annotations": [],
    }
    (root / "annotations").mkdir()
    for task in ("detection", "segmentation"):
        (root / "annotations" / f"mpeg-oiv6-{task}-coco.json").write_text(json.dumps(content | changes))
    return root


def test_sfu_sequences_are_video_with_coco_classes_by_position(tmp_path: Path) -> None:
    names = ("BasketballPass_416x240_50_val", "Kimono_1920x1080_24_val")
    data = sfu_data(sfu_tree(tmp_path, names))
    assert data.video
    assert [(s.name, s.image_ids, s.fps) for s in data.sequences] == [
        (names[0], (1, 2), 50.0),
        (names[1], (3, 4), 50.0),
    ]
    assert data.sequences[1].rgb()[:, 0, 0, 0].tolist() == [10, 11]
    first, second = data.truth["annotations"]
    assert (first["image_id"], first["bbox"], second["image_id"], second["id"]) == (2, [1.5, 2, 3, 4], 4, 2)
    assert data.class_ids[32] == first["category_id"]
    assert data.truth["categories"][32]["name"] == "sports ball"


def test_sfu_sequences_that_lack_files_are_listed(tmp_path: Path) -> None:
    root = sfu_tree(tmp_path, ("A", "B"))
    (root / "A" / "seqinfo.ini").unlink()
    (root / "B" / "annotations" / "B.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks .*A/seqinfo\.ini, .*B/annotations/B\.json"):
        sfu_data(root)
    with pytest.raises(FileNotFoundError, match="has no sequence of SFU-HW-Objects"):
        sfu_data(root / "A" / "images")


def test_files_with_other_categories_are_refused(tmp_path: Path) -> None:
    root = open_images_tree(tmp_path, categories=CATEGORIES[:60])
    with pytest.raises(ValueError, match="has 60 categories; wanted COCO's 80 in their order"):
        open_images_data(root)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_open_images_leave_out_what_their_label_map_does_not_name(tmp_path: Path, task: Task) -> None:
    with pytest.warns(UserWarning, match=r"1 annotation left out, .*: Man \(1\)"):
        data = open_images_data(open_images_tree(tmp_path), task=task)
    assert data.class_ids == {58: 58, 40: 40}
    (only,) = data.truth["annotations"]
    assert rle.decode(only["segmentation"])[2:6, 1:4].all()
    assert rle.area(only["segmentation"]) == 12
    assert data.sequences[0].image_ids == (1,)


def test_run_lengths_in_plain_text_stay_as_they_are(tmp_path: Path) -> None:
    runs = rle.encode(np.asfortranarray(np.eye(10, 16, dtype=np.uint8)))
    segmentation = {"size": [10, 16], "counts": runs["counts"].decode()}
    entry = {"image_id": "0001eeaf4aed83f9", "category_id": 58, "bbox": [0, 0, 10, 10], "segmentation": segmentation}
    data = open_images_data(open_images_tree(tmp_path, annotations=[entry]), task="segmentation")
    np.testing.assert_array_equal(rle.decode(data.truth["annotations"][0]["segmentation"]), np.eye(10, 16))


def test_tracking_trees_differ_in_what_is_a_target(tmp_path: Path) -> None:
    rows = "1,1,2,2,4,4,1,1,1\n1,2,3,2,4,4,1,7,1\n2,2,3,2,4,4,0,1,1\n"
    tvd = tvd_data(tracking_tree(tmp_path / "tvd_tracking", "TVD-01", rows))
    assert targets(tvd.truth["TVD-01"]).tolist() == [True, False, False]
    hieve = hieve_data(tracking_tree(tmp_path / "HiEve_pngs", "13", rows))
    assert targets(hieve.truth["13"]).tolist() == [True, True, False]


def kinds(root: Path) -> dict[str, Path]:
    """One tree of each kind that holds its own annotations."""
    picture(root / "pennfudan" / "images" / "a.png")
    (root / "pennfudan" / "masks").mkdir()
    Image.fromarray(np.eye(10, 16, dtype=np.uint8)).save(root / "pennfudan" / "masks" / "a_mask.png")
    rows = "1,1,2,2,4,4,1,7,1\n1,2,2,2,4,4,1,1,1\n"
    return {
        "sfu": sfu_tree(root / "SFU_HW_Obj"),
        "oiv6": open_images_tree(root / "mpeg-oiv6", oic_labelmap=CATEGORIES),
        "tvd": tracking_tree(root / "tvd_tracking", "TVD-01", rows),
        "hieve": tracking_tree(root / "HiEve_pngs", "13", rows),
        "pennfudan": root / "pennfudan",
    }


@pytest.mark.parametrize(
    ("kind", "task", "expected"),
    [
        ("sfu", "detection", True),
        ("oiv6", "segmentation", False),
        ("tvd", "tracking", True),
        ("tvd", "detection", True),
        ("hieve", "tracking", True),
        ("pennfudan", "segmentation", False),
    ],
)
def test_kinds_are_told_apart(tmp_path: Path, kind: str, task: Task, expected: bool) -> None:
    folder = kinds(tmp_path)[kind]
    data = open_task_data([folder], task)
    assert isinstance(data, TaskData)
    assert (data.task, data.video) == (task, expected)
    if task == "tracking":
        assert targets(next(iter(data.truth.values()))).sum() == (2 if kind == "hieve" else 1)


def test_annotations_elsewhere_go_with_their_pictures(tmp_path: Path) -> None:
    folders = kinds(tmp_path)
    coco = tmp_path / "coco.json"
    images = [{"id": 5, "file_name": "a.png", "width": 16, "height": 10}]
    boxes = [{"image_id": 5, "category_id": 1, "bbox": [1, 1, 4, 4]}]
    person = [{"id": 1, "name": "person"}]
    coco.write_text(json.dumps({"images": images, "annotations": boxes, "categories": person}))
    data = open_task_data([folders["pennfudan"] / "images"], "detection", coco)
    assert data.sequences[0].image_ids == (5,)
    sequence = folders["tvd"] / "TVD-01"
    frames = sequence / "img1"
    frames.rename(tmp_path / "frames")
    for about in (sequence, sequence / "gt" / "gt.txt"):
        data = open_task_data([tmp_path / "frames"], "tracking", about)
        assert data.sequences[0].files[0].parent == tmp_path / "frames"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    folders = kinds(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"do not exist: .*nowhere, .*none\.json"):
        open_task_data([tmp_path / "nowhere"], "detection", tmp_path / "none.json")
    with pytest.raises(ValueError, match="has no truth for tracking; it has for detection"):
        open_task_data([folders["sfu"]], "tracking")
    with pytest.raises(ValueError, match="is of no known kind; known are a folder of pictures"):
        open_task_data([empty], "detection")
    with pytest.raises(ValueError, match="2 inputs given"):
        open_task_data([empty, empty], "detection")
    with pytest.raises(ValueError, match="neither a COCO file"):
        open_task_data([empty], "tracking", folders["tvd"] / "TVD-01" / "seqinfo.ini")
    with pytest.raises(ValueError, match="crowd regions were given"):
        open_task_data([folders["sfu"]], "detection", crowd=folders["sfu"])
    with pytest.raises(ValueError, match="the tasks are detection, segmentation, tracking"):
        open_task_data([folders["sfu"]], "captioning")  # type: ignore[arg-type]
