"""YOLOX-nano in Flax against onnxruntime, which runs the published export."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from onnx import TensorProto, helper

from jaxwrap.tasks.onnx_graph import Graph
from jaxwrap.tasks.yolox import Yolox, YoloxConfig, decode, raw_rows, yolox_from_onnx
from jaxwrap.train.onnx_models import read_onnx

pytestmark = pytest.mark.shared

PYRAMID = {"p3": "956", "p4": "990", "p5": "1024"}  # ONNX tensors
SMALL = np.random.default_rng(0).uniform(0, 255, (2, 64, 96, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def path(shared_data: Path) -> Path:
    return shared_data / "weights" / "yolox-nano" / "yolox_nano.onnx"


@pytest.fixture(scope="module")
def graph(path: Path) -> Graph:
    return read_onnx(path)


@pytest.fixture(scope="module")
def network(graph: Graph) -> Yolox:
    return yolox_from_onnx(graph)


def test_every_output_and_the_pyramid_agree_with_onnxruntime(path: Path, network: Yolox) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 52, 52, 3)).astype(np.float32)
    images = images.repeat(8, 1).repeat(8, 2)  # blocks: something to see
    model = onnx.load(path)
    del model.graph.value_info[:]
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in PYRAMID.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first = jax.jit(lambda net, x: net.first(x, "p5"))
    rest = jax.jit(lambda net, tensors: net.rest(tensors, "p5"))
    features = first(network, images)
    raw = rest(network, features)
    for n in range(2):
        output, *pyramid = session.run(None, {"images": images[n : n + 1].transpose(0, 3, 1, 2)})
        for name, theirs in zip(PYRAMID, pyramid, strict=True):
            ours = np.asarray(features[name][n]).transpose(2, 0, 1)
            assert np.linalg.norm(ours - theirs[0]) < 2e-5 * np.linalg.norm(theirs)  # sums in another order
        np.testing.assert_allclose(raw_rows(raw)[n], output[0], rtol=1e-3, atol=1e-4 * abs(output).max())
        assert np.linalg.norm(raw_rows(raw)[n] - output[0]) < 2e-5 * np.linalg.norm(output)


@pytest.mark.parametrize(
    "layer", ["stem", "dark4.1", "dark5.2", "top_down4", "lateral4", "p3", "p4", "cls_conv4.0", "obj5"]
)
def test_the_parts_are_the_whole(network: Yolox, layer: str) -> None:
    whole = network(jnp.asarray(SMALL))
    tensors = network.first(jnp.asarray(SMALL), layer)
    assert set(tensors) == set(network.alive(layer))
    parts = network.rest(tensors, layer)
    assert list(parts) == list(whole)
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-6, atol=1e-6)


def test_many_tensors_pass_between_the_parts_inside_the_pyramid(network: Yolox) -> None:
    assert network.alive("p5") == ("p3", "p4", "p5")
    assert network.alive("dark5.2") == ("dark3.1", "dark4.1", "dark5.2")
    assert network.alive("lateral4") == ("dark3.1", "lateral5", "lateral4")
    assert network.alive("p3") == ("lateral5", "lateral4", "p3")
    assert network.alive("p4") == ("lateral5", "p3", "p4")


def test_boxes_and_scores_follow_the_published_formulas() -> None:
    rng = np.random.default_rng(1)
    raw = {}
    for level, side in ((3, 8), (4, 4), (5, 2)):
        for name, channels in (("reg", 4), ("obj", 1), ("cls", 6)):
            raw[f"{name}{level}"] = rng.standard_normal((2, side, side + 1, channels)).astype(np.float32)
    boxes, scores, classes = jax.jit(decode)({name: jnp.asarray(array) for name, array in raw.items()})
    assert boxes.shape == (2, 8 * 9 + 4 * 5 + 2 * 3, 4)
    anchor = 0
    for level, side in ((3, 8), (4, 4), (5, 2)):
        for y in range(side):
            for x in range(side + 1):
                tx, ty, tw, th = raw[f"reg{level}"][1, y, x]
                cx, cy = (tx + x) * 2**level, (ty + y) * 2**level
                w, h = np.exp(tw) * 2**level, np.exp(th) * 2**level
                expected = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                np.testing.assert_allclose(boxes[1, anchor], expected, rtol=1e-4, atol=1e-3)
                logits = raw[f"cls{level}"][1, y, x]
                best = (1 / (1 + np.exp(-raw[f"obj{level}"][1, y, x, 0]))) / (1 + np.exp(-logits.max()))
                np.testing.assert_allclose(scores[1, anchor], best, rtol=1e-5)
                assert classes[1, anchor] == logits.argmax()
                anchor += 1


def test_an_export_of_another_network_is_refused_with_every_mismatch(graph: Graph) -> None:
    constants = dict(graph.constants)
    constants["head.cls_preds.0.weight"] = np.ones((81, 64, 1, 1), np.float32)
    del constants["head.reg_preds.1.bias"]
    with pytest.raises(ValueError, match="do not fit") as caught:
        yolox_from_onnx(dataclasses.replace(graph, constants=constants))
    assert "missing: head.reg_preds.1.bias" in str(caught.value)
    assert "misshapen: head.cls_preds.0.weight (81, 64, 1, 1)" in str(caught.value)
    with pytest.raises(ValueError, match=r"missing: head\.obj_preds\.2\.weight"):
        yolox_from_onnx(dataclasses.replace(graph, nodes=graph.nodes[:-12]))
    with pytest.raises(ValueError, match=r"(?s)unexpected: convolution \d+.weight"):
        yolox_from_onnx(dataclasses.replace(graph, nodes=(*graph.nodes, graph.nodes[9])))


def test_larger_members_of_the_family_have_dense_convolutions() -> None:
    tiny = nnx.eval_shape(lambda: Yolox(YoloxConfig("yolox-tiny", 24, depthwise=False), rngs=nnx.Rngs(0)))
    shapes = nnx.eval_shape(lambda net, x: net(x), tiny, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert shapes["cls3"].shape == (1, 8, 8, 80)
    parameters = [(path[-1].key, leaf.size) for path, leaf in leaves_of(tiny)]
    biases = sum(size for name, size in parameters if name == "bias")
    normalised = biases - 3 * (80 + 4 + 1)  # these have a gain each, before they are folded
    # Megvii's table says 5.06 million.
    assert round((sum(size for _, size in parameters) + normalised) / 1e6, 2) == 5.06


def leaves_of(network: nnx.Module) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(network, nnx.Param)))
