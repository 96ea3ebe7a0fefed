"""The proxy codec against loops in float64, finite differences, closed forms and libjpeg."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import EncodeRequest, Weights
from jaxwrap.codecs.jpeg.tables import HEADER_NUM_BYTES
from jaxwrap.codecs.proxy import ProxyCodec, clip_to_range, rate_scale, step_from_parameter

LEARNT = EncodeRequest(qp=None)


def frames_of(seed: int, n: int = 2, height: int = 36, width: int = 40, top: float = 1023.0) -> Yuv420:
    """Pictures with structure and noise, some samples out of range."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((height, width))
    wave = np.sin(x / 7 + y / 11) + 0.7 * np.sign(np.sin(x / 13)) + rng.normal(0, 0.15, (n, height, width))
    luma = (top * (0.5 + 0.45 * wave)).astype(np.float32)
    chroma = (top * (0.5 + rng.normal(0, 0.2, (2, n, height // 2, width // 2)))).astype(np.float32)
    return Yuv420(luma, chroma[0], chroma[1])


def dct_loop(block: np.ndarray) -> np.ndarray:
    size = len(block)
    k, i = np.ogrid[:size, :size]
    basis = np.sqrt(np.where(k == 0, 1, 2) / size) * np.cos(np.pi * (i + 0.5) * k / size)
    return basis @ block @ basis.T, basis


def proxy_loop(plane: np.ndarray, step: float, size: int, bit_depth: int = 10) -> tuple[np.ndarray, float]:
    """(decoded, Σ log(1 + |Y|/q)) of one plane [H, W], block by block in float64."""
    top, middle = 2.0**bit_depth - 1, 2.0 ** (bit_depth - 1)
    h, w = plane.shape
    x = np.pad(np.clip(plane.astype(np.float64), 0, top), ((0, -h % size), (0, -w % size)), mode="edge") - middle
    decoded, log_sum = np.empty_like(x), 0.0
    for i in range(0, x.shape[0], size):
        for j in range(0, x.shape[1], size):
            y, basis = dct_loop(x[i : i + size, j : j + size])
            log_sum += np.log(1 + np.abs(y) / step).sum()
            decoded[i : i + size, j : j + size] = basis.T @ (np.round(y / step) * step) @ basis
    return np.clip(decoded[:h, :w] + middle, 0, top), log_sum


@jax.jit
def encode_with_unit_scale(frames: Frame, step: jax.Array, block_sizes: jax.Array) -> tuple[Frame, jax.Array]:
    result = ProxyCodec(step, block_sizes=block_sizes, rate_scale=1.0).encode(frames, LEARNT)
    return result.decoded, result.bits


@pytest.mark.parametrize("sizes", [(4, 8), (16, 32)])
def test_mixed_block_sizes_and_steps_agree_with_a_loop_over_blocks(sizes: tuple[int, int]) -> None:
    frames, steps = frames_of(0), (24.3, 61.7)
    decoded, log_sum = encode_with_unit_scale(frames, jnp.array(steps), jnp.array(sizes))
    expected_sum = np.zeros(2)
    for got, plane in zip(decoded.planes, frames.planes, strict=True):
        for n, (step, size) in enumerate(zip(steps, sizes, strict=True)):
            expected, plane_sum = proxy_loop(plane[n], step, size)
            expected_sum[n] += plane_sum
            np.testing.assert_allclose(got[n], expected, atol=5e-3)  # float32 of values up to 2^14
    np.testing.assert_allclose(log_sum, expected_sum, rtol=1e-5)


def test_one_block_size_for_all_is_the_same_as_an_array_of_it() -> None:
    frames = frames_of(1)
    static = jax.jit(lambda f: ProxyCodec(30.0, block_sizes=8, rate_scale=1.0).encode(f, LEARNT))(frames)
    decoded, bits = encode_with_unit_scale(frames, jnp.full(2, 30.0), jnp.full(2, 8))
    np.testing.assert_allclose(static.bits, bits, rtol=1e-5)
    for a, b in zip(static.decoded.planes, decoded.planes, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)


@pytest.mark.parametrize(("chroma", "bit_depth"), [("4:0:0", 8), ("4:2:0", 10)])
def test_bits_are_those_of_libjpeg(chroma: str, bit_depth: int) -> None:
    top = 2.0**bit_depth - 1
    frames: Frame = frames_of(2, top=top)
    step = 20.0 * 2 ** (bit_depth - 8)
    if chroma == "4:0:0":
        frames = Yuv400(frames.y)
    request = EncodeRequest(qp=None, bit_depth=bit_depth)
    bits = np.asarray(jax.jit(lambda f: ProxyCodec(step).encode(f, request).bits)(frames))
    for n in range(2):
        num_bytes = 0
        for plane in frames.planes:
            samples = np.floor(np.clip(plane[n], 0, top) + 0.5).astype(int) >> (bit_depth - 8)
            buffer = io.BytesIO()
            Image.fromarray(samples.astype(np.uint8)).save(buffer, "jpeg", qtables=[[20] * 64])
            data = buffer.getvalue()[HEADER_NUM_BYTES - 2 : -2]
            num_bytes += len(data) - data.count(b"\xff\x00")
        count = round(float(bits[n]))  # a Σ log(1 + |Y|/q) with a = count / Σ: two roundings of float32
        assert bits[n] == pytest.approx(count, rel=2e-7)
        assert 0 <= 8 * num_bytes - count < 8 * len(frames.planes)  # libjpeg fills up each plane's last byte


def test_specification_qp_sets_the_step() -> None:
    frames = Yuv400(frames_of(3).y)
    by_qp = ProxyCodec(rate_scale=1.0).encode(frames, EncodeRequest(qp=28.0))
    by_step = ProxyCodec(64.0, rate_scale=1.0).encode(frames, LEARNT)  # 2^((28 − 4)/6) · 2^(10 − 8)
    np.testing.assert_allclose(by_qp.bits, by_step.bits, rtol=1e-6)


def test_decoding_passes_the_gradient_to_the_frames_unchanged_and_the_step_its_error_over_q() -> None:
    frames = frames_of(4, top=700.0)  # nothing clipped on the way in
    frames = jax.tree.map(lambda p: np.clip(p, 100, 900), frames)
    steps, sizes = jnp.array([20.0, 36.0]), jnp.array([8, 32])
    decoded, pullback = jax.vjp(lambda f, q: encode_with_unit_scale(f, q, sizes)[0], frames, steps)
    assert all(p.min() > 0 and p.max() < 1023 for p in decoded.planes)
    g = frames_of(5)
    to_frames, to_step = pullback(g)
    expected_step = np.zeros(2)
    for got, cotangent, out, x in zip(to_frames.planes, g.planes, decoded.planes, frames.planes, strict=True):
        np.testing.assert_allclose(got, cotangent, rtol=1e-6)
        expected_step += (cotangent * (np.asarray(out) - x)).sum(axis=(1, 2)) / np.asarray(steps)
    np.testing.assert_allclose(to_step, expected_step, rtol=1e-3)


def test_flat_area_has_no_rate_gradient_but_that_of_its_mean() -> None:
    """Its other coefficients are float32 rounding errors, whose signs mean nothing."""
    frames = Yuv400(np.full((1, 32, 32), 333.3, np.float32))
    to_frames = jax.grad(lambda f: encode_with_unit_scale(f, jnp.array([8.0]), jnp.array([16]))[1].sum())(frames)
    mean = 16 * (333.3 - 512)
    np.testing.assert_allclose(to_frames.y, np.sign(mean) / (8 + abs(mean)) / 16, rtol=0.05)


def test_rate_gradient_agrees_with_finite_differences_of_the_loop() -> None:
    """39 × 50 samples: blocks that straddle the edge, and in 32-blocks some beyond it."""
    plane = np.clip(frames_of(6, 1, 40, 50, top=900.0).y[:, :39], 60, 960)
    step, size = 17.0, 16

    def rate(plane: jax.Array, step: jax.Array) -> jax.Array:
        return encode_with_unit_scale(Yuv400(plane), step[None], jnp.array([size]))[1][0]

    to_plane, to_step = jax.grad(rate, argnums=(0, 1))(jnp.asarray(plane), jnp.float32(step))
    delta = 1e-3
    for i, j in ((0, 0), (7, 21), (38, 3), (20, 49), (38, 49)):
        moved = [plane[0].astype(np.float64) for _ in range(2)]
        moved[0][i, j] += delta
        moved[1][i, j] -= delta
        difference = (proxy_loop(moved[0], step, size)[1] - proxy_loop(moved[1], step, size)[1]) / (2 * delta)
        np.testing.assert_allclose(to_plane[0, i, j], difference, rtol=2e-3, atol=1e-4)
    by_step = [proxy_loop(plane[0], step + d, size)[1] for d in (delta, -delta)]
    np.testing.assert_allclose(to_step, (by_step[0] - by_step[1]) / (2 * delta), rtol=1e-4)


def test_clipping_stops_a_gradient_only_where_it_would_lead_further_out() -> None:
    x = jnp.array([-5.0, -5.0, 3.0, 3.0, 15.0, 15.0])
    g = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent moves against the sign
    value, pullback = jax.vjp(lambda x: clip_to_range(x, 0.0, 10.0), x)
    assert value.tolist() == [0, 0, 3, 3, 10, 10]
    assert pullback(g)[0].tolist() == [0, -1, 1, -1, 1, 0]


def test_step_parameter_is_a_logarithm_that_cannot_get_stuck_at_its_floor() -> None:
    thetas = jnp.log(jnp.array([0.25, 1.0, 8.0]))
    step, pullback = jax.vjp(lambda t: step_from_parameter(t, bit_depth=10), thetas)
    np.testing.assert_allclose(step, [4.0, 4.0, 32.0], rtol=1e-6)
    raise_step, lower_step = pullback(jnp.full(3, -1.0))[0], pullback(jnp.full(3, 1.0))[0]
    np.testing.assert_allclose(raise_step, [-1.0, -4.0, -32.0], rtol=1e-6)
    np.testing.assert_allclose(lower_step, [0.0, 4.0, 32.0], rtol=1e-6)


def test_rate_scale_of_a_batch_gives_the_batchs_jpeg_bits_and_new_draws_do_not_recompile() -> None:
    frames, traces = Yuv400(frames_of(7).y), []

    @jax.jit
    def both(frames: Frame, step: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        traces.append(0)
        scale = rate_scale(frames, step, block_sizes=sizes)
        given = ProxyCodec(step, block_sizes=sizes, rate_scale=scale).encode(frames, LEARNT)
        return given.bits, ProxyCodec(step, block_sizes=sizes).encode(frames, LEARNT).bits

    for step, sizes in ((30.0, [4, 32]), (50.0, [16, 8])):
        given, counted = both(frames, jnp.float32(step), jnp.array(sizes))
        np.testing.assert_allclose(given.sum(), counted.sum(), rtol=1e-5)
        assert not np.array_equal(given, counted)
    assert len(traces) == 1


def test_flat_grey_has_a_finite_gradient() -> None:
    """No coefficient at all: the scale a of equation 1 would be a division by zero."""
    frames = Yuv400(jnp.full((1, 8, 8), 512.0))
    gradient = jax.jit(jax.grad(lambda f: ProxyCodec(20.0).encode(f, LEARNT).bits.sum()))(frames)
    np.testing.assert_array_equal(gradient.y, 0)


def test_nothing_leaves_the_device_in_a_training_step() -> None:
    def loss(frames: Frame, step: jax.Array) -> jax.Array:
        result = ProxyCodec(step).encode(frames, LEARNT)
        return result.bits.sum() + sum(p.sum() for p in result.decoded.planes)

    text = str(jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(frames_of(8), 20.0))
    assert "callback" not in text


@pytest.mark.parametrize(
    ("codec", "request_", "message"),
    [
        (ProxyCodec(8.0), EncodeRequest(qp=30), r"both of step_size and request\.qp"),
        (ProxyCodec(), EncodeRequest(qp=None), r"neither of step_size and request\.qp"),
        (ProxyCodec(8.0), EncodeRequest(qp=None, config="lowdelay"), "'lowdelay' was given.*'intra' only"),
        (ProxyCodec(8.0), EncodeRequest(qp=None, bit_depth=9), "bit depth 9.*8, 10"),
        (ProxyCodec(8.0, block_sizes=12), LEARNT, r"block sizes \[12\].*4, 8, 16, 32"),
        (ProxyCodec(8.0), EncodeRequest(qp=None, weights=Weights(Yuv400(np.ones((1, 8, 8))))), "weights were given"),
    ],
)
def test_requests_it_cannot_honour_are_refused(codec: ProxyCodec, request_: EncodeRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(Yuv400(np.zeros((1, 8, 8), np.float32)), request_)
