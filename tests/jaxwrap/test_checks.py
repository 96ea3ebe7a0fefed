"""Receivers that must be refused, and receivers like them that must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance.maps import importance_map

KEY = jax.random.key(2)


def frames(n: int = 3) -> Yuv400:
    return Yuv400(np.random.default_rng(7).uniform(0.5, 4, (n, 4, 6)).astype(np.float32))


class Network(nnx.Module):
    def __init__(self, layer: nnx.Module) -> None:
        self.layer = layer

    def __call__(self, z: Frame) -> jax.Array:
        return jnp.tanh(self.layer(z.y[..., None]))


def normalising(training: bool) -> Network:
    return Network(nnx.BatchNorm(1, use_running_average=not training, rngs=nnx.Rngs(0)))


def dropping(training: bool) -> Network:
    return Network(nnx.Dropout(0.5, deterministic=not training, rngs=nnx.Rngs(0)))


def merged(network: nnx.Module) -> Callable[[Frame], Any]:
    """The usual way to keep compiled code while parameters change."""
    graph, state = nnx.split(network)
    return jax.tree_util.Partial(lambda state, z: nnx.merge(graph, state)(z), state)


def test_networks_in_evaluation_mode_are_taken() -> None:
    for network in (normalising(False), dropping(False)):
        for receiver in (network, merged(network)):
            assert (np.asarray(importance_map(receiver, frames(), key=KEY).h.y) > 0).all()


@pytest.mark.parametrize("make", [normalising, dropping], ids=["batch statistics", "dropout"])
def test_networks_in_training_mode_are_refused_with_the_remedy(make: Callable[[bool], Network]) -> None:
    network = make(True)
    direct = "changes the state" if make is normalising else r"draws random numbers \(.*\).*dropout"
    for receiver, message in ((network, direct), (lambda z: network(z), "changes the state")):
        with pytest.raises(ValueError, match=rf"{message}.*network\.eval\(\)"):
            importance_map(receiver, frames(), key=KEY)
    network.eval()
    importance_map(network, frames(), key=KEY)


@pytest.mark.parametrize("n", [1, 3])
def test_batch_statistics_are_found_in_a_merged_network(n: int) -> None:
    with pytest.raises(ValueError, match=r"changes the state of a network .* network\.eval\(\)"):
        importance_map(merged(normalising(True)), frames(n), key=KEY)


def test_dropout_is_found_in_a_merged_network() -> None:
    with pytest.raises(ValueError, match=r"draws random numbers \(.*\).*dropout"):
        importance_map(merged(dropping(True)), frames(1), key=KEY)


def jittered(z: Frame) -> jax.Array:
    return z.y + jax.random.normal(KEY, z.y.shape)


@pytest.mark.parametrize(
    "wrapped",
    [
        jittered,
        jax.jit(jittered),
        jax.checkpoint(jittered),
        lambda z: jax.lax.scan(lambda x, _: (jittered(Yuv400(x)), None), z.y, None, length=2)[0],
        lambda z: jax.lax.cond(z.y[0, 0, 0] > 1, lambda x: jittered(Yuv400(x)), lambda x: x, z.y),
        lambda z: z.y * jax.random.bernoulli(jax.random.PRNGKey(0), 0.5, z.y.shape).astype(jnp.float32),
    ],
    ids=["plain", "jit", "checkpoint", "scan", "cond", "old keys"],
)
def test_random_numbers_are_found_wherever_they_are_drawn(wrapped) -> None:
    with pytest.raises(ValueError, match="draws random numbers"):
        importance_map(wrapped, frames(), key=KEY)


def test_noise_that_comes_as_a_parameter_is_taken() -> None:
    noise = jax.random.normal(KEY, (3, 4, 6))
    importance_map(jax.tree_util.Partial(lambda n, z: (z.y + n) ** 2, noise), frames(), key=KEY)


def previous(z: Frame) -> jax.Array:
    return z.y - jnp.roll(z.y, 1, 0)


@pytest.mark.parametrize(
    "receiver",
    [
        lambda z: z.y - z.y.mean(0, keepdims=True),
        lambda z: z.y / z.y.max(),
        previous,
        lambda z: jnp.cumsum(z.y, 0),
        lambda z: jax.nn.softmax(jnp.einsum("nhw,mhw->nm", z.y, z.y)),
        lambda z: z.y[::-1],
    ],
    ids=["mean", "maximum", "previous frame", "all before", "attention between frames", "order"],
)
def test_frames_that_depend_on_one_another_are_refused(receiver) -> None:
    for _ in range(2):  # only receivers that passed are remembered
        with pytest.raises(ValueError, match="mixes frames"):
            importance_map(receiver, frames(4), key=KEY)


def test_the_first_of_two_frames_is_seen_to_change_the_second() -> None:
    with pytest.raises(ValueError, match="another frame changes the output of frame 1"):
        importance_map(lambda z: jnp.cumsum(z.y, 0), frames(2), key=KEY)


@pytest.mark.parametrize(
    "receiver",
    [
        lambda z: z.y - z.y.mean((1, 2), keepdims=True),
        lambda z: jax.nn.softmax(z.y.reshape(-1, 24)).reshape(-1, 2, 12),
        lambda z: jax.nn.softmax(jnp.einsum("nhw,nhv->nwv", z.y, z.y)),
        lambda z: jax.vmap(lambda frame: jnp.sort(frame.ravel()))(z.y),
        lambda z: jax.lax.map(lambda frame: frame**2, z.y),
    ],
    ids=["own mean", "reshaped", "attention within frames", "sorted", "mapped"],
)
def test_receivers_of_independent_frames_are_taken(receiver) -> None:
    assert np.isfinite(importance_map(receiver, frames(4), key=KEY).h.y).all()


def test_one_frame_mixes_with_none() -> None:
    """The stated limit: the map of one frame is that of the receiver on one frame alone."""
    importance_map(lambda z: z.y - 0.5 * z.y.mean(0, keepdims=True), frames(1), key=KEY)


def test_the_search_for_mixed_frames_runs_once() -> None:
    calls = []

    def counted(z: Frame) -> jax.Array:
        jax.debug.callback(lambda y: calls.append(y), z.y)
        return z.y**2

    importance_map(counted, frames(), key=KEY)
    jax.effects_barrier()
    once = len(calls)
    importance_map(counted, frames(), key=KEY)
    jax.effects_barrier()
    assert len(calls) - once < once
