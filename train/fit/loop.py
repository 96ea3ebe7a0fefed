"""The training loop: data in, jitted steps, log, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxwrap.arrays import Yuv420, size_of, stack_frames
from jaxwrap.codecs.proxy import rate_scale
from jaxwrap.parameters import assign_parameters, named_parameters
from jaxwrap.samples import denormalise, normalise
from jaxwrap.train.fit.checkpoints import SUFFIX, RunStates, load_wrapper, save_wrapper
from jaxwrap.train.fit.config import FitConfig
from jaxwrap.train.fit.data import crop_batch
from jaxwrap.train.fit.folder import Log, claim, digest_of, made_with
from jaxwrap.train.fit.step import Metrics, initial_state, make_loss, make_step, new_wrapper, with_parameters
from jaxwrap.train.prefetch import prefetch
from jaxwrap.wrappers.switchable import Wrapper

LOG_FIELDS = (
    "step",
    "loss",
    "distortion",
    "bits_per_pixel",
    "psnr_yuv",
    "step_size",
    "gradient_norm",
    "validation_loss",
    "validation_psnr_yuv",
    "seconds",
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What the loop tells its caller after each logged interval."""

    step: int
    steps: int
    metrics: dict[str, float]


def fit(
    config: FitConfig,
    pictures: list[Yuv420],
    validation: list[Yuv420],
    out: Path,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    devices: list[jax.Device] | None = None,
) -> Wrapper:
    """Trains one wrapper, or goes on where ``out`` stopped; returns it and leaves ``last.wrapper.npz`` and
    ``best.wrapper.npz`` there.

    ``pictures`` and ``validation``: one-frame 8-bit 4:2:0 batches. The batch is sharded over ``devices`` (default: as
    many of all of them as divide it). Raises `ValueError` where ``out`` holds another configuration (differences named)
    or no picture is large enough, and `FloatingPointError` at the first step whose loss is not finite; the states
    before it stay on disk.
    """
    pictures = _large_enough(pictures, config.crop, "training")
    held_out = _validation_batch(_large_enough(validation, config.crop, "validation"), config)
    wrapper = new_wrapper(config)
    if config.init:
        assign_parameters(wrapper, named_parameters(load_wrapper(config.init)[0]), source=config.init)
    contents = {"pictures": digest_of(pictures), "validation_crops": digest_of(held_out)}
    claim(out, dataclasses.asdict(config) | contents | {"initial_parameters": digest_of(named_parameters(wrapper))})

    sharded, replicated = _shardings(config.batch, devices)
    step = jax.jit(
        make_step(wrapper, config), donate_argnums=0, in_shardings=(replicated, sharded), out_shardings=replicated
    )
    loss = make_loss(wrapper, config)
    validate = jax.jit(lambda params, batch: loss(params, batch, None, None)[1][0])

    states = RunStates(out)
    log = Log(out / "log.csv", LOG_FIELDS)
    try:
        fresh = initial_state(wrapper, config)
        fresh = dataclasses.replace(fresh, rate_scale=_first_rate_scale(config, _batch(config, pictures, 0)))
        fresh = jax.device_put(fresh, replicated)
        state = states.latest(fresh)
        if state is None:
            state, best = fresh, log.resume(-1)
            best = _validate(validate, wrapper, state, held_out, config, out, log, best, report)
            states.save(state)
        else:
            best = log.resume(int(state.step))
        batches = prefetch(
            jax.device_put(_batch(config, pictures, k), sharded) for k in range(int(state.step), config.steps)
        )
        pending: list[tuple[int, Metrics]] = []
        started = time.perf_counter()
        for number, batch in enumerate(batches, start=int(state.step) + 1):
            state, metrics = step(state, batch)
            pending.append((number, metrics))
            last = number == config.steps
            if last or number % config.log_every == 0 or number % config.checkpoint_every == 0:
                row = _finite_mean(pending)
                now = time.perf_counter()
                log.write({**row, "step": number, "seconds": round((now - started) / len(pending), 4)})
                started, pending = now, []
                report(Progress(number, config.steps, row))
            if last or number % config.validate_every == 0:
                best = _validate(validate, wrapper, state, held_out, config, out, log, best, report)
            if last or number % config.checkpoint_every == 0:
                states.save(state)
    finally:
        states.close()
    trained = with_parameters(wrapper, jax.device_get(state.params))
    save_wrapper(out / f"last{SUFFIX}", trained, notes=_notes(config, int(state.step), {}))
    return trained


