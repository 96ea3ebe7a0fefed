"""Reads ONNX files into the library's plain `Graph`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxwrap.tasks.onnx_graph import Graph, Node

if TYPE_CHECKING:
    import onnx

_OLDEST_OPSET = 7
"""Before it, operators broadcast in a way of their own."""


def read_onnx(path: str | Path) -> Graph:
    """The network of an ONNX file, with the weights that lie beside it, if any.

    Raises `FileNotFoundError`, and `ValueError` for a file that is truncated, damaged, not ONNX, or older than opset 7.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # the parser, the checker and the reader of external weights raise what they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is not a sound ONNX file ({reason[0]}): fetch or export it again") from error
    try:
        return graph_of(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def graph_of(model: onnx.ModelProto) -> Graph:
    """The `Graph` of a model in memory, as `onnx.load` gives it. Raises `ValueError` as `read_onnx` does."""
    from onnx import numpy_helper

    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets.get("ai.onnx", 0) < _OLDEST_OPSET:
        raise ValueError(
            f"opset {opsets.get('ai.onnx', 0)} is too old; wanted {_OLDEST_OPSET} or newer: convert the file with "
            "onnx.version_converter"
        )
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        domain = proto.domain or "ai.onnx"
        node = Node(
            proto.op_type if domain == "ai.onnx" else f"{domain}::{proto.op_type}",
            proto.name,
            tuple(proto.input),
            tuple(proto.output),
            {attribute.name: _attribute(attribute) for attribute in proto.attribute},
            opsets.get(domain, 0),
        )
        if node.op == "Constant" and (value := _constant(node)) is not None:
            constants[node.outputs[0]] = value
        else:
            nodes.append(node)
    inputs = {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants  # old files list their weights among the inputs
    }
    return Graph(tuple(nodes), constants, inputs, tuple(value.name for value in model.graph.output))


def _attribute(attribute: onnx.AttributeProto) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value)
    return value  # a number; or a subgraph, whose operator is unknown anyway


def _constant(node: Node) -> np.ndarray | None:
    """Value of a Constant node; None where it is of a kind that is not supported (sparse, strings)."""
    for name, dtype in {"value": None, "value_float": np.float32, "value_floats": np.float32}.items():
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype)
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            return np.asarray(node.attributes[name], np.int64)
    return None
