"""Building blocks of the wrapper networks: NHWC, any float dtype (parameters float32, cast to the dtype of the input).

The separable convolution (depthwise k×k, then 1×1) has two implementations of one function, because XLA's grouped
convolution is slow on CPU. 8 × 128² × 16 → 16 channels, CPU milliseconds on two cores, forward / gradient of the
input / all gradients:

    k   shifted adds     grouped          merged into one dense convolution
    3   2 / 4 / 29       54 / 103 / 125   6 / 12 / 23
    5   3 / 13 / 46      82 / 166 / 199   15 / 29 / 49

Shifted adds are the default: importance maps need forward and input gradients only, and training costs a quarter more
than merged at most (k = 3). No GPU has been measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.custom_derivatives import SymbolicZero

Implementation = Literal["shift", "grouped"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jnp.maximum(x, x * x.dtype.type(0.1)),
    "hard_swish": jax.nn.hard_swish,
}


def check_activation(name: str) -> None:
    """Raises `ValueError` for an unknown activation."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} was given; supported: {', '.join(ACTIVATIONS)}")


_NHWC = ("NHWC", "HWIO", "NHWC")


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """``[N, H, W, C]`` → ``[N, H/f, W/f, f·f·C]``; channel (i·f + j)·C + c holds sample (i, j) of each f×f cell."""
    if factor == 1:
        return x
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """Inverse of `space_to_depth`."""
    if factor == 1:
        return x
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


def depthwise(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, implementation: Implementation = "shift"
) -> jax.Array:
    """Per-channel convolution of ``x [N, H, W, C]`` with ``kernel [k, k, C]``, zero padding, → ``[N, H/stride,
    W/stride, C]``.

    H and W must be multiples of the stride. k − stride border samples are added, the odd one at the bottom and right,
    so that an even kernel at stride 2 sits symmetrically on its 2×2 cell. Both implementations are differentiable
    forwards and backwards.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r} was given; supported: {', '.join(IMPLEMENTATIONS)}")
    if x.shape[1] % stride or x.shape[2] % stride:
        raise ValueError(f"a {x.shape[2]}×{x.shape[1]} map was given; stride {stride} wants multiples of it: pad first")
    if implementation == "shift":
        return _shifted_adds(x, kernel, stride)
    pad = _padding(kernel.shape[0], stride)
    return lax.conv_general_dilated(
        x, kernel[:, :, None, :], (stride, stride), (pad, pad), dimension_numbers=_NHWC, feature_group_count=x.shape[-1]
    )


def depthwise_pointwise(
    x: jax.Array,
    depthwise_kernel: jax.Array,
    pointwise_kernel: jax.Array,
    bias: jax.Array,
    *,
    stride: int = 1,
    implementation: Implementation = "shift",
) -> jax.Array:
    """Separable convolution (SNW section 3.2, first principle): `depthwise` ``[k, k, C]``, then 1×1 ``[C, O]``, then
    bias ``[O]``.
    """
    x = depthwise(x, depthwise_kernel, stride=stride, implementation=implementation)
    return x @ pointwise_kernel + bias.reshape(1, 1, 1, -1)


def _padding(k: int, stride: int) -> tuple[int, int]:
    return (k - stride) // 2, k - stride - (k - stride) // 2


_DENSE_CHANNELS = 32
"""Up to this width the kernel's derivative is a dense convolution."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _shifted_adds(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _sum_of_shifts(x, kernel, stride)


def _sum_of_shifts(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    k = kernel.shape[0]
    pad = _padding(k, stride)
    height, width = (s - stride + 1 for s in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    taps = (
        padded[:, i : i + height : stride, j : j + width : stride] * kernel[i, j].reshape(1, 1, 1, -1)
        for i in range(k)
        for j in range(k)
    )
    return functools.reduce(jnp.add, taps)


@functools.partial(_shifted_adds.defjvp, symbolic_zeros=True)
def _shifted_adds_jvp(stride: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    """Replaces the derivative with respect to the kernel, whose transpose would be k² reductions over all positions
    (28 ms for the k = 3 above), by a dense convolution with the kernel on the diagonal of [k, k, C, C] (9 ms). That
    costs C² products a position: with many channels the reductions are the faster (8 × 16² × 128: 5 ms against 45).
    """
    x, kernel = primals
    x_dot, kernel_dot = tangents
    y = _shifted_adds(x, kernel, stride)
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot = _shifted_adds(x_dot, kernel, stride)
    if isinstance(kernel_dot, SymbolicZero):
        return y, y_dot
    if x.shape[-1] > _DENSE_CHANNELS:
        y_dot = y_dot + _sum_of_shifts(x, kernel_dot, stride)
    else:
        dense = kernel_dot[..., None] * jnp.eye(x.shape[-1], dtype=x.dtype).reshape(1, 1, x.shape[-1], -1)
        pad = _padding(kernel.shape[0], stride)
        y_dot = y_dot + lax.conv_general_dilated(x, dense, (stride, stride), (pad, pad), dimension_numbers=_NHWC)
    return y, y_dot


class SeparableConv(nnx.Module):
    """Depthwise k×k, 1×1 and bias: ``[N, H, W, C]`` → ``[N, H/stride, W/stride, O]``. ``zero=True`` starts at the
    zero function.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        zero: bool = False,
        implementation: Implementation = "shift",
        rngs: nnx.Rngs,
    ):
        self.stride, self.implementation = stride, implementation
        init = nnx.initializers.variance_scaling
        shape = (kernel_size, kernel_size, in_channels)
        self.depthwise_kernel = nnx.Param(
            init(1.0, "fan_in", "uniform", in_axis=(0, 1), out_axis=2)(rngs.params(), shape)
        )
        pointwise = nnx.initializers.zeros_init() if zero else nnx.initializers.he_uniform()
        self.pointwise_kernel = nnx.Param(pointwise(rngs.params(), (in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the three steps in the dtype of ``x``."""
        kernels = (p[...].astype(x.dtype) for p in (self.depthwise_kernel, self.pointwise_kernel, self.bias))
        return depthwise_pointwise(x, *kernels, stride=self.stride, implementation=self.implementation)


class Conv(nnx.Module):
    """Dense k×k convolution with zero padding and bias: ``[N, H, W, C]`` → ``[N, H/stride, W/stride, O]``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        zero: bool = False,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        init = nnx.initializers.zeros_init() if zero else nnx.initializers.he_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (kernel_size, kernel_size, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the convolution in the dtype of ``x``."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        if kernel.shape[0] == 1 and self.stride == 1:
            y = x @ kernel[0, 0]
        else:
            pad = _padding(kernel.shape[0], self.stride)
            y = lax.conv_general_dilated(x, kernel, (self.stride, self.stride), (pad, pad), dimension_numbers=_NHWC)
        return y + bias.reshape(1, 1, 1, -1)
