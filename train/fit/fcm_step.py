"""One training step of feature wrappers through the proxy codec, all members of a job at once, as a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxwrap.codec import EncodeRequest, quantiser_step
from jaxwrap.codecs.proxy import ProxyCodec, rate_scale
from jaxwrap.packing import pack
from jaxwrap.samples import denormalise, normalise
from jaxwrap.tasks.detector import Candidates
from jaxwrap.train.fit.fcm_config import FcmFitConfig
from jaxwrap.wrappers.fcm import FcmWrapper

LAMBDA_OF_STEP = 0.57 * 2.0 ** (-8.0 / 3.0)
"""An encoder's λ over Δ²: 0.57 · 2^((QP − 12) / 3) with Δ = 2^((QP − 4) / 6)."""

COVARIANCE_DECAY = 0.98
"""Of the running covariance of latents, per step: the KLT is that of about 50 batches."""

CONSTANTS = ("feature_mean", "feature_rms", "transform", "restoring_transform")
"""Parameters of a wrapper that no gradient changes."""

Task = Callable[[dict[str, jax.Array]], Candidates]
"""Features → boxes, scores and classes of every anchor."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FcmState:
    """Everything that a resumed run needs, every leaf but ``step`` and ``key`` with a leading axis of members.

    ``rate_scale``: a of SNW equation 1. ``mean``, ``covariance``: running moments of the latents before the transform.
    """

    step: jax.Array
    params: Any
    optimiser: Any
    key: jax.Array
    rate_scale: jax.Array
    mean: jax.Array
    covariance: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FcmMetrics:
    """Of one step and one member: loss; cost, the mean of 10 log₁₀(D + λ Δ² R) over pictures and the task's error in dB
    times its weight (what validation compares, since a balanced loss has no level); feature SNR in dB (of the mean
    errors); bits per position of the latents; the task's error (1 where there is no task); share of latents outside
    [−1, 1]; norm of the gradient."""

    loss: jax.Array
    cost: jax.Array
    feature_snr: jax.Array
    bits_per_position: jax.Array
    task: jax.Array
    clipped: jax.Array
    gradient_norm: jax.Array


def optimiser(config: FcmFitConfig) -> optax.GradientTransformation:
    """Adam with a cosine schedule; gradients are clipped to norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 50), config.steps, end_value=0.01 * config.learning_rate
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def task_error(task: Task, received: dict[str, jax.Array], wanted: dict[str, jax.Array]) -> jax.Array:
    """Squared errors of all anchors' scores, and of their boxes in parts of the box's size weighted by the score, over
    the squared scores of the batch: crops in which nothing is found weigh nothing, nor do boxes of empty anchors."""
    boxes, scores, _ = task(received)
    boxes_wanted, scores_wanted, _ = jax.lax.stop_gradient(task(wanted))
    size = jnp.maximum(boxes_wanted[..., 2:] - boxes_wanted[..., :2], 1.0)
    moved = jnp.sum(jnp.square((boxes - boxes_wanted) / jnp.concatenate([size, size], axis=-1)), axis=-1)
    errors = jnp.square(scores - scores_wanted) + jnp.square(scores_wanted) * jnp.minimum(moved, 1.0)
    return jnp.sum(errors) / (jnp.sum(jnp.square(scores_wanted)) + 1e-2)


