"""An ONNX graph as plain data, without ONNX's own library."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Value = Any
"""A NumPy array (known while tracing), a JAX array, or None (an optional input that is left out)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph.

    ``op`` is its type, with its domain (``com.microsoft::Gelu``) unless that is ONNX's own. Names of tensors join
    outputs to inputs, ``""`` being an optional input that is left out. ``attributes`` are int, float, str, tuples of
    these, or NumPy arrays. ``opset`` is the version of the operator's domain.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute's value, or the default."""
        return self.attributes.get(attribute, default)

    def ints(self, attribute: str, argument: Value = None) -> tuple[int, ...] | None:
        """Integers that are an input (``argument``) in newer opsets and an attribute in older ones; None if neither."""
        if argument is not None:
            return tuple(int(i) for i in np.asarray(argument).reshape(-1))
        value = self.get(attribute)
        return None if value is None else tuple(value)


Dimensions = tuple[int | str | None, ...]
"""Sizes of the axes; a name or None where the graph leaves one open."""


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """A network as ONNX describes it.

    ``nodes`` in an order in which they can run; ``constants``: weights and other known tensors by name; ``inputs``:
    the tensors that are fed, with their sizes; ``outputs``: the names of those that the graph gives out.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, np.ndarray]
    inputs: Mapping[str, Dimensions]
    outputs: tuple[str, ...]


def cut(graph: Graph, tensor: str, dimensions: Dimensions) -> tuple[Graph, Graph]:
    """The network in two: what makes ``tensor``, and what takes it (of size ``dimensions``) to the graph's outputs.

    Nothing else may pass from one part to the other: `onnx_network` refuses the second part, naming what is missing,
    where the network has another way round. Raises `ValueError` for a tensor that no node makes.
    """
    made = {name for node in graph.nodes for name in node.outputs}
    if tensor not in made:
        raise ValueError(f"no node makes the tensor {tensor!r}: jaxwrap.tasks.onnx.tensor_shapes lists what there is")
    before: list[Node] = []
    needed = {tensor}
    for node in reversed(graph.nodes):
        if needed & {*node.outputs}:
            before.append(node)
            needed |= {*node.inputs}
    rest = tuple(node for node in graph.nodes if not any(node is other for other in before))
    first = dataclasses.replace(graph, nodes=tuple(reversed(before)), outputs=(tensor,))
    return first, dataclasses.replace(graph, nodes=rest, inputs={tensor: dimensions})
