"""Penn-Fudan pedestrians: pictures and label maps (https://www.cis.upenn.edu/~jshi/ped_html)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxwrap.train.datasets.coco import PERSON, PERSON_CLASS_IDS, check_truth
from jaxwrap.train.datasets.data import Task, TaskData, check_files, listed, still
from jaxwrap.train.media import picture_size

_FOLDERS = (("images", "masks"), ("PNGImages", "PedMasks"))


def pennfudan_data(folder: str | Path, *, task: Task = "segmentation") -> TaskData:
    """Pictures in ``images`` or ``PNGImages``, and of each a map ``masks`` or ``PedMasks``/NAME_mask.png, whose samples
    are 0 (background) or the pedestrian's number.

    Truth has boxes and masks (run lengths), one category. Raises `FileNotFoundError` for missing folders and masks, and
    `ValueError` for masks of another size, or without any pedestrian in all.
    """
    folder = Path(folder)
    found = next((pair for pair in _FOLDERS if all((folder / name).is_dir() for name in pair)), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has neither images and masks nor PNGImages and PedMasks in it")
    pictures = sorted(p for p in (folder / found[0]).iterdir() if p.is_file() and not p.name.startswith("."))
    masks = [folder / found[1] / f"{path.stem}_mask.png" for path in pictures]
    check_files(masks, named_by=folder / found[0])
    sizes = [picture_size(path) for path in pictures]
    if wrong := [mask for mask, size in zip(masks, sizes, strict=True) if picture_size(mask) != size]:
        raise ValueError(f"these masks have another size than their pictures: {listed(wrong)}")
    annotations: list[dict[str, Any]] = []
    for image_id, mask in enumerate(masks, 1):
        annotations += _pedestrians(mask, image_id, first=len(annotations) + 1)
    truth = {
        "images": [
            {"id": n, "file_name": path.name, "height": size[0], "width": size[1]}
            for n, (path, size) in enumerate(zip(pictures, sizes, strict=True), 1)
        ],
        "annotations": annotations,
        "categories": [PERSON],
    }
    check_truth(truth, folder)
    sequences = tuple(still(path, n, size) for n, (path, size) in enumerate(zip(pictures, sizes, strict=True), 1))
    return TaskData(folder.name, task, sequences, truth, PERSON_CLASS_IDS, video=False)


def _pedestrians(path: Path, image_id: int, first: int) -> list[dict[str, Any]]:
    from pycocotools import mask as rle

    with Image.open(path) as image:
        labels = np.asarray(image)
    if labels.ndim != 2:
        raise ValueError(f"{path} has colours (mode {image.mode}); wanted a map of pedestrians' numbers")
    found = []
    for n, label in enumerate(np.unique(labels[labels > 0])):
        runs = rle.encode(np.asfortranarray(labels == label, np.uint8))
        found.append(
            {
                "id": first + n,
                "image_id": image_id,
                "category_id": PERSON["id"],
                "bbox": rle.toBbox(runs).tolist(),
                "area": float(rle.area(runs)),
                "iscrowd": 0,
                "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode()},
            }
        )
    return found
