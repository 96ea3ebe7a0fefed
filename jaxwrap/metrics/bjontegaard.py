"""Bjøntegaard deltas, Pareto fronts over modes, and bootstrap intervals over sequences.

Anchor first, everywhere. Rates are any positive unit (kbps, bpp), compared on a logarithmic scale; qualities are in dB
or another scale that grows with the rate. The integration is the ``bjontegaard`` package's (FAU Erlangen-Nürnberg),
with piecewise cubic Hermite interpolation ("pchip", the common test conditions' choice): it stays monotone between
monotone points, also where a Pareto front spaces them unevenly.

Accuracies of a task (mAP, MOTA) grow with the rate only on the whole: `AccuracyCurve` takes points in any order of
accuracy. `bd_accuracy` is defined wherever two curves share rates, `bd_rate_of_accuracy` only where both rise. A curve
is built once and compared often, as a bootstrap over pictures does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

MIN_POINTS = 5
"""Fewest points of a curve that a BD figure may be computed from."""

INTERPOLATION = "pchip"

UNDEFINED_SHARE = 0.05
"""Most bootstrap draws, as a share of all, in which a statistic may be undefined for its interval to be given."""


@dataclasses.dataclass(frozen=True, slots=True)
class BdResult:
    """A Bjøntegaard delta and what it rests on.

    ``value``: BD-rate in percent (negative: the test curve needs less rate) or BD-quality in the quality's own unit
    (positive: better). ``overlap``: the interval integrated over (of qualities for BD-rate, of log rates for
    BD-quality) as a fraction of the one that both curves span together. ``num_points``: measured points of the anchor
    and of the test curve; ``num_inside``: those within the interval, its ends included.
    """

    value: float
    overlap: float
    num_points: tuple[int, int]
    num_inside: tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Interval:
    """Mean over sequences and its bootstrap percentile interval.

    No interval (``None``) from fewer than two sequences.
    """

    mean: float
    low: float | None
    high: float | None
    num_sequences: int


def bd_rate(
    anchor_rate: ArrayLike, anchor_quality: ArrayLike, test_rate: ArrayLike, test_quality: ArrayLike
) -> BdResult:
    """Mean rate difference of the test curve at equal quality, in percent (Bjøntegaard, VCEG-M33, 2001).

    Integrated over the qualities that both curves reach. Points may come in any order. Raises `ValueError` for fewer
    than `MIN_POINTS` points, a rate that is not positive, a curve on which more rate gives no more quality, or curves
    that share no quality.
    """
    anchor = _curve(anchor_rate, anchor_quality, "anchor")
    test = _curve(test_rate, test_quality, "test")
    overlap, num_inside = _overlap(anchor[1], test[1], "quality")
    import bjontegaard  # imports matplotlib

    percent = bjontegaard.bd_rate(*anchor, *test, method=INTERPOLATION, require_matching_points=False, min_overlap=0)
    return BdResult(float(percent), overlap, (anchor[0].size, test[0].size), num_inside)


def bd_quality(
    anchor_rate: ArrayLike, anchor_quality: ArrayLike, test_rate: ArrayLike, test_quality: ArrayLike
) -> BdResult:
    """Mean quality difference of the test curve at equal rate, in the quality's unit (BD-PSNR in dB).

    Errors as for `bd_rate`.
    """
    anchor = _curve(anchor_rate, anchor_quality, "anchor")
    test = _curve(test_rate, test_quality, "test")
    overlap, num_inside = _overlap(np.log(anchor[0]), np.log(test[0]), "rate")
    import bjontegaard  # imports matplotlib

    delta = bjontegaard.bd_psnr(*anchor, *test, method=INTERPOLATION, require_matching_points=False, min_overlap=0)
    return BdResult(float(delta), overlap, (anchor[0].size, test[0].size), num_inside)


@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyCurve:
    """An accuracy over the rate: ``log_rate`` float64 ``[P]``, strictly growing, natural logarithm; ``accuracy``
    ``[P]``. Made by `accuracy_curve`."""

    log_rate: np.ndarray
    accuracy: np.ndarray

    @functools.cached_property
    def integral(self) -> Any:
        """Antiderivative of the interpolated accuracy over the logarithm of the rate."""
        return _interpolant(self.log_rate, self.accuracy).antiderivative()


def accuracy_curve(rate: ArrayLike, accuracy: ArrayLike, name: str = "") -> AccuracyCurve:
    """Points in any order as a curve; ``name`` is for messages.

    Raises `ValueError` for fewer than `MIN_POINTS` points, values that are not finite, a rate that is not positive, or
    two points of one rate.
    """
    rates, accuracies = _points(rate, accuracy, name)
    if (np.diff(rates) <= 0).any():
        i = int(np.argmin(np.diff(rates)))
        raise ValueError(f"{name} curve has two points at the rate {rates[i]:.6g}; wanted one accuracy per rate")
    return AccuracyCurve(np.log(rates), accuracies)


def bd_accuracy(anchor: AccuracyCurve, test: AccuracyCurve) -> BdResult:
    """Mean accuracy difference of the test curve at equal rate, in the accuracy's own unit, over the common range of
    log rates (WA-RDO section 4).

    The same integral as `bd_quality`, for curves that need not be monotone. Raises `ValueError` where the curves share
    no rate.
    """
    overlap, num_inside = _overlap(anchor.log_rate, test.log_rate, "rate")
    low, high = _common(anchor.log_rate, test.log_rate)
    ours, theirs = (float(curve.integral(high) - curve.integral(low)) for curve in (test, anchor))
    return BdResult((ours - theirs) / (high - low), overlap, (anchor.log_rate.size, test.log_rate.size), num_inside)


def bd_rate_of_accuracy(anchor: AccuracyCurve, test: AccuracyCurve) -> BdResult:
    """Mean rate difference of the test curve at equal accuracy, in percent, over the accuracies that both reach.

    Raises `ValueError` where the curves share no accuracy, or one of them does not rise throughout the shared range:
    several rates then have one accuracy, and the mean over accuracies says nothing. Outside that range a curve may do
    as it likes.
    """
    overlap, num_inside = _overlap(anchor.accuracy, test.accuracy, "accuracy")
    low, high = _common(anchor.accuracy, test.accuracy)
    parts = [_rising_part(curve, low, high, name) for curve, name in ((anchor, "anchor"), (test, "test"))]
    theirs, ours = (float(_interpolant(y, x).integrate(low, high)) for x, y in parts)
    percent = 100.0 * float(np.expm1((ours - theirs) / (high - low)))
    return BdResult(percent, overlap, (anchor.log_rate.size, test.log_rate.size), num_inside)


def pareto_front(rate: ArrayLike, quality: ArrayLike) -> np.ndarray:
    """Indices of the Pareto-optimal points: no other has at most their rate and at least their quality.

    Returned in the order of the rate, along which quality grows strictly; of equal points the first stays. Over the
    points of all modes this is what an encoder that may switch modes reaches (SNW section 4.1, figure 4).
    """
    rates, qualities = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    if rates.shape != qualities.shape or rates.ndim != 1:
        raise ValueError(f"rates of shape {rates.shape} and qualities of shape {qualities.shape}; wanted equal lengths")
    order = np.lexsort((np.arange(rates.size), -qualities, rates))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], qualities[order]]))[:-1]
    return order[qualities[order] > best]


def upper_envelope(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> list[tuple[int, int]]:
    """Points of several (rate, quality) curves that no curve beats, as (curve, point) in the order of the rate.

    A point stays if it is Pareto-optimal, and no other curve, interpolated between its own points over the logarithm of
    the rate (pchip), reaches a higher quality at its rate. The second condition is ours: with a few QPs per mode,
    `pareto_front` keeps points that lie below what the other mode gives at a QP between two measured ones, and an
    encoder that may choose would seem to lose by having the choice. Raises `ValueError` for a rate that is not
    positive; points of one curve that are not Pareto-optimal within it are left out.
    """
    candidates: list[tuple[float, float, int, int]] = []
    functions = []
    for c, (rate, quality) in enumerate(curves):
        rates, qualities = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
        if not (rates > 0).all():
            raise ValueError(
                "a rate that is not positive was given; the envelope is taken over the logarithm of the rate"
            )
        own = pareto_front(rates, qualities)
        candidates += [(float(rates[i]), float(qualities[i]), c, int(i)) for i in own]
        x = np.log(rates[own])
        functions.append(_interpolant(x, qualities[own]) if own.size > 1 else None)

    def beaten(rate: float, quality: float, curve: int) -> bool:
        # Outside of its own points an interpolant is NaN, which beats nothing. Equal curves do not beat one another by
        # rounding.
        others = (f for c, f in enumerate(functions) if c != curve and f is not None)
        return any(bool(f(np.log(rate)) > quality + 1e-9) for f in others)

    kept = [candidate for candidate in candidates if not beaten(*candidate[:3])]
    front = pareto_front([k[0] for k in kept], [k[1] for k in kept])
    return [kept[i][2:] for i in front]


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of one value per sequence, with the percentile interval of its bootstrap distribution.

    Sequences are resampled with replacement. The interval speaks about other sequences like these; with few of them it
    is too narrow, so the number of sequences belongs beside it. Raises `ValueError` without values.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        raise ValueError("no values were given; a mean over sequences needs at least one")
    mean = float(data.mean())
    if data.size < 2:
        return Interval(mean, None, None, int(data.size))
    draws = np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(data[draws].mean(axis=1), [tail, 100.0 - tail])
    return Interval(mean, float(low), float(high), int(data.size))


def percentile_interval(estimate: float, draws: ArrayLike, num_sequences: int, *, confidence: float = 0.95) -> Interval:
    """A statistic of a whole data set (a BD-accuracy) with the percentile interval of its bootstrap ``draws`` ``[D]``.

    A draw in which the statistic is not defined is NaN. Where more than `UNDEFINED_SHARE` of them are, or there are
    none, or fewer than two sequences were drawn from, there is no interval.
    """
    values = np.asarray(draws, np.float64)
    known = values[np.isfinite(values)]
    if num_sequences < 2 or known.size < max(1.0, (1.0 - UNDEFINED_SHARE) * values.size):
        return Interval(estimate, None, None, num_sequences)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(known, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high), num_sequences)


def _curve(rate: ArrayLike, quality: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The points in the order of the rate, checked, on a curve that rises."""
    rates, qualities = _points(rate, quality, name)
    bad = np.flatnonzero((np.diff(qualities) <= 0) | (np.diff(rates) <= 0))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"{name} curve is not monotone: quality goes from {qualities[i]:.4f} to {qualities[i + 1]:.4f} as the rate "
            f"goes from {rates[i]:.6g} to {rates[i + 1]:.6g}; leave out the QPs at which it saturates"
        )
    return rates, qualities


