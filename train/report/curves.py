"""Rate-distortion series, Pareto fronts over modes, and the Bjøntegaard table, from results rows.

A *series* is what one codec does in one mode with one method, over QPs; each sequence gives it a curve. BD figures are
taken per sequence, then averaged (with a bootstrap interval over sequences); a sequence that allows none is left out
and named.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxwrap.metrics.bjontegaard import BdResult, Interval, bd_quality, bd_rate, bootstrap_mean, upper_envelope
from jaxwrap.train.evaluate.modes import MODE_BITS
from jaxwrap.train.evaluate.points import Point

QUALITIES: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    "psnr_yuv": ("YUV-PSNR 6:1:1 [dB]", lambda point: point.psnr_yuv),
    "psnr_y": ("Y-PSNR [dB]", lambda point: point.psnr_y),
    "ms_ssim": (
        "MS-SSIM, −10 log₁₀(1 − x) [dB]",
        lambda point: (
            None if point.ms_ssim is None or point.ms_ssim >= 1 else -10.0 * float(np.log10(1.0 - point.ms_ssim))
        ),
    ),
}
"""Axis label and value of each quality; all grow with the rate and are in dB."""

Key = TypeVar("Key")

ANCHOR_MODE = "codec"

LINEAR_KINDS = ("bilinear", "lanczos4")

FRONTS = {
    "bilinear + codec": ("bilinear",),
    "Lanczos + codec": ("lanczos4",),
    "post + codec": ("post",),
    "wrapper + codec": ("wrapper",),
    "post + wrapper + codec": ("post", "wrapper"),
}
"""Families of modes whose Pareto fronts are the rows of SNW table 1, all under sse; the codec alone is an option in
each."""

FRONT_ALL = "all modes and methods"

LOW_OVERLAP = 0.5
MIN_INSIDE = 3
"""Below this overlap, or with fewer measured points of either curve inside it, a BD figure rests on a small part of
the curves, and is marked."""


class Setting(NamedTuple):
    """What a comparison holds fixed."""

    codec: str
    config: str


class Series(NamedTuple):
    """What is compared within a setting; a Pareto front is a series too, with the method ``front``."""

    mode: str
    method: str = "sse"
    method_options: str = "{}"

    @property
    def label(self) -> str:
        """Short name for legends and tables."""
        return self.mode if self.method in ("sse", "front") else f"{self.mode} + {self.method}"


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One sequence of a series, in the order of the rate: bits per pixel, quality in dB, QP and mode of each point."""

    sequence: str
    rate: np.ndarray
    quality: np.ndarray
    qps: tuple[float, ...]
    modes: tuple[str, ...]


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
    """One line of the BD table: ``series`` against ``anchor``.

    ``rate``: BD-rate in percent, integrated over the common qualities; ``quality``: BD-PSNR (or BD of the quality asked
    for) in dB, integrated over the common rates. Means over the same sequences. ``left_out``: sequences without a BD
    figure, and why. Where all are, ``rate`` and ``quality`` are None.
    """

    setting: Setting
    series: Series
    anchor: Series
    rate: BdMean | None
    quality: BdMean | None
    left_out: tuple[tuple[str, str], ...]

    @property
    def is_of_method(self) -> bool:
        """Whether the two differ in the method alone."""
        return self.series.mode == self.anchor.mode

    @property
    def num_sequences(self) -> int:
        """Sequences that the means are over."""
        return self.rate.interval.num_sequences if self.rate else 0


Curves = dict[Setting, dict[Series, dict[str, Curve]]]
"""Setting → series → sequence → curve."""


