"""The features of VGG-16 (Simonyan and Zisserman 2015, configuration D).

Its layers, in the order in which they run: ``conv1_1``, ``conv1_2``, ``pool1``, …, ``conv5_3``, ``pool5``, named as in
the paper; a convolution's tensor is the one after its ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from jaxwrap.tasks.blocks import Conv, max_pool
from jaxwrap.tasks.network import IMAGES, Layer, Network
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.tasks.weights import KeyMap, convolution, load_state

INPUT = PictureInput(224, 224, order="rgb", mean=(123.675, 116.28, 103.53), deviation=(58.395, 57.12, 57.375))
"""RGB, normalised by ImageNet's mean and deviation, as torchvision's weights want it; other sides that are multiples of
32 serve as well."""

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Convolutions and channels of each stage; a 2×2 maximum follows each."""


class Pool(nnx.Module):
    """2×2 maxima."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/2, W/2, C]``."""
        return max_pool(x, 2, stride=2, padding=0)


class Vgg16(Network):
    """VGG-16 without its classifier, on images as `INPUT` makes them, sides multiples of 32: the tensors of the
    layers in ``outputs``."""

    def __init__(self, outputs: Sequence[str] = ("pool5",), *, rngs: nnx.Rngs):
        layers: list[Layer] = []
        below, channels = IMAGES, 3
        for stage, (count, width) in enumerate(STAGES, start=1):
            for i in range(1, count + 1):
                conv = Conv(channels, width, kernel_size=3, activation="relu", rngs=rngs)
                layers.append((f"conv{stage}_{i}", (below,), conv))
                below, channels = layers[-1][0], width
            layers.append((f"pool{stage}", (below,), Pool()))
            below = layers[-1][0]
        super().__init__("vgg16", layers, outputs=outputs, multiple=32)


def vgg16_from_torchvision(arrays: Mapping[str, np.ndarray], outputs: Sequence[str] = ("pool5",)) -> Vgg16:
    """The network with the weights of torchvision's ``vgg16`` (its ``state_dict`` as arrays; the classifier is left
    out). Raises `ValueError` as `load_state` does."""
    network = nnx.eval_shape(lambda: Vgg16(outputs, rngs=nnx.Rngs(0)))
    features = {key: array for key, array in arrays.items() if not key.startswith("classifier.")}
    load_state(network, features, key_map(), source="the given arrays")
    return network


def key_map() -> KeyMap:
    """torchvision's names: it counts convolutions, activations and pools alike."""
    keys: KeyMap = {}
    position = 0
    for stage, (count, _) in enumerate(STAGES, start=1):
        for i in range(1, count + 1):
            keys |= convolution(f"blocks.conv{stage}_{i}", f"features.{position}")
            position += 2
        position += 1
    return keys