def _large_enough(pictures: list[Yuv420], crop: int, what: str) -> list[Yuv420]:
    kept = [p for p in pictures if min(size_of(p)) >= crop]
    if not kept:
        sizes = ", ".join(sorted({f"{w}×{h}" for h, w in map(size_of, pictures)})[:5]) or "none given"
        raise ValueError(
            f"no {what} picture is at least {crop}×{crop} (sizes: {sizes}); lower crop= or give larger pictures"
        )
    return kept


def _validation_batch(pictures: list[Yuv420], config: FitConfig) -> Yuv420:
    """Centre crops of the first pictures: the same at every validation of every run with this crop."""
    crops = []
    for p in pictures[:16]:
        height, width = size_of(p)
        top, left = ((side - config.crop) // 4 * 2 for side in (height, width))
        crops.append(
            jax.tree.map(
                lambda plane, h=height, t=top, le=left: plane[
                    :,
                    t * plane.shape[1] // h : (t + config.crop) * plane.shape[1] // h,
                    le * plane.shape[1] // h : (le + config.crop) * plane.shape[1] // h,
                ],
                p,
            )
        )
    batch = stack_frames(crops)
    assert isinstance(batch, Yuv420)
    return batch


def _batch(config: FitConfig, pictures: list[Yuv420], step: int) -> Yuv420:
    return crop_batch(pictures, seed=config.seed, step=step, batch=config.batch, crop=config.crop)


def _shardings(batch: int, devices: list[jax.Device] | None) -> tuple[NamedSharding, NamedSharding]:
    """Batch over devices, state on each: as many devices as divide the batch."""
    available = jax.devices() if devices is None else devices
    count = max(n for n in range(1, len(available) + 1) if batch % n == 0)
    mesh = Mesh(np.array(available[:count]), ("data",))
    return NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


def _first_rate_scale(config: FitConfig, batch: Yuv420) -> jax.Array:
    """a of equation 1 for the first step, counted on the pictures themselves: every later one comes out of a step."""
    samples = denormalise(normalise(batch, 8), config.bit_depth)
    return jax.jit(rate_scale, static_argnames="bit_depth")(
        samples, config.initial_step_size * 2.0 ** (config.bit_depth - 8), bit_depth=config.bit_depth
    )


def _finite_mean(pending: list[tuple[int, Metrics]]) -> dict[str, float]:
    """Mean of the interval's metrics; one host transfer for all of its steps."""
    values = jax.device_get([m for _, m in pending])
    for (number, _), m in zip(pending, values, strict=True):
        if not (np.isfinite(m.loss) and np.isfinite(m.gradient_norm)):
            raise FloatingPointError(
                f"the loss is {m.loss} and the gradient's norm {m.gradient_norm} at step {number} "
                f"(distortion {m.distortion}, {m.bits_per_pixel} bpp); "
                "lower learning_rate, or look at the pictures of that step"
            )
    return {f.name: float(np.mean([getattr(m, f.name) for m in values])) for f in dataclasses.fields(Metrics)}


def _validate(validate, wrapper, state, batch, config, out, log, best, report) -> float:  # type: ignore[no-untyped-def]
    """Exact-rate loss on the held-out crops; keeps the best wrapper on disk."""
    metrics = jax.device_get(validate(state.params, jax.tree.map(jnp.asarray, batch)))
    number, value, psnr = int(state.step), float(metrics.loss), float(metrics.psnr_yuv)
    if not np.isfinite(value):
        raise FloatingPointError(f"the validation loss is {value} at step {number}; lower learning_rate")
    log.write({"step": number, "validation_loss": value, "validation_psnr_yuv": psnr})
    report(Progress(number, config.steps, {"validation_loss": value, "validation_psnr_yuv": psnr}))
    if value < best:
        best = value
        figures = {
            "validation_loss": value,
            "validation_psnr_yuv": psnr,
            "validation_bits_per_pixel": float(metrics.bits_per_pixel),
        }
        save_wrapper(
            out / f"best{SUFFIX}",
            with_parameters(wrapper, jax.device_get(state.params)),
            notes=_notes(config, number, figures),
        )
    return best


def _notes(config: FitConfig, step: int, figures: dict[str, float]) -> dict[str, object]:
    return {
        "trained_with": dataclasses.asdict(config),
        "step": step,
        **figures,
        **made_with(),
    }
