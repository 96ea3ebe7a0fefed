from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.fft import dctn

from jaxwrap.arrays import Frame, Yuv400, Yuv420, crop_to
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.maps import importance_map, yuv_metric
from jaxwrap.importance.sketch import TopDct

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.standard_normal((3, 3, 1, 2)), jnp.float32)


def conv(x: jax.Array, *, stride: int = 1, padding: Any = "SAME") -> jax.Array:
    """``[N, H, W]`` → ``[N, H', W', 2]``."""
    return jax.lax.conv_general_dilated(
        x[..., None], KERNEL.astype(x.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def gray(n: int = 2, h: int = 6, w: int = 8, seed: int = 0) -> Yuv400:
    return Yuv400(np.random.default_rng(seed).uniform(0, 4, (n, h, w)).astype(np.float32))


def colour(n: int = 2, h: int = 4, w: int = 6, seed: int = 0) -> Yuv420:
    rng = np.random.default_rng(seed)
    sizes = ((n, h, w), (n, h // 2, w // 2), (n, h // 2, w // 2))
    return Yuv420(*(rng.uniform(0, 4, size).astype(np.float32) for size in sizes))


def local(z: Frame) -> jax.Array:
    return jnp.tanh(conv(z.y))


def strided(z: Frame) -> jax.Array:
    return jnp.tanh(conv(z.y, stride=2))


def upsampling(z: Frame) -> jax.Array:
    return jnp.sin(conv(jnp.repeat(jnp.repeat(z.y, 2, 1), 2, 2)))


def multi_scale(z: Yuv420) -> dict[str, Any]:
    half = z.y[:, ::2, ::2] * z.u + z.v**2
    return {"full": local(z), "half": (half, jnp.exp(-z.v)), "pooled": jnp.mean(z.y, (1, 2))}


def attention(z: Frame) -> jax.Array:
    """Rows of a picture that look at one another."""
    scores = jax.nn.softmax(jnp.einsum("nhw,nkw->nhk", z.y, z.y) / 4)
    return jnp.einsum("nhk,nkw->nhw", scores, z.y)


def pointwise(z: Frame) -> Frame:
    return jax.tree.map(lambda p: p**3, z)


def exact_diagonal(receiver: Callable[[Frame], Any], z: Frame, weights: Any = None) -> Frame:
    """diag(Jᵀ M J) of every frame, from the full Jacobian."""
    value_and_rows = jax.jit(lambda frame: (receiver(frame), jax.jacrev(receiver)(frame)))

    def one(i: int) -> list[np.ndarray]:
        frame = jax.tree.map(lambda p: p[i : i + 1], z)
        output, rows = value_and_rows(frame)  # rows: output tree of frames [1, …, 1, H, W]
        m = jax.tree.map(np.ones_like, output) if weights is None else weights
        total = [np.zeros(p.shape[1:]) for p in frame.planes]
        for row, leaf, w in zip(
            jax.tree.leaves(rows, is_leaf=lambda x: isinstance(x, type(frame))),
            jax.tree.leaves(output),
            jax.tree.leaves(m),
            strict=True,
        ):
            w = np.broadcast_to(np.asarray(w, np.float64), leaf.shape).reshape(-1, 1, 1)
            for t, plane in zip(total, row.planes, strict=True):
                t += (w * np.asarray(plane, np.float64).reshape(leaf.size, *t.shape) ** 2).sum(0)
        return total

    return type(z)(*(np.stack(planes) for planes in zip(*(one(i) for i in range(z.y.shape[0])), strict=True)))


CASES = [
    pytest.param(local, gray(), "gaussian", id="local, Gaussian"),
    pytest.param(strided, gray(), "rademacher", id="strided, Rademacher"),
    pytest.param(upsampling, gray(h=4, w=4), "rademacher", id="upsampling, Rademacher"),
    pytest.param(attention, gray(h=4, w=5), "gaussian", id="attention, Gaussian"),
    pytest.param(multi_scale, colour(), "rademacher", id="multi-scale, Rademacher"),
]


@pytest.mark.parametrize(("receiver", "z", "sketch"), CASES)
def test_the_mean_of_many_sketches_is_the_exact_diagonal(receiver, z, sketch) -> None:
    result = importance_map(receiver, z, key=KEY, sketches=300, sketch=sketch)
    deviations = [
        (np.asarray(h) - exact) / np.maximum(np.asarray(se), 1e-5 * exact.max())
        for h, exact, se in zip(
            result.h.planes, exact_diagonal(receiver, z).planes, result.standard_error.planes, strict=True
        )
    ]
    z_scores = np.concatenate([d.ravel() for d in deviations])
    # Within its own standard error: about normal, neighbours correlated.
    assert np.sqrt(np.mean(z_scores**2)) < 1.5
    assert np.abs(z_scores).max() < 6


@pytest.mark.parametrize(("sketch", "law"), [("gaussian", None), ("rademacher", "fourth moments")])
def test_the_variance_between_keys_follows_its_law(sketch, law) -> None:
    z = gray(1, 4, 4)
    jacobian = np.asarray(jax.jacrev(lambda y: local(Yuv400(y)))(jnp.asarray(z.y)), np.float64).reshape(-1, 16)
    second, fourth = (jacobian**2).sum(0), (jacobian**4).sum(0)
    expected = 2 * second**2 - (0 if law is None else 2 * fourth)
    draws = np.stack(
        [
            np.asarray(importance_map(local, z, key=KEY, sketches=1, sketch=sketch, frame_offset=i).h.y).ravel()
            for i in range(400)
        ]
    )
    np.testing.assert_allclose(draws.var(0).mean(), expected.mean(), rtol=0.2)


def test_rademacher_is_exact_for_a_pointwise_receiver() -> None:
    z = colour()
    result = importance_map(pointwise, z, key=KEY, sketches=2)
    for h, se, plane in zip(result.h.planes, result.standard_error.planes, z.planes, strict=True):
        np.testing.assert_allclose(h, (3 * plane**2) ** 2, rtol=1e-5)
        np.testing.assert_array_less(se, 1e-6 * np.asarray(h) + 1e-12)


def test_a_batch_equals_its_frames_one_by_one() -> None:
    z = colour(3)
    whole = importance_map(multi_scale, z, key=KEY, frame_offset=5)
    for i in range(3):
        one = importance_map(multi_scale, jax.tree.map(lambda p, i=i: p[i : i + 1], z), key=KEY, frame_offset=5 + i)
        for a, b in zip(whole.h.planes, one.h.planes, strict=True):
            np.testing.assert_allclose(a[i : i + 1], b, rtol=2e-5, atol=1e-6)


def test_frames_have_the_numbers_that_they_are_given() -> None:
    """Frames 9, 5, 6 on their own, in one call, have the maps that they have among all; on two devices as well."""
    z, numbers = gray(5), [9, 5, 6]
    whole = importance_map(local, z, key=KEY, frame_offset=5).h.y
    some = Yuv400(z.y[[4, 0, 1]])
    alone = importance_map(local, some, key=KEY, frame_offset=numbers)
    # Batches of another size are compiled apart: float32 rounding.
    np.testing.assert_allclose(alone.h.y, whole[np.array([4, 0, 1])], rtol=1e-5)
    shared = importance_map(local, some, key=KEY, frame_offset=numbers, devices=jax.devices()[:2])
    np.testing.assert_array_equal(alone.h.y, shared.h.y)
    with pytest.raises(ValueError, match=r"not depend on z .* in frames 7, 3"):
        importance_map(ignores, gray(2), key=KEY, frame_offset=[7, 3])
    with pytest.raises(ValueError, match=r"frame numbers of shape \(3,\) were given for 2 frames"):
        importance_map(local, gray(2), key=KEY, frame_offset=numbers)


def test_a_top_dct_map_is_the_diagonal_behind_the_projection() -> None:
    """A linear receiver: h = diag(Jᵀ Pᵀ P J), with P from SciPy's DCT of r(z)."""
    z = gray(1, 5, 4)
    jacobian = np.asarray(jax.jacrev(lambda y: conv(y))(jnp.asarray(z.y)), np.float64).reshape(5, 4, 2, 20)
    spectrum = dctn(np.asarray(conv(jnp.asarray(z.y))[0], np.float64), axes=(0, 1), norm="ortho")
    floor = np.sort(np.abs(spectrum).reshape(20, 2), axis=0)[-3]
    kept = dctn(jacobian, axes=(0, 1), norm="ortho") * (np.abs(spectrum) >= floor)[..., None]
    exact = (kept**2).sum((0, 1, 2)).reshape(1, 5, 4)
    result = importance_map(lambda f: conv(f.y), z, key=KEY, sketches=400, sketch=TopDct(3))
    score = (np.asarray(result.h.y) - exact) / np.asarray(result.standard_error.y)
    assert np.sqrt(np.mean(score**2)) < 1.8
    assert np.abs(score).max() < 6


def test_the_same_key_gives_the_same_bytes_and_another_does_not() -> None:
    first, again, other = (importance_map(local, gray(), key=k).h.y for k in (KEY, KEY, jax.random.key(4)))
    assert np.asarray(first).tobytes() == np.asarray(again).tobytes() != np.asarray(other).tobytes()


@pytest.mark.parametrize("sketch", ["rademacher", "gaussian"])
def test_a_metric_equals_scaling_the_output_by_its_root(sketch) -> None:
    z = gray()
    metric = np.random.default_rng(5).uniform(0, 3, (2, 6, 8, 2)).astype(np.float32)
    weighted = importance_map(local, z, key=KEY, metric=metric, sketch=sketch)
    scaled = importance_map(lambda f: local(f) * jnp.sqrt(metric), z, key=KEY, sketch=sketch)
    np.testing.assert_allclose(weighted.h.y, scaled.h.y, rtol=1e-4, atol=1e-5)


def test_a_metric_may_be_a_prefix_of_the_outputs_tree() -> None:
    z = colour()
    prefix = importance_map(multi_scale, z, key=KEY, metric={"full": 2.0, "half": 3.0, "pooled": 0.5})
    full = importance_map(multi_scale, z, key=KEY, metric={"full": 2.0, "half": (3.0, 3.0), "pooled": 0.5})
    jax.tree.map(np.testing.assert_array_equal, prefix.h, full.h)


def test_the_yuv_metric_makes_the_norm_the_6_1_1_mean_square_error() -> None:
    e = colour(1)
    m = yuv_metric(e)
    norm = sum(float(w) * (p.astype(np.float64) ** 2).sum() for w, p in zip(m.planes, e.planes, strict=True))
    mse = [np.mean(p.astype(np.float64) ** 2) for p in e.planes]
    assert norm == pytest.approx((6 * mse[0] + mse[1] + mse[2]) / 8)
    mapped = importance_map(pointwise, e, key=KEY, metric=yuv_metric)
    np.testing.assert_allclose(mapped.h.u, (3 * e.u**2) ** 2 / (8 * e.u[0].size), rtol=1e-5)


def test_float64_maps_agree_with_the_exact_diagonal_to_float64() -> None:
    with jax.enable_x64(True):
        z = Yuv400(gray().y.astype(np.float64))
        result = importance_map(pointwise, z, key=jax.random.key(0))
        assert result.h.y.dtype == np.float64
        np.testing.assert_allclose(result.h.y, (3 * z.y**2) ** 2, rtol=1e-14)
        # Signs are the same at any precision, so the map of a smooth receiver is too, up to rounding.
        wide = importance_map(local, z, key=jax.random.key(0)).h.y
        narrow = importance_map(local, gray(), key=jax.random.key(0)).h.y
        np.testing.assert_allclose(wide, np.asarray(narrow, np.float64), rtol=1e-3, atol=1e-5)


def test_bfloat16_receivers_give_float32_maps() -> None:
    result = importance_map(lambda f: local(Yuv400(f.y.astype(jnp.bfloat16))), gray(), key=KEY)
    assert result.h.y.dtype == np.float32
    exact = importance_map(local, gray(), key=KEY).h.y
    assert np.corrcoef(np.ravel(result.h.y), np.ravel(exact))[0, 1] > 0.99


def test_block_errors_predict_the_spread_of_block_means() -> None:
    z = gray(1, 32, 40)
    many = [importance_map(local, z, key=KEY, sketches=8, frame_offset=i) for i in range(60)]
    means = np.stack([np.asarray(m.h.y)[0, :32, :32].reshape(2, 16, 2, 16).mean((1, 3)) for m in many])
    predicted = np.sqrt(np.mean([np.square(m.block_standard_error.y[0, :, :2]) for m in many], axis=0))
    assert many[0].block_standard_error.y.shape == (1, 2, 3)
    np.testing.assert_allclose(means.std(0, ddof=1), predicted, rtol=0.5)
    assert 0 < float(many[0].relative_block_error()[0]) < 0.2


def test_maps_can_be_made_inside_jit() -> None:
    inside = jax.jit(lambda z, key: importance_map(local, z, key=key).h)(gray(), KEY)
    np.testing.assert_allclose(inside.y, importance_map(local, gray(), key=KEY).h.y, rtol=1e-5, atol=1e-6)


def test_parameters_in_a_partial_change_without_compiling_again() -> None:
    traces = []

    def scaled(gain: jax.Array, z: Frame) -> jax.Array:
        traces.append(1)
        return gain * local(z)

    first = importance_map(jax.tree_util.Partial(scaled, jnp.float32(1.0)), gray(), key=KEY)
    count = len(traces)
    second = importance_map(jax.tree_util.Partial(scaled, jnp.float32(2.0)), gray(), key=KEY)
    assert len(traces) == count
    np.testing.assert_allclose(second.h.y, 4 * np.asarray(first.h.y), rtol=1e-5)


def test_a_networks_parameters_may_change_and_do_not_compile_again() -> None:
    traces = []

    class Network(nnx.Module):
        def __init__(self) -> None:
            self.gain = nnx.Param(jnp.float32(1.0))

        def __call__(self, z: Frame) -> jax.Array:
            traces.append(1)
            return self.gain * local(z)

        def decode(self, z: Frame) -> jax.Array:
            return self(z)

    network = Network()
    for receiver in (network, network.decode):
        network.gain[...] = jnp.float32(1.0)
        first = importance_map(receiver, gray(), key=KEY).h.y
        count = len(traces)
        network.gain[...] = jnp.float32(2.0)
        second = importance_map(receiver, gray(), key=KEY).h.y
        assert len(traces) == count
        np.testing.assert_allclose(second, 4 * np.asarray(first), rtol=1e-5)


def test_unhashable_receivers_are_taken() -> None:
    class Network:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, z: Frame) -> jax.Array:
            traces.append(1)
            return local(z)

    network, traces = Network(), []
    np.testing.assert_array_equal(
        importance_map(network, gray(), key=KEY).h.y, importance_map(local, gray(), key=KEY).h.y
    )
    count = len(traces)
    importance_map(network, gray(), key=KEY)
    assert len(traces) == count > 0


def test_padding_of_a_batch_has_no_weight_and_inner_samples_are_untouched() -> None:
    """Sketches differ with the padded size: many of them are compared with each picture's exact diagonal."""
    zs = [gray(1, 4, 6, seed=1), gray(2, 6, 4, seed=2)]
    linear = batched_importance_maps(lambda h, w: lambda f: conv(f.y), zs, key=KEY, sketches=300)
    smooth = batched_importance_maps(lambda h, w: local, zs, key=KEY, sketches=300)
    for z, m, inside in zip(zs, linear, smooth, strict=True):
        # A linear receiver's Jacobian does not see the padded samples: its map is right up to the rim, where an
        # unmasked output in the padding would add a third or more.
        score = (np.asarray(m.h.y) - exact_diagonal(lambda f: conv(f.y), z).y) / np.asarray(m.standard_error.y)
        assert np.sqrt(np.mean(score**2)) < 1.5
        # Any other is right from half a receptive field (two 3×3 hulls) inwards.
        score = (np.asarray(inside.h.y) - exact_diagonal(local, z).y) / np.asarray(inside.standard_error.y)
        assert np.sqrt(np.mean(score[:, :-2, :-2] ** 2)) < 1.5


def test_padded_batches_of_a_pointwise_receiver_equal_single_maps() -> None:
    zs = [colour(1, 4, 10, seed=1), colour(2, 8, 6, seed=2)]
    maps = batched_importance_maps(lambda h, w: pointwise, zs, key=KEY, metric=yuv_metric, sketches=2)
    for z, m in zip(zs, maps, strict=True):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5),
            m.h,
            importance_map(pointwise, z, key=KEY, metric=yuv_metric).h,
        )


def test_the_mask_follows_a_receiver_that_changes_the_size() -> None:
    zs = [gray(1, 4, 8, seed=1), gray(1, 8, 8, seed=2)]
    sizes = []

    def make_receiver(height: int, width: int) -> Callable[[Frame], Any]:
        sizes.append((height, width))
        return lambda f: Yuv400(jnp.repeat(jnp.repeat(f.y**2, 2, 1), 2, 2))

    maps = batched_importance_maps(make_receiver, zs, key=KEY, sketches=400)
    assert sizes == [(8, 8)]
    for z, m in zip(zs, maps, strict=True):
        assert m.h.y.shape == crop_to(z, *z.y.shape[1:]).y.shape
        np.testing.assert_allclose(np.mean(m.h.y / (16 * z.y**2)), 1, atol=0.05)


def ignores(z: Frame) -> jax.Array:
    return jax.lax.stop_gradient(z.y)


def poisoned(z: Frame) -> jax.Array:
    return jnp.log(z.y - 1.0)


def infinite_slope(z: Frame) -> jax.Array:
    return jnp.sqrt(jnp.maximum(z.y - 2.0, 0.0))


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        (lambda z: jnp.round(z.y).astype(jnp.int32), "int32.*real outputs"),
        (lambda z: {"sum": jnp.sum(z.y)}, r"\['sum'\].*leading axis.*2 frames"),
        (lambda z: (), "no arrays"),
        (ignores, "does not depend on z .* in frames 0, 1"),
        (poisoned, "output holds NaN or infinity in frame"),
        (infinite_slope, "derivative is NaN or infinite in frame"),
    ],
)
def test_receivers_without_a_map_are_refused(receiver, message) -> None:
    with pytest.raises(ValueError, match=message):
        importance_map(receiver, gray(), key=KEY)


