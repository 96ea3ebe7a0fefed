"""VGG-16's features against onnxruntime, at random weights under torchvision's names."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from jaxwrap.tasks.vgg import Vgg16, vgg16_from_torchvision

# torchvision's `vgg16().features`, by index: convolutions (input and output channels), and pools ("M").
SEQUENCE = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
MIDDLE = {"conv1_2": 3, "pool1": 4, "conv3_3": 15, "conv4_1": 18}  # layer → index of the module that makes it


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    index, channels = 0, 3
    for width in SEQUENCE:
        if isinstance(width, int):
            scale = np.sqrt(2 / (9 * channels)).astype(np.float32)
            found[f"features.{index}.weight"] = scale * rng.standard_normal((width, channels, 3, 3), np.float32)
            found[f"features.{index}.bias"] = np.float32(0.1) * rng.standard_normal(width, np.float32)
            channels = width
            index += 1  # the ReLU behind it
        index += 1
    return {**found, "classifier.0.weight": np.ones((2, 3), np.float32)}


@pytest.fixture(scope="module")
def network(arrays: dict[str, np.ndarray]) -> Vgg16:
    return vgg16_from_torchvision(arrays, ("pool5", *MIDDLE))


def reference(arrays: dict[str, np.ndarray], images: np.ndarray) -> list[np.ndarray]:
    """pool5 and `MIDDLE`, by onnxruntime."""
    nodes, index, below = [], 0, "x"
    for width in SEQUENCE:
        if isinstance(width, int):
            inputs = [below, f"features.{index}.weight", f"features.{index}.bias"]
            nodes.append(helper.make_node("Conv", inputs, [str(index)], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [str(index)], [str(index + 1)]))
            index += 1
        else:
            nodes.append(helper.make_node("MaxPool", [below], [str(index)], kernel_shape=[2, 2], strides=[2, 2]))
        below = str(index)
        index += 1
    outputs = [below, *(str(i) for i in MIDDLE.values())]
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, key) for key, array in arrays.items() if key.startswith("features")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": images}
    )


def test_features_agree_with_onnxruntime_and_the_parts_are_the_whole(
    arrays: dict[str, np.ndarray], network: Vgg16
) -> None:
    images = np.random.default_rng(1).standard_normal((1, 32, 64, 3)).astype(np.float32)
    whole = network(jnp.asarray(images))
    for name, theirs in zip(("pool5", *MIDDLE), reference(arrays, images.transpose(0, 3, 1, 2)), strict=True):
        ours = np.asarray(whole[name]).transpose(0, 3, 1, 2)
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() < 1e-5 * abs(theirs).max()
    parts = network.rest(network.first(jnp.asarray(images), "conv4_2"), "conv4_2")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), parts, whole)


def test_missing_layers_are_all_named(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"(?s)missing: features\.0\.bias.*missing: features\.28\.weight"):
        vgg16_from_torchvision({k: v for k, v in arrays.items() if k not in ("features.0.bias", "features.28.weight")})
