"""What `jaxwrap evaluate` makes of its words: networks as receivers, encoders, efforts, scales of λ, decisions."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.codec import RowWeights, Weights
from jaxwrap.codecs.weightmap import write_maps
from jaxwrap.methods import Idse, stages_of
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.evaluate.modes import codec_mode, receiver_metric
from jaxwrap.train.evaluate.receivers import network_mode, parse_receiver
from jaxwrap.train.runs import encoders, new_methods, parse_presets, parse_scales

KEY = jax.random.key(0)


def write_network(path: Path, channels: int = 3, size: tuple[int | str, int | str] = (8, 12)) -> Path:
    """``wide`` = images · 2, ``sum`` = its mean over height and width."""
    nodes = [
        helper.make_node("Mul", ["images", "two"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["sum"], axes=[2, 3], keepdims=0),
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, channels, *size])
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, channels])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    model = helper.make_model(
        helper.make_graph(nodes, "small", [image], [output], [two]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    onnx.save(model, path)
    return path


def gray(value: int) -> Yuv420:
    """10-bit pictures of one grey."""
    planes = np.full((1, 16, 12), value), np.full((1, 8, 6), 512), np.full((1, 8, 6), 512)
    return Yuv420(*(jnp.asarray(p, jnp.float32) for p in planes))


def test_a_network_looks_at_the_pictures_of_the_codec_alone_as_it_expects_them(tmp_path: Path) -> None:
    path = write_network(tmp_path / "small.onnx")
    mode = network_mode(path)
    assert (mode.name, mode.pre_hash, mode.bits) == ("codec", codec_mode().pre_hash, 0)
    assert mode.takes_methods
    assert mode.has_receiver
    assert mode.receiver is not None
    # 16 × 12 pictures are letterboxed into 8 × 12: half of it is the picture, half padding of 114.
    found = mode.receiver(gray(512))
    level = 255 * (512 - 64) / 876  # of studio range
    np.testing.assert_allclose(found["sum"], np.full((1, 3), level + 114), rtol=1e-5)
    assert receiver_metric(found) == 1.0
    named = parse_receiver(f"{path}:wide, sum")
    assert named.receiver is not None
    assert {*named.receiver(gray(512))} == {"wide", "sum"}
    imagenet = parse_receiver(str(path), "imagenet")
    assert imagenet.receiver is not None
    stretched = (level - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375]) * 2
    np.testing.assert_allclose(imagenet.receiver(gray(512))["sum"][0], stretched, rtol=1e-4)
    hashes = {mode.receiver_hash, named.receiver_hash, imagenet.receiver_hash}
    hashes.add(network_mode(path, (), PictureInput(4, 4)).receiver_hash)
    assert len(hashes) == 4
    assert network_mode(path).receiver_hash == mode.receiver_hash


def test_networks_that_look_at_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted pictures \[N, 3, height, width\]"):
        network_mode(write_network(tmp_path / "deep.onnx", channels=5))
    path = write_network(tmp_path / "small.onnx")
    with pytest.raises(ValueError, match="network input 'coco' was asked for; known: yolox, imagenet"):
        network_mode(path, (), "coco")
    with pytest.raises(ValueError, match="absent"):
        parse_receiver(f"{path}:absent")
    with pytest.raises(FileNotFoundError, match=r"no ONNX file .*none\.onnx"):
        parse_receiver(str(tmp_path / "none.onnx"))


def test_encoders_by_name() -> None:
    names = ["x265", "hm", "jm", "vtm", "vvenc", "x264"]
    made = encoders(names, timeout_s=7.0)
    assert [codec.name for codec in made] == names
    assert [getattr(codec, "timeout_s", None) for codec in made] == [None, 7.0, 7.0, 7.0, 7.0, None]
    with pytest.raises(ValueError, match="encoder 'av1' was given; known: x264, x265, hm, jm, vtm, vvenc"):
        encoders(["hm", "av1"])


def test_efforts_and_scales_are_read_from_words() -> None:
    assert parse_presets(None) is None
    assert parse_presets("slow") == "slow"
    assert parse_presets("x265=slow, jm=no-8x8") == {"x265": "slow", "jm": "no-8x8"}
    with pytest.raises(ValueError, match="preset 'fast' was given; wanted one for all"):
        parse_presets("x265=slow,fast")
    assert parse_scales("1, 1/1.5,0.5") == [1.0, 1 / 1.5, 0.5]
    for bad in ("1,", "1/0", "half"):
        with pytest.raises(ValueError, match=r"wanted numbers such as 1,1/1\.5,1/2"):
            parse_scales(bad)


def test_decisions_go_to_the_methods_that_weigh_and_do_not_say_it_themselves() -> None:
    names = ["sse", "wa", "dqp", "idse", "wa+shuffle", "wa+only:satd"]
    methods = new_methods(names, rows=3, decisions=["rdoq", "sse"])
    assert [m.name for m in methods] == [
        "sse", "wa+only:sse:rdoq", "dqp+only:sse:rdoq", "idse+only:sse:rdoq", "wa+shuffle+only:sse:rdoq",
        "wa+only:satd",
    ]  # fmt: skip
    idse = stages_of(methods[3])[0]
    assert isinstance(idse, Idse)
    assert idse.rows == 3
    z = gray(300)
    for method, kind in ((methods[1], Weights), (methods[3], RowWeights)):
        weights = method.plan(lambda frame: jax.tree.map(jnp.sin, frame), z, KEY).weights
        assert isinstance(weights, kind)
        assert weights.decisions == ("sse", "rdoq")
    assert new_methods(["dqp"], decisions=[])[0].name == "dqp+only:none"
    with pytest.raises(ValueError, match="decisions sse, bits were given"):
        new_methods(["wa"], decisions=["sse", "bits"])


def test_a_map_that_shuffling_does_not_change_is_refused(tmp_path: Path) -> None:
    flat = Yuv400(np.ones((1, 32, 32), np.float32))
    write_maps(tmp_path / "flat.dat", flat, mode="calibrated", receiver="test", sketches=0)
    with pytest.raises(ValueError, match=r"flat\.dat has one weight per plane, and shuffling its blocks would change"):
        new_methods(["calibrated+shuffle"], maps=[tmp_path / "flat.dat"])
