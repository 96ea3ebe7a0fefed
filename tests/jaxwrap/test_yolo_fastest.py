"""Yolo-FastestV2 in Flax against every stage that the original code computed for one picture."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.tasks import yolo_fastest
from jaxwrap.tasks.detector import Detector
from jaxwrap.tasks.yolo_fastest import YoloFastest, decode, yolo_fastest_from_arrays

pytestmark = pytest.mark.shared

STAGES = {
    "stem_pool": "pool",
    "stage2_block1": "stage2.1",
    "stage2_out": "stage2.3",
    "C2": "C2",
    "C3": "C3",
    "fpn_S3": "S3",
    "fpn_S2": "S2",
    **{f"fpn_{head}_{scale}": f"{head}_head_{scale}" for head in ("cls", "reg") for scale in (2, 3)},
    **{f"head_{head}_{scale}": f"{head}_{scale}" for head in ("reg", "obj", "cls") for scale in (2, 3)},
}


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "weights" / "golden.npz") as file:
        return {**file}


@pytest.fixture(scope="module")
def arrays(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "weights" / "yolo-fastestv2.npz") as file:
        return {**file}


@pytest.fixture(scope="module")
def network(arrays: dict[str, np.ndarray]) -> YoloFastest:
    return yolo_fastest_from_arrays(arrays)


@pytest.fixture(scope="module")
def tensors(golden: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """What every layer in the golden file makes."""
    network = yolo_fastest_from_arrays(arrays)
    network.outputs = tuple(STAGES.values())
    images = (golden["input_u8"].astype(np.float32) / 255).transpose(0, 2, 3, 1)
    return jax.jit(lambda network, images: network(images))(network, jnp.asarray(images))


@pytest.mark.parametrize(("stage", "layer"), STAGES.items())
def test_stages_agree_with_the_original(
    golden: dict[str, np.ndarray], tensors: dict[str, jax.Array], stage: str, layer: str
) -> None:
    theirs = golden[stage].transpose(0, 2, 3, 1)
    assert tensors[layer].shape == theirs.shape
    assert abs(tensors[layer] - theirs).max() < 1e-5 * abs(theirs).max()


def raw_of(golden: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {layer: jnp.asarray(golden[s].transpose(0, 2, 3, 1)) for s, layer in STAGES.items() if s.startswith("head")}


def test_every_anchor_is_decoded_as_by_the_original(golden: dict[str, np.ndarray]) -> None:
    raw = raw_of(golden)
    boxes, scores, _ = jax.jit(decode)(raw)
    cx, cy, w, h, objectness = (golden["decoded"][..., i] for i in range(5))
    np.testing.assert_allclose(boxes, np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1), atol=1e-3)
    best = [jax.nn.softmax(raw[f"cls_{scale}"]).max(-1).reshape(1, -1) for scale in (2, 3)]
    np.testing.assert_allclose(scores, objectness * np.concatenate(best, 1).repeat(3, 1), rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.01])
def test_suppression_keeps_what_the_original_keeps(
    golden: dict[str, np.ndarray], network: YoloFastest, threshold: float
) -> None:
    detector = Detector("test", network, yolo_fastest.INPUT, "C3", decode)
    found = detector.detections(raw_of(golden), threshold=threshold, iou=0.4, limit=300)
    theirs = golden[f"nms_{threshold}_0.4"]
    theirs = theirs[np.argsort(-theirs[:, 4], kind="stable")]
    count = len(theirs)
    assert (np.asarray(found.scores[0]) > 0).sum() == count
    np.testing.assert_allclose(found.boxes[0, :count], theirs[:, :4], atol=1e-3)
    np.testing.assert_allclose(found.scores[0, :count], theirs[:, 4], atol=1e-5)
    np.testing.assert_array_equal(found.classes[0, :count], theirs[:, 5])


@pytest.mark.parametrize("layer", ["stem", "stage3.2", "C2", "C3", "S2", "reg_head_2", "cls_2"])
def test_the_parts_are_the_whole(network: YoloFastest, layer: str) -> None:
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 64, 32, 3)).astype(np.float32))
    whole, parts = network(images), network.rest(network.first(images, layer), layer)
    assert list(parts) == list(whole)
    for name, array in whole.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-6, atol=1e-6)


def test_the_features_are_two_scales(network: YoloFastest) -> None:
    assert network.alive("C3") == ("C2", "C3")
    assert network.alive("stage4.1") == ("C2", "stage4.1")


def test_weights_that_do_not_fit_are_all_named(arrays: dict[str, np.ndarray]) -> None:
    wrong = {key: array for key, array in arrays.items() if not key.startswith("fpn.conv1x1_3.1.")}
    wrong["output_obj_layers.weight"] = np.ones((4, 72, 1, 1), np.float32)
    with pytest.raises(ValueError, match="5 mismatches") as caught:
        yolo_fastest_from_arrays(wrong)
    assert "missing: fpn.conv1x1_3.1.running_var" in str(caught.value)
    assert "misshapen: output_obj_layers.weight (4, 72, 1, 1)" in str(caught.value)
