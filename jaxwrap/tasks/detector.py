"""Object detectors: a network, what it is fed, where it is split, and how its raw outputs become boxes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.tasks.boxes import suppress
from jaxwrap.tasks.network import Network, Tensors
from jaxwrap.tasks.pictures import PictureInput

COCO_CATEGORY_IDS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""COCO's category ids, 1 … 90 with gaps, of the 80 class indices of detectors that are trained on it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Detections:
    """The K best detections of N pictures, best first: ``boxes [N, K, 4]`` (x0, y0, x1, y1) in pixels of the network's
    input, not clipped; ``scores [N, K]``; ``classes [N, K]`` int32. Empty places have score 0 (and box and class 0).
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array


Candidates = tuple[jax.Array, jax.Array, jax.Array]
"""Boxes ``[N, A, 4]`` (x0, y0, x1, y1), scores ``[N, A]`` in [0, 1], classes ``[N, A]`` int32, of every anchor."""


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """A detector whose network is split in two.

    ``name``: "yolox-nano", "yolo-fastestv2". ``expects``: what pictures are made into. ``split``: the layer after which
    the features are taken. ``decode``: raw outputs → every anchor's box, score and class. ``digest``: 16 hex digits of
    the SHA-256 of the weights' file; "" for other weights.
    """

    name: str
    network: Network
    expects: PictureInput
    split: str
    decode: Callable[[Tensors], Candidates]
    digest: str = ""

    def images(self, rgb: np.ndarray) -> np.ndarray:
        """RGB uint8 ``[N, H, W, 3]`` of one size → the network's input, NHWC float32."""
        return self.expects.images_of_rgb(rgb).transpose(0, 2, 3, 1)

    @property
    def part1(self) -> jax.tree_util.Partial:
        """Images NHWC → features by name, as a function whose weights are arguments of compiled code."""
        return jax.tree_util.Partial(_Part1(self.split), self.network)

    @property
    def part2(self) -> jax.tree_util.Partial:
        """Features by name → raw outputs by name, likewise."""
        return jax.tree_util.Partial(_Part2(self.split), self.network)

    def features(self, images: jax.Array | np.ndarray) -> Tensors:
        """Part 1, compiled once per shape: images ``[N, H, W, 3]`` → features."""
        return _apply(self.part1, jnp.asarray(images))

    def outputs(self, features: Mapping[str, jax.Array]) -> Tensors:
        """Part 2, compiled once per shape: features → raw outputs."""
        return _apply(self.part2, dict(features))

    def detections(self, raw: Tensors, *, threshold: float, iou: float, limit: int = 100) -> Detections:
        """Raw outputs → the ``limit`` best boxes of each picture that score above ``threshold`` and survive class-wise
        suppression at an overlap of ``iou``. Compiled once per shape and limit."""
        return _detections(self.decode, dict(raw), jnp.float32(threshold), jnp.float32(iou), limit)

    def to_original(self, detections: Detections, size: tuple[int, int]) -> np.ndarray:
        """Boxes ``[N, K, 4]`` in pixels of pictures of ``size`` (height, width), clipped to them, on the host."""
        height, width = size
        vertical, horizontal = self.expects.scale_in(height, width)
        scale = np.array([horizontal, vertical] * 2, np.float32)
        return np.clip(np.asarray(detections.boxes) / scale, 0, np.array([width, height] * 2, np.float32))


@dataclasses.dataclass(frozen=True, slots=True)
class _Part1:
    layer: str

    def __call__(self, network: Network, images: jax.Array) -> Tensors:
        return network.first(images, self.layer)


@dataclasses.dataclass(frozen=True, slots=True)
class _Part2:
    layer: str

    def __call__(self, network: Network, features: Mapping[str, jax.Array]) -> Tensors:
        return network.rest(features, self.layer)


@jax.jit
def _apply(function: jax.tree_util.Partial, argument: jax.Array | Tensors) -> Tensors:
    return function(argument)


@functools.partial(jax.jit, static_argnames=("decode", "limit"))
def _detections(
    decode: Callable[[Tensors], Candidates], raw: Tensors, threshold: jax.Array, iou: jax.Array, limit: int
) -> Detections:
    boxes, scores, classes = decode(raw)
    indices, filled = suppress(boxes, scores, classes, threshold=threshold, iou=iou, limit=limit)
    return Detections(
        jnp.where(filled[..., None], jnp.take_along_axis(boxes, indices[..., None], axis=1), 0.0),
        jnp.where(filled, jnp.take_along_axis(scores, indices, axis=1), 0.0),
        jnp.where(filled, jnp.take_along_axis(classes, indices, axis=1), 0).astype(jnp.int32),
    )