def _points(rate: ArrayLike, quality: ArrayLike, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The points in the order of the rate, checked."""
    rates, qualities = np.asarray(rate, np.float64), np.asarray(quality, np.float64)
    if rates.ndim != 1 or rates.shape != qualities.shape:
        raise ValueError(
            f"{name} curve: rates of shape {rates.shape}, qualities of shape {qualities.shape}; wanted equal lengths"
        )
    if rates.size < MIN_POINTS:
        raise ValueError(f"{name} curve has {rates.size} points; a BD figure wants at least {MIN_POINTS}: add QPs")
    if not (np.isfinite(rates).all() and np.isfinite(qualities).all() and (rates > 0).all()):
        raise ValueError(f"{name} curve holds a rate or quality that is not finite, or a rate that is not positive")
    order = np.argsort(rates, kind="stable")
    return rates[order], qualities[order]


def _rising_part(curve: AccuracyCurve, low: float, high: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Points between which the accuracy lies in [low, high]: log rates and accuracies, both growing."""
    before, after = curve.accuracy[:-1], curve.accuracy[1:]
    touching = np.flatnonzero((np.maximum(before, after) > low) & (np.minimum(before, after) < high))
    part = slice(int(touching[0]), int(touching[-1]) + 2)
    x, y = curve.log_rate[part], curve.accuracy[part]
    falls = np.flatnonzero(np.diff(y) <= 0)
    if falls.size:
        i = int(falls[0])
        raise ValueError(
            f"{name} curve is not monotone where the accuracies overlap: {y[i]:.4f} is followed by {y[i + 1]:.4f} at a "
            "higher rate"
        )
    return x, y


def _interpolant(x: np.ndarray, y: np.ndarray) -> Any:
    """y over strictly growing x (`INTERPOLATION`); NaN outside."""
    from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

    return PchipInterpolator(x, y, extrapolate=False)


def _common(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    return float(max(a.min(), b.min())), float(min(a.max(), b.max()))


def _overlap(a: np.ndarray, b: np.ndarray, what: str) -> tuple[float, tuple[int, int]]:
    """The common interval over the union, and how many values of each lie in it."""
    low, high = _common(a, b)
    if high <= low:
        raise ValueError(f"the curves share no {what}: BD is not defined; choose QPs so that their ranges overlap")
    inside = [int(((values >= low) & (values <= high)).sum()) for values in (a, b)]
    return float((high - low) / (max(a.max(), b.max()) - min(a.min(), b.min()))), (inside[0], inside[1])
