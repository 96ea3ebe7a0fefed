"""COCO: a folder of pictures and one JSON file of boxes and masks (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

from jaxwrap.train.datasets.data import (
    Sequence,
    Task,
    TaskData,
    check_files,
    check_unique,
    counted,
    listed,
    still,
)
from jaxwrap.train.media import picture_size

# fmt: off
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The 80 classes in the order of every COCO detector's outputs."""

# Names of Pascal VOC, which several detectors carry.
_SYNONYMS = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}

CocoDict = dict[str, Any]

PERSON: dict[str, Any] = {"id": 1, "name": "person", "supercategory": "person"}
"""The category of data that are about people only."""

PERSON_CLASS_IDS = {COCO_NAMES.index("person"): 1}


def coco_data(
    images_dir: str | Path, annotations_json: str | Path, *, task: Task = "detection", crowd: str | Path | None = None
) -> TaskData:
    """Every picture that the file names, each a sequence of one frame.

    ``crowd``: a JSON file of further annotations with ``iscrowd`` 1, regions in which detections are neither right nor
    wrong. With ``task="segmentation"``, annotations without ``segmentation`` are left out, and pictures that have
    none or whose field ``has_segmentation`` is false. Categories are matched to detector classes by name; those that no
    class is named after are left out, with a warning that lists them.

    Raises `FileNotFoundError` for missing files (all images at once), `ValueError` where a file is no COCO file, names
    images or categories it does not define, has no truth, or gives other sizes than the pictures have.
    """
    images_dir, path = Path(images_dir), Path(annotations_json)
    truth = read_coco(path)
    if crowd is not None:
        truth["annotations"] += _crowd_regions(Path(crowd), {image["id"] for image in truth["images"]})
        numbered(truth)
    if task == "segmentation":
        drop_without_masks(truth)
    truth, class_ids = matched_to_classes(truth, path)
    check_truth(truth, path)
    return TaskData(path.stem, task, stills(images_dir, truth, path), truth, class_ids, video=False)


def read_coco(path: Path) -> CocoDict:
    """The file as `coco_of` makes it; raises as `coco_data`."""
    return coco_of(read_json(path), path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in an annotation file. Raises as `coco_data`."""
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; wanted a JSON file in COCO format")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no COCO file: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no COCO file: it is a JSON {type(content).__name__}, wanted an object")
    return content


def coco_of(content: dict[str, Any], path: Path) -> CocoDict:
    """Images, annotations and categories with the fields that COCO's evaluation needs.

    Ids are integers; annotations are numbered anew from 1 where their ids are missing or repeated, or one is 0, which
    COCO's evaluation takes for "no match". Missing ``iscrowd`` is 0, missing ``area`` width × height.
    Raises as `coco_data`.
    """
    if lacking := [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]:
        raise ValueError(f"{path} is no COCO file: it lacks the list{'s' * (len(lacking) > 1)} {', '.join(lacking)}")
    try:
        return _normalised(content, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no COCO file: an image needs id, file_name, width and height, an annotation image_id, "
            f"category_id and bbox, a category id and name ({type(error).__name__}: {error})"
        ) from error


def stills(images_dir: Path, truth: CocoDict, path: Path) -> tuple[Sequence, ...]:
    """One sequence per image of the truth. Raises as `coco_data`."""
    images = truth["images"]
    files = [images_dir / image["file_name"] for image in images]
    if not images_dir.is_dir():
        raise FileNotFoundError(f"no folder {images_dir}; wanted that of the images in {path}")
    check_files(files, named_by=path)
    check_sizes(files, images, path)
    names = [Path(image["file_name"]).with_suffix("").as_posix() for image in images]
    check_unique(names, where=path)
    return tuple(
        still(file, image["id"], (image["height"], image["width"]), name=name)
        for file, image, name in zip(files, images, names, strict=True)
    )


def check_sizes(files: list[Path], images: list[dict[str, Any]], path: Path) -> None:
    """Raises `ValueError` listing the pictures whose size is not the annotation's."""
    wrong = []
    for file, image in zip(files, images, strict=True):
        if (size := picture_size(file)) != (image["height"], image["width"]):
            wrong.append(f"{file} is {size[1]}×{size[0]}, said to be {image['width']}×{image['height']}")
    if wrong:
        raise ValueError(f"{path} was made for other pictures: {listed(wrong)}")


def check_truth(truth: CocoDict, path: Path) -> None:
    """Raises `ValueError` where there is nothing to find."""
    if not truth["images"]:
        raise ValueError(f"{path}: no image is left to evaluate on")
    if all(annotation["iscrowd"] for annotation in truth["annotations"]):
        raise ValueError(
            f"{path}: the ground truth of its {counted(len(truth['images']), 'image')} is empty, so nothing could be "
            "found; give annotations of these images, or use the uncompressed network's output as truth"
        )


def matched_to_classes(truth: CocoDict, path: Path) -> tuple[CocoDict, dict[int, int]]:
    """The truth without categories that no detector class is named after, and class → category id."""
    by_name = {name: n for n, name in enumerate(COCO_NAMES)}
    class_ids: dict[int, int] = {}
    unmatched: dict[int, str] = {}
    for category in truth["categories"]:
        name = _plain(category["name"])
        class_index = by_name.get(_SYNONYMS.get(name, name))
        if class_index is None or class_index in class_ids:
            unmatched[category["id"]] = category["name"]
        else:
            class_ids[class_index] = category["id"]
    return without_categories(truth, unmatched, path), class_ids


def without_categories(truth: CocoDict, unmatched: dict[int, str], path: Path) -> CocoDict:
    """The truth without these categories (id → name); warns where that loses annotations."""
    lost = [annotation["category_id"] for annotation in truth["annotations"] if annotation["category_id"] in unmatched]
    if lost:
        names = [f"{name} ({lost.count(id)})" for id, name in unmatched.items() if id in lost]
        warnings.warn(
            f"{path}: {counted(len(lost), 'annotation')} left out, of categories that no detector class is named "
            f"after: {listed(names, 20)}",
            stacklevel=3,
        )
    return {
        "images": truth["images"],
        "annotations": [a for a in truth["annotations"] if a["category_id"] not in unmatched],
        "categories": [c for c in truth["categories"] if c["id"] not in unmatched],
    }


def drop_without_masks(truth: CocoDict) -> None:
    """Leaves out annotations without a mask, and images that have no masks though they have objects."""
    with_objects = {annotation["image_id"] for annotation in truth["annotations"]}
    truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation.get("segmentation")]
    with_masks = {annotation["image_id"] for annotation in truth["annotations"]}
    unmasked = {image["id"] for image in truth["images"] if not image.get("has_segmentation", True)}
    unmasked |= with_objects - with_masks
    truth["images"] = [image for image in truth["images"] if image["id"] not in unmasked]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in unmasked]


