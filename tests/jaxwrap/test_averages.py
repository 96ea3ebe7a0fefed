from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.importance.averages import MapMean

RNG = np.random.default_rng(4)


def maps(n: int, h: int = 4, w: int = 6) -> Yuv420:
    """Maps whose samples differ by some orders of magnitude, as real ones do."""
    sizes = ((n, h, w), (n, h // 2, w // 2), (n, h // 2, w // 2))
    return Yuv420(*(RNG.lognormal(0, 2, size).astype(np.float32) for size in sizes))


def part(frame: Yuv420, index: slice | list[int]) -> Yuv420:
    return Yuv420(*(p[index] for p in frame.planes))


def mean_of(*frames: Frame) -> MapMean:
    result = MapMean()
    for frame in frames:
        result.update(frame)
    return result


def assert_same_bytes(a: MapMean, b: MapMean) -> None:
    left, right = a.to_arrays(), b.to_arrays()
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_mean_and_error_are_numpys() -> None:
    h = maps(37)
    result = mean_of(h)
    for plane, mean, error in zip(h.planes, result.mean().planes, result.standard_error().planes, strict=True):
        wide = plane.astype(np.float64)
        np.testing.assert_allclose(mean[0], wide.mean(0), rtol=1e-14)
        np.testing.assert_allclose(error[0], wide.std(0, ddof=1) / math.sqrt(37), rtol=1e-12)


def test_the_interval_is_scipys_and_covers_the_truth() -> None:
    covered = []
    for _ in range(40):
        sample = RNG.normal(10, 2, (8, 5, 5))
        low, high = mean_of(Yuv400(sample)).interval(0.9)
        covered.append((low.y <= 10) & (high.y >= 10))
    wanted = stats.t.interval(0.9, 7, sample.mean(0), stats.sem(sample, axis=0))
    np.testing.assert_allclose(low.y[0], wanted[0], rtol=1e-12)
    np.testing.assert_allclose(high.y[0], wanted[1], rtol=1e-12)
    # 1000 intervals, each right with probability .9: a standard deviation of .0095, 4 of them.
    assert abs(np.mean(covered) - 0.9) < 0.04


def test_order_batches_and_shards_do_not_change_a_byte() -> None:
    h = maps(23)
    whole = mean_of(h)
    assert_same_bytes(whole, mean_of(part(h, list(RNG.permutation(23)))))
    assert_same_bytes(whole, mean_of(*(part(h, slice(i, i + 5)) for i in range(0, 23, 5))))
    shards = [mean_of(part(h, slice(i, 23, 3))) for i in range(3)]
    merged = MapMean()
    for shard in (shards[2], shards[0], MapMean(), shards[1]):
        merged.merge(shard)
    assert_same_bytes(whole, merged)


def test_sums_are_exact() -> None:
    h = maps(50)
    total = mean_of(h).to_arrays()
    for row in range(4):
        exact = sum(Fraction(float(v)) for v in h.y[:, row, 0])
        square = sum(Fraction(float(v)) ** 2 for v in h.y[:, row, 0])
        assert sum(Fraction(float(v)) for v in total["y_sum"][:, row, 0]) == exact
        assert sum(Fraction(float(v)) for v in total["y_square"][:, row, 0]) == square


def test_a_resumed_mean_equals_an_uninterrupted_one() -> None:
    h = maps(9)
    resumed = MapMean.from_arrays(mean_of(part(h, slice(0, 4))).to_arrays())
    resumed.update(part(h, slice(4, 9)))
    assert_same_bytes(resumed, mean_of(h))
    assert MapMean.from_arrays(MapMean().to_arrays()).count == 0


def test_a_tiny_spread_on_a_large_mean_is_not_lost() -> None:
    sample = 1e6 + 1e-6 * RNG.standard_normal((30, 3, 3))
    exact = (sample - 1e6).std(0, ddof=1) / math.sqrt(30)
    np.testing.assert_allclose(mean_of(Yuv400(sample)).standard_error().y[0], exact, rtol=1e-6)


def test_what_has_no_mean_is_refused() -> None:
    mean = mean_of(maps(1))
    with pytest.raises(ValueError, match="one size and chroma format"):
        mean.update(maps(1, 6, 6))
    with pytest.raises(ValueError, match="one size and chroma format"):
        mean.merge(mean_of(Yuv400(np.ones((1, 4, 6)))))
    with pytest.raises(ValueError, match="at least 2 pictures; 1 were given"):
        mean.standard_error()
    with pytest.raises(ValueError, match="at least 1 picture; 0 were given"):
        MapMean().mean()
    with pytest.raises(ValueError, match="confidence level of 95"):
        mean_of(maps(2)).interval(95)
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="NaN, infinite or negative"):
            mean.update(Yuv420(np.ones((1, 4, 6)), np.ones((1, 2, 3)), np.full((1, 2, 3), bad)))
    assert mean.count == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("y_sum", None, "wanted count, and y_sum"),
        ("extra", np.zeros(1), "wanted count, and y_sum"),
        ("count", np.asarray(-1), "count -1"),
        ("count", np.asarray(2.5), "count 2.5"),
        ("y_sum", np.zeros((2, 4, 5)), "plane y .* wanted float64"),
        ("y_sum", np.zeros((2, 4, 6), np.float32), "plane y .* wanted float64"),
        ("u_square", np.full((2, 2, 3), np.nan), "plane u .* NaN"),
    ],
)
def test_arrays_that_are_not_a_mean_are_refused(name, value, message) -> None:
    arrays = mean_of(maps(2)).to_arrays()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    with pytest.raises(ValueError, match=message):
        MapMean.from_arrays(arrays)
