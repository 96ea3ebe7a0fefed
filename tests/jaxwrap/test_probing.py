"""Comb probing against the diagonal of the dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.importance import probing
from jaxwrap.importance.jacobian import Jacobian
from jaxwrap.importance.maps import importance_map
from jaxwrap.importance.probing import exact_diagonal
from jaxwrap.packing import TileLayout, to_tiles, unpack

LAYOUT = TileLayout(6, 7, 9)
RNG = np.random.default_rng(0)
KERNELS = {c: jnp.asarray(RNG.standard_normal((3, 3, c, 2)), jnp.float32) for c in (1, 2, 6)}


def conv(x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    """``[N, H, W, C]`` → ``[N, H', W', 2]``."""
    kernel = KERNELS[x.shape[-1]].astype(x.dtype)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def gray(n: int, h: int, w: int) -> Yuv400:
    return Yuv400(np.random.default_rng(h).uniform(0, 4, (n, h, w)).astype(np.float32))


def colour(n: int, h: int, w: int) -> Yuv420:
    rng = np.random.default_rng(h)
    return Yuv420(*(rng.uniform(0, 4, s).astype(np.float32) for s in ((n, h, w), *[(n, h // 2, w // 2)] * 2)))


def dense_diagonal(receiver: Callable[[Frame], Any], z: Frame, metric: Any = None) -> list[np.ndarray]:
    matrix = np.asarray(Jacobian(receiver, z, metric).as_matrix(), np.float64)
    diagonal = (matrix**2).sum(1)
    parts = np.split(diagonal, np.cumsum([p[0].size for p in z.planes])[:-1], axis=1)
    return [part.reshape(p.shape) for part, p in zip(parts, z.planes, strict=True)]


def dead_units(z: Frame) -> jax.Array:
    """Most units of the second layer are dead at most places."""
    return jax.nn.relu(conv(jax.nn.relu(conv(z.y[..., None]))) - 2)


def strided(z: Frame) -> jax.Array:
    return jnp.moveaxis(jnp.tanh(conv(z.y[..., None], 2)), 3, 1)


def upsampling(z: Frame) -> jax.Array:
    return jnp.sin(conv(jnp.repeat(jnp.repeat(z.y, 2, 1), 2, 2)[..., None]))


def multi_scale(z: Yuv420) -> dict[str, Any]:
    half = z.y[:, ::2, ::2] * z.u + z.v**2
    return {"full": jnp.tanh(conv(z.y[..., None])), "half": (half, jnp.exp(-z.v))}


def of_channels(z: Frame) -> jax.Array:
    return jnp.tanh(conv(unpack(z, LAYOUT) / 4))


def one_long_reach(z: Frame) -> jax.Array:
    """Pointwise, but for one sample that also reaches 6 to the right and 3 down."""
    row, column = 9, 11
    far = z.y[:, row - 3, column - 6]
    return (z.y**2).at[:, row, column].add(5 * far)


CASES = [
    pytest.param(dead_units, gray(2, 17, 20), {}, id="two convolutions, dead units"),
    pytest.param(lambda z: conv(z.y[..., None], padding="VALID") ** 2, gray(1, 12, 15), {}, id="cut border"),
    pytest.param(upsampling, gray(2, 9, 8), {}, id="upsampling"),
    pytest.param(lambda z: jax.image.resize(z.y, (1, 8, 12), "linear") ** 2, gray(1, 12, 18), {}, id="two thirds"),
    pytest.param(multi_scale, colour(1, 12, 14), {"metric": {"full": 2.0, "half": 0.5}}, id="4:2:0, multi-scale"),
    pytest.param(strided, gray(1, 13, 18), {"spatial_axes": (2, 3)}, id="strided, odd height, NCHW"),
    pytest.param(of_channels, gray(2, *LAYOUT.size), {"tiles": LAYOUT}, id="packed channels"),
    pytest.param(lambda z: z.y * jax.nn.softmax(z.y, 2), gray(1, 14, 6), {}, id="attention along rows only"),
]


@pytest.mark.parametrize(("receiver", "z", "options"), CASES)
def test_the_probed_diagonal_is_that_of_the_dense_jacobian(receiver, z, options) -> None:
    probed = exact_diagonal(receiver, z, **options)
    exact = dense_diagonal(receiver, z, options.get("metric"))
    largest = max(e.max() for e in exact)
    assert largest > 0
    for plane, expected in zip(probed.planes, exact, strict=True):
        assert plane.shape == expected.shape
        np.testing.assert_allclose(plane, expected, rtol=1e-5, atol=1e-6 * largest)


def test_a_reach_that_guards_miss_is_met_by_the_second_spacing(monkeypatch) -> None:
    """At a spacing of 3, what lies 3 down and 6 to the right is another tooth's own place, and no probe is there."""
    combs = []
    fit = probing._fit
    monkeypatch.setattr(probing, "_fit", lambda *args: combs.append(fit(*args)) or combs[-1])
    z = gray(1, 18, 20)
    probed = exact_diagonal(one_long_reach, z)
    np.testing.assert_allclose(probed.y, dense_diagonal(one_long_reach, z)[0], rtol=1e-5)
    assert combs[0].spacing == (3, 3)
    assert len(combs) > 1
    assert combs[-1].spacing[1] > 6


