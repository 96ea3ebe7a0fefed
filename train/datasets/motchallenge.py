"""MOTChallenge: sequences with a ``gt/gt.txt``, and the text files of tracks (https://motchallenge.net/instructions).

A row of truth here is ``frame, id, x, y, width, height, flag, class, visibility``: frames count from 1, x and y are the
left and top edge in pixels of the picture. (In the files the top left pixel is 1, 1; as MOTChallenge's own evaluation,
we take the numbers as they are, on both sides.) Rows are kept whatever they are about: `jaxwrap.metrics.tracking` tells
which are to be found (``targets``), and at which a detection is neither right nor wrong (``distractors``).
"""

from __future__ import annotations

import configparser
import csv
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxwrap.codecs.files import write_atomically
from jaxwrap.metrics.tracking import DISTRACTORS, PEDESTRIAN, targets
from jaxwrap.train.datasets.coco import PERSON, PERSON_CLASS_IDS, check_truth
from jaxwrap.train.datasets.data import (
    Sequence,
    Task,
    TaskData,
    check_files,
    check_unique,
    counted,
    listed,
    picture_sequence,
    sub_folders,
    video_sequence,
)

TRUTH_COLUMNS = ("frame", "id", "x", "y", "width", "height", "flag", "class", "visibility")
RESULT_COLUMNS = ("frame", "id", "x", "y", "width", "height", "confidence", "-1", "-1", "-1")


def mot_data(
    folder: str | Path, video: str | Path | None = None, *, task: Task = "tracking", classes: bool = True
) -> TaskData:
    """A sequence's folder (``seqinfo.ini``, ``gt/gt.txt``, pictures), or a folder of such folders.

    Pictures are those in seqinfo's ``imDir``, sorted by number, or the video of which ``imDir`` is the path; ``video``
    is one elsewhere, for one sequence. Frames are counted from the first picture on, and truth beyond the last frame
    that is there is an error, frames without truth are not. With ``task="detection"`` the truth is COCO's, of one
    category: targets are objects, distractors and pedestrians with flag 0 are crowd regions. ``classes=False`` takes
    every row of ground truth for a pedestrian, whatever its class.

    Raises `FileNotFoundError` naming all sequences that lack ``seqinfo.ini``, ``gt/gt.txt`` or pictures, and
    `ValueError` for bad files, empty truth, and pictures that change size.
    """
    if task == "segmentation":
        raise ValueError("MOTChallenge data have boxes but no masks; the tasks are tracking and detection")
    folder = Path(folder)
    folders = sequence_folders(folder)
    if video is not None and len(folders) > 1:
        raise ValueError(
            f"one video was given for the {len(folders)} sequences of {folder}; give one sequence's folder"
        )
    opened = [_open_sequence(path, None if video is None else Path(video)) for path in folders]
    if not classes:
        for _, rows in opened:
            rows[:, 7] = PEDESTRIAN
    check_unique((sequence.name for sequence, _ in opened), where=folder)
    truth = {sequence.name: rows for sequence, rows in opened}
    sequences = tuple(sequence for sequence, _ in opened)
    if not any(targets(rows).any() for rows in truth.values()):
        raise ValueError(
            f"{folder}: the ground truth is empty: no row has flag 1 and class 1 (pedestrian); use the uncompressed "
            "network's output as truth"
        )
    if task == "tracking":
        return TaskData(folder.name, task, sequences, truth, PERSON_CLASS_IDS, video=True)
    sequences = _numbered(sequences)
    coco = _coco_truth(sequences, truth)
    check_truth(coco, folder)
    return TaskData(folder.name, task, sequences, coco, PERSON_CLASS_IDS, video=True)


