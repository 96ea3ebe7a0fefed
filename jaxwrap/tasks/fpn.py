"""Feature pyramid networks (Lin et al. 2017, "Feature pyramid networks for object detection") as named layers, NHWC."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from jaxwrap.tasks.blocks import Conv, upsample
from jaxwrap.tasks.network import Layer

FINEST = 2
"""Level of a pyramid's finest scale; level k has stride 2^k."""


class TopDown(nnx.Module):
    """A scale of the backbone, projected by a 1×1 convolution, plus the coarser result at twice its size."""

    def __init__(self, in_channels: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.lateral = Conv(in_channels, width, rngs=rngs)

    def __call__(self, x: jax.Array, coarser: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` and ``[N, H/2, W/2, width]`` → ``[N, H, W, width]``."""
        return self.lateral(x) + upsample(coarser)


def pyramid_layers(scales: Sequence[str], channels: Sequence[int], width: int, *, rngs: nnx.Rngs) -> list[Layer]:
    """Layers of a pyramid on the layers ``scales`` of a backbone, finest (stride 4) first, which give ``channels``.

    ``m5`` … ``m2``: the top-down pathway; ``p2`` … ``p5``: the pyramid, ``[N, H/2^k, W/2^k, width]``.
    """
    levels = range(FINEST, FINEST + len(scales))
    layers: list[Layer] = []
    for level, scale, count in reversed(list(zip(levels, scales, channels, strict=True))):
        if layers:
            layers.append((f"m{level}", (scale, layers[-1][0]), TopDown(count, width, rngs=rngs)))
        else:
            layers.append((f"m{level}", (scale,), Conv(count, width, rngs=rngs)))
    for level in levels:
        layers.append((f"p{level}", (f"m{level}",), Conv(width, width, kernel_size=3, rngs=rngs)))
    return layers
