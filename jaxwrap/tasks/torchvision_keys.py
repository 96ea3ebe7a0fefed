"""torchvision's checkpoints of region-based networks: which of their arrays make which parameter of `RegionNetwork`.

The published ``fasterrcnn_resnet50_fpn_coco-258fb6c6.pth`` and ``maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth`` fit the
defaults of `region_network`; so do state dicts of torchvision's own modules, whose names of some layers are newer and
whose normalisation has another epsilon.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flax import nnx

from jaxwrap.tasks.fpn import FINEST
from jaxwrap.tasks.rcnn import BOX_BINS, FASTER_RCNN, MASK_CONVOLUTIONS, RegionConfig, RegionNetwork, in_picture
from jaxwrap.tasks.weights import KeyMap, Source, convolution, linear, load_state

_FPN = "backbone.fpn"
_RENAMED = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
)
_MASK_CONVOLUTION = r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)"  # counted from 1; newer ones from 0


def region_network(
    arrays: Mapping[str, np.ndarray],
    config: RegionConfig = FASTER_RCNN,
    *,
    epsilon: float = 0.0,
    source: str = "the given weights",
) -> RegionNetwork:
    """The network of a torchvision state dict, given as arrays by key.

    ``epsilon`` is what normalisation adds to its variances: 0 for the published checkpoints (torchvision sets it so
    when it loads them), 1e-5 for modules of one's own.

    Raises `ValueError` listing all missing, unexpected and misshapen keys.
    """
    network = nnx.eval_shape(lambda: RegionNetwork(config, rngs=nnx.Rngs(0)))
    key_map = torchvision_key_map(config, epsilon=epsilon)
    load_state(network, _current(arrays), key_map, ignored=(".num_batches_tracked",), source=source)
    return in_picture(network, None)


def torchvision_key_map(config: RegionConfig, *, epsilon: float = 0.0) -> KeyMap:
    """Every parameter of a `RegionNetwork` → torchvision's (present) keys."""
    found = convolution("blocks.stem.conv", "backbone.body.conv1", norm="backbone.body.bn1", epsilon=epsilon)
    for stage, count in enumerate(config.backbone.blocks, start=1):
        for block in range(count):
            ours, theirs = f"blocks.layer{stage}.{block}", f"backbone.body.layer{stage}.{block}"
            for i in (1, 2, 3):
                found |= convolution(f"{ours}.conv{i}", f"{theirs}.conv{i}", norm=f"{theirs}.bn{i}", epsilon=epsilon)
            if block == 0:
                short = f"{theirs}.downsample"
                found |= convolution(f"{ours}.shortcut", f"{short}.0", norm=f"{short}.1", epsilon=epsilon)
    for i, name in enumerate(config.pyramid):
        coarsest = i == len(config.pyramid) - 1
        found |= convolution(f"blocks.m{FINEST + i}" + ("" if coarsest else ".lateral"), f"{_FPN}.inner_blocks.{i}.0")
        found |= convolution(f"blocks.{name}", f"{_FPN}.layer_blocks.{i}.0")
    found |= convolution("blocks.rpn.conv", "rpn.head.conv.0.0")
    found |= convolution("blocks.rpn.objectness", "rpn.head.cls_logits")
    found |= convolution("blocks.rpn.offsets", "rpn.head.bbox_pred")
    found |= linear("blocks.box_features.hidden", "roi_heads.box_head.fc6")
    found["blocks.box_features.hidden.kernel"] = Source(("roi_heads.box_head.fc6.weight",), _channels_last)
    found |= linear("blocks.box_features.last", "roi_heads.box_head.fc7")
    found |= linear("blocks.class_logits", "roi_heads.box_predictor.cls_score")
    found |= linear("blocks.box_offsets", "roi_heads.box_predictor.bbox_pred")
    if config.masks:
        for i in range(MASK_CONVOLUTIONS):
            found |= convolution(f"mask_branch.convolutions.{i}", f"roi_heads.mask_head.{i}.0")
        doubling = "roi_heads.mask_predictor.conv5_mask"
        found["mask_branch.double.kernel"] = Source((f"{doubling}.weight",), lambda w: w.transpose(2, 3, 0, 1))
        found["mask_branch.double.bias"] = Source((f"{doubling}.bias",), np.asarray)
        found |= convolution("mask_branch.logits", "roi_heads.mask_predictor.mask_fcn_logits")
    return found


def _current(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by the names that torchvision uses now; the published files have those of 2019."""
    found = {}
    for key, array in arrays.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(f"^{pattern}$", replacement, key)
        key = re.sub(f"^{_MASK_CONVOLUTION}$", lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}", key)
        found[key] = array
    return found


def _channels_last(weight: np.ndarray) -> np.ndarray:
    """A dense layer ``[O, C · 7 · 7]`` on flattened bins → ``[7 · 7 · C, O]``."""
    bins = weight.reshape(len(weight), -1, BOX_BINS, BOX_BINS)
    return bins.transpose(2, 3, 1, 0).reshape(-1, len(weight))
