"""Separable convolutions: the two implementations against each other and against a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxwrap.wrappers.blocks import Implementation, depth_to_space, depthwise, depthwise_pointwise, space_to_depth

CASES = [(3, 1), (5, 1), (2, 2), (3, 2), (4, 2)]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loop(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    n, h, w, c = x.shape
    k = kernel.shape[0]
    before = (k - stride) // 2
    y = np.zeros((n, h // stride, w // stride, c))
    for i in range(h // stride):
        for j in range(w // stride):
            for a in range(k):
                for b in range(k):
                    row, column = i * stride + a - before, j * stride + b - before
                    if 0 <= row < h and 0 <= column < w:
                        y[:, i, j] += x[:, row, column] * kernel[a, b]
    return y


@pytest.mark.parametrize(("k", "stride"), CASES)
@pytest.mark.parametrize("implementation", ["shift", "grouped"])
def test_depthwise_convolution_equals_the_loop(implementation: Implementation, k: int, stride: int) -> None:
    x, kernel = draw(2, 6, 8, 3), draw(k, k, 3, seed=1)
    got = jax.jit(lambda x, kernel: depthwise(x, kernel, stride=stride, implementation=implementation))(x, kernel)
    np.testing.assert_allclose(got, loop(x, kernel, stride), atol=1e-5)


@pytest.mark.parametrize(("k", "stride"), CASES)
def test_both_implementations_have_the_same_gradients(k: int, stride: int) -> None:
    arguments = tuple(map(jnp.asarray, (draw(2, 6, 8, 3), draw(k, k, 3), draw(3, 5), draw(5))))
    target = draw(2, 6 // stride, 8 // stride, 5, seed=3)

    def loss(implementation: Implementation, *args: jax.Array) -> jax.Array:
        return jnp.sum((depthwise_pointwise(*args, stride=stride, implementation=implementation) - target) ** 2)

    got, expected = (
        jax.jit(jax.grad(loss, (1, 2, 3, 4)), static_argnums=0)(name, *arguments) for name in ("shift", "grouped")
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_shifted_adds_differentiate_forwards_and_backwards_like_finite_differences() -> None:
    fn = jax.jit(lambda x, kernel: jnp.sin(depthwise(x, kernel)))
    check_grads(fn, (jnp.asarray(draw(1, 4, 4, 2)), jnp.asarray(draw(3, 3, 2))), order=1, rtol=2e-2, atol=2e-2)


def test_gradients_of_the_input_alone_trace_no_dense_convolution() -> None:
    kernel = jnp.asarray(draw(3, 3, 2))
    program = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(depthwise(x, kernel) ** 2)))(jnp.zeros((1, 4, 4, 2)))
    assert "conv_general_dilated" not in str(program)


def test_shifted_adds_can_be_mapped_over_cotangents() -> None:
    x, kernel = jnp.asarray(draw(1, 4, 6, 2)), jnp.asarray(draw(3, 3, 2))
    cotangents = jnp.asarray(draw(5, 1, 4, 6, 2, seed=2))
    for name in ("x", "kernel"):
        fn = (lambda v: depthwise(v, kernel)) if name == "x" else (lambda v: depthwise(x, v))
        _, pullback = jax.vjp(fn, x if name == "x" else kernel)
        mapped = jax.jit(jax.vmap(lambda c: pullback(c)[0]))(cotangents)  # noqa: B023
        np.testing.assert_allclose(mapped[3], pullback(cotangents[3])[0], atol=1e-5)


def test_depth_to_space_inverts_space_to_depth() -> None:
    x = draw(2, 6, 9, 4)
    deep = space_to_depth(jnp.asarray(x), 3)
    assert deep.shape == (2, 2, 3, 36)
    np.testing.assert_array_equal(deep[:, 1, 2, (2 * 3 + 1) * 4 + 3], x[:, 3 + 2, 6 + 1, 3])
    np.testing.assert_array_equal(depth_to_space(deep, 3), x)


def test_bad_maps_and_implementations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*shift, grouped"):
        depthwise(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2)), implementation="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5×4 map"):
        depthwise(jnp.zeros((1, 4, 5, 2)), jnp.zeros((2, 2, 2)), stride=2)
