"""COCO and Penn-Fudan: the real files, and what a made-up file may get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from jaxwrap.train.datasets.coco import COCO_NAMES, coco_data
from jaxwrap.train.datasets.pennfudan import pennfudan_data

# pycocotools decodes through an __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def made_up(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Two pictures of 12×8, one person and one car, and the file about them with some of its lists changed."""
    folder.mkdir(exist_ok=True)
    for n in (1, 2):
        Image.fromarray(np.full((8, 12, 3), 40 * n, np.uint8)).save(folder / f"{n}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 12, "height": 8} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "segmentation": SQUARE},
            {"id": 2, "image_id": 2, "category_id": 9, "bbox": [2, 2, 4, 4], "segmentation": SQUARE},
        ],
        "categories": [{"id": 7, "name": "Person"}, {"id": 9, "name": "car"}],
    }
    path = folder.parent / "truth.json"
    path.write_text(json.dumps(content | changes))
    return folder, path


@pytest.mark.shared
def test_coco_gives_every_picture_and_box(shared_data: Path) -> None:
    folder = shared_data / "coco"
    data = coco_data(folder / "val2017", folder / "instances_val2017.json")
    assert (data.task, data.video, len(data.sequences), len(data.truth["annotations"])) == ("detection", False, 64, 440)
    assert [data.class_ids[n] for n in (0, 11, 79)] == [1, 13, 90]
    assert len(data.class_ids) == 80
    sequence = data.sequences[0]
    assert (sequence.name, sequence.image_ids, sequence.size) == ("000000000139", (139,), (426, 640))
    picture = np.asarray(Image.open(folder / "val2017" / "000000000139.jpg"))
    np.testing.assert_array_equal(sequence.rgb(), picture[None])


@pytest.mark.shared
def test_coco_segmentation_leaves_out_what_has_no_mask(shared_data: Path) -> None:
    folder = shared_data / "coco"
    data = coco_data(
        folder / "train2017",
        folder / "instances_train2017.json",
        task="segmentation",
        crowd=folder / "crowd_train2017.json",
    )
    assert len(data.sequences) == 128 - 28
    assert all(a["segmentation"] for a in data.truth["annotations"])
    assert sum(a["iscrowd"] for a in data.truth["annotations"]) == 6
    assert {s.image_ids[0] for s in data.sequences} >= {250, 508}  # no objects: what is found there is wrong


def test_missing_images_are_listed_at_once(tmp_path: Path) -> None:
    folder, path = made_up(tmp_path / "images")
    for n in (1, 2):
        (folder / f"{n}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 2 images that are not there: .*1\.png, .*2\.png; give"):
        coco_data(folder, path)


def test_pictures_of_another_size_are_listed(tmp_path: Path) -> None:
    folder, path = made_up(tmp_path / "images")
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(folder / "2.png")
    with pytest.raises(ValueError, match=r"other pictures: .*2\.png is 10×8, said to be 12×8"):
        coco_data(folder, path)


def test_rotated_pictures_are_measured_upright(tmp_path: Path) -> None:
    folder, path = made_up(tmp_path / "images")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((12, 8, 3), np.uint8)).save(folder / "2.png", exif=turned)
    assert coco_data(folder, path).sequences[1].rgb().shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "ground truth of its 2 images is empty"),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "iscrowd": 1}]}, "is empty"),
        ({"annotations": None}, "is no COCO file: it lacks the list annotations"),
        ({"images": None, "categories": {}}, "lacks the lists images, categories"),
        ({"annotations": [{"image_id": 1, "category_id": 7}]}, "an annotation image_id, category_id and bbox"),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3]}]}, "is not x, y, width, height"),
        ({"annotations": [{"image_id": 3, "category_id": 7, "bbox": [1, 1, 4, 4]}]}, "does not define: image 3"),
        ({"images": [{"id": 1, "file_name": "1.png", "width": 12, "height": 8}] * 2}, "two images have the same id"),
    ],
)
def test_files_that_are_no_truth_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_data(*made_up(tmp_path / "images", **changes))


@pytest.mark.parametrize(("text", "message"), [("[]", "a JSON list"), ("no JSON", "it is not JSON")])
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    folder, path = made_up(tmp_path / "images")
    path.write_text(text)
    with pytest.raises(ValueError, match=f"is no COCO file: .*{message}"):
        coco_data(folder, path)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        coco_data(folder, tmp_path / "none.json")


