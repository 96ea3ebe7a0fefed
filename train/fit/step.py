"""One training step of a wrapper through the proxy codec (SNW equation 2), as a pure jitted function of its state."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxwrap.arrays import Yuv420
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.jpeg.dct import BLOCK_SIZES
from jaxwrap.codecs.proxy import ProxyCodec, rate_scale, step_from_parameter
from jaxwrap.metrics.distortion import PLANE_WEIGHTS
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import normalise
from jaxwrap.train.fit.config import FitConfig
from jaxwrap.wrappers.switchable import PostConfig, PreConfig, Wrapper, WrapperConfig, wrapper_from_config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FitState:
    """Everything that a resumed run needs; the data position is ``step`` itself.

    ``params``: {"wrapper": …, "log_step": the proxy's step parameter}; ``rate_scale``: a of SNW equation 1 from its
    last exact count.
    """

    step: jax.Array
    params: Any
    optimiser: Any
    key: jax.Array
    rate_scale: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Of one step, over the whole batch: loss, distortion D (squared 8-bit units), bits per original pixel,
    PSNR-YUV (6:1:1) in dB, step size in 8-bit units, norm of the gradient before clipping (0 in validation)."""

    loss: jax.Array
    distortion: jax.Array
    bits_per_pixel: jax.Array
    psnr_yuv: jax.Array
    step_size: jax.Array
    gradient_norm: jax.Array


def wrapper_config(config: FitConfig) -> WrapperConfig:
    """The network that a training configuration asks for."""
    return WrapperConfig(Fraction(config.ratio), PreConfig() if config.mode == "pair" else "bilinear", PostConfig())


def new_wrapper(config: FitConfig) -> Wrapper:
    """That network at its starting point: the linear resampler it stands beside."""
    return wrapper_from_config(wrapper_config(config), rngs=nnx.Rngs(config.seed), dtype=jnp.dtype(config.dtype))


def optimiser(config: FitConfig) -> optax.GradientTransformation:
    """Adam with a cosine schedule; gradients are clipped to norm 1, so that an odd batch counts no more than others."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 50), config.steps, end_value=0.01 * config.learning_rate
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def initial_state(wrapper: Wrapper, config: FitConfig) -> FitState:
    """Step 0: fresh optimiser, the wrapper's own parameters."""
    theta = jnp.log(jnp.float32(config.initial_step_size))
    params = {"wrapper": nnx.to_pure_dict(nnx.state(wrapper, nnx.Param)), "log_step": theta}
    return FitState(
        step=jnp.int32(0),
        params=params,
        optimiser=optimiser(config).init(params),
        key=jax.random.key_data(jax.random.key(config.seed)),
        rate_scale=jnp.float32(0.0),
    )


def with_parameters(wrapper: Wrapper, params: Any) -> Wrapper:
    """A copy of the wrapper's structure with these parameters (traced or not)."""
    graph, state = nnx.split(wrapper, nnx.Param)
    nnx.replace_by_pure_dict(state, params["wrapper"])
    return nnx.merge(graph, state)


def make_loss(wrapper: Wrapper, config: FitConfig) -> Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]:
    """The loss D + λ R of ``(params, pictures, key, scale)``; ``scale=None`` counts exactly, ``key=None``
    draws nothing (8×8 blocks, no jitter), as validation wants it."""
    depth_gain = 2.0 ** (config.bit_depth - 8)

    def loss(
        params: Any, pictures: Yuv420, key: jax.Array | None, scale: jax.Array | None
    ) -> tuple[jax.Array, tuple[Metrics, Any]]:
        model = with_parameters(wrapper, params)
        n, height, width = pictures.y.shape
        frames = normalise(pictures, 8)
        step_size = step_from_parameter(params["log_step"], bit_depth=config.bit_depth)
        steps, blocks = jnp.full((n,), step_size), jnp.full((n,), 8, jnp.int32)
        if key is not None:
            key_block, key_jitter = jax.random.split(key)
            blocks = jax.random.choice(key_block, jnp.asarray(BLOCK_SIZES), (n,))
            octaves = jax.random.uniform(key_jitter, (n,), minval=-config.step_jitter, maxval=config.step_jitter)
            steps = steps * jnp.exp2(octaves)
        codec = ProxyCodec(steps, block_sizes=blocks, rate_scale=scale)
        sandwich = Sandwich(model.pre, functools.partial(model.post, size=(height, width)), config.bit_depth)
        coded = sandwich(frames, codec, EncodeRequest(qp=None))
        mse = [jnp.mean(jnp.square((a - b) * 127.5)) for a, b in zip(coded.frames.planes, frames.planes, strict=True)]
        distortion = sum(mse[1:], mse[0]) / len(mse)
        bits_per_pixel = jnp.sum(coded.result.bits) / (n * height * width)
        total = distortion + config.lmbda * bits_per_pixel / float(Fraction(config.ratio)) ** 2
        planes_psnr = [10.0 / math.log(10.0) * jnp.log(255.0**2 / jnp.maximum(m, 1e-6)) for m in mse]
        psnr = sum(w * p for w, p in zip(PLANE_WEIGHTS[1:], planes_psnr[1:], strict=True))
        psnr = (psnr + PLANE_WEIGHTS[0] * planes_psnr[0]) / sum(PLANE_WEIGHTS)
        metrics = Metrics(total, distortion, bits_per_pixel, psnr, step_size / depth_gain, jnp.float32(0.0))
        return total, (metrics, jax.lax.stop_gradient((coded.plan.z, steps, blocks)))

    return loss


def make_step(wrapper: Wrapper, config: FitConfig) -> Callable[[FitState, Yuv420], tuple[FitState, Metrics]]:
    """``(state, uint8 pictures) → (state, metrics)``: jit it with the state donated.

    The rate's scale is counted from the bottleneck of every ``rate_refresh``-th step and serves the steps after it
    (with 1: the next one), so that the gradient does not wait for the count.
    """
    loss = make_loss(wrapper, config)
    update = optimiser(config).update

    def step(state: FitState, pictures: Yuv420) -> tuple[FitState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        grads, (metrics, (z, steps, blocks)) = jax.grad(loss, has_aux=True)(
            state.params, pictures, key, state.rate_scale
        )
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # what Optax is written for
            updates, opt_state = update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        scale = jax.lax.cond(
            state.step % config.rate_refresh == 0,
            lambda: rate_scale(z, steps, bit_depth=config.bit_depth, block_sizes=blocks),
            lambda: state.rate_scale,
        )
        metrics = dataclasses.replace(metrics, gradient_norm=optax.tree.norm(grads))
        return FitState(state.step + 1, params, opt_state, state.key, scale), metrics

    return step
