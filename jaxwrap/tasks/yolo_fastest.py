"""Yolo-FastestV2 (dog-qiuqiu, 0.24 M parameters): a ShuffleNetV2 (Ma et al. 2018), a light feature pyramid, and heads
that two scales share.

Its layers, in the order in which they run: ``stem``, ``pool``, ``stage2.0`` … ``stage2.3``, ``stage3.0`` …
``stage3.6``, ``C2`` (the last of stage 3, stride 16), ``stage4.0`` … ``stage4.2``, ``C3`` (the last of stage 4, stride
32); ``S3``, ``S2`` (pyramid); then for each scale s in 2, 3 ``cls_head_{s}``, ``reg_head_{s}``, ``reg_{s}``,
``obj_{s}``, ``cls_{s}``.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.tasks.blocks import Conv, Depthwise, max_pool, upsample
from jaxwrap.tasks.boxes import corners
from jaxwrap.tasks.detector import Candidates
from jaxwrap.tasks.network import IMAGES, Layer, Network
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.tasks.weights import KeyMap, convolution, depthwise_convolution, load_state

INPUT = PictureInput(352, 352, order="bgr", fit="stretch", deviation=(255.0, 255.0, 255.0))
"""BGR in [0, 1], stretched."""

STAGES = {2: 4, 3: 8, 4: 4}
"""Blocks of each stage of the backbone; the channels double with each, from 24."""

FPN_CHANNELS = 72

SCALES = (2, 3)

STRIDES = {2: 16, 3: 32}

ANCHORS = {
    2: ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    3: ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
}
"""Width and height, in pixels of the input, of the anchors of each scale."""


class Pool(nnx.Module):
    """3×3 maxima at stride 2."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/2, W/2, C]``."""
        return max_pool(x, 3, stride=2)


class Branch(nnx.Module):
    """1×1, depthwise 3×3, 1×1: the main branch of a ShuffleNetV2 block."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, stride: int, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, hidden, activation="relu", rngs=rngs)
        self.depthwise = Depthwise(hidden, kernel_size=3, stride=stride, rngs=rngs)
        self.conv2 = Conv(hidden, out_channels, activation="relu", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/stride, W/stride, O]``."""
        return self.conv2(self.depthwise(self.conv1(x)))


class Down(nnx.Module):
    """First block of a stage: a projection and the main branch, both at stride 2, side by side."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.depthwise = Depthwise(channels, kernel_size=3, stride=2, rngs=rngs)
        self.conv = Conv(channels, channels, activation="relu", rngs=rngs)
        self.main = Branch(channels, channels, channels, stride=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/2, W/2, 2 C]``."""
        return jnp.concatenate([self.conv(self.depthwise(x)), self.main(x)], axis=-1)


class Shuffle(nnx.Module):
    """Other blocks of a stage: even channels pass, odd ones go through the main branch."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.main = Branch(channels // 2, channels // 2, channels // 2, stride=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → the same."""
        return jnp.concatenate([x[..., 0::2], self.main(x[..., 1::2])], axis=-1)


