"""ONNX networks that look at decoded pictures, as receivers of the mode ``codec`` (FP-RDO section III)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jaxwrap.tasks import yolox
from jaxwrap.tasks.onnx import onnx_network
from jaxwrap.tasks.pictures import PictureInput, picture_receiver
from jaxwrap.train.evaluate.modes import BIT_DEPTH, PixelMode, receiver_mode
from jaxwrap.train.evaluate.points import canonical_json
from jaxwrap.train.onnx_models import read_onnx

INPUTS: dict[str, PictureInput] = {
    "yolox": dataclasses.replace(yolox.INPUT, height=None, width=None),
    "imagenet": PictureInput(mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375)),
}
"""What networks are fed, but for the size, which is the graph's own: BGR in [0, 255], letterboxed; or RGB with
ImageNet's means and deviations, stretched."""


def network_mode(path: Path, tensors: Sequence[str] = (), expects: PictureInput | str = "yolox") -> PixelMode:
    """The codec alone, with the network of an ONNX file as its receiver; what has to survive are the named tensors
    (default: the graph's outputs), with the metric 1.

    ``expects``: a name of `INPUTS`, or an input by itself. Sizes that it leaves open are those that the graph states;
    where that leaves them open too, the picture's own. Raises `ValueError` for an unknown name, a file that is no sound
    network of pictures, and tensors that it does not have.
    """
    if isinstance(expects, str):
        if expects not in INPUTS:
            raise ValueError(f"network input {expects!r} was asked for; known: {', '.join(INPUTS)}")
        expects = INPUTS[expects]
    graph = read_onnx(path)
    network = onnx_network(graph, outputs=tuple(tensors) or None)
    (dimensions,) = graph.inputs.values()
    if len(dimensions) != 4 or (isinstance(dimensions[1], int) and dimensions[1] != 3):
        raise ValueError(f"{path} takes an input of {dimensions}; wanted pictures [N, 3, height, width]")
    height, width = (side if isinstance(side, int) else None for side in dimensions[2:])
    expects = dataclasses.replace(expects, height=expects.height or height, width=expects.width or width)
    digest = hashlib.sha256(path.read_bytes())
    digest.update(canonical_json([*tensors, dataclasses.asdict(expects)]).encode())
    return receiver_mode(picture_receiver(network, expects, bit_depth=BIT_DEPTH), digest.hexdigest()[:16])


def parse_receiver(text: str, expects: str = "yolox") -> PixelMode:
    """``FILE.onnx`` or ``FILE.onnx:tensor,tensor`` as a mode. Errors as in `network_mode`, and `FileNotFoundError`."""
    name, found, rest = text.rpartition(".onnx:")
    path, tensors = (f"{name}.onnx", [word.strip() for word in rest.split(",")]) if found else (text, [])
    return network_mode(Path(path), tensors, expects)
