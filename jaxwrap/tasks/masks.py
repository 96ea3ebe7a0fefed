"""Instance masks on a detector's frozen features: a small head that looks into each box.

As the mask branch of Mask R-CNN (He et al. 2017, section 3): RoIAlign, convolutions, a grid of logits per box, which is
then stretched over the box. It differs in three points, because it reads the features of a single-stage detector and
learns from few pictures: every scale is read for every box (projected to one width and added), one mask serves all
classes, and the finest scale is read a second time at the mask's own resolution.

From features to a COCO results list:

    logits = masks_for(head, features, detections.boxes)                       # [N, K, 28, 28]
    boxes = detector.to_original(detections, size)                             # [N, K, 4]
    masks = [paste_masks(logits[n], boxes[n], size) for n in range(N)]         # of each picture [K, height, width]
    results_of(boxes, detections.scores, detections.classes, image_ids, class_ids, masks)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from jaxwrap.tasks.network import Tensors
from jaxwrap.tasks.roi import roi_align
from jaxwrap.wrappers.blocks import depth_to_space

Scale = tuple[str, int, int]
"""Name, stride and channels of a tensor of features."""


@dataclasses.dataclass(frozen=True)
class MaskHeadConfig:
    """Shape of a mask head.

    ``scales``: the tensors of features that are read, finest first. ``size``: side of the grid of logits, even.
    ``width``: channels at half that size, where ``blocks`` residual blocks run; ``fine_width``: channels at that size.
    """

    scales: tuple[Scale, ...]
    width: int
    blocks: int
    fine_width: int
    size: int = 28

    def __post_init__(self) -> None:
        strides = [stride for _, stride, _ in self.scales]
        if not strides or strides != sorted(strides):
            raise ValueError(f"scales of strides {strides} were given; wanted at least one, finest first")
        if self.size < 2 or self.size % 2:
            raise ValueError(f"size={self.size} was given; wanted a positive even number")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "scales": [list(scale) for scale in self.scales]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskHeadConfig:
        """From what `to_dict` gave. Raises `ValueError` naming unknown fields and the known ones."""
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown fields {', '.join(unknown)}; known: {', '.join(known)}")
        scales = tuple((str(name), int(stride), int(channels)) for name, stride, channels in values["scales"])
        return cls(**{**values, "scales": scales})


class MaskHead(nnx.Module):
    """Features and boxes → mask logits, as `MaskHeadConfig` says."""

    def __init__(self, config: MaskHeadConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, fine = config.width, config.fine_width

        def conv(inputs: int, outputs: int, kernel: int, *, bias: bool = True, zero: bool = False) -> nnx.Conv:
            init = nnx.initializers.zeros_init() if zero else nnx.initializers.he_normal()
            return nnx.Conv(inputs, outputs, (kernel, kernel), use_bias=bias, kernel_init=init, rngs=rngs)

        # Linear, so that projecting before RoIAlign is projecting after it, at the cost of one map and not of K boxes;
        # and without a bias, because outside of the picture RoIAlign reads 0.
        self.lateral = nnx.List([conv(channels, width, 1, bias=False) for _, _, channels in config.scales])
        self.lateral_fine = conv(config.scales[0][2], fine, 1, bias=False)
        self.place = conv(2, width, 1)
        self.first = nnx.List([conv(width, width, 3) for _ in range(config.blocks)])
        self.second = nnx.List([conv(width, width, 1, zero=True) for _ in range(config.blocks)])
        self.up = conv(width, 4 * fine, 1)
        self.last = conv(fine, fine, 3)
        self.logits = conv(fine, 1, 1, zero=True)

    def __call__(self, features: Tensors, boxes: jax.Array) -> jax.Array:
        """As `masks_for`."""
        self._check(features, boxes)
        scales = self.config.scales
        n, k = boxes.shape[:2]
        size = self.config.size // 2
        coarse = [
            _read(lateral(features[name]), boxes, size, stride)
            for lateral, (name, stride, _) in zip(self.lateral, scales, strict=True)
        ]
        x = sum(coarse[1:], coarse[0]).reshape(n * k, size, size, -1) + self.place(_places(size))
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(jax.nn.silu(first(jax.nn.silu(x))))
        x = depth_to_space(self.up(jax.nn.silu(x)), 2)
        name, stride, _ = scales[0]
        x = x + _read(self.lateral_fine(features[name]), boxes, 2 * size, stride).reshape(x.shape)
        x = self.logits(jax.nn.silu(self.last(jax.nn.silu(x))))
        return x.reshape(n, k, 2 * size, 2 * size)

    def _check(self, features: Tensors, boxes: jax.Array) -> None:
        faults = [
            f"{name}: {features[name].shape if name in features else 'missing'}, wanted [N, H, W, {channels}]"
            for name, _, channels in self.config.scales
            if name not in features or features[name].ndim != 4 or features[name].shape[-1] != channels
        ]
        if boxes.ndim != 3 or boxes.shape[-1] != 4:
            faults.append(f"boxes: {boxes.shape}, wanted [N, K, 4]")
        if faults:
            raise ValueError(
                "this mask head was made for the features of another network or split:\n  " + "\n  ".join(faults)
            )


@jax.jit
def masks_for(head: MaskHead, features: Tensors, boxes: jax.Array) -> jax.Array:
    """Mask logits ``[N, K, size, size]`` on the grids of boxes, rows from the top. Compiled once per shape.

    ``features``: by name, ``[N, H, W, C]``, those that the head does not read too; ``boxes [N, K, 4]``: (x0, y0, x1,
    y1) in pixels of the network's input, not clipped to it, in any places (an empty one gets logits of no meaning).

    Raises `ValueError` listing the features that are missing or have other channels.
    """
    return head(features, boxes)


def paste_masks(logits: ArrayLike, boxes: ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Grids of logits as masks of one picture: bool ``[K, height, width]``, on the host.

    ``logits [K, S, S]``, ``boxes [K, 4]``: (x0, y0, x1, y1) in pixels of the picture, ``size`` (height, width) of it. A
    pixel whose centre lies in the box belongs to the object where the probability, linear between the cells' centres
    and constant from the outermost ones to the box's border, is at least ½. An empty box gives an empty mask.
    """
    grids, corners = np.asarray(logits, np.float32), np.asarray(boxes, np.float32)
    if grids.ndim != 3 or corners.shape != (len(grids), 4):
        raise ValueError(f"logits {grids.shape} and boxes {corners.shape} were given; wanted [K, S, S] and [K, 4]")
    probabilities = np.float32(1) / (1 + np.exp(-np.clip(grids, -30, 30)))
    masks = np.zeros((len(grids), *size), bool)
    for mask, grid, (x0, y0, x1, y1) in zip(masks, probabilities, corners, strict=True):
        (top, rows), (left, columns) = (
            _between_cells(y0, y1, grid.shape[0], size[0]),
            _between_cells(x0, x1, grid.shape[1], size[1]),
        )
        mask[top : top + len(rows), left : left + len(columns)] = rows @ grid @ columns.T >= 0.5
    return masks


