"""Region-based networks against torchvision's own modules, at random weights. Skipped where torch is not installed.

Weights are drawn so that activations stay in range and detections of many classes result: a network as torch draws it
gives the same scores everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.tasks.detector import Detections
from jaxwrap.tasks.rcnn import MASK_RCNN, RegionConfig, RegionInput, faster_rcnn, in_picture, mask_rcnn
from jaxwrap.tasks.resnet import ResNetConfig
from jaxwrap.tasks.roi import pyramid_roi_align
from jaxwrap.tasks.torchvision_keys import region_network

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed: nothing to compare with")

THRESHOLD, IOU, LIMIT = 0.05, 0.5, 100  # torchvision's defaults
EPSILON = 0.0  # as torchvision sets it for its published checkpoints
CONFIG = dataclasses.replace(MASK_RCNN, backbone=ResNetConfig((1, 2, 1, 1)), before=300, after=200)
SIDES = (160, 224)  # shortest and longest side of the resized picture


@dataclasses.dataclass
class Reference:
    """What torchvision computes on the way, as arrays, NHWC."""

    state: dict[str, np.ndarray]
    images: np.ndarray
    picture: tuple[int, int]  # size within the padded input
    pyramid: dict[str, np.ndarray]
    rpn: np.ndarray
    proposals: np.ndarray
    pooled: np.ndarray
    class_logits: np.ndarray
    box_offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    columns: np.ndarray
    masks: np.ndarray


def torch_model(config: RegionConfig, sides: tuple[int, int]) -> Any:
    """torchvision's Mask R-CNN with random weights."""
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    norm = torchvision.ops.misc.FrozenBatchNorm2d
    body = ResNet(Bottleneck, list(config.backbone.blocks), norm_layer=norm)
    model = torchvision.models.detection.MaskRCNN(
        _resnet_fpn_extractor(body, 0),
        num_classes=config.columns,
        min_size=sides[0],
        max_size=sides[1],
        rpn_pre_nms_top_n_test=config.before,
        rpn_post_nms_top_n_test=config.after,
    ).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, norm):
                module.eps = EPSILON
                module.weight.uniform_(0.5, 1.0)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                if name.endswith("bn3"):
                    module.weight.mul_(0.3)  # residual branches would otherwise double the variance in every block
        head, predictor = model.rpn.head, model.roi_heads.box_predictor
        head.conv[0][0].weight.mul_(3)
        head.cls_logits.weight.mul_(10)
        head.bbox_pred.weight.mul_(10)
        predictor.bbox_pred.weight.mul_(10)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(3)
    return model


def spread_classes(layer: Any, hidden: Any, config: RegionConfig) -> None:
    """Scales a classifier to logits of mean 0 and deviation 3 over the proposals, class by class; columns that are no
    class of COCO's get no share."""
    layer.bias.zero_()
    layer.weight.mul_(3 / layer(hidden).std(0)[:, None])
    layer.bias.copy_(-layer(hidden).mean(0))
    absent = [c for c in range(1, config.columns) if c not in config.categories]
    layer.weight[absent] = 0
    layer.bias[absent] = -40.0


def picture() -> np.ndarray:
    """A made-up picture with edges and colours, RGB uint8 ``[100, 135, 3]``."""
    rng = np.random.default_rng(5)
    blocks = rng.uniform(size=(13, 17, 3)).repeat(8, 0).repeat(8, 1)[:100, :135]
    return (255 * np.clip(blocks + 0.1 * rng.normal(size=blocks.shape), 0, 1)).astype(np.uint8)