def _normalised(content: dict[str, Any], path: Path) -> CocoDict:
    images = [dict(image) for image in content["images"]]
    numbers = {image["id"]: _whole(image["id"], n + 1) for n, image in enumerate(images)}
    if len(set(numbers.values())) < len(images):
        raise ValueError(f"{path}: two images have the same id")
    for image in images:
        image.update(
            id=numbers[image["id"]],
            file_name=str(image["file_name"]),
            height=int(image["height"]),
            width=int(image["width"]),
        )
    categories = [
        dict(category, id=int(category["id"]), name=str(category["name"])) for category in content["categories"]
    ]
    known = {category["id"] for category in categories}
    annotations, stray = [], []
    for entry in content["annotations"]:
        annotation = _annotation(entry)
        if entry["image_id"] not in numbers or annotation["category_id"] not in known:
            stray.append(f"image {entry['image_id']}, category {annotation['category_id']}")
            continue
        annotation["image_id"] = numbers[entry["image_id"]]
        annotations.append(annotation)
    if stray:
        raise ValueError(
            f"{path}: {counted(len(stray), 'annotation')} of images or categories that it does not define: "
            f"{listed(stray)}"
        )
    return numbered({"images": images, "annotations": annotations, "categories": categories})


def numbered(truth: CocoDict) -> CocoDict:
    """Numbers the annotations from 1 unless they have positive numbers that are all different."""
    ids = [annotation.get("id") for annotation in truth["annotations"]]
    if len(set(ids)) < len(ids) or not all(isinstance(id, int) and id > 0 for id in ids):
        for n, annotation in enumerate(truth["annotations"], 1):
            annotation["id"] = n
    return truth


def _annotation(entry: dict[str, Any]) -> dict[str, Any]:
    box = [float(value) for value in entry["bbox"]]
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise TypeError(f"bbox {entry['bbox']} is not x, y, width, height")
    return {
        **entry,
        "category_id": int(entry["category_id"]),
        "bbox": box,
        "area": float(entry.get("area", box[2] * box[3])),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def _crowd_regions(path: Path, image_ids: set[int]) -> list[dict[str, Any]]:
    entries = read_json(path).get("annotations")
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list of annotations; wanted crowd regions in COCO format")
    regions = [_annotation(entry) for entry in entries if entry["image_id"] in image_ids]
    if strict := [region for region in regions if not region["iscrowd"]]:
        raise ValueError(f"{path}: {counted(len(strict), 'annotation')} with iscrowd 0; wanted crowd regions only")
    return regions


def _whole(value: Any, otherwise: int) -> int:
    """An integer id as it is (files exist in which it is a float), text by the image's place."""
    return int(value) if isinstance(value, int | float) and value == int(value) else otherwise


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")
