"""Training of feature wrappers: members of one job side by side, log, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Yuv400
from jaxwrap.codec import quantiser_step
from jaxwrap.codecs.proxy import rate_scale
from jaxwrap.packing import pack
from jaxwrap.samples import denormalise, max_sample
from jaxwrap.tasks.detector import Candidates, Detector
from jaxwrap.train.fit.checkpoints import SUFFIX, RunStates
from jaxwrap.train.fit.fcm_checkpoints import load_fcm, save_fcm
from jaxwrap.train.fit.fcm_config import FcmFitConfig, Member
from jaxwrap.train.fit.fcm_data import FeatureSet, feature_crops, scales_of
from jaxwrap.train.fit.fcm_step import (
    CONSTANTS,
    FcmMetrics,
    FcmState,
    make_loss,
    make_step,
    optimiser,
    refreshed_transform,
    with_parameters,
)
from jaxwrap.train.fit.fcm_tuning import tune
from jaxwrap.train.fit.folder import Log, claim, digest_of, made_with
from jaxwrap.train.fit.loop import Progress
from jaxwrap.train.prefetch import prefetch
from jaxwrap.wrappers.fcm import FcmConfig, FcmWrapper

VALIDATION_QPS = (12.0, 22.0, 32.0, 42.0)
MOMENTS_BATCH = 8

LOG_FIELDS = (
    "step", "member", "loss", "cost", "feature_snr", "bits_per_position", "task", "clipped", "gradient_norm",
    "validation_loss", "validation_snr", "validation_bits", "seconds",
)  # fmt: skip


def fit_fcm(
    config: FcmFitConfig,
    detector: Detector,
    training: FeatureSet,
    validation: FeatureSet,
    out: Path,
    *,
    size: tuple[int, int],
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Path]:
    """Trains the members of a job, or goes on where ``out`` stopped; returns their ``best`` wrapper files.

    ``training``, ``validation``: features of pictures of ``size`` (height, width) of the network's input. Each member's
    best state by the validation cost becomes ``out/MEMBER/best.wrapper.npz``, or ``out/best.wrapper.npz`` of a job of
    one, with its own transform folded in and the constants that methods want (`jaxwrap.train.fit.fcm_tuning`). Raises
    `ValueError` where ``out`` holds another configuration, and `FloatingPointError` at the first step whose loss is not
    finite; the states before it stay on disk.
    """
    members = config.member_list()
    shape = _config(config, detector, training, size)
    contents = {"training": digest_of(training.tensors), "validation": digest_of(validation.tensors)}
    claim(out, dataclasses.asdict(config) | contents | {"wrapper": shape.to_dict(), "weights_digest": detector.digest})
    wrappers, masks, gain = _start(config, members, shape, training)
    structure = wrappers[0]
    task: Callable[[dict[str, jax.Array]], Candidates] | None = None
    if config.task:
        task = _task_of(detector)
    lmbdas = jnp.asarray([member.lmbda for member in members], jnp.float32)
    step = jax.jit(make_step(structure, config, task, masks, gain, lmbdas), donate_argnums=0)
    validate = _validator(make_loss(structure, config, task), gain, lmbdas, shape.bit_depth)
    refresh = jax.jit(refreshed_transform, donate_argnums=0)
    held_out = validation.part(slice(None))
    folders = {member: out / member.name if len(members) > 1 else out for member in members}

    states, log = RunStates(out), Log(out / "log.csv", LOG_FIELDS)
    try:
        fresh = _initial_state(config, structure, wrappers, _batch(config, shape, training, 0), gain)
        found = states.latest(fresh)
        state = fresh if found is None else found
        if found is None:
            log.resume(-1)
            best = [float("inf")] * len(members)
        else:
            log.resume(int(state.step))
            best = [log.best(member.name) for member in members]

        def validated(state: FcmState) -> None:
            values = jax.device_get(validate(state.params, held_out))
            for i, member in enumerate(members):
                cost = float(values.cost[i])
                if not np.isfinite(cost):
                    raise FloatingPointError(f"the validation cost of {member.name} is {cost}; lower learning_rate")
                row = {
                    "validation_loss": cost,
                    "validation_snr": float(values.feature_snr[i]),
                    "validation_bits": float(values.bits_per_position[i]),
                }
                log.write({"step": int(state.step), "member": member.name, **row})
                if cost < best[i]:
                    best[i] = cost
                    wrapper = _member(structure, jax.device_get(state.params), i, member)
                    notes = _notes(config, member, int(state.step), cost, values, i)
                    folders[member].mkdir(parents=True, exist_ok=True)
                    save_fcm(folders[member] / f"best{SUFFIX}", wrapper.folded(), None, notes=notes)
            report(
                Progress(
                    int(state.step), config.steps,
                    {
                        "validation_cost": float(np.min(values.cost)),
                        "validation_snr": float(np.mean(values.feature_snr)),
                        "validation_bits": float(np.mean(values.bits_per_position)),
                    },
                )
            )  # fmt: skip

        if int(state.step) == 0:
            validated(state)
            states.save(state)
        batches = prefetch(
            jax.device_put(_batch(config, shape, training, k)) for k in range(int(state.step), config.steps)
        )
        pending: list[tuple[int, FcmMetrics]] = []
        started = time.perf_counter()
        for number, batch in enumerate(batches, start=int(state.step) + 1):
            state, metrics = step(state, batch)
            pending.append((number, metrics))
            last = number == config.steps
            if config.transform == "klt" and number % config.transform_every == 0:
                state = refresh(state)
            if last or number % config.log_every == 0:
                rows = _finite_means(pending, members)
                now = time.perf_counter()
                for row in rows:
                    log.write({**row, "step": number, "seconds": round((now - started) / len(pending), 4)})
                started, pending = now, []
                report(Progress(number, config.steps, {k: v for k, v in rows[0].items() if k != "member"}))
            if last or number % config.validate_every == 0:
                validated(state)
            if last or number % config.checkpoint_every == 0:
                states.save(state)
    finally:
        states.close()
    files = []
    for member in members:
        file = folders[member] / f"best{SUFFIX}"
        wrapper, _, notes = load_fcm(file)
        save_fcm(file, wrapper, tune(wrapper, training, seed=config.seed), notes=notes)
        files.append(file)
    return files


def _config(config: FcmFitConfig, detector: Detector, features: FeatureSet, size: tuple[int, int]) -> FcmConfig:
    return FcmConfig(
        network=detector.name,
        split=detector.split,
        scales=scales_of(features.tensors, size),
        latent_channels=config.latent_channels,
        latent_stride=config.latent_stride,
        width=config.width,
        blocks=config.blocks,
        statistics=config.statistics,
    )


def _start(
    config: FcmFitConfig, members: list[Member], shape: FcmConfig, training: FeatureSet
) -> tuple[list[FcmWrapper], Any, float]:
    """The members at their starting points, all with the arrays of the widest; masks of what is theirs and not
    constant; and the gain of the start, samples per unit of normalised feature."""
    mean = {name: x.astype(np.float64).mean((0, 1, 2)) for name, x in training.tensors.items()}
    rms = {name: float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for name, x in training.tensors.items()}
    probe = FcmWrapper(shape, rngs=nnx.Rngs(0))
    probe.set_constants(mean, rms)
    covariance, count = np.zeros((shape.stacked_channels,) * 2), 0
    for start in range(0, len(training), MOMENTS_BATCH):
        x = np.asarray(probe.stacked(training.part(slice(start, start + MOMENTS_BATCH))), np.float64)
        x = x.reshape(-1, x.shape[-1])
        covariance, count = covariance + x.T @ x, count + len(x)
    covariance /= count
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    gain = config.reach / largest**0.5 * max_sample(shape.bit_depth) / 2
    wrappers, masks = [], []
    for member in members:
        small = FcmWrapper(dataclasses.replace(shape, width=member.width), rngs=nnx.Rngs(member.seed))
        small.set_constants(mean, rms)
        if config.start == "principal":
            small.start_linear(mean, rms, covariance, reach=config.reach)
        else:
            # Latents as strong, in all, as those of the principal start: both have one operating point.
            strongest = np.linalg.eigvalsh(covariance)[-shape.latent_channels :].sum() / largest * config.reach**2
            factor = float(np.sqrt(strongest / shape.latent_channels / np.trace(covariance) * shape.stacked_channels))
            small.reducer.linear[...] *= factor
            small.restorer.linear[...] /= factor
        if config.init:
            small, _, _ = load_fcm(config.init)
            if small.config != (wanted := dataclasses.replace(shape, width=member.width)):
                raise ValueError(f"init={config.init} is of another shape: {small.config}; wanted {wanted}")
        wide = FcmWrapper(shape, rngs=nnx.Rngs(member.seed))
        inner = nnx.to_pure_dict(nnx.state(small, nnx.Param))
        outer = nnx.to_pure_dict(nnx.state(wide, nnx.Param))
        state = nnx.state(wide, nnx.Param)
        nnx.replace_by_pure_dict(state, jax.tree.map(_padded, inner, outer))
        nnx.update(wide, state)
        wrappers.append(wide)
        mask = jax.tree.map(lambda a, b: _padded(jnp.ones_like(a), b), inner, outer)
        masks.append({name: jax.tree.map(jnp.zeros_like, m) if name in CONSTANTS else m for name, m in mask.items()})
    return wrappers, jax.tree.map(lambda *leaves: jnp.stack(leaves), *masks), gain


def _padded(inner: jax.Array, outer: jax.Array) -> jax.Array:
    return jnp.pad(inner, [(0, b - a) for a, b in zip(inner.shape, outer.shape, strict=True)])


def _member(structure: FcmWrapper, params: Any, index: int, member: Member) -> FcmWrapper:
    """One member as a wrapper of its own width."""
    small = FcmWrapper(dataclasses.replace(structure.config, width=member.width), rngs=nnx.Rngs(0))
    own = nnx.to_pure_dict(nnx.state(small, nnx.Param))
    cut = jax.tree.map(lambda leaf, like: jnp.asarray(leaf[index][tuple(slice(n) for n in like.shape)]), params, own)
    return with_parameters(small, cut)


def _initial_state(
    config: FcmFitConfig, structure: FcmWrapper, wrappers: list[FcmWrapper], batch: Any, gain: float
) -> FcmState:
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *[nnx.to_pure_dict(nnx.state(w, nnx.Param)) for w in wrappers]
    )
    scales, means, covariances = [], [], []
    middle = quantiser_step(0.5 * (config.qp_low + config.qp_high), structure.config.bit_depth)
    for wrapper in wrappers:
        latents = wrapper.latents_before_transform(batch, wrapper.statistics(batch))
        flat = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
        means.append(flat.mean(0))
        covariances.append(np.cov(flat, rowvar=False, bias=True))
        z: Yuv400 = denormalise(pack(latents, wrapper.layout(batch)), structure.config.bit_depth)  # type: ignore[assignment]
        scales.append(rate_scale(z, middle, bit_depth=structure.config.bit_depth))
    state = FcmState(
        jnp.int32(0),
        params,
        jax.vmap(optimiser(config).init)(params),
        jax.random.key_data(jax.random.key(config.seed)),
        jnp.stack(scales),
        jnp.asarray(np.stack(means), jnp.float32),
        jnp.asarray(np.stack(covariances), jnp.float32),
    )
    return refreshed_transform(state) if config.transform == "klt" else state


def _task_of(detector: Detector) -> Callable[[dict[str, jax.Array]], Candidates]:
    part2, decode = detector.part2, detector.decode
    return lambda features: decode(part2(features))


def _validator(loss: Callable[..., Any], gain: float, lmbdas: jax.Array, bit_depth: int) -> Callable[..., FcmMetrics]:
    """Metrics of all members on the held-out pictures, each at every QP of `VALIDATION_QPS`, the rate counted exactly;
    the SNR and the bits are means over the QPs."""

    @jax.jit
    def at(params: Any, features: dict[str, jax.Array], qp: jax.Array) -> FcmMetrics:
        n = next(iter(features.values())).shape[0]
        steps = jnp.full((n,), quantiser_step(qp, bit_depth))
        return jax.vmap(lambda p, lmbda: loss(p, features, steps, gain, lmbda, None)[1][0])(params, lmbdas)

    def validate(params: Any, features: dict[str, np.ndarray]) -> FcmMetrics:
        held = jax.tree.map(jnp.asarray, features)
        found = [at(params, held, jnp.float32(qp)) for qp in VALIDATION_QPS]
        return jax.tree.map(lambda *values: jnp.mean(jnp.stack(values), axis=0), *found)

    return validate


def _batch(config: FcmFitConfig, shape: FcmConfig, training: FeatureSet, step: int) -> dict[str, np.ndarray]:
    return feature_crops(training, shape, seed=config.seed, step=step, batch=config.batch, crop=config.crop)


def _finite_means(pending: list[tuple[int, FcmMetrics]], members: list[Member]) -> list[dict[str, Any]]:
    """Mean of the interval's metrics by member; one host transfer for all of its steps."""
    values = jax.device_get([m for _, m in pending])
    for (number, _), m in zip(pending, values, strict=True):
        for i, member in enumerate(members):
            if not (np.isfinite(m.loss[i]) and np.isfinite(m.gradient_norm[i])):
                raise FloatingPointError(
                    f"the loss of {member.name} is {m.loss[i]} and its gradient's norm {m.gradient_norm[i]} at step "
                    f"{number}; lower learning_rate"
                )
    names = [field.name for field in dataclasses.fields(FcmMetrics)]
    return [
        {"member": member.name, **{name: float(np.mean([getattr(m, name)[i] for m in values])) for name in names}}
        for i, member in enumerate(members)
    ]


def _notes(
    config: FcmFitConfig, member: Member, step: int, cost: float, values: FcmMetrics, index: int
) -> dict[str, Any]:
    return {
        "trained_with": dataclasses.asdict(config),
        "member": dataclasses.asdict(member),
        "step": step,
        "validation_cost": cost,
        "validation_snr": float(values.feature_snr[index]),
        "validation_bits_per_position": float(values.bits_per_position[index]),
        **made_with(),
    }