def nhwc(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def torch_reference(config: RegionConfig, sides: tuple[int, int]) -> Reference:
    """Runs torchvision's stages one by one."""
    model = torch_model(config, sides)
    heads = model.roi_heads
    with torch.no_grad():
        images, _ = model.transform([torch.from_numpy(picture().transpose(2, 0, 1)) / 255])
        features = model.backbone(images.tensors)
        objectness, offsets = model.rpn.head(list(features.values()))
        rows = [
            np.concatenate([nhwc(o).reshape(1, -1, 1), nhwc(d).reshape(1, -1, 4)], -1)
            for o, d in zip(objectness, offsets, strict=True)
        ]
        proposals, _ = model.rpn(images, features)
        pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
        hidden = heads.box_head(pooled)
        spread_classes(heads.box_predictor.cls_score, hidden, config)
        logits, moves = heads.box_predictor(hidden)
        (found,), _ = heads(features, proposals, images.image_sizes)
    return Reference(
        state={key: value.numpy() for key, value in model.state_dict().items()},
        images=nhwc(images.tensors),
        picture=images.image_sizes[0],
        pyramid={name: nhwc(features[str(i)]) for i, name in enumerate(config.pyramid)},
        rpn=np.concatenate(rows, 1),
        proposals=proposals[0].numpy(),
        pooled=nhwc(pooled),
        class_logits=logits.numpy(),
        box_offsets=moves.numpy(),
        boxes=found["boxes"].numpy(),
        scores=found["scores"].numpy(),
        columns=found["labels"].numpy(),
        masks=found["masks"][:, 0].numpy(),
    )


def relative_error(found: Any, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def errors(config: RegionConfig, sides: tuple[int, int], reference: Reference) -> dict[str, float]:
    """Each stage against torchvision, from the same images."""
    network = in_picture(region_network(reference.state, config, epsilon=EPSILON), reference.picture)
    detector = faster_rcnn(network)
    features = detector.features(reference.images)
    found = {name: relative_error(features[name], expected) for name, expected in reference.pyramid.items()}
    found["rpn"] = relative_error(jax.jit(lambda n, f: n.blocks["rpn"](*f.values()))(network, features), reference.rpn)
    raw = detector.outputs(features)
    count = len(reference.proposals)
    proposals = np.asarray(raw["proposals"][0])
    assert not proposals[count:].any()
    # Scores that are equal but for rounding may change places.
    order = np.abs(proposals[None, :, :4] - reference.proposals[:, None]).max(-1).argmin(1)
    found["proposals"] = float(np.abs(proposals[order, :4] - reference.proposals).max())  # pixels
    found["proposals in another place"] = float((order != np.arange(count)).sum())
    pyramid = [jnp.asarray(reference.pyramid[name]) for name in config.pyramid]
    pooled = pyramid_roi_align(pyramid, (4, 8, 16, 32), jnp.asarray(reference.proposals[None]), 7)
    found["roi_align"] = relative_error(pooled[0], reference.pooled)
    for name in ("class_logits", "box_offsets"):
        found[name] = relative_error(np.asarray(raw[name][0])[order], getattr(reference, name))
    result = detector.detections(raw, threshold=THRESHOLD, iou=IOU, limit=LIMIT)
    kept = int((np.asarray(result.scores[0]) > 0).sum())
    assert kept == len(reference.boxes)
    order, columns = matched(result, reference, config)
    np.testing.assert_array_equal(columns, reference.columns)
    found["boxes"] = float(np.abs(np.asarray(result.boxes[0])[order] - reference.boxes).max())  # pixels
    found["scores"] = float(np.abs(np.asarray(result.scores[0])[order] - reference.scores).max())
    masks = jax.nn.sigmoid(jax.jit(mask_rcnn)(network, raw, result))
    found["masks"] = float(np.abs(np.asarray(masks[0])[order] - reference.masks).max())
    expects = RegionInput(shortest=sides[0], longest=sides[1])
    images = expects.images_of_rgb(picture()[None]).transpose(0, 2, 3, 1)
    assert expects.size_in(*picture().shape[:2]) == reference.picture
    found["images"] = relative_error(images, reference.images)
    return found


def matched(result: Detections, reference: Reference, config: RegionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Places of our detections in torchvision's order, and their columns; nearly equal scores may change places."""
    columns = np.asarray(config.categories)[np.asarray(result.classes[0])]
    distance = np.abs(np.asarray(result.boxes[0])[None] - reference.boxes[:, None]).max(-1)
    distance += 1e3 * (columns[None] != reference.columns[:, None])
    order = distance.argmin(1)
    assert len(set(order)) == len(order)
    return order, columns[order]


def test_every_stage_equals_torchvision() -> None:
    reference = torch_reference(CONFIG, SIDES)
    assert len(set(reference.columns)) > 3
    assert len(reference.boxes) > 10
    assert reference.picture != reference.images.shape[1:3]  # the picture is padded
    found = errors(CONFIG, SIDES, reference)
    assert max(found[name] for name in CONFIG.pyramid) < 1e-4
    assert max(found["images"], found["rpn"]) < 1e-4
    assert found["roi_align"] < 1e-5
    assert found["proposals"] < 0.01
    assert max(found["class_logits"], found["box_offsets"]) < 1e-3
    assert found["boxes"] < 0.01
    assert max(found["scores"], found["masks"]) < 1e-3