def with_parameters(wrapper: FcmWrapper, params: Any) -> FcmWrapper:
    """A copy of the wrapper's structure with these parameters (traced or not)."""
    graph, state = nnx.split(wrapper, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def make_loss(structure: FcmWrapper, config: FcmFitConfig, task: Task | None) -> Callable[..., Any]:
    """``loss(params, features, steps, gain, lmbda, scale) → (loss, (metrics, z, latents))`` of one member.

    ``steps`` ``[N]``: the proxy's, in d-bit samples. ``gain``: latents' samples per unit of normalised feature at the
    start, which relates λ to an encoder's own. ``scale=None`` counts a JPEG's bits exactly.
    """

    def loss(
        params: Any, features: dict[str, jax.Array], steps: jax.Array, gain: Any, lmbda: Any, scale: jax.Array | None
    ) -> Any:
        constants = {name: jax.lax.stop_gradient(params[name]) for name in CONSTANTS}
        wrapper = with_parameters(structure, params | constants)
        statistics = wrapper.statistics(features)
        latents = wrapper.latents_before_transform(features, statistics)
        layout = wrapper.layout(features)
        frame = pack(latents @ wrapper.transform[...], layout)
        depth = wrapper.config.bit_depth
        z = denormalise(frame, depth)
        coded = ProxyCodec(steps, rate_scale=scale).encode(z, EncodeRequest(qp=None, bit_depth=depth))
        received = normalise(coded.decoded, depth)
        restored = wrapper.restore(received, statistics, layout)
        metric = {name: 1.0 / jnp.square(rms[...]) for name, rms in wrapper.feature_rms.items()}
        positions = layout.height * layout.width

        def energy(a: dict[str, jax.Array], b: dict[str, jax.Array] | None = None) -> jax.Array:
            parts = [jnp.sum(jnp.square(a[k] - b[k] if b else a[k]), axis=(1, 2, 3)) * metric[k][0] for k in metric]
            return sum(parts[1:], parts[0]) / positions

        distortion = energy(restored, features)  # [N]
        bits = coded.bits / positions
        rate = lmbda * LAMBDA_OF_STEP * jnp.square(steps / gain) * bits
        share = jax.lax.stop_gradient(distortion) if config.balanced else jnp.float32(1.0)
        total = jnp.mean((distortion + rate) / share)
        task_loss = jnp.float32(1.0)
        if task is not None:
            task_loss = task_error(task, restored, features)
            total = total + config.task * task_loss / jax.lax.stop_gradient(task_loss)
        if config.idempotence:
            again = wrapper.reduce(restored, statistics)
            moved = jnp.mean(jnp.square(again.y - received.y)) / jnp.mean(jnp.square(jax.lax.stop_gradient(received.y)))
            total = total + config.idempotence * moved
        flat = latents.reshape(-1, latents.shape[-1])
        mean = jnp.mean(flat, axis=0)
        covariance = (flat - mean[None]).T @ (flat - mean[None]) / flat.shape[0]
        if config.decorrelation:
            deviation = jnp.sqrt(jnp.diag(covariance) + 1e-8)
            correlation = covariance / (deviation[:, None] * deviation[None, :])
            off = jnp.square(correlation) * (1.0 - jnp.eye(len(mean)))
            total = total + config.decorrelation * jnp.sum(off) / (len(mean) * (len(mean) - 1))
        signal = jnp.mean(energy(features))
        metrics = FcmMetrics(
            total,
            10.0 / np.log(10.0) * (jnp.mean(jnp.log(distortion + rate)) + config.task * jnp.log(task_loss + 1e-9)),
            10.0 / np.log(10.0) * jnp.log(signal / jnp.mean(distortion)),
            jnp.mean(bits),
            task_loss,
            jnp.mean((jnp.abs(frame.y) > 1.0).astype(jnp.float32)),
            jnp.float32(0.0),
        )
        return total, (metrics, jax.lax.stop_gradient((z, mean, covariance)))

    return loss


def make_step(
    structure: FcmWrapper, config: FcmFitConfig, task: Task | None, masks: Any, gain: float, lmbdas: jax.Array
) -> Callable[[FcmState, dict[str, jax.Array]], tuple[FcmState, FcmMetrics]]:
    """``(state, features) → (state, metrics [members])``: jit it with the state donated."""
    loss = make_loss(structure, config, task)
    update = optimiser(config).update

    def one(
        state: FcmState, lmbda: jax.Array, mask: Any, features: dict[str, jax.Array], steps: jax.Array
    ) -> tuple[FcmState, FcmMetrics]:
        grads, (metrics, (z, mean, covariance)) = jax.grad(loss, has_aux=True)(
            state.params, features, steps, gain, lmbda, state.rate_scale
        )
        grads = jax.tree.map(lambda g, m: g * m, grads, mask)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # what Optax is written for
            updates, opt_state = update(grads, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        running_mean = COVARIANCE_DECAY * state.mean + (1 - COVARIANCE_DECAY) * mean
        running = COVARIANCE_DECAY * state.covariance + (1 - COVARIANCE_DECAY) * covariance
        scale = jax.lax.cond(
            state.step % config.rate_refresh == 0,
            lambda: rate_scale(z, steps, bit_depth=structure.config.bit_depth),
            lambda: state.rate_scale,
        )
        metrics = dataclasses.replace(metrics, gradient_norm=optax.tree.norm(grads))
        return FcmState(state.step, params, opt_state, state.key, scale, running_mean, running), metrics

    def step(state: FcmState, features: dict[str, jax.Array]) -> tuple[FcmState, FcmMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        n = next(iter(features.values())).shape[0]
        qps = jax.random.uniform(key, (n,), minval=config.qp_low, maxval=config.qp_high)
        steps = quantiser_step(qps, structure.config.bit_depth)
        axes: Any = FcmState(None, 0, 0, None, 0, 0, 0)  # type: ignore[arg-type]
        state, metrics = jax.vmap(one, in_axes=(axes, 0, 0, None, None), out_axes=(axes, 0))(
            state, lmbdas, masks, features, steps
        )
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def refreshed_transform(state: FcmState) -> FcmState:
    """The state with each member's transform set to the KLT of its running covariance."""

    def one(params: Any, covariance: jax.Array) -> Any:
        _, vectors = jnp.linalg.eigh(covariance)
        basis = vectors[:, ::-1]
        largest = jnp.take_along_axis(basis, jnp.argmax(jnp.abs(basis), axis=0)[None], axis=0)
        basis = basis * jnp.sign(largest)
        new = dict(params)
        new["transform"], new["restoring_transform"] = basis, basis.T
        return new

    return dataclasses.replace(state, params=jax.vmap(one)(state.params, state.covariance))
