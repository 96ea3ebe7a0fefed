"""Bjøntegaard deltas against closed forms, the Pareto front against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwrap.metrics.bjontegaard import (
    accuracy_curve,
    bd_accuracy,
    bd_quality,
    bd_rate,
    bd_rate_of_accuracy,
    bootstrap_mean,
    pareto_front,
    percentile_interval,
    upper_envelope,
)

RATE = np.array([120.0, 260.0, 555.0, 1210.0, 2400.0, 5100.0])
QUALITY = 6.0 * np.log10(RATE) + 20.0


def test_a_curve_at_nine_tenths_of_the_rate_is_minus_ten_percent() -> None:
    result = bd_rate(RATE, QUALITY, 0.9 * RATE, QUALITY)
    assert result.value == pytest.approx(-10.0, abs=1e-9)
    assert result.overlap == pytest.approx(1.0)
    assert result.num_points == result.num_inside == (6, 6)


def test_swapping_anchor_and_test_inverts_the_ratio_of_rates() -> None:
    forth = bd_rate(RATE, QUALITY, 0.8 * RATE, QUALITY).value
    back = bd_rate(0.8 * RATE, QUALITY, RATE, QUALITY).value
    assert (1 + forth / 100) * (1 + back / 100) == pytest.approx(1.0)


def test_a_straight_line_in_log_rate_shifted_in_quality_has_the_closed_form_on_a_partial_overlap() -> None:
    # Quality = 6 log10(rate) + c: half a dB is a factor 10^(0.5/6) of rate, whatever the points.
    test_rate = RATE[1:] * 1.3
    result = bd_rate(RATE, QUALITY, test_rate, 6.0 * np.log10(test_rate) + 20.5)
    assert result.value == pytest.approx((10 ** (-0.5 / 6.0) - 1) * 100, abs=1e-6)
    assert 0.5 < result.overlap < 1.0
    assert result.num_points == (6, 5)
    assert bd_quality(RATE, QUALITY, test_rate, 6.0 * np.log10(test_rate) + 20.5).value == pytest.approx(0.5, abs=1e-6)


def test_overlap_and_points_inside_are_those_of_the_axis_that_is_integrated_over() -> None:
    # Saturates: the same rates, but qualities from 30 to 40 where the anchor goes from 30 to 50.
    rate = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    anchor, test = np.linspace(30, 50, 5), np.linspace(30, 40, 5)
    of_rate, of_quality = bd_rate(rate, anchor, rate, test), bd_quality(rate, anchor, rate, test)
    assert (of_rate.overlap, of_rate.num_inside) == (pytest.approx(0.5), (3, 5))
    assert (of_quality.overlap, of_quality.num_inside) == (pytest.approx(1.0), (5, 5))


def test_points_may_come_in_any_order() -> None:
    shuffle = np.array([3, 0, 5, 1, 4, 2])
    assert bd_rate(RATE[shuffle], QUALITY[shuffle], 0.9 * RATE, QUALITY).value == pytest.approx(-10.0)


@pytest.mark.parametrize(
    ("rate", "quality", "message"),
    [
        (RATE[:4], QUALITY[:4], "test curve has 4 points.*at least 5"),
        (RATE, QUALITY[:5], "equal lengths"),
        (RATE, QUALITY + 100.0, "share no quality"),
        (RATE, np.append(QUALITY[:-1], QUALITY[-2]), "not monotone.*saturates"),
        (-RATE, QUALITY, "not positive"),
        (RATE, QUALITY * np.nan, "not finite"),
    ],
)
def test_a_curve_that_cannot_be_compared_is_refused_with_its_reason(
    rate: np.ndarray, quality: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bd_rate(RATE, QUALITY, rate, quality)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=15))
def test_the_pareto_front_equals_brute_force(points: list[tuple[int, int]]) -> None:
    rates, qualities = (np.array(column, float) for column in zip(*points, strict=True))
    front = pareto_front(rates, qualities)
    wanted = {(r, q) for r, q in points if not any((r2 <= r and q2 >= q and (r2, q2) != (r, q)) for r2, q2 in points)}
    assert {(rates[i], qualities[i]) for i in front} == wanted
    assert len(front) == len(wanted)
    assert (np.diff(rates[front]) > 0).all()
    assert (np.diff(qualities[front]) > 0).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-8, 8), st.integers(1, 6), st.integers(0, 5), st.integers(2, 6)), min_size=1, max_size=4
    )
)
def test_the_envelope_of_straight_lines_equals_brute_force(lines: list[tuple[int, int, int, int]]) -> None:
    # Quality = offset / 2 + slope · log2(rate) at rates 2^start, 2^(start + 1), …: pchip reproduces straight lines.
    curves = []
    for offset, slope, start, count in lines:
        x = np.arange(start, start + count, dtype=float)
        curves.append((2.0**x, offset / 2 + slope * x))
    points = [(r, q, c, i) for c, (rs, qs) in enumerate(curves) for i, (r, q) in enumerate(zip(rs, qs, strict=True))]

    def reachable(c: int, rate: float) -> float:
        offset, slope, start, count = lines[c]
        x = np.log2(rate)
        return offset / 2 + slope * x if start <= x <= start + count - 1 else -np.inf

    wanted = {
        (r, q)
        for r, q, c, _ in points
        if all(reachable(other, r) <= q + 1e-9 for other in range(len(lines)))
        and not any(r2 <= r and q2 >= q and (r2, q2) != (r, q) for r2, q2, _, _ in points)
    }
    got = upper_envelope(curves)
    assert {(curves[c][0][i], curves[c][1][i]) for c, i in got} == wanted
    assert [curves[c][0][i] for c, i in got] == sorted(r for r, _ in wanted)


def test_the_envelope_drops_a_pareto_point_that_lies_below_the_other_mode_between_its_qps() -> None:
    fine = ([1.0, 4.0], [30.0, 40.0])
    coarse = ([0.5, 2.0], [28.0, 31.0])
    assert len(pareto_front([1.0, 4.0, 0.5, 2.0], [30.0, 40.0, 28.0, 31.0])) == 4
    assert upper_envelope([fine, coarse]) == [(1, 0), (0, 0), (0, 1)]
    with pytest.raises(ValueError, match="not positive"):
        upper_envelope([([0.0], [1.0])])


def test_the_bootstrap_interval_of_gaussian_values_is_near_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(-5.0, 2.0, 200)
    interval = bootstrap_mean(list(values))
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert interval.num_sequences == 200
    assert bootstrap_mean(list(values)) == interval  # the seed is fixed


def test_one_sequence_has_a_mean_and_no_interval() -> None:
    interval = bootstrap_mean([-3.0])
    assert (interval.mean, interval.low, interval.high, interval.num_sequences) == (-3.0, None, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])


def test_bd_accuracy_equals_the_package_on_curves_of_any_shape() -> None:
    import bjontegaard

    rng = np.random.default_rng(0)
    for _ in range(20):
        rates = [np.exp(np.sort(rng.uniform(0, 4, size))) for size in (6, 5)]
        values = [30 * rng.uniform(size=rate.size) for rate in rates]
        wanted = bjontegaard.bd_psnr(
            rates[0], values[0], rates[1], values[1], method="pchip", require_matching_points=False, min_overlap=0
        )
        found = bd_accuracy(accuracy_curve(rates[0], values[0]), accuracy_curve(rates[1], values[1]))
        assert found.value == pytest.approx(wanted, abs=1e-9)
        assert found.num_points == (6, 5)


def test_bd_rate_of_accuracy_is_bd_rate_where_both_curves_rise() -> None:
    accuracy = np.array([0.1, 5.0, 14.0, 19.0, 22.0, 22.4])
    anchor, test = accuracy_curve(RATE, accuracy), accuracy_curve(0.8 * RATE, accuracy + 0.3)
    assert bd_rate_of_accuracy(anchor, test).value == pytest.approx(
        bd_rate(RATE, accuracy, 0.8 * RATE, accuracy + 0.3).value, abs=1e-6
    )
    assert bd_rate_of_accuracy(anchor, accuracy_curve(0.8 * RATE, accuracy)).value == pytest.approx(-20.0)


def test_bd_rate_of_accuracy_ignores_what_lies_outside_the_overlap_and_refuses_a_fall_inside() -> None:
    anchor = accuracy_curve(RATE, np.array([1.0, 5, 10, 15, 18, 20]))
    above = accuracy_curve(0.5 * RATE, np.array([1.0, 5, 10, 15, 24, 22]))  # falls above what the anchor reaches
    result = bd_rate_of_accuracy(anchor, above)
    assert -60 < result.value < -40
    assert result.num_inside == (6, 4)
    with pytest.raises(ValueError, match=r"test curve is not monotone where.*18\.0000 is followed by 17\.0000"):
        bd_rate_of_accuracy(anchor, accuracy_curve(RATE, np.array([1.0, 5, 10, 18, 17, 20])))
    with pytest.raises(ValueError, match="share no accuracy"):
        bd_rate_of_accuracy(anchor, accuracy_curve(RATE, np.arange(30.0, 36.0)))
    with pytest.raises(ValueError, match="share no rate"):
        bd_accuracy(anchor, accuracy_curve(1e4 * RATE, np.arange(6.0)))
    with pytest.raises(ValueError, match="two points at the rate"):
        accuracy_curve(np.array([1.0, 2, 2, 3, 4]), np.arange(5.0))


def test_an_interval_of_draws_is_given_where_nearly_all_of_them_are_defined() -> None:
    draws = np.append(np.linspace(-1, 1, 196), [np.nan] * 4)
    interval = percentile_interval(0.1, draws, 64)
    assert (interval.mean, interval.num_sequences) == (0.1, 64)
    assert (interval.low, interval.high) == (pytest.approx(-0.95), pytest.approx(0.95))
    for few in (percentile_interval(0.1, np.append(draws, [np.nan] * 20), 64), percentile_interval(0.1, draws, 1)):
        assert (few.low, few.high) == (None, None)
