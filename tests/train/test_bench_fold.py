"""The fold bench on a network whose channels are redundant by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from jaxwrap.codecs.x26x import X26x
from jaxwrap.tasks.onnx import onnx_network
from jaxwrap.tasks.onnx_graph import cut
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.bench import fold
from jaxwrap.train.onnx_models import read_onnx


def write_network(path: Path, *, bypass: bool = False) -> Path:
    """64×64 → conv, stride 2 (8 channels, all nearly the same) → ``feature`` → conv → ``head``."""
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 1, (1, 3, 2, 2)) * np.linspace(0.6, 1.4, 8)[:, None, None, None] / 64
    first = first + 0.0005 * rng.standard_normal(first.shape)
    second = rng.standard_normal((4, 8, 3, 3)) / 8
    nodes = [
        helper.make_node("Conv", ["image", "k0"], ["feature"], strides=[2, 2], name="first"),
        helper.make_node("Conv", ["feature", "k1"], ["head"], pads=[1, 1, 1, 1], name="second"),
    ]
    last = "head"
    if bypass:
        nodes.append(helper.make_node("GlobalAveragePool", ["image"], ["mean"]))
        nodes.append(helper.make_node("ReduceMean", ["mean"], ["one"]))
        nodes.append(helper.make_node("Add", ["head", "one"], ["sum"]))
        last = "sum"
    graph = helper.make_graph(
        nodes,
        "redundant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 4, 32, 32])],
        [numpy_helper.from_array(k.astype(np.float32), f"k{i}") for i, k in enumerate((first, second))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(64), 2 * np.arange(64)) % 200
    for i in range(count):
        noise = rng.normal(0, 8, (64, 64, 3))
        picture = np.clip(np.roll(ramp, 17 * i + seed, 1)[..., None] + 30 + noise, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def test_the_klt_gains_where_channels_are_redundant(tmp_path, capsys):
    figures = fold.run(
        network=write_network(tmp_path / "net.onnx"),
        train=write_pictures(tmp_path / "train", 2, seed=1),
        input=write_pictures(tmp_path / "test", 2, seed=5),
        codec=X26x("x264"),
        tensor="feature",
        outputs=("head",),
        qps=(12, 18, 24, 30, 36),
        expects=PictureInput(64, 64),
    )
    # Eight copies of one picture: seven of eight tiles are nearly free once they are decorrelated.
    assert figures["eigenvalue_spread"] > 100
    assert figures["rows"]["KLT"]["high"] < -30
    anchor = np.asarray(figures["curves"]["identity"]["bits"])
    assert anchor.shape == (5, 2)
    assert (np.diff(anchor, axis=0) < 0).all()
    assert "KLT·G^½" in capsys.readouterr().out


def test_a_network_cut_in_two_is_the_whole(tmp_path):
    graph = read_onnx(write_network(tmp_path / "net.onnx"))
    first, second = cut(graph, "feature", (1, 8, 32, 32))
    image = np.random.default_rng(0).uniform(0, 255, (2, 3, 64, 64)).astype(np.float32)
    whole = onnx_network(graph)(image)["head"]
    parts = onnx_network(second)(onnx_network(first)(image)["feature"])["head"]
    np.testing.assert_allclose(parts, whole, rtol=1e-6, atol=1e-5)


def test_a_network_with_a_way_round_the_cut_is_refused(tmp_path):
    graph = read_onnx(write_network(tmp_path / "net.onnx", bypass=True))
    _, second = cut(graph, "feature", (1, 8, 32, 32))
    with pytest.raises(ValueError, match="reads 'image', which nothing before it makes"):
        onnx_network(second)
    with pytest.raises(ValueError, match="no node makes the tensor 'nothing'"):
        cut(graph, "nothing", (1, 8, 32, 32))
