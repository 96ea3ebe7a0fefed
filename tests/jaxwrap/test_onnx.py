"""Against onnxruntime, which shares nothing with our operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxwrap.arrays import Yuv420
from jaxwrap.colour import rgb_from_yuv, rgb_to_yuv420, yuv_to_rgb
from jaxwrap.importance.maps import importance_map
from jaxwrap.tasks.onnx import onnx_network, tensor_shapes
from jaxwrap.tasks.onnx_operators import OPERATORS
from jaxwrap.tasks.pictures import PictureInput, picture_receiver
from jaxwrap.tasks.yolox import INPUT, yolox_receiver
from jaxwrap.train.media import open_clips
from jaxwrap.train.onnx_models import graph_of, read_onnx
from jaxwrap.wrappers.resample import interpolate

RNG = np.random.default_rng(0)
OPSET = 17


def real(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2.0, shape).astype(np.float32)


def floats(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def model_of(
    nodes: list[onnx.NodeProto],
    x: np.ndarray | tuple[Any, ...],
    constants: dict[str, np.ndarray] | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model from ``x`` (an example, or its sizes) to ``outputs``."""
    sizes = x.shape if isinstance(x, np.ndarray) else x
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 20 else 10)


def reference(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """onnxruntime's outputs, as the file states the graph: nothing optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


IMAGE = (1, 4, 7, 9)
TRANSFORM = "coordinate_transformation_mode"
# Operator, further inputs, attributes; then, where they differ, the input's shape and the opset.
Case = tuple[str, list[Any], dict[str, Any]] | tuple[str, list[Any], dict[str, Any], Any]
CASES: list[Any] = [
    *((op, [], {}) for op in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Neg")),
    *((op, [], {}) for op in ("Reciprocal", "Relu", "Shape", "Sigmoid", "Sin", "Size", "Softplus", "Softsign", "Tanh")),
    ("Log", [], {}, positive(*IMAGE)),
    ("Sqrt", [], {}, positive(*IMAGE)),
    *((op, [real(4, 1, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    ("Add", [real(2, 4, 7, 9)], {}, real(1, 7, 9)),
    ("Pow", [np.asarray(2, np.float32)], {}),
    ("Sum", [real(9), real(7, 1)], {}),
    ("Mean", [real(9), real(7, 1)], {}),
    ("Clip", [np.asarray(-0.5, np.float32), np.asarray(0.25, np.float32)], {}),
    ("Clip", [None, np.asarray(0.25, np.float32)], {}),
    ("Clip", [], {"min": -0.5, "max": 0.25}, real(*IMAGE), 7),
    ("Elu", [], {"alpha": 0.5}),
    ("Mish", [], {}, real(*IMAGE), 18),
    ("Gelu", [], {}, real(*IMAGE), 20),
    ("Gelu", [], {"approximate": "tanh"}, real(*IMAGE), 20),
    ("HardSigmoid", [], {"alpha": 0.3, "beta": 0.4}),
    ("LeakyRelu", [], {"alpha": 0.2}),
    ("PRelu", [real(4, 1, 1)], {}),
    ("Cast", [], {"to": TensorProto.FLOAT16}),
    ("Cast", [], {"to": TensorProto.INT32}),
    # shapes
    ("Concat", [real(1, 2, 7, 9)], {"axis": 1}),
    ("DepthToSpace", [], {"blocksize": 2}, real(1, 8, 3, 2)),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}, real(1, 8, 3, 2)),
    ("SpaceToDepth", [], {"blocksize": 2}, real(1, 2, 4, 6)),
    ("Expand", [ints(1, 4, 3, 5)], {}, real(1, 4, 1, 5)),
    ("Expand", [ints(3, 1)], {}, real(1, 4, 1, 5)),
    ("Flatten", [], {}),
    ("Flatten", [], {"axis": -2}),
    ("Gather", [ints(2, 0, -1)], {"axis": 2}),
    ("Gather", [np.int64(1)], {"axis": 1}),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, -1), np.asarray(0.5, np.float32)], {}),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ("Pad", [], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 2.0}, real(*IMAGE), 10),
    ("Pad", [ints(1, 3), None, ints(-1)], {}, real(*IMAGE), 18),
    ("Reshape", [ints(0, 2, -1)], {}),
    ("Slice", [ints(1), ints(np.iinfo(np.int64).max), ints(2), ints(2)], {}),
    ("Slice", [ints(-1, 4), ints(np.iinfo(np.int64).min, 1), ints(3, 2), ints(-2, -1)], {}),
    ("Slice", [ints(5), ints(2), ints(2)], {}),
    ("Slice", [], {"starts": [1], "ends": [-1], "axes": [3]}, real(*IMAGE), 9),
    ("Split", [ints(1, 3)], {"axis": 1}),
    ("Split", [], {"axis": 3, "num_outputs": 2}, real(*IMAGE), 18),
    ("Split", [], {"axis": 1, "split": [3, 1]}, real(*IMAGE), 11),
    ("Squeeze", [ints(2)], {}, real(1, 4, 1, 5)),
    ("Squeeze", [], {"axes": [-2]}, real(1, 4, 1, 5), 11),
    ("Squeeze", [], {}, real(1, 4, 1, 5)),
    ("Tile", [ints(1, 2, 1, 3)], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [], {}),
    ("Unsqueeze", [ints(1, -1)], {}),
    ("Unsqueeze", [], {"axes": [0, 5]}, real(*IMAGE), 11),
    # sums and products
    ("BatchNormalization", [positive(4), real(4), real(4), positive(4)], {"epsilon": 0.01}),
    ("Dropout", [], {}),
    ("Dropout", [], {"ratio": 0.3}, real(*IMAGE), 11),
    ("Gemm", [real(5, 6), real(6)], {"alpha": 0.5, "beta": 2.0}, real(1, 5)),
    ("Gemm", [real(6, 5)], {"transB": 1}, real(1, 5)),
    ("Gemm", [real(1, 6), real(5, 1)], {"transA": 1}, real(1, 5)),
    ("GlobalAveragePool", [], {}),
    ("GlobalMaxPool", [], {}),
    ("InstanceNormalization", [real(4), real(4)], {}),
    ("LayerNormalization", [real(9), real(9)], {}),
    ("LayerNormalization", [real(7, 9)], {"axis": 2}),
    ("LogSoftmax", [], {"axis": 1}),
    ("MatMul", [real(9, 5)], {}),
    ("MatMul", [real(9)], {}),
    *((f"Reduce{op}", [], {"axes": [2, 3]}) for op in ("L2", "Max", "Mean", "Min", "Prod", "SumSquare")),
    ("ReduceMean", [], {"axes": [-1], "keepdims": 0}),
    ("ReduceMean", [ints(1, 2)], {}, real(*IMAGE), 18),
    ("ReduceSum", [ints(1, 2)], {"keepdims": 0}),
    ("ReduceSum", [], {}),
    ("ReduceSum", [], {"noop_with_empty_axes": 1}),
    ("Softmax", [], {}),
    ("Softmax", [], {"axis": 2}, real(*IMAGE), 11),
    # convolution, pooling, resampling
    ("Conv", [real(6, 4, 3, 3), real(6)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [real(6, 2, 3, 2)], {"group": 2, "dilations": [2, 1]}),
    ("Conv", [real(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [real(6, 4, 4, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("Conv", [real(6, 4, 3)], {"auto_pad": "VALID"}, real(1, 4, 9)),
    ("Conv", [real(4, 1, 3, 5), real(4)], {"group": 4, "pads": [1, 2, 0, 1], "strides": [2, 1]}),
    ("Conv", [real(4, 1, 3, 3)], {"group": 4, "dilations": [2, 3], "strides": [1, 2]}),
    ("Conv", [real(8, 1, 3, 3)], {"group": 4}),
    ("ConvTranspose", [real(4, 5, 3, 4), real(5)], {"strides": [2, 3], "pads": [1, 0, 0, 2]}),
    ("ConvTranspose", [real(4, 3, 2, 2)], {"group": 2, "strides": [2, 2], "output_padding": [1, 0]}),
    ("ConvTranspose", [real(4, 3, 3, 3)], {"dilations": [2, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, real(1, 2, 6, 8)),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, real(1, 2, 6, 8)),
    ("Resize", [None, floats(1, 1, 2, 3)], {TRANSFORM: "asymmetric", "nearest_mode": "floor"}),
    ("Resize", [None, floats(1, 1, 2, 2)], {"mode": "nearest"}),
    ("Resize", [None, floats(1, 1, 0.6, 1.7)], {"mode": "nearest", "nearest_mode": "ceil"}),
    ("Resize", [None, floats(1, 1, 2, 1.5)], {"mode": "linear"}),
    ("Resize", [None, None, ints(1, 4, 5, 13)], {"mode": "linear", TRANSFORM: "align_corners"}),
    ("Resize", [None, None, ints(1, 4, 1, 13)], {"mode": "linear", TRANSFORM: "pytorch_half_pixel"}),
    ("Resize", [floats(1, 1, 2, 0.5)], {"mode": "nearest"}, real(*IMAGE), 10),
    ("Upsample", [floats(1, 1, 2, 3)], {"mode": "linear"}, real(*IMAGE), 9),
]  # fmt: skip


def case_model(case: Any) -> tuple[onnx.ModelProto, np.ndarray]:
    op, further, attributes, x, opset = (*case, real(*IMAGE), OPSET)[:5] if len(case) == 3 else (*case, OPSET)[:5]
    constants = {f"c{i}": np.asarray(value) for i, value in enumerate(further) if value is not None}
    names = ["x", *(f"c{i}" if value is not None else "" for i, value in enumerate(further))]
    outputs = ("y", "y2") if op == "Split" else ("y",)
    node = helper.make_node(op, names, outputs, **attributes)
    nodes = [node]
    model = model_of(nodes, x, constants, outputs, opset)
    if op in ("Shape", "Size", "Cast"):  # results that are not float32 are cast to it
        node.output[0] = "raw"
        nodes = [node, helper.make_node("Cast", ["raw"], ["y"], to=TensorProto.FLOAT)]
        model = model_of(nodes, x, constants, outputs, opset)
    return model, x


def case_id(case: Any) -> str:
    return f"{case[0]} {' '.join(f'{k}={v}' for k, v in case[2].items())}".strip()


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_an_operator_agrees_with_onnxruntime(case: Any) -> None:
    model, x = case_model(case)
    ours = jax.jit(lambda network, images: network(images))(onnx_network(graph_of(model)), x)
    for name, theirs in zip(ours, reference(model, x), strict=True):
        theirs = theirs[0] if theirs.ndim and theirs.shape[0] == 1 else theirs
        assert ours[name].shape == (1, *theirs.shape)
        # Sums in another order: some float32 roundings of the largest value (float16 for the cast to it).
        tolerance = 1e-3 if case[2].get("to") == TensorProto.FLOAT16 else 3e-6
        np.testing.assert_allclose(ours[name][0], theirs, rtol=tolerance, atol=tolerance * abs(theirs).max(initial=1))


def test_every_operator_of_the_table_is_compared() -> None:
    elsewhere = {"And", "ConstantOfShape", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    elsewhere |= {"Range", "Where"}  # in the two tests below
    assert {case[0] for case in CASES} | elsewhere == set(OPERATORS)


def test_logic_agrees_with_onnxruntime() -> None:
    nodes = [
        helper.make_node("Greater", ["x", "c"], ["a"]),
        helper.make_node("GreaterOrEqual", ["x", "c"], ["b"]),
        helper.make_node("Less", ["x", "x2"], ["d"]),
        helper.make_node("LessOrEqual", ["x", "x2"], ["e"]),
        helper.make_node("Equal", ["x", "x"], ["f"]),
        helper.make_node("And", ["a", "d"], ["g"]),
        helper.make_node("Or", ["b", "e"], ["h"]),
        helper.make_node("Not", ["g"], ["i"]),
        helper.make_node("And", ["i", "f"], ["j"]),
        helper.make_node("And", ["j", "h"], ["k"]),
        helper.make_node("Where", ["k", "x", "x2"], ["y"]),
    ]
    nodes.insert(0, helper.make_node("Mul", ["x", "x"], ["x2"]))
    x = real(*IMAGE)
    model = model_of(nodes, x, {"c": floats(0.1)})
    np.testing.assert_array_equal(onnx_network(graph_of(model))(x)["y"], reference(model, x)[0])


def shape_arithmetic(height: int | str) -> onnx.ModelProto:
    """y = x flattened by shapes that are computed, plus a ramp as long as it, as PyTorch exports such code."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["one"], value_int=1),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.asarray(0, np.int64))),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Slice", ["s", "c1", "c4"], ["rest"]),
        helper.make_node("ReduceProd", ["rest"], ["size"], axes=[0], keepdims=1),
        helper.make_node("Div", ["size", "c2"], ["half"]),
        helper.make_node("Concat", ["n1", "half", "c2"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Squeeze", ["half"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["ramp"]),
        helper.make_node("Cast", ["ramp"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "column"], ["ramps"]),
        helper.make_node("ConstantOfShape", ["shape"], ["threes"], value=helper.make_tensor("t", 1, [1], [3.0])),
        helper.make_node("Add", ["flat", "ramps"], ["sum"]),
        helper.make_node("Mul", ["sum", "threes"], ["y"]),
    ]
    constants = {"axis": ints(0), "c1": ints(1), "c4": ints(4), "c2": ints(2), "column": ints(-1, 1)}
    return model_of(nodes, ("batch", 2, height, 3), constants)


def test_shapes_are_computed_while_tracing_at_any_size() -> None:
    model = shape_arithmetic("height")
    network = jax.jit(lambda x: onnx_network(graph_of(model))(x)["y"])
    for height in (4, 6):
        x = real(1, 2, height, 3)
        np.testing.assert_allclose(network(x), reference(model, x)[0], rtol=1e-6)


KERNEL = real(4, 3, 3, 3)


def fixed_model() -> onnx.ModelProto:
    """An export for exactly one picture, the batch of 1 hidden in a reshape to heads (as attention does)."""
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], name="stem"),
        helper.make_node("Tanh", ["c"], ["features"]),
        helper.make_node("Reshape", ["features", "heads"], ["h"]),
        helper.make_node("Softmax", ["h"], ["p"], axis=-1),
        helper.make_node("Reshape", ["p", "back"], ["y"]),
    ]
    constants = {"k": KERNEL, "heads": ints(2, 2, 20), "back": ints(1, 4, 4, 5)}
    return model_of(nodes, (1, 3, 4, 5), constants)