def test_categories_without_a_class_are_left_out_with_a_warning(tmp_path: Path) -> None:
    categories = [{"id": 7, "name": "wolf"}, {"id": 9, "name": "aeroplane"}]
    with pytest.warns(UserWarning, match=r"1 annotation left out, of categories .*: wolf \(1\)"):
        data = coco_data(*made_up(tmp_path / "images", categories=categories))
    assert data.class_ids == {COCO_NAMES.index("airplane"): 9}
    assert [a["category_id"] for a in data.truth["annotations"]] == [9]


def test_what_the_evaluation_needs_is_filled_in(tmp_path: Path) -> None:
    annotations = [{"id": 0, "image_id": 1.0, "category_id": 7, "bbox": [1, 1, 4, 4]}]
    crowd = tmp_path / "crowd.json"
    region = {"id": 0, "image_id": 2, "category_id": 9, "bbox": [0, 0, 2, 2], "iscrowd": 1, "area": 4}
    crowd.write_text(json.dumps({"annotations": [region, {**region, "image_id": 99}]}))
    data = coco_data(*made_up(tmp_path / "images", annotations=annotations), crowd=crowd)
    first, second = data.truth["annotations"]
    assert (first["id"], first["iscrowd"], first["area"], first["image_id"]) == (1, 0, 16.0, 1)
    assert (second["id"], second["iscrowd"]) == (2, 1)
    crowd.write_text(json.dumps({"annotations": [{**region, "iscrowd": 0}]}))
    with pytest.raises(ValueError, match="1 annotation with iscrowd 0; wanted crowd regions only"):
        coco_data(*made_up(tmp_path / "images"), crowd=crowd)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    folder, path = made_up(tmp_path / "images")
    first, second = coco_data(folder, path).sequences
    assert first.fingerprint != second.fingerprint
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes())
    assert coco_data(folder, path).sequences[1].fingerprint == first.fingerprint


@pytest.mark.shared
def test_penn_fudan_masks_become_coco_truth(shared_data: Path) -> None:
    folder = shared_data / "pennfudan"
    data = pennfudan_data(folder)
    assert (len(data.sequences), len(data.truth["annotations"]), data.class_ids) == (50, 120, {0: 1})
    coco = COCO()
    coco.dataset = data.truth
    coco.createIndex()
    image = data.truth["images"][0]
    labels = np.asarray(Image.open(folder / "masks" / f"{Path(image['file_name']).stem}_mask.png"))
    masks = [coco.annToMask(a) for a in coco.imgToAnns[image["id"]]]
    np.testing.assert_array_equal(sum(mask * n for n, mask in enumerate(masks, 1)), labels)
    rows, columns = np.nonzero(labels == 1)
    box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert coco.imgToAnns[image["id"]][0]["bbox"] == box
    assert data.sequences[0].rgb().shape == (1, *labels.shape, 3)


def test_penn_fudan_lacking_masks_are_listed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither images and masks nor PNGImages and PedMasks"):
        pennfudan_data(tmp_path)
    for name in ("PNGImages", "PedMasks"):
        (tmp_path / name).mkdir()
    for n in range(2):
        Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(tmp_path / "PNGImages" / f"{n}.png")
    with pytest.raises(FileNotFoundError, match=r"names 2 images .*0_mask\.png, .*1_mask\.png"):
        pennfudan_data(tmp_path)
    for n in range(2):
        Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "PedMasks" / f"{n}_mask.png")
    with pytest.raises(ValueError, match="ground truth of its 2 images is empty"):
        pennfudan_data(tmp_path)
    Image.fromarray(np.eye(6, 4, dtype=np.uint8) * 3).save(tmp_path / "PedMasks" / "1_mask.png")
    (only,) = pennfudan_data(tmp_path, task="detection").truth["annotations"]
    assert (only["image_id"], only["bbox"], only["area"]) == (2, [0, 0, 4, 4], 4.0)
    np.testing.assert_array_equal(rle.decode(only["segmentation"]), np.eye(6, 4))
    Image.fromarray(np.ones((5, 4), np.uint8)).save(tmp_path / "PedMasks" / "1_mask.png")
    with pytest.raises(ValueError, match=r"another size than their pictures: .*1_mask\.png"):
        pennfudan_data(tmp_path)