def crop_mask(mask: np.ndarray, box: ArrayLike, size: int, *, origin: tuple[float, float] = (0, 0)) -> np.ndarray:
    """The share of each cell of a box's grid that a mask covers, float32 ``[size, size]`` in [0, 1]: what a mask head
    should give.

    ``mask [h, w]``: 0 or 1, its top left corner at ``origin`` (x, y), nothing outside; ``box``: (x0, y0, x1, y1) in the
    same pixels, wider and higher than 0.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float64) - np.array([*origin, *origin])
    rows, columns = _coverage(y0, y1, size, mask.shape[0]), _coverage(x0, x1, size, mask.shape[1])
    return rows @ mask.astype(np.float32) @ columns.T


def _read(features: jax.Array, boxes: jax.Array, size: int, stride: int) -> jax.Array:
    """`roi_align` with the features' samples at the centres of their cells, so that it commutes with a flip."""
    return roi_align(features, boxes - stride / 2, size, stride)


def _places(size: int) -> jax.Array:
    """(x, y) in (−1, 1) of a box's cells ``[1, size, size, 2]``."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return jnp.asarray(np.stack(np.meshgrid(line, line), axis=-1)[None], jnp.float32)


def _between_cells(begin: float, end: float, cells: int, pixels: int) -> tuple[int, np.ndarray]:
    """First pixel whose centre lies in [begin, end), and for each of those pixels the weights of the cells
    ``[pixels inside, cells]``."""
    first, stop = (int(np.clip(np.ceil(edge - 0.5), 0, pixels)) for edge in (begin, end))
    weights = np.zeros((max(0, stop - first), cells), np.float32)
    if len(weights):
        place = (np.arange(first, stop) + 0.5 - begin) / (end - begin) * cells - 0.5
        place = np.clip(place, 0, cells - 1)
        low = np.floor(place).astype(int)
        rows = np.arange(len(weights))
        weights[rows, low] = 1 - (place - low)
        weights[rows, np.minimum(low + 1, cells - 1)] += place - low
    return first, weights


def _coverage(begin: float, end: float, cells: int, pixels: int) -> np.ndarray:
    """Share of each cell of [begin, end] that each pixel covers ``[cells, pixels]``."""
    edges = np.linspace(begin, end, cells + 1)
    left, right = (np.clip(edges[:, None] - np.arange(pixels), 0, 1)[i] for i in (slice(None, -1), slice(1, None)))
    return ((right - left) / ((end - begin) / cells)).astype(np.float32)
