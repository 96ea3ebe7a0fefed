"""ONNX operators on a spatial grid: convolution, pooling, resampling (conventions: `jaxwrap.tasks.onnx_operators`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwrap.tasks.onnx_graph import Node, Value
from jaxwrap.wrappers.resample import interpolate


def per_channel(values: jax.Array, rank: int) -> jax.Array:
    """``[C]`` against ``[N, C, …]`` of ``rank`` axes."""
    return values.reshape(1, -1, *(1,) * (rank - 2))


def _window(
    node: Node, spatial: Sequence[int], kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    """Strides, dilations and padding (before, after) of a sliding window."""
    stride = tuple(node.get("strides") or (1,) * len(kernel))
    dilation = tuple(node.get("dilations") or (1,) * len(kernel))
    automatic = node.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        padding = []
        for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            padding.append((total // 2, total - total // 2)[:: 1 if automatic == "SAME_UPPER" else -1])
        return stride, dilation, [(a, b) for a, b in padding]
    if automatic not in ("NOTSET", "VALID", ""):
        raise ValueError(f"auto_pad {automatic!r} is not supported")
    pads = node.get("pads") if automatic != "VALID" else None
    pads = pads or (0,) * 2 * len(kernel)
    return stride, dilation, list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def conv(node: Node, x: jax.Array, kernel: jax.Array, bias: Value = None) -> jax.Array:
    """Conv, any number of spatial axes; kernel ``[C_out, C_in / group, …]``."""
    stride, dilation, padding = _window(node, x.shape[2:], kernel.shape[2:])
    groups = node.get("group", 1)
    if groups == x.shape[1] == kernel.shape[0] > 1:
        y = _depthwise(x, kernel, stride, dilation, padding)
    else:
        y = lax.conv_general_dilated(x, kernel, stride, padding, rhs_dilation=dilation, feature_group_count=groups)
    return y if bias is None else y + per_channel(bias, y.ndim)


def _depthwise(
    x: jax.Array, kernel: jax.Array, stride: Sequence[int], dilation: Sequence[int], padding: list[tuple[int, int]]
) -> jax.Array:
    """One kernel per channel, as shifted adds: on CPU, YOLOX-nano's forward pass and the gradient of its input take
    half the time that XLA's grouped convolution takes (compare `jaxwrap.wrappers.blocks`; no GPU has been measured).
    """
    if kernel.shape[1] != 1:
        raise ValueError(f"a kernel of shape {kernel.shape} does not fit {x.shape[1]} groups")
    x = lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *((a, b, 0) for a, b in padding)])
    reach = [
        (n - (k - 1) * d - 1) // s * s + 1
        for n, k, s, d in zip(x.shape[2:], kernel.shape[2:], stride, dilation, strict=True)
    ]
    taps = []
    for tap in np.ndindex(*kernel.shape[2:]):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        limit = [t + r for t, r in zip(start, reach, strict=True)]
        part = lax.slice(x, (0, 0, *start), (*x.shape[:2], *limit), (1, 1, *stride))
        taps.append(part * per_channel(kernel[(slice(None), 0, *tap)], x.ndim))
    return functools.reduce(jnp.add, taps)


def conv_transpose(node: Node, x: jax.Array, kernel: jax.Array, bias: Value = None) -> jax.Array:
    """ConvTranspose; kernel ``[C_in, C_out / group, …]``."""
    if node.get("output_shape") or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError("output_shape and automatic padding are not supported: export it with explicit pads")
    groups, size = node.get("group", 1), kernel.shape[2:]
    stride, dilation, padding = _window(node, x.shape[2:], size)
    extra = node.get("output_padding") or (0,) * len(size)
    # The transpose of a convolution is one over the input with zeros between its samples, by the flipped kernel.
    grouped = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:]).swapaxes(1, 2)
    flipped = lax.rev(grouped.reshape(-1, *grouped.shape[2:]), tuple(range(2, kernel.ndim)))  # [C_out, C_in/groups, …]
    reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    y = lax.conv_general_dilated(
        x,
        flipped,
        (1,) * len(size),
        [(r - before, r - after + e) for r, (before, after), e in zip(reach, padding, extra, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )
    return y if bias is None else y + per_channel(bias, y.ndim)


def _pooling_window(
    node: Node, x: jax.Array
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]], list[tuple[int, int]]]:
    """Kernel, strides, padding of the picture, and padding with what ceil_mode adds at the far end."""
    kernel = tuple(node.get("kernel_shape"))
    stride, dilation, padding = _window(node, x.shape[2:], kernel)
    if any(d != 1 for d in dilation):
        raise ValueError(f"pooling with dilations {dilation} is not supported")
    whole = list(padding)
    if node.get("ceil_mode", 0):
        for i, (n, k, s, (before, after)) in enumerate(zip(x.shape[2:], kernel, stride, padding, strict=True)):
            steps = -(-(n + before + after - k) // s)
            if steps * s >= n + before:  # a window that would begin in the padding at the end does not count
                steps -= 1
            whole[i] = (before, max(after, steps * s + k - n - before))
    return kernel, stride, padding, whole


def max_pool(node: Node, x: jax.Array) -> jax.Array:
    """MaxPool, without its optional indices."""
    kernel, stride, _, padding = _pooling_window(node, x)
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, *kernel), (1, 1, *stride), [(0, 0), (0, 0), *padding])


def average_pool(node: Node, x: jax.Array) -> jax.Array:
    """AveragePool."""
    kernel, stride, padding, whole = _pooling_window(node, x)

    def total(values: jax.Array, pad: list[tuple[int, int]]) -> jax.Array:
        zero = np.zeros((), values.dtype)
        return lax.reduce_window(values, zero, lax.add, (1, 1, *kernel), (1, 1, *stride), [(0, 0), (0, 0), *pad])

    counted = jnp.ones((1, 1, *x.shape[2:]), x.dtype)
    rest = whole
    if node.get("count_include_pad", 0):
        counted = jnp.ones((1, 1, *(n + a + b for n, (a, b) in zip(x.shape[2:], padding, strict=True))), x.dtype)
        rest = [(0, w[1] - p[1]) for w, p in zip(whole, padding, strict=True)]
    return total(x, whole) / total(counted, rest)


def _source_positions(size: int, new: int, scale: float, transform: str) -> np.ndarray:
    """Where each of ``new`` samples lies on the old grid (attribute coordinate_transformation_mode of Resize)."""
    i = np.arange(new, dtype=np.float64)
    match transform:
        case "asymmetric":
            return i / scale
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if new > 1 else i * 0
        case "align_corners":
            return i * ((size - 1) / (new - 1)) if new > 1 else i * 0
    raise ValueError(f"coordinate_transformation_mode {transform!r} is not supported")


_ROUND_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
}


def _resize_axis(node: Node, x: jax.Array, axis: int, new: int, scale: float, mode: str, transform: str) -> jax.Array:
    size = x.shape[axis]
    position = _source_positions(size, new, scale, transform)
    if mode == "nearest":
        default = "floor" if node.opset < 11 else "round_prefer_floor"
        source = _ROUND_NEAREST[node.get("nearest_mode", default)](position)
        source = source.clip(0, size - 1).astype(np.int32)
        if new % size == 0 and (source == np.arange(new) // (new // size)).all():
            return jnp.repeat(x, new // size, axis)  # its transpose is a sum, that of a gather a scatter
        return jnp.take(x, source, axis)
    return interpolate(x, position, axis)


def resize(node: Node, x: jax.Array, *arguments: Value) -> jax.Array:
    """Resize and Upsample, nearest and linear."""
    old = node.opset < 11  # Upsample, and Resize before it knew of coordinate transformations
    scales, sizes = ((*arguments, None, None) if old else (*arguments[1:], None, None))[:2]
    mode = node.get("mode", "nearest")
    transform = "asymmetric" if old else node.get("coordinate_transformation_mode", "half_pixel")
    if mode not in ("nearest", "linear") or node.get("antialias", 0):
        raise ValueError(f"mode {mode!r} with antialias {node.get('antialias', 0)} is not supported")
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("keep_aspect_ratio_policy is not supported: export it with the sizes that result")
    axes = node.get("axes") or tuple(range(x.ndim))
    for i, axis in enumerate(axes):
        if sizes is not None and sizes.size:
            new = int(sizes[i])
            scale = new / x.shape[axis]
        else:
            factors = node.get("scales") if scales is None else scales
            scale = float(factors[i])
            new = math.floor(x.shape[axis] * scale)
        if new != x.shape[axis] or scale != 1:
            x = _resize_axis(node, x, axis, new, scale, mode, transform)
    return x
