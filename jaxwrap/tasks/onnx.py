"""Networks that came from elsewhere: an ONNX graph as a JAX function, so that any exported network can be a receiver.

A `Graph` is plain data (`jaxwrap.train.onnx_models` reads it from a file). `onnx_network` checks it and gives
``images [N, C, H, W] → {name: output}``, differentiable, compiled, batched; ``outputs=`` names any tensors of the
graph, so that the first part of a network is a receiver as well. ONNX's own axes are kept throughout.

Graphs are exported for a batch of 1, often with that 1 written into their reshapes. So a batch never enters the graph:
it runs as exported, for one frame, under `jax.vmap`. That serves any N, and no frame can see another.

Why operators of our own: of the importers at hand, jaxonnxruntime 0.3.0 computes wrong shapes in YOLOX's first slices
under jax 0.10, runs node by node uncompiled, and cannot stop at a feature.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.tasks.onnx_graph import Dimensions, Graph, Node, Value
from jaxwrap.tasks.onnx_operators import OPERATORS


def onnx_network(
    graph: Graph, *, outputs: Sequence[str] | None = None, dtype: Any = jnp.float32
) -> jax.tree_util.Partial:
    """The graph as a function ``images [N, C, H, W] → {name: array [N, …]}`` of its one input.

    The batch's leading 1 of an output becomes N; an output without it becomes ``[N, …all its axes]``. Axes that the
    graph leaves open may have any size, and so may others as far as its own reshapes go along. What the images hold
    (RGB or BGR, range, mean) is the network's own affair.

    The result is a `jax.tree_util.Partial` of the network's weights, a dict of arrays: networks of the same nodes share
    compiled code.

    Args:
      graph: what `jaxwrap.train.onnx_models.read_onnx` gives.
      outputs: names of any tensors of the graph, see `tensor_shapes`; default: its own outputs. Nodes that these do not
        need are neither run nor looked at.
      dtype: real type of weights and activations: float32, bfloat16, or float64 (with JAX's x64). Outputs come back as
        float32, or float64. bfloat16 changes YOLOX-nano's features by 3 … 7 % and its scores by 5 % (norms, one COCO
        picture); 16×16 block means of the map of the scores then correlate .99 with float32's (8 equal sketches).

    Raises:
      ValueError: unknown operators (all listed), unknown outputs, tensors that nothing makes, NaN among the weights,
        another number of inputs than one, a batch fixed to another number than 1; a node that cannot run, named: here
        where the graph states its sizes, else at the first call.
    """
    wanted = tuple(graph.outputs if outputs is None else outputs)
    _, dimensions = _only_input(graph)
    nodes = _needed_nodes(graph, wanted)
    _check_operators(graph, nodes)
    program, weights = _program(graph, nodes, wanted, dtype)
    if all(isinstance(d, int) for d in dimensions[1:]):
        jax.eval_shape(program, weights, jax.ShapeDtypeStruct((1, *dimensions[1:]), jnp.float32))
    return jax.tree_util.Partial(program, weights)


def tensor_shapes(graph: Graph, size: Sequence[int] | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes that `onnx_network` gives for N = 1, of all real tensors that can be named as ``outputs``, in the order of
    the graph.

    ``size``: the input's axes after the batch, where the graph leaves them open. What unknown operators make, and what
    is made from it, is left out.
    """
    _, dimensions = _only_input(graph)
    axes = tuple(dimensions[1:] if size is None else size)
    if not all(isinstance(d, int) for d in axes):
        raise ValueError(f"the graph leaves sizes open, {_text(dimensions)}: give size=(channels, height, width)")
    nodes = _known_nodes(graph)
    made = tuple(name for node in nodes for name in node.outputs if name)
    program, weights = _program(graph, nodes, made, jnp.float32)
    shapes = jax.eval_shape(program, weights, jax.ShapeDtypeStruct((1, *axes), jnp.float32))
    return {name: shapes[name].shape for name in made if jnp.issubdtype(shapes[name].dtype, jnp.floating)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """The nodes to run, without the weights; equal to another that computes the same."""

    nodes: tuple[Node, ...]
    static: Mapping[str, np.ndarray]
    input: str
    dimensions: Dimensions
    outputs: tuple[str, ...]
    dtype: Any
    digest: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __call__(self, weights: Mapping[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        images = jnp.asarray(images)
        if images.ndim != len(self.dimensions):
            raise ValueError(f"images of shape {images.shape} were given; the network wants {_text(self.dimensions)}")
        if images.shape[0] == 0:
            raise ValueError("no images were given: the leading axis is 0")
        return jax.vmap(lambda image: self._one_frame(weights, image[None]))(images.astype(self.dtype))

    def _one_frame(self, weights: Mapping[str, jax.Array], image: jax.Array) -> dict[str, jax.Array]:
        values: dict[str, Value] = {"": None, **self.static, **weights, self.input: image}
        for node in self.nodes:
            arguments = [values[name] for name in node.inputs]
            try:
                made = self._apply(node, arguments)
            except Exception as error:
                raise ValueError(
                    f"{_name(node)} cannot run on inputs of shape "
                    f"{', '.join('-' if a is None else str(tuple(a.shape)) for a in arguments)}, from images of "
                    f"{tuple(image.shape)} where the graph states {_text(self.dimensions)}: {error}"
                ) from error
            values.update(zip(node.outputs, made, strict=False))  # optional outputs may be left out
        return {name: self._output(values[name]) for name in self.outputs}

    def _apply(self, node: Node, arguments: list[Value]) -> tuple[Value, ...]:
        operator = OPERATORS[node.op]
        for i in operator.static:
            if i < len(arguments) and isinstance(arguments[i], jax.Array):
                raise ValueError(
                    f"its input {node.inputs[i]!r} depends on the samples; shapes must be known beforehand"
                )
        if any(isinstance(a, jax.Array) for a in arguments):
            arguments = [a if i in operator.static or a is None else self._traced(a) for i, a in enumerate(arguments)]
        made = operator.function(node, *arguments)
        made = made if isinstance(made, tuple) else (made,)
        if len(made) < len([name for name in node.outputs if name]):
            raise ValueError(f"its outputs {', '.join(node.outputs[len(made) :])} are not supported")
        known = (np.ndarray, np.generic)
        return tuple(np.asarray(value) if isinstance(value, known) else self._traced(value) for value in made)

    def _traced(self, value: Value) -> jax.Array:
        """A JAX array: real ones in the network's type."""
        array = jnp.asarray(value)
        return array.astype(self.dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def _output(self, value: Value) -> jax.Array:
        array = jnp.asarray(value)
        if jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits < 32:
            array = array.astype(jnp.float32)
        return array[0] if array.ndim and array.shape[0] == 1 else array


def _program(
    graph: Graph, nodes: tuple[Node, ...], outputs: tuple[str, ...], dtype: Any
) -> tuple[_Program, dict[str, jax.Array]]:
    """Splits the constants that these nodes read: integers, and all that shapes are computed from, belong to the
    program; other real ones are weights."""
    read = {name for node in nodes for name in node.inputs} | set(outputs)
    shaping = _shaping_names(nodes)
    static, weights = {}, {}
    for constant, value in graph.constants.items():
        if constant not in read:
            continue
        if constant in shaping or not np.issubdtype(value.dtype, np.floating):
            static[constant] = value
        else:
            weights[constant] = jnp.asarray(value, dtype)
    if broken := [constant for constant, value in weights.items() if np.isnan(np.asarray(value)).any()]:
        raise ValueError(f"NaN in the weights {', '.join(broken)}: the file is damaged, or its training diverged")
    name, dimensions = _only_input(graph)
    dtype = jnp.dtype(dtype)
    content = [_content(node.attributes.get(key)) for node in nodes for key in sorted(node.attributes)]
    content += [(node.op, node.inputs, node.outputs, sorted(node.attributes), node.opset) for node in nodes]
    content += [(key, _content(value)) for key, value in static.items()]
    text = repr((content, name, dimensions, outputs, dtype))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _Program(nodes, static, name, dimensions, outputs, dtype, digest), weights


def _content(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _shaping_names(nodes: Sequence[Node]) -> set[str]:
    """Names of all tensors from which operators must know shapes, sizes or axes while tracing."""
    names: set[str] = set()
    for node in reversed(nodes):
        names |= {node.inputs[i] for i in OPERATORS[node.op].static if i < len(node.inputs)}
        if node.op not in ("Shape", "Size") and names & set(node.outputs):
            names |= set(node.inputs)
    return names


def _only_input(graph: Graph) -> tuple[str, Dimensions]:
    if len(graph.inputs) != 1:
        raise ValueError(
            f"the graph has {len(graph.inputs)} inputs ({', '.join(graph.inputs) or 'none'}); a receiver has one, the "
            "picture: export the others as constants"
        )
    ((name, dimensions),) = graph.inputs.items()
    if not dimensions:
        raise ValueError(f"the input {name!r} has no axes; wanted [N, …]")
    if isinstance(dimensions[0], int) and dimensions[0] != 1:
        raise ValueError(
            f"the graph is fixed to batches of {dimensions[0]}, {_text(dimensions)}: export it with a batch of 1 "
            "(any number of frames can then be given) or an open one"
        )
    return name, dimensions


def _needed_nodes(graph: Graph, outputs: tuple[str, ...]) -> tuple[Node, ...]:
    """The nodes that the outputs depend on."""
    if not outputs:
        raise ValueError("no outputs were named, and the graph gives out none")
    made = {name for node in graph.nodes for name in node.outputs if name}
    if unknown := [name for name in outputs if name not in made]:
        raise ValueError(
            f"no node makes {', '.join(map(repr, unknown))}; the graph's own outputs: {', '.join(graph.outputs)}; "
            "tensor_shapes(graph) lists all"
        )
    needed, nodes = set(outputs), []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            nodes.append(node)
    nodes.reverse()
    known = {"", *graph.inputs, *graph.constants}
    for node in nodes:
        if absent := [name for name in node.inputs if name not in known]:
            raise ValueError(f"{_name(node)} reads {', '.join(map(repr, absent))}, which nothing before it makes")
        known |= set(node.outputs)
    return tuple(nodes)


def _known_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that can run, given what is known of operators."""
    present, nodes = {"", *graph.inputs, *graph.constants}, []
    for node in graph.nodes:
        if node.op in OPERATORS and present.issuperset(node.inputs):
            present |= set(node.outputs)
            nodes.append(node)
    return tuple(nodes)


def _check_operators(graph: Graph, nodes: Iterable[Node]) -> None:
    unknown: dict[str, int] = {}
    for node in nodes:
        if node.op not in OPERATORS:
            unknown[node.op] = unknown.get(node.op, 0) + 1
    if not unknown:
        return
    known = _known_nodes(graph)
    fed = {name for node in graph.nodes if node.op in unknown for name in node.inputs}
    before = [name for node in known for name in node.outputs if name in fed]
    raise ValueError(
        f"unknown operators: {', '.join(f'{op} (in {n} nodes)' for op, n in sorted(unknown.items()))}. "
        + (f"The tensors before them can be had: outputs={before[:8]}. " if before else "")
        + f"Known: {', '.join(sorted(OPERATORS))}"
    )


def _name(node: Node) -> str:
    return f"node {node.name!r} ({node.op})" if node.name else f"the {node.op} that makes {node.outputs[0]!r}"


def _text(dimensions: Dimensions) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in dimensions)}]"
