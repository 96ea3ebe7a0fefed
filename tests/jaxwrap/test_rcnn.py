"""Region-based networks without torch: layers, splits, anchors, boxes, key map; `test_rcnn_torchvision.py` compares
values."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.arrays import Yuv420
from jaxwrap.parameters import named_parameters
from jaxwrap.tasks.rcnn import (
    FASTER_RCNN,
    INPUT,
    MASK_RCNN,
    Doubling,
    RegionConfig,
    RegionInput,
    RegionNetwork,
    anchors,
    faster_rcnn,
    in_picture,
    mask_rcnn,
    moved_boxes,
)
from jaxwrap.tasks.resnet import ResNetConfig
from jaxwrap.tasks.torchvision_keys import region_network, torchvision_key_map

TINY = RegionConfig(
    "tiny",
    ResNetConfig((1, 2), (4, 8)),
    width=8,
    head_width=16,
    columns=5,
    categories=(1, 2, 4),
    masks=True,
    before=30,
    after=25,
    anchor_sizes=(8, 16, 32),
)


@pytest.fixture(scope="module")
def network() -> RegionNetwork:
    arrays = state(TINY)
    for head in ("rpn.head", "roi_heads.box_predictor"):  # boxes shall stay near their anchors
        arrays[f"{head}.bbox_pred.weight"] *= 0.1
        arrays[f"{head}.bbox_pred.bias"] *= 0
    return region_network(arrays, TINY)


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 32, 48, 3))


@pytest.fixture(scope="module")
def raw(network: RegionNetwork, images: jax.Array) -> dict[str, jax.Array]:
    return jax.jit(RegionNetwork.__call__)(network, images)


def test_outputs_have_static_shapes(network: RegionNetwork, raw: dict[str, jax.Array]) -> None:
    assert {name: value.shape for name, value in raw.items()} == {
        "picture": (2, 2),
        "proposals": (2, 25, 5),
        "class_logits": (2, 25, 5),
        "box_offsets": (2, 25, 20),
        "p2": (2, 8, 12, 8),
        "p3": (2, 4, 6, 8),
    }
    found = faster_rcnn(network).detections(raw, threshold=0.1, iou=0.5, limit=7)
    assert found.boxes.shape == (2, 7, 4)
    masks = jax.jit(mask_rcnn)(network, raw, found)
    assert masks.shape == (2, 7, 28, 28)
    assert np.isfinite(masks).all()


def test_proposals_fall_in_score_and_lie_in_the_input(raw: dict[str, jax.Array]) -> None:
    proposals = np.asarray(raw["proposals"])
    assert (np.diff(proposals[..., 4]) <= 0).all()
    assert ((proposals[..., 4] > 0).sum(1) > 5).all()
    assert (proposals[..., :2] >= 0).all()
    assert (proposals[..., 2:4] <= (48, 32)).all()


@pytest.mark.parametrize("layer", ["layer2.0", "p3", "proposals"])
def test_parts_equal_the_whole(
    network: RegionNetwork, images: jax.Array, raw: dict[str, jax.Array], layer: str
) -> None:
    between = jax.jit(RegionNetwork.first, static_argnums=2)(network, images, layer)
    again = jax.jit(RegionNetwork.rest, static_argnums=2)(network, between, layer)
    for name, value in raw.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-6, atol=1e-6 * float(jnp.abs(value).max()))


def test_the_default_split_passes_the_pyramid_and_nothing_else(network: RegionNetwork) -> None:
    assert faster_rcnn(network).split == "p3"
    assert network.alive("p3") == ("p2", "p3")
    assert network.alive("layer2.0") == ("layer1.0", "layer2.0")
    assert MASK_RCNN.pyramid == ("p2", "p3", "p4", "p5")


def test_the_gradient_reaches_the_pyramid_through_the_box_head(
    network: RegionNetwork, raw: dict[str, jax.Array]
) -> None:
    pyramid = {name: raw[name] for name in TINY.pyramid}
    gradient = jax.jit(jax.grad(lambda p: network.rest(p, "p3")["class_logits"].sum()))(pyramid)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert np.abs(gradient["p2"]).max() > 0


def test_boxes_end_at_the_picture(network: RegionNetwork, images: jax.Array) -> None:
    smaller = in_picture(network, (25, 35))
    compiled = []

    @jax.jit
    def whole(network: RegionNetwork, images: jax.Array) -> dict[str, jax.Array]:
        compiled.append(network.name)
        return network(images)

    raw = whole(smaller, images)
    found = faster_rcnn(smaller).detections(raw, threshold=0.1, iou=0.5, limit=50)
    for boxes in (raw["proposals"], found.boxes):
        assert float(boxes[..., 2].max()) == 35
        assert float(boxes[..., 3].max()) == 25
    whole(network, images)
    assert len(compiled) == 1


def test_classes_are_the_softmax_over_all_columns(network: RegionNetwork, raw: dict[str, jax.Array]) -> None:
    _, scores, classes = jax.jit(faster_rcnn(network).decode)(raw)
    logits = np.asarray(raw["class_logits"], np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_array_equal(classes[0, :4], [0, 1, 2, 0])
    for place in np.flatnonzero(scores[0]):
        expected = shares[0, place // 3, TINY.categories[place % 3]]
        np.testing.assert_allclose(scores[0, place], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "inner", "padded"),
    [
        ((480, 640), (800, 1066), (800, 1088)),
        ((640, 427), (1199, 800), (1216, 800)),  # cut, not rounded: 1199.06
        ((100, 400), (333, 1333), (352, 1344)),
    ],
)
def test_pictures_are_scaled_by_their_shortest_side_and_padded(
    size: tuple[int, int], inner: tuple[int, int], padded: tuple[int, int]
) -> None:
    rgb = np.full((1, *size, 3), 255, np.uint8)
    images = INPUT.images_of_rgb(rgb)
    assert INPUT.size_in(*size) == inner
    assert images.shape == (1, 3, *padded)
    np.testing.assert_allclose(
        images[0, :, inner[0] - 1, inner[1] - 1], (255 - np.array(INPUT.mean)) / INPUT.deviation, rtol=1e-5
    )
    assert not images[:, :, inner[0] :].any()
    assert not images[:, :, :, inner[1] :].any()


def test_decoded_samples_are_fed_as_rgb_is() -> None:
    expects = RegionInput(shortest=24, longest=60)
    black_and_white = np.repeat([[16, 235]], 20, 0).repeat(15, 1).astype(np.uint8)[None]
    neutral = np.full((1, 10, 15), 128, np.uint8)
    images = expects.images(Yuv420(black_and_white, neutral, neutral))
    rgb = np.where(black_and_white == 235, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    assert images.shape == (1, 3, 32, 64)
    np.testing.assert_allclose(images, expects.images_of_rgb(rgb), atol=1e-4)


def test_anchors_stand_at_every_place() -> None:
    first, last = anchors((32, 512), [(200, 336), (13, 21)], (800, 1344))
    np.testing.assert_array_equal(first[:3], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(first[3 * 336 + 4], [-16 + 4, -16 + 4, 16 + 4, 16 + 4])
    np.testing.assert_array_equal(last[3 * 21 + 1], [-256, -256 + 61, 256, 256 + 61])  # 800 // 13
    np.testing.assert_array_equal(last[3 * 21 + 4], [-256 + 64, -256 + 61, 256 + 64, 256 + 61])


def test_boxes_move_by_their_sides() -> None:
    box = jnp.asarray([[10.0, 20.0, 30.0, 60.0]])
    same = moved_boxes(jnp.zeros((1, 4)), box, (10, 10, 5, 5))
    np.testing.assert_allclose(same, box)
    moved = moved_boxes(jnp.asarray([[5.0, -2.5, 5 * np.log(2.0), 1e9]]), box, (10, 10, 5, 5))
    height = 40 * 1000 / 16  # growth is bounded
    np.testing.assert_allclose(moved, [[10, 30 - height / 2, 50, 30 + height / 2]], rtol=1e-5)


def test_doubling_makes_a_block_of_each_sample() -> None:
    layer = Doubling(3, 5, rngs=nnx.Rngs(2))
    x = np.random.default_rng(3).normal(size=(2, 4, 6, 3)).astype(np.float32)
    doubled, kernel = np.asarray(layer(jnp.asarray(x))), np.asarray(layer.kernel[...])
    for row, column in ((0, 0), (3, 5), (6, 9), (7, 10)):
        expected = x[1, row // 2, column // 2] @ kernel[row % 2, column % 2]
        np.testing.assert_allclose(doubled[1, row, column], expected, atol=1e-5)


def test_masks_need_a_mask_head(network: RegionNetwork, raw: dict[str, jax.Array]) -> None:
    found = faster_rcnn(network).detections(raw, threshold=0.1, iou=0.5, limit=3)
    config = dataclasses.replace(TINY, masks=False)
    plain = region_network(state(config), config)
    with pytest.raises(ValueError, match="no mask head"):
        mask_rcnn(plain, raw, found)


def torchvision_shapes(config: RegionConfig, *, published: bool) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of torchvision's state dict, by its structure; ``published``: with the names of 2019."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(key: str, channels: int) -> None:
        shapes.update({f"{key}.{k}": (channels,) for k in ("weight", "bias", "running_mean", "running_var")})

    def biased(key: str, *shape: int, out: int = 0) -> None:
        shapes.update({f"{key}.weight": shape, f"{key}.bias": (out or shape[0],)})

    body, widths = "backbone.body", config.backbone.widths
    shapes[f"{body}.conv1.weight"] = (widths[0], 3, 7, 7)
    norm(f"{body}.bn1", widths[0])
    channels = widths[0]
    for stage, (count, width) in enumerate(zip(config.backbone.blocks, widths, strict=True), start=1):
        for block in range(count):
            key = f"{body}.layer{stage}.{block}"
            sizes = ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
            for i, (o, c, k) in enumerate(sizes, start=1):
                shapes[f"{key}.conv{i}.weight"] = (o, c, k, k)
                norm(f"{key}.bn{i}", o)
            if block == 0:
                shapes[f"{key}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{key}.downsample.1", 4 * width)
            channels = 4 * width
    d, nested = config.width, "" if published else ".0"
    for i, width in enumerate(widths):
        biased(f"backbone.fpn.inner_blocks.{i}{nested}", d, 4 * width, 1, 1)
        biased(f"backbone.fpn.layer_blocks.{i}{nested}", d, d, 3, 3)
    biased("rpn.head.conv" + ("" if published else ".0.0"), d, d, 3, 3)
    biased("rpn.head.cls_logits", 3, d, 1, 1)
    biased("rpn.head.bbox_pred", 12, d, 1, 1)
    biased("roi_heads.box_head.fc6", config.head_width, d * 49)
    biased("roi_heads.box_head.fc7", config.head_width, config.head_width)
    biased("roi_heads.box_predictor.cls_score", config.columns, config.head_width)
    biased("roi_heads.box_predictor.bbox_pred", 4 * config.columns, config.head_width)
    if config.masks:
        for i in range(4):
            biased("roi_heads.mask_head." + (f"mask_fcn{i + 1}" if published else f"{i}.0"), d, d, 3, 3)
        biased("roi_heads.mask_predictor.conv5_mask", d, d, 2, 2)
        biased("roi_heads.mask_predictor.mask_fcn_logits", config.columns, d, 1, 1)
    return shapes


def state(config: RegionConfig, *, published: bool = False) -> dict[str, np.ndarray]:
    """Random weights: kernels that keep the variance, statistics near 1."""
    rng = np.random.default_rng(0)
    arrays = {}
    for key, shape in torchvision_shapes(config, published=published).items():
        if len(shape) > 1:
            values = rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            values = rng.uniform(0.5, 1.5, shape)
        arrays[key] = values.astype(np.float32)
    return arrays


@pytest.mark.parametrize("config", [TINY, FASTER_RCNN, MASK_RCNN], ids=lambda c: c.name)
def test_every_parameter_has_its_keys_and_every_key_its_parameter(config: RegionConfig) -> None:
    key_map = torchvision_key_map(config)
    abstract = nnx.eval_shape(lambda: RegionNetwork(config, rngs=nnx.Rngs(0)))
    parameters = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract, nnx.Param))}
    assert set(key_map) == parameters
    used = set(itertools.chain.from_iterable(source.keys for source in key_map.values()))
    assert used == set(torchvision_shapes(config, published=False))
    kernels = [source.keys[0] for name, source in key_map.items() if name.endswith("kernel")]
    assert len(set(kernels)) == len(kernels)


def test_published_names_load_as_present_ones_do() -> None:
    new, old = (named_parameters(region_network(state(TINY, published=p), TINY)) for p in (False, True))
    for name, array in new.items():
        np.testing.assert_array_equal(array, old[name])


def test_normalisation_is_folded_in() -> None:
    arrays = state(TINY)
    found = named_parameters(region_network(arrays, TINY, epsilon=0.25))
    gamma, beta, mean, variance = (
        arrays[f"backbone.body.layer2.0.downsample.1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gamma / np.sqrt(variance + 0.25)
    weight = arrays["backbone.body.layer2.0.downsample.0.weight"]
    np.testing.assert_allclose(found["blocks.layer2.0.shortcut.kernel"][0, 0, 3, 5], weight[5, 3, 0, 0] * gain[5], 1e-6)
    np.testing.assert_allclose(found["blocks.layer2.0.shortcut.bias"], beta - mean * gain, atol=1e-6)


def test_all_mismatched_keys_are_listed_at_once() -> None:
    arrays = state(TINY)
    arrays["backbone.body.bn1.num_batches_tracked"] = np.asarray(3)  # has no parameter, and is no mismatch
    del arrays["backbone.body.layer2.1.bn2.running_var"]
    arrays["roi_heads.box_head.fc6.weight"] = np.zeros((16, 100), np.float32)
    arrays["roi_heads.keypoint_head.0.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="these weights do not fit") as error:
        region_network(arrays, TINY, source="these weights")
    for text in ("missing: backbone.body.layer2.1.bn2.running_var", "misshapen: roi_heads.box_head.fc6.weight",
                 "unexpected: roi_heads.keypoint_head.0.weight"):  # fmt: skip
        assert text in str(error.value)
    assert "num_batches_tracked" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"anchor_sizes": (32, 64)}, "one more than scales"), ({"categories": (0, 1)}, "columns of classes are 1 … 4")],
)
def test_wrong_configurations_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)  # type: ignore[arg-type]