def curves_of(points: Iterable[Point], quality: str = "psnr_yuv") -> Curves:
    """Sorts rows into curves, in the order in which modes and methods first occur.

    Rows without the quality are left out. Raises `ValueError` for an unknown quality, or where two rows measure the
    same point differently.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality {quality!r} was asked for; known: {', '.join(QUALITIES)}")
    value = QUALITIES[quality][1]
    grouped: dict[Setting, dict[Series, dict[str, dict[float, Point]]]] = {}
    for point in points:
        if value(point) is None:
            continue
        sequences = grouped.setdefault(Setting(point.codec, point.config), {}).setdefault(
            Series(point.mode, point.method, point.method_options), {}
        )
        sequence = sequences.setdefault(point.sequence, {})
        if sequence.setdefault(point.qp, point).key != point.key:
            raise ValueError(
                f"{point.sequence}, {point.codec}, {point.mode}, {point.method}, QP {point.qp:g} was measured twice "
                "with different settings, inputs or versions; report on one of the results at a time"
            )
    return {
        setting: {
            series: {name: _curve(name, list(by_qp.values()), quality) for name, by_qp in sequences.items()}
            for series, sequences in of_setting.items()
        }
        for setting, of_setting in grouped.items()
    }


def fronts_of(points: Sequence[Point], quality: str = "psnr_yuv") -> Curves:
    """Pareto fronts over each of `FRONTS` whose modes were all measured, and over all modes (SNW section 4.1).

    Points of a front are those of `jaxwrap.metrics.bjontegaard.upper_envelope`. Families take their sse rows; in
    `FRONT_ALL` every method takes part, since a decoder need not know which one chose the bits. The codec alone is
    charged the bits of the mode too, as it is one of the options here.
    """
    as_option = [
        dataclasses.replace(
            point, bits=point.bits + MODE_BITS, bpp=point.bpp * (1 + MODE_BITS / point.bits), mode_bits=MODE_BITS
        )
        if point.mode_bits == 0
        else point
        for point in points
    ]
    value = QUALITIES[quality][1]
    fronts: Curves = {}
    for setting, group in _grouped(as_option, lambda p: Setting(p.codec, p.config)).items():
        under_sse = [p for p in group if p.method == "sse"]
        options_of = {
            label: [p for p in under_sse if _family(p) in (ANCHOR_MODE, *families)]
            for label, families in FRONTS.items()
            if {*families} <= {_family(p) for p in under_sse}
        }
        if {p.mode for p in group} != {ANCHOR_MODE}:
            options_of[FRONT_ALL] = group
        for label, chosen in options_of.items():
            series = fronts.setdefault(setting, {}).setdefault(Series(label, "front"), {})
            for sequence, rows in _grouped(chosen, lambda p: p.sequence).items():
                known = [p for p in rows if value(p) is not None]
                options = list(_grouped(known, lambda p: Series(p.mode, p.method, p.method_options)).values())
                front = upper_envelope([_rate_and_quality(one, quality) for one in options])
                if front:
                    series[sequence] = _curve(sequence, [options[c][i] for c, i in front], quality)
    return fronts


def bd_table(points: Sequence[Point], quality: str = "psnr_yuv") -> list[BdRow]:
    """For each codec: methods against sse in the same mode, which isolates the method; then every series and front
    against the codec alone; then neural modes against linear resampling at their own ratio.

    Raises `ValueError` as `curves_of` does.
    """
    curves, fronts = curves_of(points, quality), fronts_of(points, quality)
    rows = []
    for setting, series in curves.items():
        for one in series:
            under_sse = Series(one.mode)
            if one.method != "sse" and under_sse in series:
                rows.append(_bd_row(setting, one, under_sse, series))
        anchor = Series(ANCHOR_MODE)
        others = {**series, **fronts.get(setting, {})}
        if anchor in series:
            rows += [_bd_row(setting, one, anchor, others) for one in others if one != anchor]
        for baseline in series:
            kind, _, ratio = baseline.mode.partition("-")
            if kind in LINEAR_KINDS:
                same_ratio = [one for one in series if one.mode.partition("-")[2] == ratio]
                neural = [one for one in same_ratio if one.mode.partition("-")[0] not in LINEAR_KINDS]
                rows += [_bd_row(setting, one, baseline, series) for one in neural]
    return rows


def mean_curve(curves: dict[str, Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Means over sequences of rate and of quality at each QP that all sequences have (a series, not a front)."""
    common = set.intersection(*(set(curve.qps) for curve in curves.values()))
    at_qp = [
        [(curve.rate[curve.qps.index(qp)], curve.quality[curve.qps.index(qp)]) for curve in curves.values()]
        for qp in sorted(common, reverse=True)
    ]
    if not at_qp:
        return np.zeros(0), np.zeros(0)
    mean = np.asarray(at_qp).mean(axis=1)
    return mean[:, 0], mean[:, 1]


def winners(front: Curve) -> list[tuple[str, float, float]]:
    """Modes along a front: (mode, lowest, highest rate in bits per pixel) of every run of points of one mode."""
    runs = []
    for mode, group in itertools.groupby(zip(front.modes, front.rate, strict=True), key=lambda pair: pair[0]):
        rates = [float(rate) for _, rate in group]
        runs.append((mode, rates[0], rates[-1]))
    return runs


def _bd_row(setting: Setting, series: Series, anchor: Series, curves: dict[Series, dict[str, Curve]]) -> BdRow:
    rates: list[BdResult] = []
    qualities: list[BdResult] = []
    left_out = []
    for sequence, curve in curves[series].items():
        reference = curves[anchor].get(sequence)
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
    return BdRow(setting, series, anchor, _mean(rates), _mean(qualities), tuple(left_out))


def _mean(results: list[BdResult]) -> BdMean | None:
    if not results:
        return None
    return BdMean(
        bootstrap_mean([result.value for result in results]),
        min(result.overlap for result in results),
        min(min(result.num_inside) for result in results),
    )


def _family(point: Point) -> str:
    return point.mode.partition("-")[0]


def _curve(sequence: str, points: list[Point], quality: str) -> Curve:
    ordered = sorted(points, key=lambda point: point.bpp)
    return Curve(
        sequence,
        *_rate_and_quality(ordered, quality),
        tuple(point.qp for point in ordered),
        tuple(Series(point.mode, point.method).label for point in ordered),
    )


def _rate_and_quality(points: list[Point], quality: str) -> tuple[np.ndarray, np.ndarray]:
    value = QUALITIES[quality][1]
    return np.array([point.bpp for point in points]), np.array([value(point) for point in points], np.float64)


def _grouped(points: Iterable[Point], key: Callable[[Point], Key]) -> dict[Key, list[Point]]:
    groups: dict[Key, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups
