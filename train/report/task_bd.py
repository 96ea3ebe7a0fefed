"""Which curves of a task are compared, on feature SNR per sequence and on the scores of the whole data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxwrap.metrics.bjontegaard import (
    AccuracyCurve,
    BdResult,
    accuracy_curve,
    bd_accuracy,
    bd_rate_of_accuracy,
    percentile_interval,
)
from jaxwrap.train.evaluate.pooled import ALL
from jaxwrap.train.report.bd import BdMean, BdRow, Comparison, mean_row, rows_of_methods, time_ratio_of
from jaxwrap.train.report.curves import ACCURACIES, REMOTE_MODE, Curve, Curves, Series, Setting, curves_of
from jaxwrap.train.report.resampling import Draws
from jaxwrap.train.report.task_results import TaskResults

REFERENCES = ("x264", "jm", "hm", "vtm")
"""Encoders whose sse is an anchor of all others: JM of WA-RDO's table 1, HM of ours, VTM of FCM's test model."""

Side = tuple[Setting, Series]

Pair = tuple[Comparison, Side, Side]


def task_table(results: TaskResults, draws: Draws) -> list[BdRow]:
    """Rows on feature SNR (per sequence, then the mean over them), then on every score that was measured (one of the
    data set, intervals from ``draws``).

    Raises `ValueError` as `jaxwrap.train.report.curves.curves_of`.
    """
    features = curves_of(results.points, "feature_snr")
    rows: list[BdRow] = []
    for setting, series in features.items():
        rows += rows_of_methods(features, setting, _controls_last(series), "feature_snr")
        others = [pair for pair in _pairs(features, setting) if pair[0] != "method"]
        rows += [mean_row(features, "feature_snr", *pair) for pair in others]
    for measure in ACCURACIES:
        curves = curves_of(results.coded, measure)
        drawn = draws.curves.get(measure, {})
        for setting in curves:
            rows += [_accuracy_row(curves, measure, pair, drawn, len(draws.units)) for pair in _pairs(curves, setting)]
    return [dataclasses.replace(row, task=results.title) for row in rows]


def resolution(rows: Sequence[BdRow], measure: str) -> float | None:
    """Half the width of the 95 % interval of a method's BD-accuracy against sse in the same codec, the median over such
    rows: differences below it are not told from none. None without intervals."""
    widths = [
        (interval.high - interval.low) / 2
        for row in rows
        if row.measure == measure and row.comparison == "method" and row.quality is not None
        for interval in (row.quality.interval,)
        if interval.low is not None and interval.high is not None
    ]
    return float(np.median(widths)) if widths else None


def _pairs(curves: Curves, setting: Setting) -> Iterator[Pair]:
    """Comparisons of a codec, in the order of `jaxwrap.train.report.bd.Comparison`."""
    series = curves[setting]
    ordered = _controls_last(series)
    for one in ordered:
        if one != Series(one.mode) and Series(one.mode) in series:
            yield "method", (setting, one), (setting, Series(one.mode))
    chosen = [one for one in ordered if one.lambda_scale == 1 and not one.is_control and one.mode != REMOTE_MODE]
    first = next((one for one in chosen if one == Series(one.mode)), None)
    for one in chosen:
        if first is not None and one == Series(one.mode) and one != first:
            yield "mode", (setting, one), (setting, first)
    for codec in REFERENCES:
        reference = setting._replace(codec=codec)
        for one in chosen:
            if codec != setting.codec and Series(one.mode) in curves.get(reference, {}):
                yield "reference", (setting, one), (reference, Series(one.mode))
    remote = [other for other in curves if other.config == setting.config and Series(REMOTE_MODE) in curves[other]]
    for other in [setting] if setting in remote else remote:
        for one in chosen:
            yield "remote", (setting, one), (other, Series(REMOTE_MODE))


def _controls_last(series: Sequence[Series] | dict[Series, dict[str, Curve]]) -> list[Series]:
    return sorted(series, key=lambda one: one.is_control)  # stable


def _accuracy_row(
    curves: Curves,
    measure: str,
    pair: Pair,
    drawn: dict[Side, list[AccuracyCurve | None]],
    num_units: int,
) -> BdRow:
    comparison, of, against = pair
    tested, references = (curves[setting][series] for setting, series in (of, against))
    found: dict[str, BdMean | None] = {}
    left_out = []
    for name, figure in (("quality", bd_accuracy), ("rate", bd_rate_of_accuracy)):
        try:
            anchor, test = (
                accuracy_curve(one[ALL].rate, one[ALL].quality, side)
                for one, side in ((references, "anchor"), (tested, "test"))
            )
            result = figure(anchor, test)
        except ValueError as error:
            found[name] = None
            left_out.append((ALL, str(error)))
            continue
        theirs, ours = drawn.get(against), drawn.get(of)
        values = [_figure(figure, *both) for both in zip(theirs, ours, strict=True)] if theirs and ours else []
        interval = percentile_interval(result.value, values, num_units)
        found[name] = BdMean(interval, result.overlap, min(result.num_inside))
    return BdRow(
        measure, comparison, *of, *against, found["rate"], found["quality"], time_ratio_of(tested, references),
        tuple(dict.fromkeys(left_out)),
    )  # fmt: skip


def _figure(
    figure: Callable[[AccuracyCurve, AccuracyCurve], BdResult], anchor: AccuracyCurve | None, test: AccuracyCurve | None
) -> float:
    """A BD figure of one draw, NaN where it has none."""
    if anchor is None or test is None:
        return float("nan")
    try:
        return figure(anchor, test).value
    except ValueError:
        return float("nan")
