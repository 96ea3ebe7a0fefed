"""Published networks from their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from jaxwrap.tasks import rcnn, torchvision_keys, yolo_fastest, yolox
from jaxwrap.tasks.detector import Detector
from jaxwrap.train.onnx_models import read_onnx
from jaxwrap.train.state_dicts import read_state_dict

FOLDER_VARIABLE = "JAXWRAP_NETWORKS"
"""Environment variable: a folder that is searched, with all folders in it, for networks' files."""


def _yolox_nano(path: Path, digest: str) -> Detector:
    network = yolox.yolox_from_onnx(read_onnx(path))
    return Detector("yolox-nano", network, yolox.INPUT, "p5", yolox.decode, digest)


def _yolo_fastest(path: Path, digest: str) -> Detector:
    network = yolo_fastest.yolo_fastest_from_arrays(read_state_dict(path))
    return Detector("yolo-fastestv2", network, yolo_fastest.INPUT, "C3", yolo_fastest.decode, digest)


def _region(config: rcnn.RegionConfig) -> Callable[[Path, str], Detector]:
    def build(path: Path, digest: str) -> Detector:
        return rcnn.faster_rcnn(torchvision_keys.region_network(read_state_dict(path), config), digest)

    return build


_DETECTORS: dict[str, tuple[str, Callable[[Path, str], Detector]]] = {
    "yolox-nano": ("yolox_nano.onnx", _yolox_nano),
    "yolo-fastestv2": ("yolo-fastestv2.npz", _yolo_fastest),
    "faster-rcnn": ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", _region(rcnn.FASTER_RCNN)),
    "mask-rcnn": ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", _region(rcnn.MASK_RCNN)),
}

DETECTORS: tuple[str, ...] = tuple(_DETECTORS)
"""Names that `load_detector` takes."""


def load_detector(name: str, path: str | Path | None = None) -> Detector:
    """The detector of a name in `DETECTORS`, with the weights of the file at ``path``; default: the published file's
    name, searched for in the folder that ``JAXWRAP_NETWORKS`` names.

    Raises `ValueError` for an unknown name and for weights that do not fit (all mismatches listed),
    `FileNotFoundError` where there is no such file.
    """
    if name not in _DETECTORS:
        raise ValueError(f"detector {name!r} was given; supported: {', '.join(DETECTORS)}")
    file_name, build = _DETECTORS[name]
    found = _find(name, file_name) if path is None else Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"no file {found} of {name}'s weights")
    digest = hashlib.sha256(found.read_bytes()).hexdigest()[:16]
    try:
        return build(found, digest)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error


def find_weights() -> dict[str, Path | None]:
    """By detector, the weights file that `load_detector` would read; None where there is none."""
    found: dict[str, Path | None] = {}
    for name, (file_name, _) in _DETECTORS.items():
        try:
            found[name] = _find(name, file_name)
        except FileNotFoundError:
            found[name] = None
    return found


def _find(name: str, file_name: str) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    matches = sorted(Path(folder).expanduser().rglob(file_name)) if folder else []
    if not matches:
        searched = f"{FOLDER_VARIABLE}={folder} holds no {file_name}" if folder else f"{FOLDER_VARIABLE} is not set"
        raise FileNotFoundError(
            f"{name}'s weights were not found: {searched}. Give the path of {file_name}, or name in {FOLDER_VARIABLE} "
            "a folder that holds it"
        )
    return matches[0]
