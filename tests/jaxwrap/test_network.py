"""Networks split after any of their layers, and are arguments of compiled code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.tasks.network import IMAGES, Network


class Scale(nnx.Module):
    def __init__(self, factor: float):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, *xs: jax.Array) -> jax.Array:
        return self.factor[...] * jnp.sum(jnp.stack(xs), axis=0)


def network(factor: float = 2.0) -> Network:
    """``d`` looks at the images again, ``e`` shares the weights of ``a``, and ``b`` is an output from the middle."""
    layers = [
        ("a", (IMAGES,), Scale(factor)),
        ("b", ("a",), Scale(3.0)),
        ("c", ("a",), Scale(5.0)),
        ("d", ("c", IMAGES), Scale(7.0)),
        ("e", ("d",), "a"),
    ]
    return Network("toy", layers, outputs=["b", "e"], multiple=4)


X = np.random.default_rng(0).uniform(size=(2, 4, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("layer", "alive"),
    [
        ("a", ("images", "a")),
        ("b", ("images", "a", "b")),
        ("c", ("images", "b", "c")),
        ("d", ("b", "d")),
        ("e", ("b", "e")),
    ],
)
def test_parts_meet_in_the_tensors_that_are_still_wanted(layer: str, alive: tuple[str, ...]) -> None:
    net = network()
    passed = net.first(X, layer)
    assert tuple(passed) == net.alive(layer) == alive
    outputs = net.rest(passed, layer)
    np.testing.assert_allclose(outputs["b"], 6 * X, rtol=1e-6)
    np.testing.assert_allclose(outputs["e"], 2 * 7 * 11 * X, rtol=1e-6)


def test_a_network_gives_its_outputs() -> None:
    outputs = network()(X)
    assert list(outputs) == ["b", "e"]
    np.testing.assert_allclose(outputs["e"], 154 * X, rtol=1e-6)


def test_networks_of_other_weights_share_compiled_code() -> None:
    traces = []

    @jax.jit
    def run(net: Network, images: jax.Array) -> dict[str, jax.Array]:
        traces.append(1)
        return net(images)

    np.testing.assert_allclose(run(network(), X)["b"], 6 * X, rtol=1e-6)
    np.testing.assert_allclose(run(network(4.0), X)["b"], 12 * X, rtol=1e-6)
    assert len(traces) == 1


def test_shared_weights_are_one_parameter() -> None:
    gradient = jax.grad(lambda net: net(X)["e"].sum())(network())
    assert len(jax.tree.leaves(nnx.state(network(), nnx.Param))) == 4
    # e = f · 7 · (5 f + 1) x
    np.testing.assert_allclose(gradient.blocks["a"].factor[...], 7 * (10 * 2 + 1) * X.sum(), rtol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"toy has no layer 'z'; it has a, b, c, d, e"):
        net.first(X, "z")
    with pytest.raises(ValueError, match=r"shape \(2, 4, 6, 3\) were given; toy takes .* multiples of 4"):
        net(X[:, :, :6])
    with pytest.raises(ValueError, match=r"after 'd' goes on from the tensors b, d; given: d, x"):
        net.rest({"d": X, "x": X}, "d")
    with pytest.raises(ValueError, match=r"layer 'b' takes \('a',\)"):
        Network("wrong", [("b", ("a",), Scale(1.0))], outputs=["b"], multiple=1)
    with pytest.raises(ValueError, match=r"outputs \('c',\) of wrong"):
        Network("wrong", [("b", (IMAGES,), Scale(1.0))], outputs=["c"], multiple=1)