def test_a_graph_for_one_picture_takes_three_as_three_times_one() -> None:
    model = fixed_model()
    x = real(3, 3, 4, 5)
    network = onnx_network(graph_of(model))
    together = network(x)["y"]
    assert together.shape == (3, 4, 4, 5)
    for i in range(3):
        np.testing.assert_allclose(together[i], reference(model, x[i : i + 1])[0][0], rtol=1e-5, atol=1e-7)


def test_features_are_outputs_and_what_follows_them_is_not_run() -> None:
    model = fixed_model()
    model.graph.node[3].op_type = "Mystery"
    graph = graph_of(model)
    network = onnx_network(graph, outputs=["features", "c"])
    x = real(2, 3, 6, 9)  # the sizes in the reshapes are behind the features
    features = network(x)
    assert set(features) == {"c", "features"}
    np.testing.assert_allclose(features["features"], np.tanh(features["c"]), rtol=1e-5, atol=1e-6)
    assert tensor_shapes(graph) == {"c": (1, 4, 4, 5), "features": (1, 4, 4, 5), "h": (1, 2, 2, 20)}


def test_all_unknown_operators_are_named_before_anything_runs() -> None:
    model = fixed_model()
    model.graph.node[3].op_type = "Mystery"
    model.graph.node.insert(4, helper.make_node("Strange", ["p"], ["p2"], domain="com.example"))
    model.graph.node[5].input[0] = "p2"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ValueError, match=r"Mystery \(in 1 nodes\), com.example::Strange .*outputs=\['h'\].*Known: Abs"):
        onnx_network(graph_of(model))


