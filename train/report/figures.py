"""The report's curves, drawn without a display and returned as PNG bytes.

Rates are on a logarithmic axis, in bits per pixel of the original; qualities are in dB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxwrap.metrics.bjontegaard import upper_envelope
from jaxwrap.train.report.curves import ANCHOR_MODE, Curve, Curves, Series, mean_curve

_DPI = 110
_MAX_SEQUENCES = 12
_MAX_COLUMNS = 3
_LEAST_WIDTH = 9.0
_FAMILY_COLOURS = {
    "codec": "#1a1a1a",
    "bilinear": "#8c8c8c",
    "lanczos4": "#4c92c3",
    "post": "#e08a1e",
    "wrapper": "#c0392b",
    "fcm": "#1a1a1a",
    "remote": "#8c8c8c",
}
_METHOD_COLOURS = {
    "dqp": "#6a3d9a",
    "refine": "#2e8b57",
    "wa": "#1f77b4",
    "iwa": "#17becf",
    "fwa": "#bcbd22",
    "calibrated": "#d62728",
    "fold": "#e377c2",
    "idse": "#8c564b",
}
_OTHER_COLOURS = ("#e7698c", "#2ca02c", "#3b7dd8", "#a05d4e", "#5254a3", "#637939", "#393b79")
_RATIO_STYLES = {"": "--", "1": "-", "2/3": "-.", "1/2": "-", "1/4": ":"}
_MARKERS = {"sse": "o", "dqp": "s", "refine": "^"}
_OTHER_LAMBDA_STYLE = {"linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.0}
_CONTROL_STYLE = {"linestyle": (0, (2, 2)), "marker": ".", "linewidth": 1.0, "alpha": 0.9}

_FRONT_STYLE: dict[str, Any] = {"color": "#f0c419", "linewidth": 6, "alpha": 0.4, "zorder": 0}


class Panel(NamedTuple):
    """One part of a figure: curves and the series that others are drawn as a difference to."""

    title: str
    curves: Mapping[Series, dict[str, Curve]]
    anchor: Series


def panels_of_codecs(curves: Curves) -> list[Panel]:
    """A panel per codec, all modes in it, against the codec alone."""
    return [
        Panel(f"{setting.codec}, {setting.config}: {_mean_of(series)}", series, Series(ANCHOR_MODE))
        for setting, series in curves.items()
    ]


def panels_of_modes(curves: Curves) -> list[Panel]:
    """A panel per codec and mode in which more than sse was measured, against sse: for qualities that are comparable
    within a mode only."""
    panels = []
    for setting, series in curves.items():
        for mode in dict.fromkeys(one.mode for one in series):
            chosen = {one: sequences for one, sequences in series.items() if one.mode == mode}
            if len(chosen) > 1:
                title = f"{setting.codec}, {setting.config}, {mode}: {_mean_of(chosen)}"
                panels.append(Panel(title, chosen, Series(mode)))
    return panels


def rd_figure(panels: Sequence[Panel], quality_label: str) -> bytes:
    """Curves averaged over sequences; below each panel, the same as a difference to its anchor at equal rate."""
    columns = 2 if len(panels) == 4 else min(len(panels), _MAX_COLUMNS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.2 * columns, _LEAST_WIDTH), 7.6 * lines + 0.8), layout="constrained")
    grid = figure.add_gridspec(2 * lines, columns, height_ratios=(3, 2) * lines)
    handles: dict[str, Any] = {}
    for place, panel in enumerate(panels):
        line, column = divmod(place, columns)
        top = figure.add_subplot(grid[2 * line, column])
        bottom = figure.add_subplot(grid[2 * line + 1, column], sharex=top)
        anchor = mean_curve(panel.curves[panel.anchor]) if panel.anchor in panel.curves else None
        for one, sequences in panel.curves.items():
            rate, quality = mean_curve(sequences)
            if not rate.size:
                continue
            style = series_style(one)
            handles.setdefault(one.label, top.plot(rate, quality, **style)[0])
            if anchor is not None:
                _plot_difference(bottom, anchor, (rate, quality), style)
        means = [mean_curve(sequences) for one, sequences in panel.curves.items() if not one.is_control]
        if len(means) > 1:
            front = [(means[c][0][i], means[c][1][i]) for c, i in upper_envelope(means)]
            drawn = top.plot(*zip(*front, strict=True), **_FRONT_STYLE)[0]
            handles.setdefault("Pareto front of the means", drawn)
        top.set_title(panel.title, fontsize=11)
        top.set_ylabel(quality_label)
        bottom.set_ylabel(f"Difference to {panel.anchor.label}\nat equal rate [dB]")
        bottom.axhline(0.0, color=_FAMILY_COLOURS["codec"], linewidth=0.8)
        rate_axis(top, label=False)
        rate_axis(bottom)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns), frameon=False
    )
    return png(figure)


def sequences_figure(
    series: Mapping[Series, dict[str, Curve]], front: Mapping[str, Curve], quality_label: str
) -> tuple[bytes, int]:
    """Small multiples of one codec, a panel per sequence; and how many sequences were left out."""
    names = list(dict.fromkeys(name for one in series.values() for name in one))
    shown = names[:_MAX_SEQUENCES]
    columns = min(len(shown), _MAX_COLUMNS)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(max(5.2 * columns, _LEAST_WIDTH), 3.1 * lines + 0.9), layout="constrained")
    handles: dict[str, Any] = {}
    for place, name in enumerate(shown):
        axis = figure.add_subplot(lines, columns, place + 1)
        for one, sequences in series.items():
            if name in sequences:
                curve = sequences[name]
                handles.setdefault(one.label, axis.plot(curve.rate, curve.quality, **series_style(one))[0])
        if name in front:
            line = axis.plot(front[name].rate, front[name].quality, **_FRONT_STYLE)[0]
            handles.setdefault("Pareto front", line)
        axis.set_title(name, fontsize=10)
        if place % columns == 0:
            axis.set_ylabel(quality_label, fontsize=8)
        rate_axis(axis, label=place + columns >= len(shown))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, 2 * columns), frameon=False
    )
    return png(figure), len(names) - len(shown)


def _mean_of(series: Mapping[Series, dict[str, Curve]]) -> str:
    count = len(next(iter(series.values())))
    return f"mean of {count} sequences" if count != 1 else "1 sequence"


def _plot_difference(
    axis: Axes, anchor: tuple[np.ndarray, np.ndarray], curve: tuple[np.ndarray, np.ndarray], style: dict[str, Any]
) -> None:
    """Difference to the anchor, interpolated over log rate, at the curve's points within the anchor's range."""
    order = np.argsort(anchor[0])
    x, y = np.log(anchor[0][order]), anchor[1][order]
    inside = (curve[0] >= anchor[0].min()) & (curve[0] <= anchor[0].max())
    axis.plot(curve[0][inside], curve[1][inside] - np.interp(np.log(curve[0][inside]), x, y), **style)


def series_style(series: Series) -> dict[str, Any]:
    """How a series is drawn, wherever it is."""
    family, _, ratio = series.mode.partition("-")
    colour = _FAMILY_COLOURS.get(family) if series.method in ("sse", "front") else _METHOD_COLOURS.get(series.method)
    if colour is None or series.note or (series.method == "sse" and series.lambda_scale != 1):
        colour = _OTHER_COLOURS[sum(series.label.encode()) % len(_OTHER_COLOURS)]
    style = {
        "color": colour,
        "linestyle": "-" if series.mode == ANCHOR_MODE and series.method == "sse" else _RATIO_STYLES.get(ratio, "-"),
        "marker": _MARKERS.get(series.method, "D"),
        "markersize": 4,
        "linewidth": 1.4,
    }
    if series.is_control:
        return {**style, **_CONTROL_STYLE}
    return style if series.lambda_scale == 1 else {**style, **_OTHER_LAMBDA_STYLE}


def rate_axis(axis: Axes, *, label: bool = True) -> None:
    """The horizontal axis of every curve."""
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


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()