def sequence_folders(folder: Path) -> list[Path]:
    """The folder itself, or those in it that have a ``gt`` folder or ``seqinfo.ini``. Raises as `mot_data`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; wanted a MOTChallenge sequence or a folder of them")
    folders = [folder] if _is_sequence(folder) else [path for path in sub_folders(folder) if _is_sequence(path)]
    if not folders:
        raise FileNotFoundError(
            f"{folder} is no MOTChallenge sequence (seqinfo.ini, gt/gt.txt and pictures), nor has it any in it"
        )
    absent = [path / name for path in folders for name in ("seqinfo.ini", "gt/gt.txt") if not (path / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{counted(len(folders), 'sequence')} of {folder} lack{'s' * (len(folders) == 1)}: {listed(absent)}; "
            "seqinfo.ini tells imDir and frameRate, gt/gt.txt what is to be found"
        )
    return folders


def _is_sequence(folder: Path) -> bool:
    return (folder / "gt").is_dir() or (folder / "seqinfo.ini").is_file()


@dataclasses.dataclass(frozen=True)
class SequenceInfo:
    """``seqinfo.ini``; ``images`` is the path of ``imDir``, ``length`` and ``size`` (h, w) are None where not told."""

    name: str
    images: Path
    fps: float
    length: int | None
    size: tuple[int, int] | None


def read_seqinfo(path: Path) -> SequenceInfo:
    """Raises `ValueError` naming the file and all that is wrong."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
        entries = dict(parser["Sequence"])
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no seqinfo.ini: wanted a section [Sequence] ({error})") from error
    try:
        fps = float(entries["framerate"])
        length = int(entries["seqlength"]) if "seqlength" in entries else None
        size = (int(entries["imheight"]), int(entries["imwidth"])) if "imheight" in entries else None
        if not fps > 0 or length == 0:
            raise ValueError("frameRate and seqLength must be above 0")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: {error}; wanted frameRate, and where present seqLength, imWidth and imHeight, as numbers"
        ) from error
    images = path.parent / entries.get("imdir", "img1")
    return SequenceInfo(entries.get("name", path.parent.name), images, fps, length, size)


def read_truth(path: Path) -> np.ndarray:
    """A ``gt.txt`` as rows ``[R, 9]`` float64 (see the module).

    Columns 8 and 9 are class and visibility (MOT16 and later) where that is what their numbers can be; otherwise they
    are positions in the world (MOT15), and, as where they are missing or the class is −1, every row is a pedestrian, to
    be found where its flag is not 0. Raises `ValueError` naming file and line.
    """
    rows = _read_rows(path, 7, 10)
    truth = np.ones((len(rows), len(TRUTH_COLUMNS)))
    truth[:, :7] = rows[:, :7]
    if rows.shape[1] >= len(TRUTH_COLUMNS):
        kind, visibility = rows[:, 7], rows[:, 8]
        if np.isin(kind, range(-1, 14)).all() and ((visibility >= -1) & (visibility <= 1)).all():
            truth[:, 7] = np.where(kind == -1, PEDESTRIAN, kind)
            truth[:, 8] = visibility
    return truth


