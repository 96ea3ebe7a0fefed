"""Faster R-CNN (Ren et al. 2015) and Mask R-CNN (He et al. 2017) on a ResNet with a feature pyramid, NHWC float32.

One network serves both, in the form of torchvision's `fasterrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn`, whose
published weights `jaxwrap.tasks.torchvision_keys` reads. All shapes are static: the numbers of proposals and detections
are fixed, and empty places have score 0. The layers end with the raw outputs of the box head, of which `faster_rcnn`, a
`Detector`, makes detections; `mask_rcnn` looks once more into the pyramid for their masks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Frame, size_of
from jaxwrap.tasks.blocks import Conv
from jaxwrap.tasks.boxes import suppress
from jaxwrap.tasks.detector import COCO_CATEGORY_IDS, Candidates, Detections, Detector
from jaxwrap.tasks.fpn import FINEST, pyramid_layers
from jaxwrap.tasks.network import Layer, Network
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.tasks.resnet import RESNET50, ResNetConfig, resnet_layers
from jaxwrap.tasks.roi import pyramid_roi_align

ANCHORS_PER_PLACE = 3
BOX_BINS, MASK_BINS = 7, 14  # bins of RoIAlign, per side
MASK_CONVOLUTIONS = 4
_LARGEST_GROWTH = math.log(1000 / 16)  # of a box's sides, as a logarithm, so that no exponential overflows
_RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_SMALLEST_PROPOSAL, _SMALLEST_DETECTION = 1e-3, 1e-2  # pixels per side


@dataclasses.dataclass(frozen=True, slots=True)
class RegionConfig:
    """Shape of a region-based network; the defaults are those of torchvision's COCO networks.

    ``width``: channels of the pyramid; ``head_width``: of the box head; ``columns``: of the classifier, background
    first; ``categories``: the column of each class, in the order of `Detections.classes`; ``masks``: with a mask head.
    ``anchor_sizes``: side of the anchors of each scale of the pyramid, and of one more at half the coarsest.
    Of each scale ``before`` proposals go into suppression at intersection over union ``overlap``; ``after`` are kept.
    """

    name: str = "faster-rcnn"
    backbone: ResNetConfig = RESNET50
    width: int = 256
    head_width: int = 1024
    columns: int = 91
    categories: tuple[int, ...] = COCO_CATEGORY_IDS
    masks: bool = False
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    before: int = 1000
    after: int = 1000
    overlap: float = 0.7

    def __post_init__(self) -> None:
        if len(self.anchor_sizes) != len(self.backbone.blocks) + 1:
            raise ValueError(
                f"{len(self.anchor_sizes)} anchor sizes were given for a pyramid of {len(self.backbone.blocks)} "
                "scales; wanted one more than scales"
            )
        if wrong := [c for c in self.categories if not 0 < c < self.columns]:
            raise ValueError(f"categories {wrong} were given; columns of classes are 1 … {self.columns - 1}")

    @property
    def pyramid(self) -> tuple[str, ...]:
        """Layers of the pyramid, finest first."""
        return tuple(f"p{FINEST + i}" for i in range(len(self.backbone.blocks)))

    @property
    def split(self) -> str:
        """The layer after which the pyramid, and nothing else, passes to part 2."""
        return self.pyramid[-1]


FASTER_RCNN = RegionConfig()
MASK_RCNN = RegionConfig("mask-rcnn", masks=True)


@dataclasses.dataclass(frozen=True)
class RegionInput(PictureInput):
    """Pictures at a shortest side of ``shortest``, or less where the longest would pass ``longest``; the mean follows
    below and to the right, up to multiples of ``multiple`` (torchvision's `GeneralizedRCNNTransform`).

    RGB, with ImageNet's mean and deviation.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    deviation: tuple[float, float, float] = (58.395, 57.12, 57.375)
    shortest: int = 800
    longest: int = 1333
    multiple: int = 32

    def size_in(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of this size has inside the network's input."""
        scale = min(self.shortest / min(height, width), self.longest / max(height, width))
        return max(1, int(height * scale)), max(1, int(width * scale))

    def scale_in(self, height: int, width: int) -> tuple[float, float]:
        """Factors (vertical, horizontal) from pixels of such a picture to pixels of the input."""
        inner_height, inner_width = self.size_in(height, width)
        return inner_height / height, inner_width / width

    def images(self, samples: Frame, bit_depth: int = 8) -> jax.Array:
        """As `PictureInput.images`."""
        images = self._resized(*size_of(samples)).images(samples, bit_depth)
        return jnp.pad(images, self._margins(*images.shape[2:]))

    def images_of_rgb(self, rgb: np.ndarray) -> np.ndarray:
        """As `PictureInput.images_of_rgb`."""
        images = self._resized(*rgb.shape[1:3]).images_of_rgb(rgb)
        return np.pad(images, self._margins(*images.shape[2:]))

    def _resized(self, height: int, width: int) -> PictureInput:
        inner_height, inner_width = self.size_in(height, width)
        return PictureInput(inner_height, inner_width, self.order, mean=self.mean, deviation=self.deviation)

    def _margins(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """What is added to planes ``[N, 3, height, width]``."""
        return (0, 0), (0, 0), (0, -height % self.multiple), (0, -width % self.multiple)


INPUT = RegionInput()


class PictureSize(nnx.Variable[jax.Array]):
    """Height and width of the picture within the network's input, float32 ``[2]``."""


class PictureExtent(nnx.Module):
    """Height and width of the picture within the input, at most the input's: ``[N, 2]``."""

    def __init__(self) -> None:
        self.size = PictureSize(jnp.full(2, jnp.inf, jnp.float32))

    def __call__(self, finest: jax.Array) -> jax.Array:
        """The pyramid's finest scale, for its shape."""
        size = jnp.minimum(self.size[...], np.asarray(_input_size(finest), np.float32))
        return jnp.broadcast_to(size.reshape(1, 2), (finest.shape[0], 2))


class RegionProposalHead(nnx.Module):
    """Pyramid → objectness (a logit) and four offsets of each anchor, ``[N, A, 5]``; anchors as `anchors` orders them.

    The coarsest scale is every second sample of the pyramid's coarsest.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.conv = Conv(width, width, kernel_size=3, activation="relu", rngs=rngs)
        self.objectness = Conv(width, ANCHORS_PER_PLACE, rngs=rngs)
        self.offsets = Conv(width, 4 * ANCHORS_PER_PLACE, rngs=rngs)

    def __call__(self, *pyramid: jax.Array) -> jax.Array:
        """``[N, H_k, W_k, width]`` of each scale → ``[N, A, 5]``."""
        found = []
        for scale in (*pyramid, pyramid[-1][:, ::2, ::2]):
            x = self.conv(scale)
            n = x.shape[0]
            objectness, offsets = self.objectness(x).reshape(n, -1, 1), self.offsets(x).reshape(n, -1, 4)
            found.append(jnp.concatenate([objectness, offsets], axis=-1))
        return jnp.concatenate(found, axis=1)


class RegionProposals(nnx.Module):
    """Objectness and offsets → ``[N, after, 5]``: boxes (x0, y0, x1, y1) and score, best first, within the picture.

    They are constants to derivatives, as in training Faster R-CNN.
    """

    def __init__(self, config: RegionConfig) -> None:
        self.config = config

    def __call__(self, found: jax.Array, picture: jax.Array, *pyramid: jax.Array) -> jax.Array:
        """``[N, A, 5]``; ``[N, 2]``; the pyramid for its shapes."""
        config = self.config
        grids = [(scale.shape[1], scale.shape[2]) for scale in pyramid]
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
        places = anchors(config.anchor_sizes, grids, _input_size(pyramid[0]))
        rows, boxes, levels, start = [], [], [], 0
        for level, place in enumerate(places):
            part = jax.lax.stop_gradient(found[:, start : start + len(place)])
            start += len(place)
            _, best = jax.lax.top_k(part[..., 0], min(config.before, len(place)))
            rows.append(jnp.take_along_axis(part, best[..., None], axis=1))
            boxes.append(jnp.asarray(place)[best])
            levels.append(jnp.full(best.shape, level, jnp.int32))
        row = jnp.concatenate(rows, axis=1)
        box = _clipped(moved_boxes(row[..., 1:], jnp.concatenate(boxes, axis=1), _RPN_WEIGHTS), picture)
        score = jnp.where(_large_enough(box, _SMALLEST_PROPOSAL), jax.nn.sigmoid(row[..., 0]), 0.0)
        indices, filled = suppress(
            box,
            score,
            jnp.concatenate(levels, axis=1),
            threshold=jnp.float32(0),
            iou=jnp.float32(config.overlap),
            limit=config.after,
        )
        proposals = jnp.concatenate([box, score[..., None]], axis=-1)
        proposals = jnp.where(filled[..., None], jnp.take_along_axis(proposals, indices[..., None], axis=1), 0.0)
        return jnp.pad(proposals, ((0, 0), (0, config.after - proposals.shape[1]), (0, 0)))


class BoxHead(nnx.Module):
    """Proposals ``[N, K, 5]`` and pyramid → features of each proposal ``[N, K, head_width]``."""

    def __init__(self, config: RegionConfig, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(BOX_BINS**2 * config.width, config.head_width, rngs=rngs)
        self.last = nnx.Linear(config.head_width, config.head_width, rngs=rngs)

    def __call__(self, proposals: jax.Array, *pyramid: jax.Array) -> jax.Array:
        """RoIAlign, two dense layers with ReLU."""
        x = pyramid_roi_align(pyramid, _strides(pyramid), proposals[..., :4], BOX_BINS)
        return jax.nn.relu(self.last(jax.nn.relu(self.hidden(x.reshape(*x.shape[:2], -1)))))


class MaskBranch(nnx.Module):
    """Boxes and pyramid → mask logits of every column ``[N, K, 28, 28, columns]``."""

    def __init__(self, config: RegionConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.convolutions = nnx.List(
            [Conv(width, width, kernel_size=3, activation="relu", rngs=rngs) for _ in range(MASK_CONVOLUTIONS)]
        )
        self.double = Doubling(width, width, rngs=rngs)
        self.logits = Conv(width, config.columns, rngs=rngs)

    def __call__(self, boxes: jax.Array, *pyramid: jax.Array) -> jax.Array:
        """``[N, K, 4]`` in pixels of the network's input."""
        x = pyramid_roi_align(pyramid, _strides(pyramid), boxes, MASK_BINS)
        n, k = x.shape[:2]
        x = x.reshape(n * k, *x.shape[2:])
        for convolution in self.convolutions:
            x = convolution(x)
        x = self.logits(jax.nn.relu(self.double(x)))
        return x.reshape(n, k, *x.shape[1:])


class Doubling(nnx.Module):
    """Transposed 2×2 convolution at stride 2: ``[N, H, W, C]`` → ``[N, 2H, 2W, O]``."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform", in_axis=2, out_axis=3)
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Each sample makes a 2×2 block of its own."""
        n, h, w, _ = x.shape
        blocks = jnp.einsum("nhwi,abio->nhawbo", x, self.kernel[...])
        return blocks.reshape(n, 2 * h, 2 * w, -1) + self.bias[...].reshape(1, 1, 1, -1)


class RegionNetwork(Network):
    """ResNet, pyramid, proposals and box head as layers.

    Layers: ``stem``, ``layer1.0`` …, ``m5`` … ``m2``, ``p2`` … ``p5``, ``rpn``, ``picture``, ``proposals``,
    ``box_features``, ``class_logits``, ``box_offsets``. The split after ``p5`` (`RegionConfig.split`) lies at the
    pyramid; the one scale more that proposals are made from is part of part 2, since it repeats samples of ``p5``.

    Raw outputs: ``picture [N, 2]``, ``proposals [N, K, 5]``, ``class_logits [N, K, columns]``, ``box_offsets [N, K, 4 ·
    columns]``; with masks also the pyramid, which the mask head (``mask_branch``) reads.

    Sides are multiples of 32. Images are as `INPUT` makes them, and 0 (the mean) below and to the right of a smaller
    picture, whose size `in_picture` states.
    """

    def __init__(self, config: RegionConfig = FASTER_RCNN, *, rngs: nnx.Rngs) -> None:
        backbone, pyramid = config.backbone, config.pyramid
        layers: list[Layer] = [
            *resnet_layers(backbone, rngs=rngs),
            *pyramid_layers(backbone.ends, backbone.channels, config.width, rngs=rngs),
            ("rpn", pyramid, RegionProposalHead(config.width, rngs=rngs)),
            ("picture", pyramid[:1], PictureExtent()),
            ("proposals", ("rpn", "picture", *pyramid), RegionProposals(config)),
            ("box_features", ("proposals", *pyramid), BoxHead(config, rngs=rngs)),
            ("class_logits", ("box_features",), nnx.Linear(config.head_width, config.columns, rngs=rngs)),
            ("box_offsets", ("box_features",), nnx.Linear(config.head_width, 4 * config.columns, rngs=rngs)),
        ]
        outputs = ("picture", "proposals", "class_logits", "box_offsets", *(pyramid if config.masks else ()))
        super().__init__(config.name, layers, outputs=outputs, multiple=2 ** (FINEST + len(pyramid) - 1))
        self.config = config
        self.mask_branch = MaskBranch(config, rngs=rngs) if config.masks else None


def in_picture(network: RegionNetwork, size: tuple[float, float] | None) -> RegionNetwork:
    """The same network, sharing its weights, for pictures of ``size`` (height, width) in the top left corner of the
    input: boxes are clipped to it. None: pictures fill the input. Sizes share compiled code."""
    copy: RegionNetwork = nnx.merge(*nnx.split(network))
    limit = (math.inf, math.inf) if size is None else size
    extent = copy.blocks["picture"]
    assert isinstance(extent, PictureExtent)
    extent.size = PictureSize(jnp.asarray(limit, jnp.float32))
    return copy


@dataclasses.dataclass(frozen=True)
class RegionDecoder:
    """Raw outputs of a `RegionNetwork` → each proposal's box, score and class, once for every class."""

    config: RegionConfig

    def __call__(self, raw: Mapping[str, jax.Array]) -> Candidates:
        """Boxes ``[N, K · classes, 4]`` within the picture, scores and classes ``[N, K · classes]``."""
        columns = np.asarray(self.config.categories, np.int32)
        proposals = raw["proposals"]
        n, k, _ = proposals.shape
        scores = jax.nn.softmax(raw["class_logits"], axis=-1)[..., columns]
        offsets = raw["box_offsets"].reshape(n, k, -1, 4)[:, :, columns]
        boxes = moved_boxes(offsets, proposals[:, :, None, :4], _BOX_WEIGHTS).reshape(n, -1, 4)
        boxes = _clipped(boxes, raw["picture"])
        scores = jnp.where(proposals[..., 4:] > 0, scores, 0.0).reshape(n, -1)
        scores = jnp.where(_large_enough(boxes, _SMALLEST_DETECTION), scores, 0.0)
        classes = jnp.broadcast_to(jnp.arange(len(columns), dtype=jnp.int32).reshape(1, 1, -1), (n, k, len(columns)))
        return boxes, scores, classes.reshape(n, -1)


def faster_rcnn(network: RegionNetwork, digest: str = "") -> Detector:
    """The detector, split after the pyramid; torchvision runs it at threshold 0.05, iou 0.5, limit 100.

    Its pictures are padded (`RegionInput`): boxes end at the picture itself if the network is
    ``in_picture(network, INPUT.size_in(height, width))``, else up to 31 pixels of the input beyond.
    """
    config = network.config
    return Detector(config.name, network, INPUT, config.split, RegionDecoder(config), digest)


def mask_rcnn(network: RegionNetwork, raw: Mapping[str, jax.Array], found: Detections) -> jax.Array:
    """Raw outputs and the detections that `faster_rcnn` made of them → the mask of each: logits ``[N, K, 28, 28]`` on
    the grid of its box (`jaxwrap.tasks.masks.paste_masks`). Those of an empty place mean nothing.

    Raises `ValueError` for a network without a mask head.
    """
    if network.mask_branch is None:
        raise ValueError(f"{network.name} has no mask head: build it with RegionConfig(masks=True)")
    logits = network.mask_branch(found.boxes, *(raw[name] for name in network.config.pyramid))
    columns = jnp.asarray(np.asarray(network.config.categories, np.int32))[found.classes]
    return jnp.take_along_axis(logits, columns[..., None, None, None], axis=-1)[..., 0]


def anchors(sizes: Sequence[int], grids: Sequence[tuple[int, int]], input_size: tuple[int, int]) -> list[np.ndarray]:
    """Anchors of each scale ``[H_k · W_k · 3, 4]``, float32: at every place those of height / width 1/2, 1 and 2, with
    corners at whole pixels.

    The places' distance is the input's size divided by the grid's, rounded down, as torchvision has it: 61 and not 64
    pixels at the coarsest scale of 800.
    """
    found = []
    root = np.sqrt(np.asarray([0.5, 1.0, 2.0], np.float32))
    for size, (height, width) in zip(sizes, grids, strict=True):
        sides = np.stack([np.float32(size) / root, np.float32(size) * root], axis=-1)  # width, height
        shapes = np.round(np.concatenate([-sides, sides], axis=-1) / 2)
        y, x = np.arange(height) * (input_size[0] // height), np.arange(width) * (input_size[1] // width)
        corners = np.stack(np.broadcast_arrays(x, y[:, None], x, y[:, None]), axis=-1)  # [H, W, 4]
        found.append((corners[:, :, None] + shapes).reshape(-1, 4).astype(np.float32))
    return found


def moved_boxes(offsets: jax.Array, boxes: jax.Array, weights: Sequence[float]) -> jax.Array:
    """Boxes ``[…, 4]`` moved by ``offsets / weights`` ``[…, 4]``: shift of the centre in sides of the box, logarithms
    of the sides' growth (Girshick et al. 2014, appendix C)."""
    x, y, w, h = (offsets[..., i] / weight for i, weight in enumerate(weights))
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    centre_x, centre_y = boxes[..., 0] + 0.5 * width + x * width, boxes[..., 1] + 0.5 * height + y * height
    half_width = 0.5 * jnp.exp(jnp.minimum(w, _LARGEST_GROWTH)) * width
    half_height = 0.5 * jnp.exp(jnp.minimum(h, _LARGEST_GROWTH)) * height
    return jnp.stack(
        [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height], axis=-1
    )


def _clipped(boxes: jax.Array, picture: jax.Array) -> jax.Array:
    """Boxes ``[N, K, 4]`` within (height, width) ``[N, 2]``."""
    return jnp.clip(boxes, 0, picture[:, None, np.array([1, 0, 1, 0])])


def _large_enough(boxes: jax.Array, side: float) -> jax.Array:
    return (boxes[..., 2] - boxes[..., 0] >= side) & (boxes[..., 3] - boxes[..., 1] >= side)


def _strides(pyramid: Sequence[jax.Array]) -> tuple[int, ...]:
    return tuple(2 ** (FINEST + i) for i in range(len(pyramid)))


def _input_size(finest: jax.Array) -> tuple[int, int]:
    return finest.shape[1] * 2**FINEST, finest.shape[2] * 2**FINEST
