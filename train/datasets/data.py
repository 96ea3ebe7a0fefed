"""What a task is evaluated on: sequences of RGB pictures, and the truth about them.

A still picture is a sequence of one frame. Truth of detection and segmentation is a COCO ``dict`` (images, annotations,
categories), boxes ``[x, y, width, height]`` in pixels of the picture; of tracking, an array of MOTChallenge rows by
sequence (`motchallenge`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxwrap.train.media import STILL_FPS, open_readers, picture_size, rgb_frames

Task = Literal["detection", "segmentation", "tracking"]

TASKS: tuple[Task, ...] = ("detection", "segmentation", "tracking")


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
    """Pictures of one size that follow each other, decoded when they are asked for.

    ``size``: (height, width), odd ones too. ``image_ids`` names each frame in the truth. ``files``: one picture per
    frame, or one video that holds them all from its first frame on.
    """

    name: str
    size: tuple[int, int]
    fps: float
    image_ids: tuple[int, ...]
    files: tuple[Path, ...]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.image_ids)

    def rgb(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames ``start`` … ``stop`` − 1 (to the end where None) as RGB uint8 ``[N, H, W, 3]``.

        A video is decoded from its first frame each time. Raises `ValueError` naming file and frame for damage, for
        another size than ``size``, and for a video that ends too soon.
        """
        wanted = range(self.frames)[start:stop]
        result = np.empty((len(wanted), *self.size, 3), np.uint8)
        if len(self.files) == self.frames:
            decoded: Iterator[np.ndarray] = (next(rgb_frames(self.files[n])) for n in wanted)
        else:
            decoded = itertools.islice(rgb_frames(self.files[0], wanted.start), len(wanted))
        count = 0
        for frame in decoded:
            if frame.shape[:2] != self.size:
                raise ValueError(
                    f"{self.name}, frame {wanted[count]}: {_shape(frame.shape[:2])} where the sequence is "
                    f"{_shape(self.size)}"
                )
            result[count] = frame
            count += 1
        if count < len(wanted):
            raise ValueError(
                f"{self.files[0]} ends after {wanted.start + count} frames; its truth is about {self.frames}"
            )
        return result

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the files' bytes."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """Sequences and their truth.

    ``truth``: see the module. ``class_ids``: detector class (COCO's 80, from 0) → category id of the truth; classes
    that are missing cannot be right. ``video``: frames of a sequence follow each other in time, so that they may be
    coded with inter prediction.
    """

    name: str
    task: Task
    sequences: tuple[Sequence, ...]
    truth: dict[str, Any]
    class_ids: dict[int, int]
    video: bool


def still(path: Path, image_id: int, size: tuple[int, int], *, name: str | None = None) -> Sequence:
    """A picture as a sequence of one frame."""
    return Sequence(name or path.stem, size, STILL_FPS, (image_id,), (path,))


def picture_sequence(name: str, files: Iterable[Path], image_ids: Iterable[int], fps: float) -> Sequence:
    """Pictures that follow each other. Raises `ValueError` naming the first picture of another size."""
    files = tuple(files)
    sizes = [picture_size(path) for path in files]
    check_one_size(name, sizes, [str(path) for path in files])
    return Sequence(name, sizes[0], fps, tuple(image_ids), files)


def video_sequence(name: str, path: Path, image_ids: Iterable[int], fps: float) -> Sequence:
    """The first frames of a video, as many as there are ``image_ids``. Raises `ValueError` where it says that it has
    fewer."""
    image_ids = tuple(image_ids)
    (reader,), _ = open_readers([path])
    if reader.num_frames < len(image_ids):
        raise ValueError(f"{path} has {reader.num_frames} frames; its truth is about {len(image_ids)}")
    first = next(rgb_frames(path))
    return Sequence(name, (first.shape[0], first.shape[1]), fps, image_ids, (path,))


def check_one_size(name: str, sizes: list[tuple[int, int]], frames: list[str]) -> None:
    """Raises `ValueError` naming the sequence, the first frame that differs in size, and how many do."""
    others = [n for n, size in enumerate(sizes) if size != sizes[0]]
    if others:
        n = others[0]
        raise ValueError(
            f"the pictures of {name} change size: frame {n} ({frames[n]}) is {_shape(sizes[n])}, the first is "
            f"{_shape(sizes[0])}, and {len(others)} of {len(sizes)} differ from it; cut it into sequences of one size"
        )


def check_files(files: Iterable[Path], *, named_by: Path) -> None:
    """Raises `FileNotFoundError` naming the first of the files that do not exist and counting all."""
    if absent := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(
            f"{named_by} names {counted(len(absent), 'image')} that {'is' if len(absent) == 1 else 'are'} not there: "
            f"{listed(absent)}; give the folder of the images it was made for"
        )


def check_unique(names: Iterable[str], *, where: Path) -> None:
    """Raises `ValueError` for sequences of one name, whose results could not be told apart."""
    if double := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ValueError(f"{where}: more than one sequence is named {listed(double)}")


def sub_folders(folder: Path) -> list[Path]:
    """Folders directly inside a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def listed(items: Iterable[object], limit: int = 5) -> str:
    """The first few items, and how many more there are."""
    names = [str(item) for item in items]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def counted(count: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _shape(size: tuple[int, ...]) -> str:
    return f"{size[1]}×{size[0]}"
