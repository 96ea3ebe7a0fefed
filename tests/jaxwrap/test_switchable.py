"""The wrapper pair: sizes, starting point, gradients, configuration."""

from __future__ import annotations

import functools
import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.typing import DTypeLike

from jaxwrap.arrays import Frame, Yuv400, Yuv420, size_of
from jaxwrap.pipeline import Sandwich
from jaxwrap.wrappers.resample import KINDS, RATIOS, Kind
from jaxwrap.wrappers.switchable import (
    PostConfig,
    PreConfig,
    Wrapper,
    WrapperConfig,
    channels_to_frame,
    frame_to_channels,
    linear_wrapper,
    wrapper_from_config,
)

TINY = {"pre": PreConfig(widths=(4, 6), mlp_width=5), "post": PostConfig((4, 6), (3, 3), (0, 1), (1,))}


def frames(n: int, h: int, w: int, seed: int = 0) -> Yuv420:
    rng = np.random.default_rng(seed)
    y, u, v = (rng.uniform(-1, 1, (n, h // s, w // s)).astype(np.float32) for s in (1, 2, 2))
    return Yuv420(jnp.asarray(y), jnp.asarray(u), jnp.asarray(v))


@functools.cache
def tiny(ratio: Fraction) -> Wrapper:
    return wrapper_from_config(WrapperConfig(ratio, **TINY))


@functools.cache
def drawn(ratio: Fraction, dtype: DTypeLike = jnp.float32) -> Wrapper:
    """A wrapper whose every parameter is drawn, as after training: at the start, the last layers are zero."""
    config = WrapperConfig(ratio, **TINY)
    graph, state = nnx.split(nnx.eval_shape(lambda: wrapper_from_config(config, dtype=dtype)))
    rng = np.random.default_rng(5)
    return nnx.merge(graph, jax.tree.map(lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape), jnp.float32), state))


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_any_even_size_passes_through_and_the_codec_sees_only_the_padding_that_the_ratio_needs(ratio: Fraction) -> None:
    wrapper, h, w = drawn(ratio), 22, 34
    multiple = {1: 2, 3: 6, 2: 4, 4: 8}[ratio.denominator]
    padded = -(-h // multiple) * multiple, -(-w // multiple) * multiple
    bottleneck = jax.jit(wrapper.pre)(frames(2, h, w))
    assert size_of(bottleneck) == wrapper.bottleneck_size(h, w) == (padded[0] * ratio, padded[1] * ratio)
    restored = jax.jit(functools.partial(wrapper.post, size=(h, w)))(bottleneck)
    assert [p.shape for p in restored.planes] == [(2, h, w), (2, h // 2, w // 2), (2, h // 2, w // 2)]
    assert all(np.isfinite(p).all() for p in restored.planes)


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_training_starts_at_linear_resampling(ratio: Fraction) -> None:
    wrapper, x = tiny(ratio), frames(1, 24, 48)
    down = linear_wrapper("lanczos4", ratio).pre(x)
    for a, b in zip(jax.jit(wrapper.pre)(x).planes, down.planes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    up = linear_wrapper("bilinear", ratio).post(down, size=(24, 48))
    for a, b in zip(jax.jit(functools.partial(wrapper.post, size=(24, 48)))(down).planes, up.planes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_wrappers_keep_flat_pictures_and_are_the_identity_at_full_size(kind: Kind) -> None:
    x = frames(1, 10, 14)
    for a, b in zip(linear_wrapper(kind, Fraction(1)).pre(x).planes, x.planes, strict=True):
        np.testing.assert_array_equal(a, b)
    flat: Frame = Yuv400(jnp.full((1, 10, 14), 0.25))
    half = linear_wrapper(kind, Fraction(1, 2))
    assert size_of(half.pre(flat)) == (6, 8)
    np.testing.assert_allclose(half.post(half.pre(flat), size=(10, 14)).y, flat.y, rtol=1e-6)


def test_channels_are_luma_phases_then_chroma_and_come_back() -> None:
    x = frames(1, 4, 6)
    channels = frame_to_channels(x)
    np.testing.assert_array_equal(channels[0, 1, 2], [*x.y[0, 2:, 4:].ravel(), x.u[0, 1, 2], x.v[0, 1, 2]])
    for a, b in zip(channels_to_frame(channels).planes, x.planes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_receiver_is_differentiable_both_ways_and_maps_over_frames() -> None:
    wrapper, size = drawn(Fraction(1, 2)), (12, 16)
    receiver = Sandwich(wrapper.pre, functools.partial(wrapper.post, size=size), bit_depth=8).receive
    z, dz = (jax.tree.map(lambda p: 100 + 50 * p, frames(3, 6, 8, seed=s)) for s in (1, 2))
    out, forwards = jax.jit(lambda z, dz: jax.jvp(receiver, (z,), (dz,)))(z, dz)
    cotangent = jax.tree.map(jnp.cos, out)
    backwards = jax.jit(lambda z, c: jax.vjp(receiver, z)[1](c)[0])(z, cotangent)

    def dot(a: Frame, b: Frame) -> float:
        return float(sum(jnp.vdot(p, q) for p, q in zip(a.planes, b.planes, strict=True)))

    assert dot(forwards, cotangent) == pytest.approx(dot(dz, backwards), rel=1e-3)
    each = jax.jit(jax.vmap(lambda f: receiver(jax.tree.map(lambda p: p[None], f))))(z)
    np.testing.assert_allclose(each.y[:, 0], out.y, atol=1e-5)


def test_every_parameter_of_a_pair_gets_a_gradient() -> None:
    graph, state = nnx.split(drawn(Fraction(2, 3)))
    x = frames(1, 12, 18)

    def loss(state: nnx.State) -> jax.Array:
        wrapper = nnx.merge(graph, state)
        restored = wrapper.post(wrapper.pre(x), size=(12, 18))
        return sum((jnp.mean((plane - 1.0) ** 2) for plane in restored.planes), jnp.zeros(()))

    gradients = jax.jit(jax.grad(loss))(state)
    without = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradients) if not jnp.any(g != 0)]
    assert not without


def test_bfloat16_computes_close_to_float32_and_keeps_the_frame_dtype() -> None:
    x = frames(1, 8, 16)
    exact, half = (drawn(Fraction(1, 2), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    a, b = (jax.jit(w.pre)(x) for w in (exact, half))
    assert b.y.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(half)))
    np.testing.assert_allclose(a.y, b.y, atol=0.05)
    assert np.any(np.asarray(a.y) != np.asarray(b.y))


@pytest.mark.parametrize(
    "config",
    [
        WrapperConfig(),
        WrapperConfig(Fraction(2, 3), **TINY),
        WrapperConfig(Fraction(1, 4), "lanczos4", PostConfig(activation="relu")),
        WrapperConfig(Fraction(1), "bilinear", "bilinear"),
    ],
)
def test_configurations_survive_json(config: WrapperConfig) -> None:
    assert WrapperConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_wrong_configurations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"ratio 3/4.*1, 2/3, 1/2, 1/4"):
        WrapperConfig(Fraction(3, 4))
    with pytest.raises(ValueError, match=r"'nearest'.*bilinear, lanczos4"):
        WrapperConfig(Fraction(1, 2), pre="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"depth.*widths"):
        WrapperConfig.from_dict({"post": {"depth": 3}})
    with pytest.raises(ValueError, match="2 widths were given with 3 kernels"):
        PostConfig(widths=(8, 8))
    with pytest.raises(ValueError, match=r"'gelu'.*leaky_relu"):
        PostConfig(activation="gelu")


def test_wrong_frames_are_refused_by_name() -> None:
    wrapper = drawn(Fraction(1, 2))
    with pytest.raises(ValueError, match="4:0:0"):
        wrapper.pre(Yuv400(jnp.zeros((1, 8, 8))))
    with pytest.raises(ValueError, match=r"bottleneck of \(8, 8\).*want \(4, 4\)"):
        wrapper.post(frames(1, 8, 8), size=(8, 8))
    assert wrapper.pre_network is not None
    with pytest.raises(ValueError, match=r"10×8.*multiples of 4"):
        wrapper.pre_network(frames(1, 8, 10))