def test_one_dead_frame_is_named_by_its_number_in_the_sequence() -> None:
    z = Yuv400(np.stack([np.ones((4, 4)), np.zeros((4, 4))]).astype(np.float32))
    with pytest.raises(ValueError, match=r"does not depend on z .* in frame 11$"):
        importance_map(lambda f: f.y**2, z, key=KEY, frame_offset=10)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (-1.0, "negative, NaN"),
        (np.nan, "negative, NaN"),
        (np.ones((3, 8, 2), np.float32), "does not broadcast|must broadcast"),
        ({"y": 1.0}, "the same tree, a prefix of it"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(metric, message) -> None:
    with pytest.raises(ValueError, match=message):
        importance_map(local, gray(), key=KEY, metric=metric)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="0 sketches"):
        importance_map(local, gray(), key=KEY, sketches=0)
    with pytest.raises(ValueError, match=r"'dct'.*rademacher, gaussian, and TopDct"):
        importance_map(local, gray(), key=KEY, sketch="dct")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="z holds NaN or infinity in frame 1"):
        importance_map(local, Yuv400(np.stack([np.ones((4, 4)), np.full((4, 4), np.nan)]).astype(np.float32)), key=KEY)
    with pytest.raises(ValueError, match="from 1 sketch"):
        importance_map(local, gray(), key=KEY, sketches=1).relative_block_error()
    with pytest.raises(ValueError, match="no frames"):
        batched_importance_maps(lambda h, w: local, [], key=KEY)
    with pytest.raises(ValueError, match="Yuv400, Yuv420"):
        batched_importance_maps(lambda h, w: local, [gray(), colour()], key=KEY)
    for sizes in ([(6, 8)], [(6, 8), (7, 8)]):
        with pytest.raises(ValueError, match=r"for 2 frames of 8×6; wanted a luma height and width of each"):
            importance_map(local, gray(), key=KEY, own_sizes=sizes)


def test_methods_of_equal_objects_share_compiled_code() -> None:
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Gain:
        value: float

        def receive(self, z: Frame) -> jax.Array:
            traces.append(1)
            return self.value * local(z)

    first = importance_map(Gain(2.0).receive, gray(), key=KEY)
    count = len(traces)
    importance_map(Gain(2.0).receive, gray(), key=KEY)
    assert len(traces) == count
    other = importance_map(Gain(4.0).receive, gray(), key=KEY)
    np.testing.assert_allclose(other.h.y, 4 * np.asarray(first.h.y), rtol=1e-5)
