"""Test data of MPEG's feature coding for machines (FCM) in the folders in which CompressAI-Vision keeps them, as
``data/mpeg-fcm/README.md`` of its repository describes them (commit 31165daf62af4e7fff02b39ba23b39e8c24278b1).

``SFU_HW_Obj/SEQUENCE/{images/, annotations/SEQUENCE.json, seqinfo.ini}`` · ``mpeg-oiv6/{images/, annotations/
mpeg-oiv6-{detection,segmentation}-coco.json}`` · ``tvd_tracking/SEQUENCE/`` and ``HiEve_pngs/SEQUENCE/{img1/,
gt/gt.txt, seqinfo.ini}``.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from jaxwrap.train.datasets.coco import (
    COCO_NAMES,
    CocoDict,
    check_sizes,
    check_truth,
    coco_of,
    drop_without_masks,
    read_coco,
    read_json,
    stills,
    without_categories,
)
from jaxwrap.train.datasets.data import Sequence, Task, TaskData, check_files, listed, picture_sequence, sub_folders
from jaxwrap.train.datasets.motchallenge import mot_data, read_seqinfo


def sfu_data(folder: str | Path) -> TaskData:
    """SFU-HW-Objects: objects in the JCT-VC test sequences. A sequence's folder, or a folder of such folders.

    The n-th category of an annotation file is COCO's n-th class, whatever the file calls it. ``imDir`` in seqinfo.ini
    is not used: pictures are in ``images``. Raises `FileNotFoundError` naming all that is missing, and otherwise as
    `coco.coco_data`.
    """
    folder = Path(folder)
    folders = [folder] if (folder / "annotations").is_dir() else [p for p in sub_folders(folder) if _is_sfu(p)]
    if not folders:
        raise FileNotFoundError(f"{folder} has no sequence of SFU-HW-Objects in it (annotations, images, seqinfo.ini)")
    annotations = {path: path / "annotations" / f"{path.name}.json" for path in folders}
    wanted = [file for path in folders for file in (path / "seqinfo.ini", annotations[path])]
    if absent := [file for file in wanted if not file.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {listed(absent)}")
    sequences: list[Sequence] = []
    whole: CocoDict = {"images": [], "annotations": [], "categories": []}
    for path in folders:
        truth = _by_position(read_coco(annotations[path]), annotations[path])
        check_truth(truth, annotations[path])
        sequences.append(_append(whole, truth, path, annotations[path]))
    class_ids = {n: n for n in range(len(COCO_NAMES))}
    return TaskData(folder.name, "detection", tuple(sequences), whole, class_ids, video=True)


def open_images_data(
    folder: str | Path, *, task: Task = "detection", annotations: str | Path | None = None
) -> TaskData:
    """MPEG's choice of OpenImages V6 (OIv6), as COCO files with further fields.

    ``annotations``: the JSON file; by default ``annotations/mpeg-oiv6-TASK-coco.json``. The n-th category is COCO's
    n-th class; those that the file's ``oic_labelmap`` does not name take no part. Masks' run lengths may be in base64.

    CompressAI-Vision scores these pictures by the OpenImages challenge's protocol (AP at IoU 0.5 with boxes of groups,
    detections of classes that nobody looked for left out); truth here is for COCO's protocol. Raises as
    `coco.coco_data`.
    """
    folder = Path(folder)
    if task == "tracking":
        raise ValueError("OpenImages has single pictures; the tasks are detection and segmentation")
    path = folder / "annotations" / f"mpeg-oiv6-{task}-coco.json" if annotations is None else Path(annotations)
    content = read_json(path)
    truth = _by_position(coco_of(content, path), path)
    for annotation in truth["annotations"]:
        runs = annotation.get("segmentation")
        if isinstance(runs, dict) and isinstance(runs.get("counts"), str):
            annotation["segmentation"] = {**runs, "counts": _run_lengths(runs["counts"])}
    if task == "segmentation":
        drop_without_masks(truth)
    if "oic_labelmap" in content:
        truth = _labelled(truth, content["oic_labelmap"], path)
    check_truth(truth, path)
    class_ids = {category["id"]: category["id"] for category in truth["categories"]}
    return TaskData(path.stem, task, stills(folder / "images", truth, path), truth, class_ids, video=False)


def tvd_data(folder: str | Path, *, task: Task = "tracking") -> TaskData:
    """Tencent Video Dataset, tracking: a sequence's folder or a folder of them, as `motchallenge.mot_data`."""
    return mot_data(folder, task=task)


def hieve_data(folder: str | Path, *, task: Task = "tracking") -> TaskData:
    """HiEve (human-centric events), tracking: as `motchallenge.mot_data`, but every row whose flag is 1 is a person to
    be found, whatever its class says."""
    return mot_data(folder, task=task, classes=False)


def _is_sfu(folder: Path) -> bool:
    return (folder / "annotations").is_dir() and (folder / "images").is_dir()


def _by_position(truth: CocoDict, path: Path) -> CocoDict:
    """The truth with category ids 0 … 79 and COCO's names, by the order of the ids."""
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    if len(categories) != len(COCO_NAMES):
        raise ValueError(
            f"{path} has {len(categories)} categories; wanted COCO's {len(COCO_NAMES)} in their order, as "
            "CompressAI-Vision's annotation files have them; other files are read as COCO data, by name"
        )
    numbers = {category["id"]: n for n, category in enumerate(categories)}
    for annotation in truth["annotations"]:
        annotation["category_id"] = numbers[annotation["category_id"]]
    names = [category["name"] for category in categories]
    truth["categories"] = [
        {"id": n, "name": name, "source_name": source}
        for n, (name, source) in enumerate(zip(COCO_NAMES, names, strict=True))
    ]
    return truth


def _labelled(truth: CocoDict, labelmap: list[dict[str, Any]], path: Path) -> CocoDict:
    """The truth without categories that the label map does not name."""
    labels = {_label(entry["name"]) for entry in labelmap}
    others = {c["id"]: c["source_name"] for c in truth["categories"] if _label(c["source_name"]) not in labels}
    return without_categories(truth, others, path)


def _label(name: str) -> str:
    return name.lower().replace(" ", "_")


def _run_lengths(counts: str) -> str:
    """COCO's text of run lengths, which has the characters 0 … o only, from itself or from its base64."""
    try:
        decoded = base64.b64decode(counts, validate=True)
    except (binascii.Error, ValueError):
        return counts
    return decoded.decode() if all(48 <= byte < 112 for byte in decoded) else counts


def _append(whole: CocoDict, truth: CocoDict, folder: Path, path: Path) -> Sequence:
    """Adds a sequence's truth, with ids that go on from those before."""
    images = sorted(truth["images"], key=lambda image: image["file_name"])
    files = [folder / "images" / image["file_name"] for image in images]
    check_files(files, named_by=path)
    first = len(whole["images"]) + 1
    ids = {image["id"]: first + n for n, image in enumerate(images)}
    sequence = picture_sequence(folder.name, files, ids.values(), read_seqinfo(folder / "seqinfo.ini").fps)
    check_sizes(files, images, path)
    whole["images"] += [
        {**image, "id": ids[image["id"]], "file_name": f"{folder.name}/{image['file_name']}"} for image in images
    ]
    whole["annotations"] += [
        {**annotation, "id": len(whole["annotations"]) + n, "image_id": ids[annotation["image_id"]]}
        for n, annotation in enumerate(truth["annotations"], 1)
    ]
    whole["categories"] = truth["categories"]
    return sequence