def test_equal_networks_share_compiled_code() -> None:
    model = fixed_model()
    traced = []

    @jax.jit
    def run(network: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
        traced.append(1)
        return network(x)["y"]

    x = real(1, 3, 4, 5)
    first = run(onnx_network(graph_of(model)), x)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(real(4, 3, 3, 3), "k"))
    second = run(onnx_network(graph_of(model)), x)
    assert len(traced) == 1
    assert not np.allclose(first, second)
    run(onnx_network(graph_of(model), outputs=["y", "c"]), x)
    assert len(traced) == 2


def one_node(op: str, constants: dict[str, np.ndarray] | None = None, x: Any = IMAGE, **attributes: Any) -> Any:
    """The network of one operator on x and these constants."""
    node = helper.make_node(op, ["x", *(constants or {})], ["y"], name="it", **attributes)
    return onnx_network(graph_of(model_of([node], x, constants)))


def sized_by_samples() -> Any:
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["i"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["i"], ["y"]),
    ]
    return onnx_network(graph_of(model_of(nodes, IMAGE)))


STATISTICS = {name: positive(4) for name in "abcd"}
BAD: dict[str, tuple[Any, str]] = {
    "an unknown output": (
        lambda: onnx_network(graph_of(fixed_model()), outputs=["z"]),
        "no node makes 'z'; the graph's own outputs: y; tensor_shapes",
    ),
    "no outputs": (lambda: onnx_network(graph_of(fixed_model()), outputs=[]), "no outputs were named"),
    "a fixed batch": (
        lambda: one_node("Relu", x=(8, 3, 4, 4)),
        r"batches of 8, \[8, 3, 4, 4\]: export it with a batch of 1",
    ),
    "dropout in training mode": (
        lambda: one_node("Dropout", {"ratio": np.asarray(0.5, np.float32), "training": np.asarray(True)}),
        "training mode.*inference mode",
    ),
    "batch statistics": (
        lambda: one_node("BatchNormalization", STATISTICS, training_mode=1),
        r"node 'it' \(BatchNormalization\) .*training mode",
    ),
    "NaN weights": (lambda: one_node("Add", {"c": floats(np.nan)}), "NaN in the weights c"),
    "a shape that depends on samples": (sized_by_samples, "'i' depends on the samples"),
    "too old": (
        lambda: graph_of(model_of([helper.make_node("Relu", ["x"], ["y"])], IMAGE, opset=6)),
        "opset 6 is too old",
    ),
    "images of another rank": (
        lambda: onnx_network(graph_of(fixed_model()))(jnp.zeros((3, 4, 5))),
        r"\(3, 4, 5\) were given; the network wants \[1, 3, 4, 5\]",
    ),
    "a size that the graph cannot take": (
        lambda: onnx_network(graph_of(fixed_model()))(jnp.zeros((1, 3, 8, 5))),
        r"the Reshape that makes 'h' .*from images of \(1, 3, 8, 5\) where the graph states \[1, 3, 4, 5\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_graphs_and_pictures_are_refused_by_name(name: str) -> None:
    act, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        act()


def test_damaged_files_are_refused_or_read_as_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    sound = fixed_model().SerializeToString()
    for length in (0, 1, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(ValueError, match="not a sound ONNX file"):
            read_onnx(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="not a sound ONNX file"):
        read_onnx(path)
    with pytest.raises(FileNotFoundError, match="no ONNX file"):
        read_onnx(tmp_path / "absent.onnx")
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(sound)
        for place in rng.integers(0, len(sound), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_onnx(path)
        except ValueError:
            refused += 1
    assert refused > 30  # the rest fell on weights


def test_half_precision_computes_in_it_and_gives_float32() -> None:
    x = real(2, 3, 4, 5)
    half, full = (onnx_network(graph_of(fixed_model()), outputs=["c"], dtype=t) for t in (jnp.bfloat16, jnp.float32))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))
    assert "bf16[2,4,4,5] = conv_general_dilated" in str(jax.make_jaxpr(half)(x))
    y = half(x)["c"]
    assert y.dtype == jnp.float32
    # Weights, pictures and sums are rounded to 8 bits (2⁻⁹ each at most).
    assert 1e-5 < np.linalg.norm(y - full(x)["c"]) / np.linalg.norm(full(x)["c"]) < 1e-2


# Pictures -------------------------------------------------------------------------------------------------------------


def test_real_rgb_is_the_displayed_one_before_rounding_and_has_a_derivative() -> None:
    frame = rgb_to_yuv420(RNG.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8), bit_depth=10)
    rgb = rgb_from_yuv(jax.tree.map(jnp.asarray, frame), bit_depth=10)
    np.testing.assert_array_equal(np.clip(np.floor(np.asarray(rgb) + 0.5), 0, 255), yuv_to_rgb(frame, bit_depth=10))
    white = Yuv420(jnp.full((1, 2, 2), 940.0), jnp.full((1, 1, 1), 512.0), jnp.full((1, 1, 1), 512.0))
    ones = jax.tree.map(jnp.ones_like, white)
    rgb, rgb_dot = jax.jvp(lambda f: rgb_from_yuv(f, bit_depth=10), (white,), (ones,))
    # BT.601: B' = Y' + 1.772 Cb', luma over 219 steps, chroma over 224; a 10-bit step is a quarter.
    np.testing.assert_allclose(rgb_dot[0, 0, 0, 2], (255 / 219 + 1.772 * 255 / 224) / 4, rtol=1e-5)
    np.testing.assert_allclose(rgb, 255, rtol=1e-5)


def test_a_letterbox_keeps_the_aspect_and_samples_linearly() -> None:
    picture = RNG.integers(0, 256, (1, 6, 16, 3)).astype(np.uint8)
    expects = PictureInput(8, 8, order="bgr", fit="letterbox", padding=114.0, mean=(1, 2, 3), deviation=(2, 4, 8))
    frame = rgb_to_yuv420(picture)
    images = np.asarray(expects.images(frame)) * np.reshape([2, 4, 8], (1, 3, 1, 1)) + np.reshape(
        [1, 2, 3], (1, 3, 1, 1)
    )
    assert images.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(images[:, :, 3:], 114, rtol=1e-6)
    halved = np.asarray(rgb_from_yuv(frame))[..., ::-1].reshape(1, 3, 2, 8, 2, 3).mean((2, 4))  # ½ falls between two
    np.testing.assert_allclose(images[:, :, :3].transpose(0, 2, 3, 1), halved, rtol=1e-5, atol=1e-3)


def test_interpolation_agrees_with_jax_resize() -> None:
    x = jnp.asarray(real(2, 7, 5))
    for new in (3, 7, 12):
        ours = interpolate(x, (np.arange(new) + 0.5) * 7 / new - 0.5, 1)
        np.testing.assert_allclose(
            ours, jax.image.resize(x, (2, new, 5), "linear", antialias=False), rtol=1e-5, atol=1e-6
        )


# A real detector ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yolox(shared_data: Path) -> Path:
    return shared_data / "weights" / "yolox-nano" / "yolox_nano.onnx"


@pytest.fixture(scope="module")
def scene(shared_data: Path) -> tuple[Yuv420, list[list[float]]]:
    """A COCO picture as samples, and its annotated boxes (x, y, width, height)."""
    annotations = json.loads((shared_data / "coco" / "instances_val2017.json").read_text())
    (image,) = (i for i in annotations["images"] if i["file_name"] == "000000000872.jpg")
    clips, _ = open_clips([shared_data / "coco" / "val2017" / image["file_name"]])
    boxes = [a["bbox"] for a in annotations["annotations"] if a["image_id"] == image["id"]]
    return clips[0].frames, boxes


FEATURES = ("703", "841", "965")


@pytest.mark.shared
def test_yolox_agrees_with_onnxruntime_on_a_picture_in_batch_and_at_features(
    yolox: Path, scene: tuple[Yuv420, list[list[float]]]
) -> None:
    model = onnx.load(yolox)
    images = np.asarray(INPUT.images(scene[0]))
    assert images.shape == (1, 3, 416, 416)
    del model.graph.value_info[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in FEATURES)
    theirs = reference(model, images)
    network = onnx_network(read_onnx(yolox), outputs=["output", *FEATURES])
    batch = np.concatenate([images[..., ::-1], images])
    ours = jax.jit(lambda network, images: network(images))(network, batch)
    for name, array in zip(("output", *FEATURES), theirs, strict=True):
        assert ours[name].shape == (2, *array.shape[1:])
        # 110 layers of sums in another order.
        assert np.linalg.norm(ours[name][1] - array[0]) < 1e-5 * np.linalg.norm(array)
        np.testing.assert_allclose(ours[name][1], array[0], rtol=1e-3, atol=1e-4 * abs(array).max())


@pytest.mark.shared
def test_a_detectors_map_is_finite_and_larger_where_the_objects_are(
    yolox: Path, scene: tuple[Yuv420, list[list[float]]]
) -> None:
    frame, boxes = scene
    receiver = yolox_receiver(onnx_network(read_onnx(yolox)))
    h = np.asarray(importance_map(receiver, frame, key=jax.random.key(0), sketches=2).h.y[0])
    assert np.isfinite(h).all()
    inside = np.zeros(h.shape, bool)
    for x, y, width, height in boxes:
        inside[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = True
    assert h[inside].mean() > 2 * h[~inside].mean()  # 10 times, with 8 sketches


def test_yolox_scores_want_a_yolox_head() -> None:
    receiver = picture_receiver(one_node("Relu", x=(1, 3, 4, 4)), PictureInput())
    frame = rgb_to_yuv420(RNG.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8))
    assert receiver(frame)["y"].shape == (2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"output is \(2, 3, 4, 4\); a YOLOX head gives"):
        yolox_receiver(one_node("Relu", x=(1, 3, 4, 4)), expects=PictureInput())(frame)
