"""The Bjøntegaard tables: which series is compared with which, and what each figure rests on.

BD figures are taken per sequence, then averaged (with a bootstrap interval over sequences); a sequence that allows none
is left out and named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxwrap.metrics.bjontegaard import BdResult, Interval, bd_quality, bd_rate, bootstrap_mean
from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.report.curves import (
    ANCHOR_MODE,
    LINEAR_KINDS,
    OF_A_MODE,
    Curve,
    Curves,
    Series,
    Setting,
    curves_of,
    fronts_of,
)

LOW_OVERLAP = 0.5
MIN_INSIDE = 3
"""Below this overlap, or with fewer measured points of either curve inside it, a BD figure rests on a small part of
the curves, and is marked."""

Comparison = Literal["method", "best_lambda", "mode", "resampling", "generation", "reference", "remote"]
"""What a row compares: a method with sse in the same mode; the same with sse at the scale of λ that serves it best; a
mode or front with the codec alone, or a feature wrapper with the first one; a neural mode with linear resampling; a
codec with sse of the next generation; with sse of a reference encoder; features with remote inference."""

NEXT_GENERATION = {"x264": ("x265",), "x265": ("vvenc",), "jm": ("hm",), "hm": ("vtm", "vvenc")}
"""Codec → those one generation later: reference with reference, practical with practical, VVenC with both."""


@dataclasses.dataclass(frozen=True, slots=True)
class BdMean:
    """Mean of a BD figure over sequences, and what it rests on.

    ``overlap``: of the interval that is integrated over, the smallest of all sequences. ``num_inside``: measured points
    within it, the fewest of all curves.
    """

    interval: Interval
    overlap: float
    num_inside: int

    @property
    def is_weak(self) -> bool:
        """Whether it rests on a small part of the curves (`LOW_OVERLAP`, `MIN_INSIDE`)."""
        return self.overlap < LOW_OVERLAP or self.num_inside < MIN_INSIDE


@dataclasses.dataclass(frozen=True, slots=True)
class BdRow:
    """One line of a BD table: ``series`` of ``setting`` against ``anchor`` of ``anchor_setting``.

    ``rate``: BD-rate in percent, integrated over the common qualities ``measure``; ``quality``: BD of that quality in
    its unit, integrated over the common rates. Means over the same sequences, but an accuracy is one of a data set:
    there the intervals are those of a bootstrap over its pictures, and ``rate`` alone may be None. ``time_ratio``:
    seconds of encoding over the anchor's, sums over the sequences and QPs that both have; None where they were not
    taken, and for fronts. ``left_out``: sequences without a BD figure, and why. Where all are, ``rate`` and ``quality``
    are None. ``task``: the data set, where it is one of a task.
    """

    measure: str
    comparison: Comparison
    setting: Setting
    series: Series
    anchor_setting: Setting
    anchor: Series
    rate: BdMean | None
    quality: BdMean | None
    time_ratio: float | None
    left_out: tuple[tuple[str, str], ...]
    task: str = ""

    @property
    def num_sequences(self) -> int:
        """Sequences that the means are over."""
        mean = self.rate or self.quality
        return mean.interval.num_sequences if mean else 0


def bd_table(points: Sequence[Point], quality: str = "psnr_yuv") -> list[BdRow]:
    """Every comparison that the rows allow, codec by codec, in the order of `Comparison`.

    Methods are compared with sse in the same mode and at the encoder's own λ, which isolates the method, and controls
    too, last; methods also with sse at the measured scale of λ that serves it best on these sequences, where that is
    another one. Without controls and other scales of λ, modes and fronts are compared with the codec alone, neural
    modes with linear resampling at their own ratio (not in the qualities `OF_A_MODE`), and a codec with sse of the next
    generation (`NEXT_GENERATION`) in the same mode and configuration. Raises `ValueError` as `curves_of` does.
    """
    curves, fronts = curves_of(points, quality), fronts_of(points, quality)
    rows: list[BdRow] = []
    for setting, series in curves.items():
        ordered = sorted(series, key=lambda one: one.is_control)  # stable
        rows += rows_of_methods(curves, setting, ordered, quality)
        chosen = [one for one in ordered if one.lambda_scale == 1 and not one.is_control]
        if quality not in OF_A_MODE:
            rows += _of_modes({**curves, setting: {**series, **fronts.get(setting, {})}}, setting, chosen, quality)
        for codec in NEXT_GENERATION.get(setting.codec, ()):
            later = setting._replace(codec=codec)
            for one in chosen:
                anchor = Series(one.mode)
                if anchor in curves.get(later, {}):
                    rows.append(mean_row(curves, quality, "generation", (setting, one), (later, anchor)))
    return rows


def rows_of_methods(curves: Curves, setting: Setting, series: Sequence[Series], quality: str) -> list[BdRow]:
    """Methods against sse in the same mode, and against sse at the scale of λ that serves it best."""
    rows = []
    for mode in dict.fromkeys(one.mode for one in series):
        anchor = Series(mode)
        if anchor not in curves[setting]:
            continue
        others = [one for one in series if one.mode == mode and one != anchor]
        against = [mean_row(curves, quality, "method", (setting, one), (setting, anchor)) for one in others]
        rows += against
        scaled = [(row.rate.interval.mean, row.series) for row in against if row.series.method == "sse" and row.rate]
        if scaled:
            gain, best = min(scaled, key=lambda pair: pair[0])
            methods = [one for one in others if not one.is_control]
            if gain < 0:
                rows += [mean_row(curves, quality, "best_lambda", (setting, one), (setting, best)) for one in methods]
    return rows


def _of_modes(curves: Curves, setting: Setting, series: Sequence[Series], quality: str) -> list[BdRow]:
    rows = []
    alone = Series(ANCHOR_MODE)
    if alone in curves[setting]:
        fronts = [one for one in curves[setting] if one.method == "front"]
        modes = [one for one in (*series, *fronts) if one.mode != ANCHOR_MODE]
        rows += [mean_row(curves, quality, "mode", (setting, one), (setting, alone)) for one in modes]
    for baseline in series:
        kind, _, ratio = baseline.mode.partition("-")
        if kind in LINEAR_KINDS and baseline == Series(baseline.mode):
            same_ratio = [one for one in series if one.mode.partition("-")[2] == ratio]
            neural = [one for one in same_ratio if one.mode.partition("-")[0] not in LINEAR_KINDS]
            rows += [mean_row(curves, quality, "resampling", (setting, one), (setting, baseline)) for one in neural]
    return rows


def mean_row(
    curves: Curves, measure: str, comparison: Comparison, of: tuple[Setting, Series], against: tuple[Setting, Series]
) -> BdRow:
    """BD figures per sequence, then their means."""
    (setting, series), (anchor_setting, anchor) = of, against
    rates: list[BdResult] = []
    qualities: list[BdResult] = []
    left_out = []
    tested, references = curves[setting][series], curves[anchor_setting][anchor]
    for sequence, curve in tested.items():
        reference = references.get(sequence)
        if reference is None:
            left_out.append((sequence, f"no points of {anchor.label}"))
            continue
        try:
            of_rate = bd_rate(reference.rate, reference.quality, curve.rate, curve.quality)
            of_quality = bd_quality(reference.rate, reference.quality, curve.rate, curve.quality)
        except ValueError as error:
            left_out.append((sequence, str(error)))
            continue
        rates.append(of_rate)
        qualities.append(of_quality)
    ratio = None if series.method == "front" else time_ratio_of(tested, references)
    return BdRow(
        measure, comparison, setting, series, anchor_setting, anchor, _mean(rates), _mean(qualities), ratio,
        tuple(left_out),
    )  # fmt: skip


def time_ratio_of(tested: dict[str, Curve], references: dict[str, Curve]) -> float | None:
    """Seconds of encoding over the anchor's, where both have them."""
    ours = theirs = 0.0
    for sequence, curve in tested.items():
        reference = references.get(sequence)
        seconds = dict(zip(reference.qps, reference.seconds, strict=True)) if reference else {}
        for qp, mine in zip(curve.qps, curve.seconds, strict=True):
            other = seconds.get(qp)
            if mine is not None and other is not None:
                ours, theirs = ours + mine, theirs + other
    return ours / theirs if theirs > 0 else None


def _mean(results: list[BdResult]) -> BdMean | None:
    if not results:
        return None
    return BdMean(
        bootstrap_mean([result.value for result in results]),
        min(result.overlap for result in results),
        min(min(result.num_inside) for result in results),
    )
