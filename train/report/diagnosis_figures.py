"""The figures of a diagnosis, as PNG bytes. Thin lines are pictures, thick ones their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from jaxwrap.importance.diagnostics import BlockEnergy, SketchError
from jaxwrap.train.diagnose import CodecTerms, CodecVerdict, Correlation
from jaxwrap.train.report.figures import png

PAPER_CROSS_RATIO = 28.13
"""‖e‖² over the cross term, mean that WA-RDO reports for its wrappers and AVC at QP 20 to 35."""

_CODEC_COLOURS = {"x264": "#c0392b", "x265": "#1f77b4"}
_BLUE, _ORANGE, _GREEN, _GREY = "#1f77b4", "#e08a1e", "#2e8b57", "#8c8c8c"
_WIDTH = 10.4


def cross_figure(terms: Mapping[str, CodecTerms]) -> bytes:
    """Left: ‖e‖² over the size of the cross term; right: all terms of equation 4 as shares of the total."""
    figure = Figure(figsize=(_WIDTH, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, one in terms.items():
        ratios = np.array(one.coding) / np.maximum(np.abs(one.cross), 1e-30)
        colour = _colour(name)
        left.plot(one.qps, ratios.T, color=colour, linewidth=0.6, alpha=0.35)
        mean = np.array(one.coding).mean(0) / np.abs(one.cross).mean(0)
        left.plot(one.qps, mean, color=colour, linewidth=2.2, marker="o", markersize=4, label=name)
    left.axhline(PAPER_CROSS_RATIO, color=_GREY, linestyle="--", linewidth=1)
    left.annotate(
        f"WA-RDO: {PAPER_CROSS_RATIO}", (0.98, PAPER_CROSS_RATIO), xycoords=("axes fraction", "data"), fontsize=8,
        ha="right", va="bottom", color="#555555",
    )  # fmt: skip
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    left.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("‖e‖² / |2⟨e, η⟩|")
    left.legend(frameon=False)
    first, one = next(iter(terms.items()))
    total = one.total_error()
    for values, label, colour in (
        (one.wrapper, "‖η‖²: the wrapper alone", _GREY),
        (one.coding, "‖e‖²: coding", _BLUE),
        (np.negative(one.cross), "−2⟨e, η⟩: cross term", _ORANGE),
    ):
        shares = np.array(values) / total
        right.plot(one.qps, shares.mean(0), color=colour, linewidth=2.2, marker="o", markersize=4, label=label)
        right.plot(one.qps, shares.T, color=colour, linewidth=0.5, alpha=0.3)
    right.axhline(0, color="#1a1a1a", linewidth=0.8)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_title(f"shares of ‖y − r(ẑ)‖², {first}", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        _qp_axis(axis, one.qps)
    return png(figure)


def linearisation_figure(terms: Mapping[str, CodecTerms]) -> bytes:
    """‖J q‖², qᵀ diag(h) q and the calibrated sum over ‖e‖², by QP, one panel per codec."""
    figure = Figure(figsize=(_WIDTH, 3.7), layout="constrained")
    axes = figure.subplots(1, len(terms), squeeze=False, sharey=True)[0]
    for axis, (name, one) in zip(axes, terms.items(), strict=True):
        for key, label, colour in (
            ("linear", "‖Jq‖²: linearisation", _BLUE),
            ("diagonal", "qᵀ diag(h) q: the map", _ORANGE),
            ("calibrated", "calibrated, one weight per plane", _GREEN),
        ):
            ratio = one.ratio(key)
            axis.plot(one.qps, ratio.T, color=colour, linewidth=0.5, alpha=0.3)
            axis.plot(one.qps, ratio.mean(0), color=colour, linewidth=2.2, marker="o", markersize=4, label=label)
        axis.axhline(1.0, color="#1a1a1a", linewidth=0.8)
        axis.set_ylim(bottom=0.0)
        axis.set_title(name, fontsize=10)
        _qp_axis(axis, one.qps)
    axes[0].set_ylabel("over ‖e‖²")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return png(figure)


def correlation_figure(
    over_time: Mapping[int, Correlation], same_frame: Correlation, pairs: Sequence[tuple[float, float]]
) -> bytes:
    """WA-RDO figure 3: correlation over the distance to the I frame (where there are clips), and between inputs."""
    panels = (1 if over_time else 0) + (1 if pairs else 0)
    figure = Figure(figsize=(_WIDTH if panels == 2 else _WIDTH / 1.6, 3.7), layout="constrained")
    axes = list(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    kinds = (("blocks", "means of 16×16", _BLUE), ("samples", "samples", _ORANGE))
    if over_time:
        axis = axes.pop(0)
        distances = list(over_time)
        for kind, label, colour in kinds:
            intervals = [getattr(over_time[d], kind) for d in distances]
            axis.plot(distances, [i.mean for i in intervals], color=colour, marker="o", markersize=3, label=label)
            if all(i.low is not None for i in intervals):
                axis.fill_between(
                    distances, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.2,
                    linewidth=0,
                )  # fmt: skip
            ceiling = getattr(same_frame, kind).mean
            axis.axhline(ceiling, color=colour, linestyle="--", linewidth=1)
            axis.annotate(
                "same frame, other sketches", (0.02, ceiling), xycoords=("axes fraction", "data"), fontsize=7,
                va="bottom", color=colour,
            )  # fmt: skip
        axis.set_ylim(0, 1.05)
        axis.set_xlabel("distance to the I frame [frames]")
        axis.set_ylabel("correlation of maps")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8, loc="lower left")
        _clean(axis)
    if pairs:
        axis = axes.pop(0)
        values = np.array(pairs)
        low = min(0.0, float(np.floor(values.min() * 10) / 10))
        bins = np.arange(low, 1.0001, 0.05)
        for kind, label, colour in kinds:
            column = values[:, 0 if kind == "samples" else 1]
            axis.hist(column, bins=bins, color=colour, alpha=0.5, label=label)
            axis.axvline(getattr(same_frame, kind).mean, color=colour, linestyle="--", linewidth=1.2)
        axis.set_xlim(low, 1.0)
        axis.set_xlabel("correlation between inputs (dashed: same input, other sketches)")
        axis.set_ylabel("pairs")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        _clean(axis)
    for axis in axes:
        axis.set_axis_off()
    return png(figure)


def sketches_figure(errors: Sequence[SketchError], enough: float) -> bytes:
    """Relative error of samples and of block means by the number of sketches; ``enough``: the error to be met."""
    figure = Figure(figsize=(_WIDTH / 1.6, 3.7), layout="constrained")
    axis = figure.subplots()
    counts = [e.sketches for e in errors]
    axis.plot(counts, [e.law for e in errors], color=_GREY, linestyle="--", linewidth=1.2, label="√(2 / n)")
    axis.plot(counts, [e.samples for e in errors], color=_ORANGE, marker="o", label="samples")
    axis.plot(counts, [e.blocks for e in errors], color=_BLUE, marker="o", label="means of 16×16")
    axis.axhline(enough, color=_BLUE, linestyle=":", linewidth=1.2, label=f"enough for QP offsets: {enough:.2f}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    positive = [v for e in errors for v in (e.law, e.samples, e.blocks, enough) if v > 0]
    ticks = [t for t in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if min(positive) / 2 < t < 2 * max(positive)]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("sketches")
    axis.set_ylabel("relative error of the map")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clean(axis)
    return png(figure)


def energy_figure(energy: Sequence[BlockEnergy]) -> bytes:
    """Where the energy of JᵀMJ lies, as shares, by the size of the block."""
    figure = Figure(figsize=(_WIDTH / 1.6, 3.0), layout="constrained")
    axis = figure.subplots()
    names = ["whole picture" if e.block is None else f"{e.block}×{e.block}" for e in energy]
    diagonal = np.array([e.diagonal / e.total for e in energy])
    within = np.array([(e.within - e.diagonal) / e.total for e in energy])
    between = np.array([e.between_planes for e in energy])
    left = np.zeros(len(energy))
    for values, label, colour in (
        (diagonal, "diagonal: what a map holds", _BLUE),
        (within, "off the diagonal, same plane", _ORANGE),
        (np.maximum(between, 0), "between planes", _GREEN),
    ):
        bars = axis.barh(names, values, left=left, color=colour, label=label, height=0.62)
        texts = [f"{v:.0%}" if v >= 0.04 else "" for v in values]
        axis.bar_label(bars, texts, label_type="center", color="white", fontsize=9)
        left = left + values
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("share of ‖JᵀMJ‖²")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _clean(axis, grid="x")
    return png(figure)


def verdict_figure(verdicts: Mapping[str, CodecVerdict]) -> bytes:
    """Predicted BD-rate of each picture and their mean with its interval, one panel per codec."""
    most = max(len(v.score.values) for v in verdicts.values())
    figure = Figure(figsize=(_WIDTH, 1.2 + 0.24 * (most + 1)), layout="constrained")
    axes = figure.subplots(1, len(verdicts), squeeze=False)[0]
    for axis, (name, verdict) in zip(axes, verdicts.items(), strict=True):
        values = verdict.score.values
        interval = verdict.score.interval
        places = range(1, len(values) + 1)
        colours = [_GREEN if v < 0 else _CODEC_COLOURS["x264"] for v in values.values()]
        axis.barh(places, list(values.values()), color=colours, alpha=0.6, height=0.7)
        if interval is not None and interval.low is not None and interval.high is not None:
            axis.plot([interval.low, interval.high], [0, 0], color="#1a1a1a", linewidth=1.6)
        if interval is not None:
            axis.plot([interval.mean], [0], marker="D", color="#1a1a1a", markersize=5)
        axis.set_yticks([0, *places], ["mean", *(_short(n) for n in values)], fontsize=8)
        axis.invert_yaxis()
        axis.axvline(0, color="#1a1a1a", linewidth=0.8)
        reach = 1.1 * max(1.0, *(abs(v) for v in values.values()))
        axis.set_xlim(-reach, reach)
        axis.set_xlabel("predicted BD-rate [%]  (negative: bits saved)")
        axis.set_title(name, fontsize=10)
        _clean(axis, grid="x")
    return png(figure)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"


def _colour(codec: str) -> str:
    return _CODEC_COLOURS.get(codec, "#1a1a1a")


def _qp_axis(axis: Axes, qps: Sequence[int]) -> None:
    axis.set_xticks(list(qps))
    axis.set_xlabel("QP")
    _clean(axis)


def _clean(axis: Axes, grid: Any = "both") -> None:
    axis.grid(True, which="major", axis=grid, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
