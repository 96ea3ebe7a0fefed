"""Calibrated weights against the dense Jacobian, written as the definition reads: ⟨J q_g, J q⟩ / ‖q_g‖²."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.importance.calibration import Calibration, Groups, calibrate
from jaxwrap.importance.jacobian import Jacobian
from jaxwrap.importance.weights import importance_weights
from jaxwrap.packing import TileLayout, unpack

LAYOUT = TileLayout(4, 3, 5)


def colour(n: int = 3, seed: int = 0, low: float = 0.0, high: float = 4.0) -> Yuv420:
    rng = np.random.default_rng(seed)
    return Yuv420(*(rng.uniform(low, high, (n, *s)).astype(np.float32) for s in ((6, 10), (3, 5), (3, 5))))


def packed(n: int = 3, seed: int = 0, low: float = 0.0, high: float = 4.0) -> Yuv400:
    return Yuv400(np.random.default_rng(seed).uniform(low, high, (n, *LAYOUT.size)).astype(np.float32))


def mixing(z: Yuv420) -> dict[str, jax.Array]:
    half = z.y[:, ::2, ::2] * z.u + z.v**2
    return {"sum": half - jnp.roll(half, 1, 2), "full": jnp.sin(z.y) + jnp.roll(z.y, 1, 1) ** 2 / 8}


def of_channels(z: Frame) -> jax.Array:
    x = unpack(z, LAYOUT)
    return x**2 * jnp.asarray([1.0, 2.0, 0.5, 3.0])[None, None, None] + x[..., ::-1]


METRIC = {"sum": 2.0, "full": 0.5}


def groups_of(groups: Groups, z: Frame) -> list[np.ndarray]:
    """Group number of every sample, plane by plane; −1 for none."""
    if isinstance(groups, TileLayout):
        numbers = -np.ones(groups.size, int)
        for c in range(groups.channels):
            top, left = c // groups.cols * groups.tile_height, c % groups.cols * groups.tile_width
            numbers[top : top + groups.height, left : left + groups.width] = c
        return [numbers]
    result, start = [], 0
    for plane in z.planes:
        height, width = plane.shape[1:]
        b = max(height, width) if groups == "plane" else groups
        rows, cols = -(-height // b), -(-width // b)
        result.append(start + np.arange(height)[:, None] // b * cols + np.arange(width)[None] // b)
        start += rows * cols
    return result


def by_definition(receiver: Any, z: Frame, q: Frame, metric: Any, groups: Groups) -> np.ndarray:
    """w_g = Σ_n ⟨J q_g, J q⟩_M / Σ_n ‖q_g‖²."""
    matrix = np.asarray(Jacobian(receiver, z, metric).as_matrix(), np.float64)
    numbers = np.concatenate([g.ravel() for g in groups_of(groups, z)])
    errors = np.concatenate([np.asarray(p, np.float64).reshape(len(p), -1) for p in q.planes], axis=1)
    count = numbers.max() + 1
    above, below = np.zeros(count), np.zeros(count)
    for j, e in zip(matrix, errors, strict=True):
        for g in range(count):
            part = np.where(numbers == g, e, 0)
            above[g] += (j @ part) @ (j @ e)
            below[g] += part @ part
    return above / below


CASES = [
    pytest.param(mixing, colour, METRIC, "plane", id="planes"),
    pytest.param(mixing, colour, METRIC, 4, id="blocks of 4"),
    pytest.param(of_channels, packed, None, LAYOUT, id="channels"),
]


@pytest.mark.parametrize(("receiver", "frames", "metric", "groups"), CASES)
def test_weights_follow_their_definition(receiver, frames, metric, groups) -> None:
    z, q = frames(), frames(seed=1, low=-1, high=1)
    calibration = calibrate(receiver, z, q, metric=metric, groups=groups)
    expected = by_definition(receiver, z, q, metric, groups)
    found = calibration.signed_weights()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(calibration.negative, np.flatnonzero(expected < 0))

    h = calibration.map()
    for plane, numbers, like in zip(h.planes, groups_of(groups, z), z.planes, strict=True):
        assert plane.shape == (1, *like.shape[1:])
        assert plane.dtype == np.float32
        inside = numbers >= 0
        np.testing.assert_allclose(plane[0][inside], np.maximum(expected, 0)[numbers[inside]], rtol=1e-4, atol=1e-5)
    assert np.asarray(importance_weights(h).planes.y).min() >= 0


def test_weights_account_for_the_whole_error_of_the_receiver() -> None:
    z, q = colour(1), colour(1, seed=1, low=-1, high=1)
    numbers = groups_of(4, z)
    weights = calibrate(mixing, z, q, groups=4).signed_weights()
    total = sum((weights[g] * p[0].astype(float) ** 2).sum() for g, p in zip(numbers, q.planes, strict=True))
    jq = Jacobian(mixing, z).mv(q)
    assert total == pytest.approx(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(jq)), rel=1e-5)


def test_the_padding_of_tiles_has_its_channels_weight() -> None:
    h = calibrate(of_channels, packed(), packed(seed=1, low=-1, high=1), groups=LAYOUT).map()
    for c in range(4):
        tile = h.y[0, c // 2 * 8 : c // 2 * 8 + 8, c % 2 * 8 : c % 2 * 8 + 8]
        assert (tile == tile[0, 0]).all()


def test_parts_merge_and_resume_to_the_whole() -> None:
    z, q = colour(3), colour(3, seed=1, low=-1, high=1)
    whole = calibrate(mixing, z, q, groups=4)
    first, second = (
        calibrate(mixing, *(jax.tree.map(lambda p, s=s: p[s], f) for f in (z, q)), groups=4)
        for s in (slice(0, 2), slice(2, 3))
    )
    resumed = Calibration.from_arrays(first.to_arrays(), 4, (6, 10), 3).merge(second)
    np.testing.assert_allclose(resumed.signed_weights(), whole.signed_weights(), rtol=1e-5)
    np.testing.assert_allclose(resumed.standard_error(), whole.standard_error(), rtol=1e-3)


def test_the_standard_error_predicts_the_spread_between_sets_of_pictures() -> None:
    """150 sets of 100 pictures each: the spread of their weights against the error that each set states."""
    rng = np.random.default_rng(0)
    sets, n = 150, 100

    def squared(z: Frame) -> jax.Array:
        return z.y**2

    found = []
    for _ in range(sets):
        z = Yuv400(rng.uniform(0.5, 2, (n, 2, 2)).astype(np.float32))
        scale = rng.uniform(0.5, 1.5, (n, 1, 1))
        q = Yuv400((scale * rng.standard_normal((n, 2, 2))).astype(np.float32))
        c = calibrate(squared, z, q)
        found.append((c.signed_weights()[0], c.standard_error()[0]))
    weights, errors = np.array(found).T
    # A standard deviation of 150 values is known to 6 %; a ratio's first-order error is a little small.
    np.testing.assert_allclose(weights.std(ddof=1), errors.mean(), rtol=0.2)


def test_errors_that_make_up_for_others_have_negative_weight_and_0_in_the_map() -> None:
    def difference(z: Frame) -> jax.Array:
        return z.y[:, 0, 0] - z.y[:, 0, 1]

    z = Yuv400(np.ones((1, 1, 2), np.float32))
    c = calibrate(difference, z, Yuv400(np.array([[[3.0, 1.0]]], np.float32)), groups=1)
    np.testing.assert_allclose(c.signed_weights(), [2 / 3, -2.0])  # J q = 2
    assert c.negative.tolist() == [1]
    np.testing.assert_allclose(c.map().y, [[[2 / 3, 0.0]]], rtol=1e-6)
    assert np.isnan(c.standard_error()).all()


def test_groups_without_errors_have_the_weight_of_all() -> None:
    z = Yuv400(np.ones((2, 1, 3), np.float32))
    q = Yuv400(np.array([[[1.0, 2.0, 0.0]]] * 2, np.float32))
    c = calibrate(lambda f: f.y * jnp.asarray([1.0, 2.0, 9.0])[None, None], z, q, groups=1)
    np.testing.assert_allclose(c.signed_weights(), [1.0, 4.0, 17 / 5])
    assert np.isnan(c.standard_error()).tolist() == [False, False, True]


def test_shrunk_weights_lose_noise_and_keep_differences() -> None:
    rng = np.random.default_rng(7)
    truth = np.where(np.add.outer(np.arange(8), np.arange(8)) % 2, 3.0, 1.0)  # luma blocks differ, chroma ones do not

    def receiver(z: Yuv420) -> Yuv420:
        # What an error costs differs from picture to picture: that is the noise.
        gain = jnp.asarray(truth.repeat(4, 0).repeat(4, 1)[None], jnp.float32) ** 0.5
        return Yuv420(gain * z.y * z.y, z.u * z.u, z.v * z.v)

    z, q = (
        Yuv420(*(rng.uniform(low, high, (6, *s)).astype(np.float32) for s in ((32, 32), (16, 16), (16, 16))))
        for low, high in ((0.2, 2), (-1, 1))
    )
    c = Calibration(4, (32, 32), 3).update(receiver, z, q)
    raw, shrunk = c.signed_weights(), c.shrunk_weights()
    mean_square = (2.0**3 - 0.2**3) / (3 * 1.8) * 4  # of the derivative 2 z
    wanted = np.concatenate([truth.ravel(), np.ones(32)]) * mean_square
    luma, chroma = slice(0, 64), slice(64, 96)
    np.testing.assert_allclose(shrunk[luma], wanted[luma], rtol=0.35)  # 6 pictures × 16 samples in a block
    assert np.square(shrunk[luma] - wanted[luma]).mean() < np.square(raw[luma] - wanted[luma]).mean()
    assert shrunk[chroma].std() < 0.6 * raw[chroma].std()
    assert c.map(shrunk=True).y[0, 0, 4] == pytest.approx(shrunk[1], rel=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        calibrate(receiver, *(jax.tree.map(lambda p: p[:1], frame) for frame in (z, q)), groups=4).shrunk_weights()


def test_what_cannot_be_calibrated_is_refused() -> None:
    z, q = colour(), colour(seed=1)
    good = calibrate(mixing, z, q)
    zero = jax.tree.map(np.zeros_like, q)
    for act, message in (
        (lambda: calibrate(mixing, z, zero).map(), "no coding error was seen"),
        (lambda: calibrate(mixing, z, jax.tree.map(lambda p: p * np.nan, q)), "NaN or infinity"),
        (lambda: calibrate(mixing, z, packed()), "wanted errors like z"),
        (lambda: calibrate(mixing, z, q, groups=0), "groups 0"),
        (lambda: calibrate(mixing, z, q, groups="block"), "'plane', a TileLayout"),
        (lambda: calibrate(mixing, z, q, groups=LAYOUT), "packed 4:0:0 frames of 16×16"),
        (lambda: good.update(of_channels, packed(), packed()), "this calibration is of 10×6 with 3"),
        (lambda: good.merge(calibrate(mixing, z, q, groups=4)), "cannot be merged"),
        (lambda: Calibration.from_arrays({}, "plane", (6, 10), 3), "numerator has shape"),
        (lambda: calibrate(lambda f: jax.lax.stop_gradient(f.y), z, q).map(), "no group has a positive weight"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
