"""Tells the kinds of data apart by their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jaxwrap.train.datasets.coco import coco_data
from jaxwrap.train.datasets.compressai_vision import hieve_data, open_images_data, sfu_data
from jaxwrap.train.datasets.data import TASKS, Task, TaskData, counted, listed, sub_folders
from jaxwrap.train.datasets.motchallenge import mot_data
from jaxwrap.train.datasets.pennfudan import pennfudan_data

KNOWN = """a folder of pictures with a COCO file of annotations; a MOTChallenge sequence (gt/gt.txt, seqinfo.ini, its \
pictures or a video) or a folder of them, TVD and HiEve too; SFU-HW-Objects (SEQUENCE/annotations, images, \
seqinfo.ini); MPEG's OpenImages (images, annotations/mpeg-oiv6-…-coco.json); Penn-Fudan (images, masks)"""


def open_task_data(
    inputs: Iterable[str | Path],
    task: Task,
    annotations: str | Path | None = None,
    *,
    crowd: str | Path | None = None,
) -> TaskData:
    """The data at one path, whatever their kind.

    Args:
      inputs: one folder (or, with ``annotations``, one video).
      task: what the truth is for.
      annotations: a COCO file about the pictures in the folder; or a MOTChallenge sequence (its folder, or its
        ``gt.txt``) about the video or the pictures in the folder. None where the folder holds its annotations.
      crowd: further regions for a COCO file, see `coco.coco_data`.

    Raises:
      FileNotFoundError: paths that do not exist.
      ValueError: a path whose kind is not known, a task that its kind has no truth for; and as the kinds' own readers.
    """
    if task not in TASKS:
        raise ValueError(f"task {task} was given; the tasks are {', '.join(TASKS)}")
    paths = [Path(path) for path in inputs]
    given = paths + [Path(path) for path in (annotations, crowd) if path is not None]
    if absent := [path for path in given if not path.exists()]:
        raise FileNotFoundError(f"these paths do not exist: {listed(absent)}")
    if len(paths) != 1:
        raise ValueError(f"{counted(len(paths), 'input')} given; a task takes one: {KNOWN}")
    folder = paths[0]
    if annotations is not None:
        return _annotated(folder, task, Path(annotations), crowd)
    if crowd is not None:
        raise ValueError("crowd regions were given without a COCO file of annotations, to which they belong")
    if not folder.is_dir():
        raise ValueError(f"{folder} has no annotations: give them, or a folder that holds its own; known are {KNOWN}")
    if any((path / "gt").is_dir() for path in (folder, *sub_folders(folder))):
        _check_task(folder, task, ("tracking", "detection"))
        return (hieve_data if _is_hieve(folder) else mot_data)(folder, task=task)
    if any((folder / "annotations").glob("mpeg-oiv6-*.json")):
        _check_task(folder, task, ("detection", "segmentation"))
        return open_images_data(folder, task=task)
    if any((path / "annotations").is_dir() and (path / "images").is_dir() for path in (folder, *sub_folders(folder))):
        _check_task(folder, task, ("detection",))
        return sfu_data(folder)
    if any((folder / name).is_dir() for name in ("masks", "PedMasks")):
        _check_task(folder, task, ("detection", "segmentation"))
        return pennfudan_data(folder, task=task)
    raise ValueError(f"{folder} is of no known kind; known are {KNOWN}")


def _annotated(source: Path, task: Task, annotations: Path, crowd: str | Path | None) -> TaskData:
    if annotations.suffix.lower() == ".json":
        _check_task(annotations, task, ("detection", "segmentation"))
        return coco_data(source, annotations, task=task, crowd=crowd)
    if crowd is not None:
        raise ValueError(f"crowd regions were given for {annotations}; they belong to a COCO file")
    if annotations.name == "gt.txt":
        annotations = annotations.parent.parent
    if not annotations.is_dir():
        raise ValueError(f"{annotations} is neither a COCO file (.json) nor a MOTChallenge sequence's folder or gt.txt")
    _check_task(annotations, task, ("tracking", "detection"))
    return mot_data(annotations, source, task=task, classes=not _is_hieve(annotations))


def _check_task(path: Path, task: Task, has: tuple[Task, ...]) -> None:
    if task not in has:
        raise ValueError(f"{path} has no truth for {task}; it has for {' and '.join(has)}")


def _is_hieve(folder: Path) -> bool:
    return any("hieve" in part.lower() for part in folder.resolve().parts[-2:])
