"""The report's figures, drawn without a display and returned as PNG bytes.

Rates are on a logarithmic axis, in bits per pixel of the original; qualities are in dB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxwrap.codecs.jpeg.rate import entropy_coded_bits
from jaxwrap.metrics.bjontegaard import upper_envelope
from jaxwrap.train.report.curves import ANCHOR_MODE, FRONT_ALL, Curves, Series, mean_curve

_DPI = 110
_MAX_SEQUENCES = 12
_FAMILY_COLOURS = {
    "codec": "#1a1a1a",
    "bilinear": "#8c8c8c",
    "lanczos4": "#4c92c3",
    "post": "#e08a1e",
    "wrapper": "#c0392b",
}
_METHOD_COLOURS = {"dqp": "#6a3d9a", "refine": "#2e8b57"}
_OTHER_COLOURS = ("#17becf", "#bcbd22", "#e377c2", "#8c564b", "#1f77b4")
_RATIO_STYLES = {"1": "-", "2/3": "-.", "1/2": "-", "1/4": ":"}
_MARKERS = {"sse": "o", "dqp": "s", "refine": "^"}

_FRONT_STYLE: dict[str, Any] = {"color": "#f0c419", "linewidth": 6, "alpha": 0.4, "zorder": 0}

JPEG_BLOCK = 8


def rd_figure(curves: Curves, quality_label: str) -> bytes:
    """Curves averaged over sequences, one column per codec.

    Below, the same as a difference to the codec alone at equal rate.
    """
    columns = len(curves)
    figure = Figure(figsize=(6.2 * columns, 8.4), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False, sharex="col", height_ratios=(3, 2))
    handles: dict[str, Any] = {}
    for column, (setting, series) in enumerate(curves.items()):
        top, bottom = axes[0, column], axes[1, column]
        anchor = mean_curve(series[Series(ANCHOR_MODE)]) if Series(ANCHOR_MODE) in series else None
        for one, sequences in series.items():
            rate, quality = mean_curve(sequences)
            if not rate.size:
                continue
            style = _style(one)
            handles.setdefault(one.label, top.plot(rate, quality, **style)[0])
            if anchor is not None:
                _plot_difference(bottom, anchor, (rate, quality), style)
        means = [mean_curve(sequences) for sequences in series.values()]
        if len(means) > 1:
            front = [(means[c][0][i], means[c][1][i]) for c, i in upper_envelope(means)]
            line = top.plot(*zip(*front, strict=True), **_FRONT_STYLE)[0]
            handles.setdefault("Pareto front of the means", line)
        top.set_title(f"{setting.codec}, {setting.config}: mean of {len(next(iter(series.values())))} sequences")
        top.set_ylabel(quality_label)
        bottom.set_ylabel(f"Difference to {ANCHOR_MODE}\nat equal rate [dB]")
        bottom.axhline(0.0, color=_FAMILY_COLOURS["codec"], linewidth=0.8)
        _rate_axis(top, label=False)
        _rate_axis(bottom)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def sequences_figure(curves: Curves, fronts: Curves, quality_label: str) -> tuple[bytes, int]:
    """Small multiples, a row per sequence and a column per codec; and how many sequences were left out."""
    names = list(dict.fromkeys(name for series in curves.values() for one in series.values() for name in one))
    shown = names[:_MAX_SEQUENCES]
    figure = Figure(figsize=(5.2 * len(curves), 3.1 * len(shown) + 0.7), layout="constrained")
    axes = figure.subplots(len(shown), len(curves), squeeze=False)
    handles: dict[str, Any] = {}
    for column, (setting, series) in enumerate(curves.items()):
        front = fronts.get(setting, {}).get(Series(FRONT_ALL, "front"), {})
        for row, name in enumerate(shown):
            axis = axes[row, column]
            for one, sequences in series.items():
                if name in sequences:
                    curve = sequences[name]
                    handles.setdefault(one.label, axis.plot(curve.rate, curve.quality, **_style(one))[0])
            if name in front:
                line = axis.plot(front[name].rate, front[name].quality, **_FRONT_STYLE)[0]
                handles.setdefault("Pareto front", line)
            axis.set_title(f"{name}, {setting.codec}", fontsize=10)
            if column == 0:
                axis.set_ylabel(quality_label, fontsize=8)
            _rate_axis(axis, label=row == len(shown) - 1)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return png(figure), len(names) - len(shown)


def importance_figure(source: np.ndarray, weights: np.ndarray, title: str) -> bytes:
    """Weights over their picture: the picture, log₂ of the mean weights of 16×16 coded blocks, and both together.

    ``source``: RGB uint8 ``[H, W, 3]``. ``weights``: ``[h, w]`` at the size that is coded, mean 1.
    """
    blocks = np.log2(np.maximum(_block_means(weights, 16), 2.0**-6))
    limit = max(float(np.abs(blocks).max()), 0.5)
    height, width = source.shape[:2]
    extent = (
        0.0,
        blocks.shape[1] * 16 * width / weights.shape[1],
        blocks.shape[0] * 16 * height / weights.shape[0],
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
    figure.colorbar(shown, ax=axes, shrink=0.8, label="log₂ w of luma (a block's QP offset: −3 log₂ of its mean w)")
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


def _plot_difference(
    axis: Axes, anchor: tuple[np.ndarray, np.ndarray], curve: tuple[np.ndarray, np.ndarray], style: dict[str, Any]
) -> None:
    """Difference to the anchor, interpolated over log rate, at the curve's points within the anchor's range."""
    order = np.argsort(anchor[0])
    x, y = np.log(anchor[0][order]), anchor[1][order]
    inside = (curve[0] >= anchor[0].min()) & (curve[0] <= anchor[0].max())
    axis.plot(curve[0][inside], curve[1][inside] - np.interp(np.log(curve[0][inside]), x, y), **style)


def _style(series: Series) -> dict[str, Any]:
    family, _, ratio = series.mode.partition("-")
    colour = _METHOD_COLOURS.get(series.method) or _FAMILY_COLOURS.get(family)
    if colour is None:
        colour = _OTHER_COLOURS[sum(series.label.encode()) % len(_OTHER_COLOURS)]
    return {
        "color": colour,
        "linestyle": _RATIO_STYLES.get(ratio, "-"),
        "marker": _MARKERS.get(series.method, "D"),
        "markersize": 4,
        "linewidth": 1.4,
    }


def _rate_axis(axis: Axes, *, label: bool = True) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if label:
        axis.set_xlabel("Rate [bits per pixel of the original], logarithmic")


def _block_means(plane: np.ndarray, side: int) -> np.ndarray:
    h, w = plane.shape
    rows, columns = np.arange(0, h, side), np.arange(0, w, side)
    total = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), rows, 0), columns, 1)
    return total / np.outer(np.diff([*rows, h]), np.diff([*columns, w]))


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()
