"""Layers of published networks, NHWC, with zero padding as PyTorch has it (k // 2 on every side), and without batch
normalisation: it is folded into the kernels when weights are loaded (`jaxwrap.tasks.weights`).

Depthwise kernels are shifted adds and 1×1 kernels matrix products, because XLA's convolutions are slow on CPU. Batch 8,
milliseconds on two cores::

    depthwise 3×3   208² × 16, stride 2    104² × 32, stride 2    52² × 32    26² × 64    13² × 128
    grouped                          88                     19          18           9           5
    shifted adds                      6                      3         0.7         0.4         0.3
    pointwise       208² × 16 → 32    104² × 32 → 32    52² × 64 → 64    26² × 128 → 128    13² × 512 → 256
    convolution                 46                 4              2.1                1.9                3.6
    product                     20                 2              1.4                1.4                2.6
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxwrap.wrappers.blocks import depthwise

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "silu": jax.nn.silu}


def _activated(x: jax.Array, activation: str | None) -> jax.Array:
    return x if activation is None else ACTIVATIONS[activation](x)


class Conv(nnx.Module):
    """Dense k×k convolution with bias and an activation of `ACTIVATIONS`: ``[N, H, W, C]`` → ``[N, ⌈H/stride⌉,
    ⌈W/stride⌉, O]`` (odd k)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        activation: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.stride, self.activation = stride, activation
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(nnx.initializers.he_uniform()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolution, bias, activation, in the dtype of ``x``."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        k = kernel.shape[0]
        if k == 1 and self.stride == 1:
            y = x @ kernel[0, 0]
        else:
            pad = (k // 2, k // 2)
            strides = (self.stride, self.stride)
            y = lax.conv_general_dilated(x, kernel, strides, (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return _activated(y + bias.reshape(1, 1, 1, -1), self.activation)


class Depthwise(nnx.Module):
    """Per-channel k×k convolution (odd k) with bias and an activation: ``[N, H, W, C]`` → ``[N, H/stride, W/stride,
    C]``; the stride (1 or 2) divides H and W."""

    def __init__(
        self, channels: int, *, kernel_size: int, stride: int = 1, activation: str | None = None, rngs: nnx.Rngs
    ):
        self.stride, self.activation = stride, activation
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "uniform", in_axis=(0, 1), out_axis=2)
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolution, bias, activation, in the dtype of ``x``."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        if self.stride == 1:
            y = depthwise(x, kernel)
        else:  # `depthwise` puts the odd border sample at the bottom right, PyTorch at the top left
            y = depthwise(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), kernel, stride=self.stride)[:, :-1, :-1]
        return _activated(y + bias.reshape(1, 1, 1, -1), self.activation)


def max_pool(x: jax.Array, size: int, *, stride: int = 1, padding: int | None = None) -> jax.Array:
    """Maximum of size×size windows of ``[N, H, W, C]``; padding (default: size // 2) never wins."""
    pad = (size // 2, size // 2) if padding is None else (padding, padding)
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), pad, pad, (0, 0)))


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
    """Nearest neighbour: every sample of ``[N, H, W, C]`` is repeated factor × factor."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)