def test_a_comb_is_much_cheaper_than_one_derivative_per_sample(monkeypatch) -> None:
    calls = []
    run = probing._run_combs
    monkeypatch.setattr(probing, "_run_combs", lambda *a, **k: calls.append(1) or run(*a, **k))
    exact_diagonal(lambda z: jnp.tanh(conv(z.y[..., None])), gray(1, 40, 50))
    # 3 outputs of reach and a guard of 1 on either side: 5² and 6² combs for 2000 samples, 8 to a call.
    assert len(calls) == 4 + 5


def test_the_mean_of_sketches_is_the_probed_diagonal() -> None:
    z = gray(2, *LAYOUT.size)
    exact = np.asarray(exact_diagonal(of_channels, z, tiles=LAYOUT).y)
    sketched = importance_map(of_channels, z, key=jax.random.key(0), sketches=256)
    inside = exact > 0
    scores = (np.asarray(sketched.h.y) - exact)[inside] / np.asarray(sketched.standard_error.y)[inside]
    assert np.sqrt(np.mean(scores**2)) < 1.3
    assert (np.asarray(sketched.h.y)[~inside] == 0).all()


def test_float64_diagonals_are_exact_to_float64() -> None:
    with jax.enable_x64(True):
        z = Yuv400(gray(1, 10, 12).y.astype(np.float64))
        exact = dense_diagonal(dead_units, z)[0]
        np.testing.assert_allclose(exact_diagonal(dead_units, z).y, exact, rtol=1e-12, atol=1e-12 * exact.max())


def test_half_precision_receivers_have_float32_diagonals() -> None:
    z = gray(1, 12, 14)
    probed = exact_diagonal(lambda f: jnp.tanh(conv(f.y.astype(jnp.bfloat16)[..., None])), z)
    assert probed.y.dtype == np.float32
    exact = dense_diagonal(lambda f: jnp.tanh(conv(f.y[..., None])), z)[0]
    assert np.corrcoef(probed.y.ravel(), exact.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(
    ("receiver", "options", "message"),
    [
        (lambda z: z.y * jnp.mean(z.y, (1, 2), keepdims=True), {}, "not local.*use importance_map"),
        (lambda z: {"scores": z.y.sum((1, 2))}, {}, r"\['scores'\] has shape \(2,\), without a picture"),
        (lambda z: z.y, {"spatial_axes": (2, 3)}, r"axes \(2, 3\)"),
        (lambda z: z.y * z.y.mean(0, keepdims=True), {}, "alone it is .* mix frames"),
        (lambda z: jnp.log(z.y - 1), {}, "output holds NaN or infinity in frames 0, 1"),
        (lambda z: z.y, {"tiles": LAYOUT}, "packed into 4:0:0"),
    ],
)
def test_receivers_that_combs_cannot_probe_are_refused(receiver, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        exact_diagonal(receiver, gray(2, 12, 15), **options)


def test_receivers_that_use_the_padding_of_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="uses the padding of tiles"):
        exact_diagonal(lambda z: to_tiles(z, LAYOUT)[:, :8, :10] ** 2, gray(1, *LAYOUT.size), tiles=LAYOUT)
