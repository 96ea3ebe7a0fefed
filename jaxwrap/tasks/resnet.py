"""ResNet (He et al. 2016, "Deep residual learning for image recognition") as named layers, NHWC.

The form of torchvision's `resnet50`: bottlenecks whose stride lies in the 3×3 convolution. Normalisation is frozen and
folded into the kernels (`jaxwrap.tasks.blocks`).
"""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from jaxwrap.tasks.blocks import Conv, max_pool
from jaxwrap.tasks.network import IMAGES, Layer


@dataclasses.dataclass(frozen=True, slots=True)
class ResNetConfig:
    """``blocks`` of each stage (strides 4, 8, 16, 32) and their inner ``widths``; a stage gives 4 × its width."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        if not self.blocks or len(self.blocks) != len(self.widths) or min(*self.blocks, *self.widths) < 1:
            raise ValueError(
                f"blocks {self.blocks} and widths {self.widths} were given; wanted one positive number per stage each"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """What each stage gives."""
        return tuple(4 * width for width in self.widths)

    @property
    def ends(self) -> tuple[str, ...]:
        """Name of the last layer of each stage."""
        return tuple(f"layer{stage}.{count - 1}" for stage, count in enumerate(self.blocks, start=1))


RESNET50 = ResNetConfig()


class Stem(nnx.Module):
    """``[N, H, W, 3]`` → ``[N, H/4, W/4, width]``: 7×7 convolution at stride 2, ReLU, 3×3 maximum at stride 2."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.conv = Conv(3, width, kernel_size=7, stride=2, activation="relu", rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images → features at stride 4."""
        return max_pool(self.conv(images), 3, stride=2)


class Bottleneck(nnx.Module):
    """1×1, 3×3 (with the stride), 1×1 convolutions to 4 × ``width`` channels, added to the input, ReLU.

    Where channels or stride change, the input passes a 1×1 convolution of its own.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(in_channels, width, activation="relu", rngs=rngs)
        self.conv2 = Conv(width, width, kernel_size=3, stride=stride, activation="relu", rngs=rngs)
        self.conv3 = Conv(width, 4 * width, rngs=rngs)
        self.projects = stride != 1 or in_channels != 4 * width
        if self.projects:
            self.shortcut = Conv(in_channels, 4 * width, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/stride, W/stride, 4 · width]``."""
        y = self.conv3(self.conv2(self.conv1(x)))
        return jax.nn.relu(y + (self.shortcut(x) if self.projects else x))


def resnet_layers(config: ResNetConfig = RESNET50, *, rngs: nnx.Rngs) -> list[Layer]:
    """Layers of the network without its classifier: ``stem``, then ``layer1.0`` … as torchvision names the blocks."""
    layers: list[Layer] = [("stem", (IMAGES,), Stem(config.widths[0], rngs=rngs))]
    channels = config.widths[0]
    for stage, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True), start=1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            before = layers[-1][0]
            layers.append((f"layer{stage}.{block}", (before,), Bottleneck(channels, width, stride, rngs=rngs)))
            channels = 4 * width
    return layers
