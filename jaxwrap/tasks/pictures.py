"""From decoded samples to what a network that looks at pictures is fed: colour, size, range; all of it differentiable.

The conversions are part of the receiver, so that its map is one of the *coded* samples, chroma and the detector's own
scaling included (FP-RDO section III resizes inside its feature extractor too).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.colour import rgb_from_yuv
from jaxwrap.importance.receiver import Receiver
from jaxwrap.wrappers.resample import interpolate


@dataclasses.dataclass(frozen=True, slots=True)
class PictureInput:
    """What a network expects: planes ``[N, 3, height, width]``, value (x − mean) / deviation of x in ``[0, 255]``.

    ``height`` and ``width``: None keeps the picture's own. ``fit``: ``"stretch"`` fills both; ``"letterbox"`` keeps the
    aspect, the picture in the top left corner and ``padding`` (in ``[0, 255]``) in the rest. Scaling is linear, at
    half-pixel centres, without antialiasing (as cv2.resize does): below half size it skips samples, and their map is 0.
    """

    height: int | None = None
    width: int | None = None
    order: Literal["rgb", "bgr"] = "rgb"
    fit: Literal["stretch", "letterbox"] = "stretch"
    padding: float = 114.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def size_in(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture of this size has inside the network's input."""
        target = (self.height or height, self.width or width)
        if self.fit == "stretch":
            return target
        scale, _ = self.scale_in(height, width)
        return max(1, int(height * scale)), max(1, int(width * scale))

    def scale_in(self, height: int, width: int) -> tuple[float, float]:
        """Factors (vertical, horizontal) by which positions in a picture of this size are multiplied to be positions in
        the network's input.

        A letterbox has one factor, though `size_in` cuts off fractions of a sample: so do YOLOX's training and its own
        mapping of boxes (exact factors of both axes: mAP .3612 for .3594 on 64 pictures of COCO).
        """
        vertical, horizontal = (self.height or height) / height, (self.width or width) / width
        if self.fit == "stretch":
            return vertical, horizontal
        return min(vertical, horizontal), min(vertical, horizontal)

    def images(self, samples: Frame, bit_depth: int = 8) -> jax.Array:
        """Samples ``[0, 2^d − 1]`` → ``[N, 3, height, width]``; ``mean`` and ``deviation`` in the order of ``order``.

        Colours outside RGB's range are kept: a clip would say that errors there cost nothing.
        """
        return self._fitted(rgb_from_yuv(jax.tree.map(jnp.asarray, samples), bit_depth=bit_depth))

    def images_of_rgb(self, rgb: np.ndarray) -> np.ndarray:
        """RGB uint8 ``[N, H, W, 3]`` → float32 ``[N, 3, height, width]`` on the host: data sets hold pictures of many
        sizes, and JAX would compile for each. Scaled samples are not rounded.

        Raises `ValueError` for arrays of another type or shape.
        """
        if rgb.ndim != 4 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"RGB of shape {rgb.shape}, {rgb.dtype} was given; wanted uint8 [N, H, W, 3]")
        return self._fitted(rgb.astype(np.float32))

    def _fitted(self, rgb: Any) -> Any:
        xp = np if isinstance(rgb, np.ndarray) else jnp
        x = rgb[..., :: 1 if self.order == "rgb" else -1].transpose(0, 3, 1, 2)
        for axis, (old, new) in enumerate(zip(x.shape[2:], self.size_in(*rgb.shape[1:3]), strict=True), start=2):
            if new != old:
                x = interpolate(x, (np.arange(new) + 0.5) * (old / new) - 0.5, axis)
        below, right = ((n or m) - m for n, m in zip((self.height, self.width), x.shape[2:], strict=True))
        x = xp.pad(x, ((0, 0), (0, 0), (0, below), (0, right)), constant_values=self.padding)
        mean, deviation = (np.reshape(v, (1, 3, 1, 1)).astype(x.dtype) for v in (self.mean, self.deviation))
        return (x - mean) / deviation


def picture_receiver(network: jax.tree_util.Partial, expects: PictureInput, *, bit_depth: int = 8) -> Receiver:
    """The receiver ``samples → network(images)`` for frames of ``bit_depth`` bits.

    It is a `jax.tree_util.Partial` of the network, so weights are arguments of compiled code.
    """
    return jax.tree_util.Partial(_Looks(expects, bit_depth), network)


@dataclasses.dataclass(frozen=True, slots=True)
class _Looks:
    expects: PictureInput
    bit_depth: int

    def __call__(self, network: jax.tree_util.Partial, samples: Frame) -> Any:
        return network(self.expects.images(samples, self.bit_depth))
