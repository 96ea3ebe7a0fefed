"""Curves of a task: score or feature SNR over the rate, remote inference as a curve, local inference as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from jaxwrap.train.evaluate.pooled import ALL
from jaxwrap.train.report.curves import (
    QUALITIES,
    REMOTE_MODE,
    Curves,
    Series,
    Setting,
    curves_of,
)
from jaxwrap.train.report.figures import png, rate_axis, series_style
from jaxwrap.train.report.task_results import TaskResults

_MAX_COLUMNS = 3
_CODEC_COLOURS = {
    "x264": "#9ecae1",
    "jm": "#3b7dd8",
    "x265": "#fdae6b",
    "hm": "#e08a1e",
    "vvenc": "#c994c7",
    "vtm": "#c0392b",
}
_MODE_STYLES = ("-", "--", ":", "-.")
_LOCAL_STYLE: dict[str, Any] = {"color": "#2e8b57", "linestyle": "--", "linewidth": 1.2}


class Line(NamedTuple):
    """A curve of a panel and how it is drawn."""

    setting: Setting
    series: Series
    style: dict[str, Any]
    label: str


def task_figure(results: TaskResults, measure: str) -> bytes | None:
    """``measure`` over the rate: first sse in every codec, then a panel per codec with its methods. None where nothing
    was measured."""
    curves = curves_of(results.coded, measure)
    if not curves:
        return None
    panels = {"sse": _of_codecs(curves)} | {
        f"{setting.codec}, {setting.config}": _of_methods(curves, setting) for setting in curves
    }
    columns = min(len(panels), _MAX_COLUMNS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.2 * columns, 5.6 * lines + 0.4), layout="constrained")
    local = None if results.local is None else QUALITIES[measure][1](results.local)
    for place, (title, drawn) in enumerate(panels.items()):
        axis = figure.add_subplot(lines, columns, place + 1)
        for line in drawn:
            curve = curves[line.setting][line.series][ALL]
            axis.plot(curve.rate, curve.quality, **line.style, label=line.label)
        if local is not None:
            axis.axhline(local, **_LOCAL_STYLE, label="local inference")
        axis.set_title(title, fontsize=11)
        axis.set_ylabel(QUALITIES[measure][0])
        axis.legend(fontsize=7, frameon=False)
        rate_axis(axis)
    return png(figure)


def _of_codecs(curves: Curves) -> list[Line]:
    """Sse of every codec, features and remote inference."""
    modes = list(dict.fromkeys(one.mode for series in curves.values() for one in series if one.mode != REMOTE_MODE))
    drawn = []
    for setting, series in curves.items():
        colour = _CODEC_COLOURS.get(setting.codec, "#666666")
        for one in series:
            if one == Series(one.mode):
                style = {"color": colour, "linewidth": 1.4, "markersize": 4}
                if one.mode == REMOTE_MODE:
                    style |= {"linestyle": (0, (1, 1)), "marker": "x"}
                else:
                    style |= {"linestyle": _mode_style(modes, one.mode), "marker": "o"}
                drawn.append(Line(setting, one, style, f"{setting.codec}, {setting.config}, {one.label}"))
    return drawn


def _of_methods(curves: Mapping[Setting, Mapping[Series, Any]], setting: Setting) -> list[Line]:
    """What one codec does, beside remote inference, of another codec where this one has none."""
    modes = list(dict.fromkeys(one.mode for one in curves[setting] if one.mode != REMOTE_MODE))
    remote = Series(REMOTE_MODE)
    drawn = [
        Line(setting, one, series_style(one) | {"linestyle": _mode_style(modes, one.mode)}, one.label)
        for one in curves[setting]
        if one.mode != REMOTE_MODE and one.lambda_scale == 1
    ]
    others: Sequence[Setting] = [setting] if remote in curves[setting] else list(curves)
    for other in others:
        if remote in curves[other] and other.config == setting.config:
            drawn.append(Line(other, remote, series_style(remote), f"remote, {other.codec}"))
    return drawn


def _mode_style(modes: Sequence[str], mode: str) -> str:
    return _MODE_STYLES[modes.index(mode) % len(_MODE_STYLES)]