class TopDown(nnx.Module):
    """The coarser map, upsampled 2×, and the finer one through one 1×1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(in_channels, out_channels, activation="relu", rngs=rngs)

    def __call__(self, coarse: jax.Array, fine: jax.Array) -> jax.Array:
        """``[N, H/2, W/2, C]``, ``[N, H, W, D]`` → ``[N, H, W, O]``."""
        return self.conv(jnp.concatenate([upsample(coarse), fine], axis=-1))


class Head(nnx.Module):
    """Twice depthwise 5×5 and 1×1; the activation follows the depthwise convolutions only."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.depthwise1 = Depthwise(channels, kernel_size=5, activation="relu", rngs=rngs)
        self.conv1 = Conv(channels, channels, rngs=rngs)
        self.depthwise2 = Depthwise(channels, kernel_size=5, activation="relu", rngs=rngs)
        self.conv2 = Conv(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → the same."""
        return self.conv2(self.depthwise2(self.conv1(self.depthwise1(x))))


class YoloFastest(Network):
    """Yolo-FastestV2 on images as `INPUT` makes them, sides multiples of 32.

    Raw outputs of each scale s: ``reg_{s}`` ``[N, H, W, 12]`` (tx, ty, tw, th of each of three anchors), ``obj_{s}``
    ``[N, H, W, 3]`` and ``cls_{s}`` ``[N, H, W, classes]``, logits; classes are common to the anchors.
    """

    def __init__(self, classes: int = 80, *, rngs: nnx.Rngs):
        channels = 24
        layers: list[Layer] = [
            ("stem", (IMAGES,), Conv(3, channels, kernel_size=3, stride=2, activation="relu", rngs=rngs)),
            ("pool", ("stem",), Pool()),
        ]
        for stage, blocks in STAGES.items():
            for i in range(blocks):
                last = stage > 2 and i == blocks - 1
                block = Shuffle(2 * channels, rngs=rngs) if i else Down(channels, rngs=rngs)
                layers.append((f"C{stage - 1}" if last else f"stage{stage}.{i}", (layers[-1][0],), block))
            channels *= 2
        layers += [
            ("S3", ("C3",), Conv(channels, FPN_CHANNELS, activation="relu", rngs=rngs)),
            ("S2", ("C3", "C2"), TopDown(channels + channels // 2, FPN_CHANNELS, rngs=rngs)),
        ]
        shared = {"reg": ("reg", 12), "obj": ("cls", 3), "cls": ("cls", classes)}
        for scale in SCALES:
            for head in ("cls", "reg"):
                layers.append((f"{head}_head_{scale}", (f"S{scale}",), Head(FPN_CHANNELS, rngs=rngs)))
            for name, (head, made) in shared.items():
                output = Conv(FPN_CHANNELS, made, rngs=rngs) if scale == SCALES[0] else f"{name}_{SCALES[0]}"
                layers.append((f"{name}_{scale}", (f"{head}_head_{scale}",), output))
        outputs = [f"{name}_{scale}" for scale in SCALES for name in shared]
        super().__init__("yolo-fastestv2", layers, outputs=outputs, multiple=32)


def yolo_fastest_from_arrays(arrays: Mapping[str, np.ndarray]) -> YoloFastest:
    """The network with the weights of a PyTorch ``state_dict`` of the original code, as arrays. Raises `ValueError` as
    `load_state` does."""
    network = nnx.eval_shape(lambda: YoloFastest(rngs=nnx.Rngs(0)))
    load_state(network, arrays, _key_map(), ignored=["num_batches_tracked"], source="the given arrays")
    return network


def decode(raw: Mapping[str, jax.Array]) -> Candidates:
    """Raw outputs of `YoloFastest` → boxes, scores (objectness × best class) and classes of all anchors: scale 2, then
    3, each row by row, a cell's three anchors together.

    With s the sigmoid: centre = (2 s(t_xy) − ½ + cell) · stride, size = (2 s(t_wh))² · anchor.
    """
    boxes, scores, classes = [], [], []
    for scale in SCALES:
        reg, objectness = raw[f"reg_{scale}"], jax.nn.sigmoid(raw[f"obj_{scale}"])
        n, height, width, anchors = objectness.shape
        t = jax.nn.sigmoid(reg.reshape(n, height, width, anchors, 4))
        y, x = np.mgrid[:height, :width]
        cells = np.stack([x, y], axis=-1).reshape(1, height, width, 1, 2).astype(t.dtype)
        sizes = np.reshape(ANCHORS[scale], (1, 1, 1, anchors, 2)).astype(t.dtype)
        found = corners((2 * t[..., :2] - 0.5 + cells) * STRIDES[scale], (2 * t[..., 2:]) ** 2 * sizes)
        probabilities = jax.nn.softmax(raw[f"cls_{scale}"], axis=-1)
        best = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)[..., None]  # [N, H, W, 1]
        boxes.append(found.reshape(n, -1, 4))
        scores.append((objectness * probabilities.max(-1, keepdims=True)).reshape(n, -1))
        classes.append(jnp.broadcast_to(best, objectness.shape).reshape(n, -1))
    return jnp.concatenate(boxes, axis=1), jnp.concatenate(scores, axis=1), jnp.concatenate(classes, axis=1)


def _key_map() -> KeyMap:
    """Names of the original code. The modules of a sequence count its normalisations and activations too."""
    keys = convolution("blocks.stem", "backbone.first_conv.0", norm="backbone.first_conv.1")
    for stage, blocks in STAGES.items():
        for i in range(blocks):
            path = f"blocks.C{stage - 1}" if stage > 2 and i == blocks - 1 else f"blocks.stage{stage}.{i}"
            main, projection = (f"backbone.stage{stage}.{i}.branch_{name}" for name in ("main", "proj"))
            keys |= convolution(f"{path}.main.conv1", f"{main}.0", norm=f"{main}.1")
            keys |= depthwise_convolution(f"{path}.main.depthwise", f"{main}.3", norm=f"{main}.4")
            keys |= convolution(f"{path}.main.conv2", f"{main}.5", norm=f"{main}.6")
            if not i:
                keys |= depthwise_convolution(f"{path}.depthwise", f"{projection}.0", norm=f"{projection}.1")
                keys |= convolution(f"{path}.conv", f"{projection}.2", norm=f"{projection}.3")
    keys |= convolution("blocks.S3", "fpn.conv1x1_3.0", norm="fpn.conv1x1_3.1")
    keys |= convolution("blocks.S2.conv", "fpn.conv1x1_2.0", norm="fpn.conv1x1_2.1")
    for head in (f"{kind}_head_{scale}" for scale in SCALES for kind in ("cls", "reg")):
        theirs = f"fpn.{head}.block"
        for i, first in ((1, 0), (2, 5)):
            path = f"blocks.{head}"
            keys |= depthwise_convolution(f"{path}.depthwise{i}", f"{theirs}.{first}", norm=f"{theirs}.{first + 1}")
            keys |= convolution(f"{path}.conv{i}", f"{theirs}.{first + 3}", norm=f"{theirs}.{first + 4}")
    for name in ("reg", "obj", "cls"):
        keys |= convolution(f"blocks.{name}_{SCALES[0]}", f"output_{name}_layers")
    return keys
