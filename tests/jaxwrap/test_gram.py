"""Channel statistics against dense Jacobians and NumPy, transforms against their closed forms and folded networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.importance.gram import (
    EIGENVALUE_FLOOR,
    ChannelGram,
    ChannelMoments,
    ChannelTransform,
    MapScale,
    PlaneScale,
    channel_gram,
    channel_transform,
    fold_into_first,
    fold_into_last,
    klt,
    klt_gram,
    root_weights,
)
from jaxwrap.importance.jacobian import Jacobian, sketched_rows
from jaxwrap.packing import TileLayout, pack, to_tiles, unpack

LAYOUT = TileLayout(6, 5, 7)
RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((6, 6))


def latents(n: int = 3, seed: int = 0) -> np.ndarray:
    """Correlated channels of a 10-bit range, ``[N, 5, 7, 6]``."""
    white = np.random.default_rng(seed).standard_normal((n, 5, 7, 6))
    return (white @ MIX * 30 + 400 + 20 * np.arange(6)).astype(np.float32)


def gram() -> np.ndarray:
    """A well-conditioned G."""
    root = RNG.standard_normal((6, 8))
    return root @ root.T + 0.1 * np.eye(6)


def moments(frame: Frame | None = None) -> ChannelMoments:
    return ChannelMoments(LAYOUT).update(frame or pack(latents(), LAYOUT))


def mixing(z: Frame) -> jax.Array:
    return jnp.tanh(jnp.einsum("nhwc,dc->nhwd", unpack(z, LAYOUT) / 400, jnp.asarray(MIX, jnp.float32)))


def test_streamed_moments_are_those_of_all_positions() -> None:
    x = latents(5).astype(np.float64).reshape(-1, 6)
    frame = pack(latents(5), LAYOUT)
    streamed = ChannelMoments(LAYOUT).update(Yuv400(frame.y[:1])).update(Yuv400(frame.y[1:3]))
    streamed.merge(ChannelMoments(LAYOUT).update(Yuv400(frame.y[3:]))).merge(ChannelMoments(LAYOUT))
    assert streamed.count == len(x)
    np.testing.assert_allclose(streamed.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance(), np.cov(x.T), rtol=1e-10)


def test_the_gram_of_many_sketches_is_the_mean_of_the_channels_blocks() -> None:
    z = pack(latents(1), LAYOUT)
    matrix = np.asarray(Jacobian(mixing, z).as_matrix(), np.float64)[0]
    full = (matrix.T @ matrix).reshape(*LAYOUT.size, *LAYOUT.size)
    exact = np.zeros((6, 6))
    for c in range(6):
        for d in range(6):
            for i in range(5):
                for j in range(7):
                    at = [(k // 3 * 8 + i, k % 3 * 8 + j) for k in (c, d)]
                    exact[c, d] += full[(*at[0], *at[1])] / 35
    rows = sketched_rows(Jacobian(mixing, z), jax.random.key(1), 200)
    parts = np.stack(
        [channel_gram(jax.tree.map(lambda p, i=i: p[:, i : i + 10] * 20**0.5, rows), LAYOUT) for i in range(0, 200, 10)]
    )
    error = parts.std(0, ddof=1) / np.sqrt(20)
    assert (np.abs(parts.mean(0) - exact) < 5 * error + 1e-9).all()
    np.testing.assert_allclose(channel_gram(rows, LAYOUT), parts.mean(0), rtol=1e-6)
    # On the diagonal: the map of the same sketches, averaged over each tile (rows are all but 0 in the padding).
    h = (np.asarray(rows.planes.y, np.float64) ** 2).sum(1)
    np.testing.assert_allclose(
        np.diag(channel_gram(rows, LAYOUT)), unpack(Yuv400(h), LAYOUT).mean((0, 1, 2)), rtol=1e-6
    )


def test_grams_of_parts_merge_to_that_of_the_whole() -> None:
    rows = sketched_rows(Jacobian(mixing, pack(latents(3), LAYOUT)), jax.random.key(1), 4)
    first, second = (jax.tree.map(lambda p, s=s: p[s], rows) for s in (slice(0, 1), slice(1, 3)))
    merged = ChannelGram(LAYOUT).update(first).merge(ChannelGram(LAYOUT).update(second))
    np.testing.assert_allclose(merged.gram(), channel_gram(rows, LAYOUT), rtol=1e-12)


TRANSFORMS = {
    "root of weights": lambda: root_weights([1.0, 4.0, 0.25, 9.0, 2.0, 1.0], LAYOUT, moments().mean),
    "KLT": lambda: klt(moments()),
    "KLT after a quarter": lambda: klt_gram(moments(), gram(), 0.25),
    "KLT after a half": lambda: klt_gram(moments(), gram(), 0.5),
    "any": lambda: channel_transform(MIX, np.ones(6), LAYOUT),
}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_undoing_a_transform_gives_the_samples_back(make) -> None:
    frame = pack(latents(), LAYOUT)
    transform = make().fitted(frame, 10)
    coded = transform.apply(frame)
    expected = (
        transform.scale * (to_tiles(frame, LAYOUT).astype(np.float64) - transform.mean) @ transform.matrix.T
        + transform.offset
    )
    # Rounding of samples of order 1000, magnified by the condition of A at most.
    slack = 1e-4 * np.linalg.cond(transform.matrix)
    np.testing.assert_allclose(to_tiles(coded, LAYOUT), expected, atol=slack)
    np.testing.assert_allclose(transform.undo(coded).y, frame.y, atol=slack)
    whole = transform.undo(Yuv400(np.round(np.clip(coded.y, 0, 1023)).astype(np.uint16)))
    assert whole.y.dtype == np.float32
    # Half a step of rounding in each of 6 channels; one sample per ten thousand may be clipped.
    error = np.abs(whole.y - frame.y)
    assert np.quantile(error, 0.999) < 0.5 * np.abs(transform.inverse / transform.scale).sum(1).max() + slack


def test_the_klt_decorrelates_and_sorts() -> None:
    transform = klt(moments())
    np.testing.assert_allclose(transform.matrix @ transform.matrix.T, np.eye(6), atol=1e-12)
    coded = np.asarray(unpack(transform.apply(pack(latents(), LAYOUT)), LAYOUT), np.float64)
    covariance = np.cov(coded.reshape(-1, 6).T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3 * covariance[0, 0])
    assert (np.diff(np.diag(covariance)) < 0).all()
    assert (transform.matrix[np.arange(6), np.abs(transform.matrix).argmax(1)] > 0).all()


def test_at_a_half_the_squared_error_of_the_coded_samples_is_the_receivers() -> None:
    """‖s U G^½ q‖² = s² qᵀ G q at every position, whatever the error."""
    g, frame = gram(), pack(latents(), LAYOUT)
    transform = klt_gram(moments(), g, 0.5).fitted(frame, 10)
    q = np.random.default_rng(7).standard_normal(latents().shape)
    moved = pack((latents() + q).astype(np.float32), LAYOUT)
    with jax.enable_x64(True):
        wide = [Yuv400(f.y.astype(np.float64)) for f in (frame, moved)]
        coded = [unpack(transform.apply(f), LAYOUT) for f in wide]
        error = unpack(wide[1], LAYOUT) - unpack(wide[0], LAYOUT)
        expected = transform.scale**2 * np.einsum("nhwc,cd,nhwd->nhw", error, g, error)
        np.testing.assert_allclose(((coded[1] - coded[0]) ** 2).sum(-1), expected, rtol=1e-9)


def test_root_weights_make_the_squared_error_the_weighted_one() -> None:
    w = np.array([1.0, 4.0, 0.25, 9.0, 2.0, 1.0])
    transform = root_weights(w, LAYOUT)
    a, b = (pack(latents(1, seed).astype(np.float64), LAYOUT) for seed in (1, 2))
    with jax.enable_x64(True):
        error = unpack(transform.apply(a), LAYOUT) - unpack(transform.apply(b), LAYOUT)
        np.testing.assert_allclose(
            (error**2).sum(-1), (w * (latents(1, 1).astype(float) - latents(1, 2)) ** 2).sum(-1), rtol=1e-9
        )


def test_the_fitted_scale_brings_the_stated_part_of_the_samples_into_range() -> None:
    frame = pack(latents(40), LAYOUT)
    for coverage in (0.9999, 0.98):
        transform = klt(moments(frame)).fitted(frame, 10, coverage)
        x = np.asarray(unpack(transform.apply(frame), LAYOUT), np.float64)
        inside = ((x >= -1e-2) & (x <= 1023 + 1e-2)).mean()
        assert coverage <= inside < coverage + 2e-3
        assert transform.qp_shift() == pytest.approx(6 * np.log2(transform.scale))
    assert transform.scale > klt(moments(frame)).fitted(frame, 10).scale


def test_the_shift_of_qp_keeps_the_receivers_error() -> None:
    """White quantisation noise of variance s'² = (gain s)² in z' against s² in z, both as the receiver sees them."""
    g, frame = gram(), pack(latents(), LAYOUT)
    before = np.trace(g)
    for transform in (klt(moments()), klt_gram(moments(), g, 0.5), root_weights(np.diag(g), LAYOUT, moments().mean)):
        fitted = transform.fitted(frame, 10)
        back = fitted.inverse / fitted.scale
        gain = 2 ** (fitted.qp_shift() / 6)
        assert gain**2 * np.trace(back.T @ g @ back) == pytest.approx(before)


class Wrapper(nnx.Module):
    """Features → latents [N, 5, 7, 6] in [−1, 1] → features, by two convolutions either side."""

    def __init__(self, last: int, first: int, padding: str) -> None:
        rngs = nnx.Rngs(0)
        self.before = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.last = nnx.Conv(4, 6, (last, last), rngs=rngs)
        self.first = nnx.Conv(6, 4, (first, first), padding=padding, rngs=rngs)
        self.after = nnx.Conv(4, 3, (1, 1), rngs=rngs)
        for layer in (self.last, self.first):
            layer.bias[...] = jnp.asarray(RNG.standard_normal(layer.bias.shape), jnp.float32)

    def reduce(self, features: jax.Array) -> jax.Array:
        return self.last(jnp.tanh(self.before(features)))

    def restore(self, x: jax.Array) -> jax.Array:
        return self.after(jnp.tanh(self.first(x)))


def folded(network: Wrapper, transform: ChannelTransform, *, zero_padding: bool) -> Wrapper:
    """The network with the transform of its samples z = 511.5 (x + 1) inside."""
    inner = transform.conjugate(511.5, 511.5)
    copy = nnx.clone(network)
    for layer, pair in (
        (copy.last, fold_into_last(network.last.kernel[...], network.last.bias[...], inner)),
        (
            copy.first,
            fold_into_first(network.first.kernel[...], network.first.bias[...], inner, zero_padding=zero_padding),
        ),
    ):
        layer.kernel[...], layer.bias[...] = (jnp.asarray(p) for p in pair)
    return copy


def to_samples(x: jax.Array) -> Yuv400:
    return pack((x + 1) * 511.5, LAYOUT)


def from_samples(z: Frame) -> jax.Array:
    return unpack(z, LAYOUT) / 511.5 - 1


@pytest.mark.parametrize(("last", "first", "padding"), [(1, 1, "SAME"), (3, 1, "SAME"), (1, 3, "VALID")])
def test_folded_networks_are_the_networks_with_the_transform_between(last, first, padding) -> None:
    network = Wrapper(last, first, padding)
    features = jnp.asarray(RNG.standard_normal((2, 5, 7, 3)), jnp.float32)
    z = to_samples(network.reduce(features))
    transform = klt_gram(moments(z), gram(), 0.25).fitted(z, 10)
    inside = folded(network, transform, zero_padding=padding == "SAME")

    # Samples of order 1000 in float32, through a transform of condition 10 or so.
    coded = to_samples(inside.reduce(features))
    np.testing.assert_allclose(coded.y, transform.apply(z).y, atol=2e-2)
    noisy = Yuv400(coded.y + jnp.asarray(RNG.standard_normal(coded.y.shape), jnp.float32))
    expected = network.restore(from_samples(transform.undo(noisy)))
    np.testing.assert_allclose(inside.restore(from_samples(noisy)), expected, atol=1e-3)


def test_zero_padding_is_refused_for_wide_kernels_and_exact_when_padded_by_hand() -> None:
    network = Wrapper(1, 3, "SAME")
    z = to_samples(network.reduce(jnp.asarray(RNG.standard_normal((2, 5, 7, 3)), jnp.float32)))
    transform = klt(moments(z)).fitted(z, 10)
    with pytest.raises(ValueError, match=r"3×3 kernel under zero padding.*of_zero"):
        folded(network, transform, zero_padding=True)

    inner = transform.conjugate(511.5, 511.5)
    inside = nnx.clone(folded(network, transform, zero_padding=False))
    inside.first.padding = "VALID"
    coded = from_samples(transform.apply(z))
    border = jnp.broadcast_to(jnp.asarray(inner.of_zero(), jnp.float32), (2, 7, 9, 6))
    padded = border.at[:, 1:-1, 1:-1].set(coded)
    np.testing.assert_allclose(inside.restore(padded), network.restore(from_samples(z)), atol=1e-3)


def test_zero_padding_is_exact_where_the_transform_leaves_zero_alone() -> None:
    network = Wrapper(1, 3, "SAME")
    transform = root_weights([1.0, 4.0, 0.25, 9.0, 2.0, 1.0], LAYOUT)  # x' = √w x
    kernel, bias = fold_into_first(network.first.kernel[...], network.first.bias[...], transform, zero_padding=True)
    x = jnp.asarray(RNG.standard_normal((1, 5, 7, 6)), jnp.float32)
    expected = network.restore(x)
    network.first.kernel[...], network.first.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
    coded = unpack(transform.apply(pack(x, LAYOUT)), LAYOUT)
    np.testing.assert_allclose(network.restore(coded), expected, atol=1e-5)


def test_a_direction_that_the_receiver_ignores_is_kept() -> None:
    singular = np.diag([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    transform = klt_gram(moments(), singular, 0.5)
    assert np.linalg.cond(transform.matrix) == pytest.approx(EIGENVALUE_FLOOR**-0.5)
    frame = pack(latents(), LAYOUT)
    np.testing.assert_allclose(transform.undo(transform.apply(frame)).y, frame.y, atol=0.5)


def test_planes_are_scaled_by_the_roots_of_their_weights() -> None:
    rng = np.random.default_rng(3)
    a, b = (Yuv420(*(rng.uniform(0, 1023, s) for s in ((1, 4, 4), (1, 2, 2), (1, 2, 2)))) for _ in range(2))
    scale = PlaneScale.from_weights((2.0, 8.0, 0.5))
    with jax.enable_x64(True):
        x, y = scale.apply(a), scale.apply(b)
        for p, q, original, other, w in zip(x.planes, y.planes, a.planes, b.planes, (2.0, 8.0, 0.5), strict=True):
            np.testing.assert_allclose((p - q) ** 2, w / 8 * (original - other) ** 2, rtol=1e-12)
            assert p.min() >= 0
            assert p.max() <= 1023
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-12), scale.undo(x), a)
    assert scale.qp_shift() == pytest.approx(-6)
    whole = scale.undo(jax.tree.map(lambda p: p.astype(np.uint16), a))
    assert whole.y.dtype == np.float32


def test_a_map_scale_makes_plain_squared_error_the_weighted_one_up_to_a_constant() -> None:
    rng = np.random.default_rng(3)
    shapes = ((1, 8, 12), (1, 4, 6), (1, 4, 6))
    a, b = (Yuv420(*(rng.uniform(0, 1023, (2, *s[1:])) for s in shapes)) for _ in range(2))
    weights = Yuv420(*(rng.uniform(0.25, 4, s) for s in shapes))
    scale = MapScale.from_weights(weights)
    largest = max(float(w.max()) for w in weights.planes)
    with jax.enable_x64(True):
        x, y = scale.apply(a), scale.apply(b)
        for p, q, one, other, w in zip(x.planes, y.planes, a.planes, b.planes, weights.planes, strict=True):
            # The scales are float32, their squares good to two units in the last place.
            np.testing.assert_allclose((p - q) ** 2, w / largest * (one - other) ** 2, rtol=3e-7)
            assert p.min() >= 0
            assert p.max() <= 1023
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-12), scale.undo(x), a)
    assert scale.qp_shift() == pytest.approx(3 * np.mean(np.log2(weights.y / largest)), rel=1e-6)


def test_what_makes_no_transform_is_refused() -> None:
    frame = pack(latents(), LAYOUT)
    transform = klt(moments())
    for act, message in (
        (lambda: ChannelMoments(LAYOUT).covariance(), "0 positions"),
        (lambda: ChannelGram(LAYOUT).gram(), "no rows"),
        (lambda: moments(Yuv400(frame.y * np.nan)), "NaN"),
        (lambda: moments().merge(ChannelMoments(TileLayout(6, 5, 6))), "cannot be merged"),
        (lambda: ChannelMoments(LAYOUT).update(Yuv400(frame.y[:, :8])), "packed into"),
        (lambda: klt_gram(moments(), gram(), 0.6), r"p = 0.6"),
        (lambda: klt_gram(moments(), np.eye(5), 0.5), "5 channels was given for 6"),
        (lambda: klt_gram(moments(), np.ones(6), 0.5), r"shape \(6,\)"),
        (lambda: klt_gram(moments(), MIX, 0.5), "not symmetric"),
        (lambda: klt_gram(moments(), -np.eye(6), 0.5), "≥ 0"),
        (lambda: root_weights([1, 1, 1, 1, 1, 0], LAYOUT), "≤ 0"),
        (lambda: channel_transform(np.ones((6, 6)), np.zeros(6), LAYOUT), "condition number"),
        (lambda: channel_transform(np.eye(6), np.zeros(5), LAYOUT), r"wanted \(6, 6\)"),
        (lambda: transform.fitted(frame, 10, 0.0), "coverage 0"),
        (lambda: transform.fitted(Yuv400(np.full_like(frame.y, 3)), 10), "constant"),
        (lambda: transform.apply(Yuv420(frame.y, frame.y, frame.y)), "Yuv420"),
        (lambda: transform.conjugate(0.0, 1.0), "gain 0"),
        (lambda: fold_into_last(np.ones((1, 1, 4, 5)), np.ones(5), transform), "6 channels in axis 3"),
        (lambda: PlaneScale((1.0, 2.0, 1.0)), "three in"),
        (lambda: PlaneScale.from_weights((1.0, 0.0, 1.0)), "> 0"),
        (lambda: PlaneScale((1.0, 1.0, 1.0)).apply(frame), "Yuv400"),
        (lambda: MapScale.from_weights(Yuv400(np.zeros((1, 4, 4)))), "alpha > 0"),
        (lambda: MapScale.from_weights(Yuv400(np.ones((2, 4, 4)))), "not one map"),
        (lambda: MapScale.from_weights(Yuv400(np.ones((1, 4, 4)))).apply(frame), "these scales are of"),
    ):
        with pytest.raises(ValueError, match=message):
            act()