def read_tracks(path: Path) -> np.ndarray:
    """A tracker's results as rows ``[R, 10]`` (`RESULT_COLUMNS`). Raises as `read_truth`."""
    rows = _read_rows(path, 7, 10)
    tracks = np.full((len(rows), len(RESULT_COLUMNS)), -1.0)
    tracks[:, : rows.shape[1]] = rows
    return tracks


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Writes rows of truth or tracks, frames and ids as integers, all else so that reading gives the same numbers."""
    lines = [",".join([*(str(int(v)) for v in row[:2]), *(_short(float(v)) for v in row[2:])]) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


def _read_rows(path: Path, least: int, most: int) -> np.ndarray:
    """Rows ``[R, C]`` of one number of columns, sorted by frame and id."""
    rows: list[list[float]] = []
    with path.open(newline="") as file:
        reader = csv.reader(file)
        for cells in reader:
            if not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            try:
                row = [float(cell) for cell in cells if cell.strip()]
            except ValueError as error:
                raise ValueError(f"{where}: {error}; wanted numbers: {','.join(TRUTH_COLUMNS)}") from error
            if not least <= len(row) <= most or (rows and len(row) != len(rows[0])):
                raise ValueError(
                    f"{where}: {len(row)} columns; wanted {len(rows[0]) if rows else f'{least} to {most}'}: "
                    "frame,id,x,y,width,height,flag or confidence, …"
                )
            if not np.isfinite(row).all() or row[0] < 0 or row[0] % 1 or row[1] % 1:
                raise ValueError(f"{where}: frame {row[0]:g}, id {row[1]:g}; wanted whole, finite numbers")
            rows.append(row)
    if not rows:
        return np.empty((0, least))
    found = np.asarray(rows)
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    same = (np.diff(found[:, :2], axis=0) == 0).all(1) & (found[1:, 1] >= 0)
    if same.any():
        frame, track = found[1:][same][0, :2]
        raise ValueError(
            f"{path}: frame {frame:g} has two rows of id {track:g}, {counted(int(same.sum()), 'case')} in all"
        )
    return found


def _open_sequence(folder: Path, video: Path | None) -> tuple[Sequence, np.ndarray]:
    info = read_seqinfo(folder / "seqinfo.ini")
    rows = read_truth(folder / "gt" / "gt.txt")
    source = video or info.images
    if source.is_dir():
        files = _numbered_pictures(source, folder)
        first = files[0][0]
        if info.length is not None:
            files = files[: info.length]
        sequence = picture_sequence(info.name, [path for _, path in files], range(1, len(files) + 1), info.fps)
        rows[:, 0] -= first - 1
    elif source.is_file():
        length = info.length or int(rows[:, 0].max(initial=1))
        sequence = video_sequence(info.name, source, range(1, length + 1), info.fps)
    else:
        raise FileNotFoundError(f"{folder}: no pictures at {source}; copy them there, or give the video")
    if info.size is not None and info.size != sequence.size:
        raise ValueError(
            f"{source} is {sequence.size[1]}×{sequence.size[0]}, but {folder / 'seqinfo.ini'} says "
            f"{info.size[1]}×{info.size[0]}: the boxes may be those of another size"
        )
    outside = (rows[:, 0] < 1) | (rows[:, 0] > sequence.frames)
    if outside.any():
        raise ValueError(
            f"{folder / 'gt' / 'gt.txt'} names {counted(len(np.unique(rows[outside, 0])), 'frame')} that {source} does "
            f"not have: {listed(f'{n:g}' for n in np.unique(rows[outside, 0]))}; it has {sequence.frames}"
        )
    return sequence, rows


def _numbered_pictures(folder: Path, sequence: Path) -> list[tuple[int, Path]]:
    """Pictures by the number in their names, which must be without gaps."""
    numbered = []
    for path in folder.iterdir():
        digits = re.search(r"(\d+)$", path.stem)
        if digits and path.is_file() and not path.name.startswith("."):
            numbered.append((int(digits[1]), path))
    numbered.sort()
    if not numbered:
        raise FileNotFoundError(f"{sequence}: no numbered pictures (000001.jpg, …) in {folder}")
    present = {n for n, _ in numbered}
    if gaps := [n for n in range(numbered[0][0], numbered[-1][0]) if n not in present]:
        extension = numbered[0][1].suffix
        check_files([folder / f"{n:0{len(numbered[0][1].stem)}d}{extension}" for n in gaps], named_by=sequence)
    return numbered


def _numbered(sequences: tuple[Sequence, ...]) -> tuple[Sequence, ...]:
    """The sequences with image ids that are unique among them."""
    result, first = [], 1
    for sequence in sequences:
        result.append(dataclasses.replace(sequence, image_ids=tuple(range(first, first + sequence.frames))))
        first += sequence.frames
    return tuple(result)


def _coco_truth(sequences: tuple[Sequence, ...], truth: Mapping[str, np.ndarray]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sequence in sequences:
        h, w = sequence.size
        images += [
            {"id": id, "file_name": f"{sequence.name}/{n:06d}", "height": h, "width": w}
            for n, id in enumerate(sequence.image_ids, 1)
        ]
        rows = truth[sequence.name]
        # Traffic (3 … 6) and occluders (9 … 11) are no persons: a detection on them is as wrong as anywhere.
        for row, found in zip(rows, targets(rows), strict=True):
            if not found and row[7] not in (PEDESTRIAN, *DISTRACTORS):
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sequence.image_ids[int(row[0]) - 1],
                    "category_id": PERSON["id"],
                    "bbox": row[2:6].tolist(),
                    "area": float(row[4] * row[5]),
                    "iscrowd": int(not found),
                    "track_id": int(row[1]),
                }
            )
    return {"images": images, "annotations": annotations, "categories": [PERSON]}
