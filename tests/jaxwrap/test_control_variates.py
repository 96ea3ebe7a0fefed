from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance.blocks import block_means
from jaxwrap.importance.maps import ControlVariate, importance_map
from jaxwrap.importance.sketch import TopDct

KEY = jax.random.key(5)
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 4)) / 2, jnp.float32)
SHAPE = (2, 9, 20)


def network(z: Frame) -> jax.Array:
    kernel = KERNEL.astype(z.y.dtype)
    x = jax.lax.conv_general_dilated(z.y[..., None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(x)


def exact(z: Yuv400) -> Yuv400:
    """diag(Jᵀ J), from one forward difference of the tangent of each sample."""
    tangents = jnp.eye(SHAPE[1] * SHAPE[2]).reshape(-1, *SHAPE[1:])

    def one(frame: jax.Array) -> jax.Array:
        push = jax.vmap(lambda t: jax.jvp(lambda y: network(Yuv400(y[None])), (frame,), (t,))[1])
        return (push(tangents) ** 2).reshape(tangents.shape[0], -1).sum(1).reshape(SHAPE[1:])

    return Yuv400(np.asarray(jax.vmap(one)(jnp.asarray(z.y))))


RNG = np.random.default_rng(1)
Z = Yuv400(RNG.uniform(-2, 2, SHAPE).astype(np.float32))
NEAR = Yuv400((Z.y + 0.1 * RNG.standard_normal(SHAPE)).astype(np.float32))
CONTROL = ControlVariate(NEAR, exact(NEAR))


def scores(result: Any, wanted: Yuv400) -> np.ndarray:
    return (np.asarray(result.h.y) - wanted.y) / np.asarray(result.standard_error.y)


@pytest.mark.parametrize("beta", [0.7, None])
def test_the_corrected_map_is_right_within_its_own_error(beta: float | None) -> None:
    control = ControlVariate(NEAR, CONTROL.h, beta)
    result = importance_map(network, Z, key=KEY, sketches=150, control=control)
    assert np.sqrt(np.mean(scores(result, exact(Z)) ** 2)) < 1.3
    plain = importance_map(network, Z, key=KEY, sketches=150)
    assert np.mean(np.square(result.standard_error.y)) < 0.6 * np.mean(np.square(plain.standard_error.y))


def test_the_error_falls_by_the_root_of_one_less_the_squared_correlation() -> None:
    """ρ between single sketches at both places, taken from draws of each of them alone."""
    draws = [
        np.stack(
            [np.asarray(importance_map(network, z, key=jax.random.key(i), sketches=1).h.y) for i in range(120)]
        ).astype(np.float64)
        for z in (Z, NEAR)
    ]
    a, c = (d - d.mean(0) for d in draws)
    rho = (a * c).sum((0, 2, 3)) / np.sqrt((a**2).sum((0, 2, 3)) * (c**2).sum((0, 2, 3)))
    plain, corrected = (
        importance_map(network, Z, key=KEY, sketches=64, control=control) for control in (None, CONTROL)
    )
    gain = [np.square(m.standard_error.y).mean((1, 2)) for m in (corrected, plain)]
    # Each variance is known to about √(2 / (64 · samples / neighbours)) = 5 %, ρ² somewhat better.
    np.testing.assert_allclose(gain[0] / gain[1], 1 - rho**2, rtol=0.25)


def test_the_stated_error_is_the_spread_between_keys() -> None:
    maps = [importance_map(network, Z, key=jax.random.key(i), sketches=4, control=CONTROL) for i in range(60)]
    means = np.stack([np.asarray(block_means(m.h).y) for m in maps])
    stated = np.sqrt(np.mean([np.square(m.block_standard_error.y) for m in maps], 0))
    # From 60 draws a standard deviation is known to 9 %; β from the same 4 sketches adds a little.
    np.testing.assert_allclose(means.std(0, ddof=1), stated, rtol=0.5)
    bias = means.mean(0) - np.asarray(block_means(exact(Z)).y)
    assert np.abs(bias / (means.std(0) / np.sqrt(60))).max() < 5


def test_at_the_reference_itself_nothing_is_left_to_estimate() -> None:
    control = ControlVariate(Z, exact(Z), 1.0)
    result = importance_map(network, Z, key=KEY, sketches=2, control=control)
    np.testing.assert_allclose(result.h.y, exact(Z).y, rtol=1e-4, atol=1e-5)
    assert np.abs(result.standard_error.y).max() < 1e-5


def test_no_sample_is_negative_and_blocks_keep_their_means() -> None:
    """β much too large makes many samples negative."""
    control = ControlVariate(NEAR, CONTROL.h, 3.0)
    result = importance_map(network, Z, key=KEY, sketches=2, control=control)
    at, reference = (importance_map(network, z, key=KEY, sketches=2).h for z in (Z, NEAR))
    raw = np.asarray(at.y) - 3 * (np.asarray(reference.y) - CONTROL.h.y)
    assert (raw < 0).mean() > 0.1
    assert (np.asarray(result.h.y) >= 0).all()
    wanted = np.maximum(np.asarray(block_means(Yuv400(jnp.asarray(raw, jnp.float32))).y), 0)
    np.testing.assert_allclose(block_means(result.h).y, wanted, rtol=1e-3, atol=1e-5)
    positive = np.asarray(result.h.y)[raw > 0]
    assert (positive > 0).mean() > 0.9


def test_one_reference_serves_all_frames() -> None:
    one = ControlVariate(Yuv400(NEAR.y[:1]), Yuv400(CONTROL.h.y[:1]), 0.5)
    both = ControlVariate(*(Yuv400(np.repeat(p.y[:1], 2, 0)) for p in (NEAR, CONTROL.h)), 0.5)
    a, b = (importance_map(network, Z, key=KEY, control=control).h.y for control in (one, both))
    np.testing.assert_array_equal(a, b)


def test_float64_is_kept() -> None:
    with jax.enable_x64(True):
        wide = [Yuv400(f.y.astype(np.float64)) for f in (Z, NEAR, CONTROL.h)]
        result = importance_map(network, wide[0], key=jax.random.key(5), control=ControlVariate(*wide[1:]))
        assert result.h.y.dtype == result.block_standard_error.y.dtype == np.float64
    narrow = importance_map(network, Z, key=KEY, control=CONTROL)
    np.testing.assert_allclose(result.h.y, narrow.h.y, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("control", "options", "message"),
    [
        (ControlVariate(Yuv400(Z.y[:, :8]), CONTROL.h), {}, "reference .* wanted the same, or 1 frame"),
        (ControlVariate(NEAR, Yuv400(np.ones((3, 9, 20), np.float32))), {}, "map .* wanted the same, or 1 frame"),
        (ControlVariate(NEAR, CONTROL.h, np.inf), {}, "beta is inf"),
        # What a TopDct keeps at z is not what it keeps at the reference: the two maps are of different projections.
        (CONTROL, {"sketch": TopDct(3)}, "control variate was given with a TopDct"),
        (CONTROL, {"sketches": 1}, "cannot be estimated from 1 sketch"),
        (ControlVariate(Yuv400(np.full(SHAPE, np.nan, np.float32)), CONTROL.h), {}, "reference z holds NaN"),
        (ControlVariate(NEAR, Yuv400(np.full(SHAPE, np.nan, np.float32))), {}, "map holds NaN"),
    ],
)
def test_controls_that_do_not_fit_are_refused(control: ControlVariate, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importance_map(network, Z, key=KEY, control=control, **options)
