"""Pictures of an allocation: where a receiver's output is sensitive, and where an encoder puts its bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxwrap.codecs.jpeg.rate import entropy_coded_bits
from jaxwrap.train.report.figures import png

JPEG_BLOCK = 8

GRID = 16
"""Side in luma samples of the blocks that maps and bits are shown on: the macroblock of WA-RDO figure 2."""

_SMALLEST_WEIGHT = 2.0**-6


class Spent(NamedTuple):
    """What a method did to one picture.

    ``units``: int32 ``[K, 6]``, columns frame, x, y, width, height (luma samples), bits. ``weights``: of luma
    ``[h, w]``, mean 1 over all planes, or None where the method gave none.
    """

    method: str
    units: np.ndarray
    weights: np.ndarray | None


def importance_figure(source: np.ndarray, weights: np.ndarray, title: str) -> bytes:
    """Weights over their picture: the picture, log₂ of the mean weights of 16×16 coded blocks, and both together.

    ``source``: RGB uint8 ``[H, W, 3]``. ``weights``: ``[h, w]`` at the size that is coded, mean 1.
    """
    blocks = _log_block_means(weights)
    limit = max(float(np.abs(blocks).max()), 0.5)
    height, width = source.shape[:2]
    extent = (
        0.0,
        blocks.shape[1] * GRID * width / weights.shape[1],
        blocks.shape[0] * GRID * height / weights.shape[0],
        0.0,
    )
    figure = Figure(figsize=(13, 0.6 + 13 / 3.2 * height / width), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(source)
    axes[0].set_title("source")
    options: dict[str, Any] = {
        "cmap": "RdBu_r",
        "vmin": -limit,
        "vmax": limit,
        "extent": extent,
        "interpolation": "nearest",
    }
    shown = axes[1].imshow(blocks, **options)
    axes[1].set_title("log₂ w, means of 16×16 coded samples")
    axes[2].imshow(np.repeat(source.mean(-1, keepdims=True), 3, -1).astype(np.uint8))
    axes[2].imshow(blocks, alpha=0.45, **options)
    axes[2].set_title("over the picture")
    for axis in axes:
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.8, label="log₂ w of luma")
    figure.suptitle(title, fontsize=11)
    return png(figure)


def spread_bits(units: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bits per block of a `GRID`, ``[⌈h/16⌉, ⌈w/16⌉]``: those of each coding unit spread evenly over its area.

    ``units``: int32 ``[K, 6]`` of one picture of ``size`` = (height, width). Where the encoder padded the picture, the
    grid covers the padding too, so that the sum is that of the units. Raises `ValueError` where units lie on each other
    or leave a part of the picture without bits, as those of two pictures would.
    """
    _, x, y, width, height, bits = np.asarray(units, np.float64).T
    rows, columns = _overlaps(y, height, size[0]), _overlaps(x, width, size[1])
    covered = rows.T @ columns
    inside = np.outer(*(np.minimum(GRID, side - GRID * np.arange(-(-side // GRID))) for side in size))
    part = covered[: inside.shape[0], : inside.shape[1]]
    if (covered > GRID**2).any() or (part < inside).any():
        raise ValueError(
            f"{len(units)} coding units cover {part.sum():.0f} samples of a picture of {size[1]}×{size[0]}, some never "
            "or more than once; wanted those of one picture, each sample in one"
        )
    return (rows * (bits / (width * height))[:, None]).T @ columns


def bit_difference_figure(coded: np.ndarray, reference: Spent, others: Sequence[Spent], title: str) -> bytes:
    """Bits that methods spend more or fewer than the reference, per block of the picture that is coded, beside their
    maps (WA-RDO figure 2, whose sign is the other one).

    ``coded``: luma ``[h, w]`` as given to the encoder. One line per method: picture, map, difference.
    """
    height, width = coded.shape
    before = spread_bits(reference.units, (height, width))
    differences = [spread_bits(one.units, (height, width)) - before for one in others]
    limit = max(1.0, float(np.percentile(np.abs(differences), 99.5)))
    scale = 4.3 * min(1.0, 1.2 * width / height)
    figure = Figure(
        figsize=(3 * scale + 1.8, (scale * height / width + 0.45) * len(others) + 0.6), layout="constrained"
    )
    axes = figure.subplots(len(others), 3, squeeze=False)
    for (left, middle, right), one, difference in zip(axes, others, differences, strict=True):
        left.imshow(coded, cmap="gray", interpolation="nearest", extent=(0, width, height, 0))
        left.set_title("luma as it is coded", fontsize=10)
        if one.weights is None:
            middle.text(0.5, 0.5, f"{one.method} has no map", ha="center", transform=middle.transAxes)
            middle.set_aspect("equal")
        else:
            blocks = _log_block_means(one.weights)
            most = max(float(np.abs(blocks).max()), 0.5)
            shown = _show_blocks(middle, blocks, most)
            figure.colorbar(shown, ax=middle, shrink=0.8, label="log₂ w")
            middle.set_title(f"map of {one.method}", fontsize=10)
        shown = _show_blocks(right, difference, limit)
        figure.colorbar(shown, ax=right, shrink=0.8, label="bits more (red) or fewer (blue)")
        change = difference.sum() / max(before.sum(), 1.0)
        right.set_title(f"{one.method} − {reference.method}: {change:+.1%} in total".replace("-", "−"), fontsize=10)
        for axis in (left, middle, right):
            axis.set_xlim(0, width)
            axis.set_ylim(height, 0)
            axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return png(figure)


def bits_figure(decoded: Mapping[str, np.ndarray], step: float, title: str) -> bytes:
    """Where bits go: bits per 8×8 block of the first method's decoded luma, and every other one's difference to it.

    ``decoded``: method → ``[h, w]`` 10-bit luma. ``step``: quantiser step in 10-bit samples.
    """
    bits = {name: block_bits(luma, step) for name, luma in decoded.items()}
    reference, *others = bits
    height, width = bits[reference].shape
    figure = Figure(figsize=(4.6 * len(bits), 0.9 + 4.2 * height / width), layout="constrained")
    axes = figure.subplots(1, len(bits), squeeze=False)[0]
    shown = axes[0].imshow(bits[reference], cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(shown, ax=axes[0], shrink=0.75, label="bits")
    axes[0].set_title(f"{reference}: bits per block")
    limit = max([1.0, *(float(np.percentile(np.abs(bits[name] - bits[reference]), 99.5)) for name in others)])
    for axis, name in zip(axes[1:], others, strict=True):
        difference = bits[name] - bits[reference]
        shown = axis.imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{name} − {reference}: {difference.sum() / max(bits[reference].sum(), 1):+.1%} by this count")
        figure.colorbar(shown, ax=axis, shrink=0.75, label="bits more (red) or fewer (blue)")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return png(figure)


def block_bits(luma: np.ndarray, step: float) -> np.ndarray:
    """Bits of each 8×8 block ``[⌈h/8⌉, ⌈w/8⌉]`` of 10-bit luma ``[h, w]`` coded as a baseline JPEG of its own.

    Exact Huffman count (`jaxwrap.codecs.jpeg.rate`) on the 8 top bits with a flat table of round(step / 4); DC is not
    predicted from the neighbour, so that a block's bits are its own.
    """
    h, w = luma.shape
    padded = np.pad(luma, ((0, -h % JPEG_BLOCK), (0, -w % JPEG_BLOCK)), mode="edge").astype(np.float32)
    rows, columns = (side // JPEG_BLOCK for side in padded.shape)
    blocks = padded.reshape(rows, JPEG_BLOCK, columns, JPEG_BLOCK).swapaxes(1, 2)  # [rows, columns, 8, 8]
    table = np.full(64, np.clip(round(step / 4.0), 1, 255), np.float32)
    bits = jax.jit(entropy_coded_bits)(np.floor(blocks.reshape(-1, JPEG_BLOCK, JPEG_BLOCK) / 4.0), table)
    return np.asarray(bits, np.float64).reshape(rows, columns)


def _overlaps(start: np.ndarray, length: np.ndarray, side: int) -> np.ndarray:
    """Samples that each unit shares with each line of blocks, ``[K, ⌈end/16⌉]``."""
    end = max(side, int((start + length).max(initial=0)))
    low = GRID * np.arange(-(-end // GRID), dtype=np.float64)
    shared = np.minimum((start + length)[:, None], low + GRID) - np.maximum(start[:, None], low)
    return np.maximum(shared, 0.0)


def _show_blocks(axis: Axes, blocks: np.ndarray, limit: float) -> Any:
    extent = (0.0, GRID * blocks.shape[1], GRID * blocks.shape[0], 0.0)
    return axis.imshow(blocks, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", extent=extent)


def _log_block_means(weights: np.ndarray) -> np.ndarray:
    return np.log2(np.maximum(_block_means(weights, GRID), _SMALLEST_WEIGHT))


def _block_means(plane: np.ndarray, side: int) -> np.ndarray:
    h, w = plane.shape
    rows, columns = np.arange(0, h, side), np.arange(0, w, side)
    total = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), rows, 0), columns, 1)
    return total / np.outer(np.diff([*rows, h]), np.diff([*columns, w]))
