"""ONNX operators as JAX functions: one table, `OPERATORS`, and the functions it names.

Arrays keep ONNX's axes: ``[N, C, spatial…]`` for pictures. A value is a NumPy array where it is known before anything
is traced (constants that shapes are computed from, and what is computed from them alone), a JAX array otherwise; `xp`
below is NumPy in the first case, so that shape arithmetic never reaches a compiler. Semantics follow the operators'
specification (onnx.ai/onnx/operators) from opset 7; where a later opset turned an attribute into an input, either is
read. Inference only: what would draw random numbers or use a batch's statistics is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwrap.tasks.onnx_graph import Node, Value
from jaxwrap.tasks.onnx_spatial import average_pool, conv, conv_transpose, max_pool, per_channel, resize


@dataclasses.dataclass(frozen=True, slots=True)
class Operator:
    """``function(node, *inputs)`` → output, or a tuple of outputs; inputs at the positions ``static`` must be known
    while tracing."""

    function: Callable[..., Any]
    static: tuple[int, ...] = ()


def _module(*values: Value) -> ModuleType:
    return np if all(isinstance(v, np.ndarray) for v in values if v is not None) else jnp


def _align(*values: Value) -> list[Value]:
    """The arrays with leading axes of 1 up to a common number of axes (ONNX broadcasts as NumPy does)."""
    rank = max(v.ndim for v in values)
    return [v.reshape((1,) * (rank - v.ndim) + v.shape) for v in values]


def _axis(node: Node, default: int, rank: int) -> int:
    return int(node.get("axis", default)) % rank


# Element by element ---------------------------------------------------------------------------------------------------


def _unary(name: str) -> Operator:
    return Operator(lambda node, x: getattr(_module(x), name)(x))


def _nary(name: str) -> Operator:
    def function(node: Node, *values: Value) -> Value:
        xp = _module(*values)
        return functools.reduce(lambda a, b: getattr(xp, name)(*_align(a, b)), values)

    return Operator(function)


def _activation(function: Callable[[jax.Array], jax.Array]) -> Operator:
    return Operator(lambda node, x: function(jnp.asarray(x)))


def _divide(node: Node, a: Value, b: Value) -> Value:
    xp = _module(a, b)
    a, b = _align(a, b)
    if xp.issubdtype(a.dtype, xp.floating):
        return a / b
    return xp.sign(a) * xp.sign(b) * (abs(a) // abs(b))  # towards 0


def _mean(node: Node, *values: Value) -> Value:
    total = functools.reduce(lambda a, b: jnp.add(*_align(a, b)), values)
    return total / total.dtype.type(len(values))


def _clip(node: Node, x: Value, low: Value = None, high: Value = None) -> Value:
    xp = _module(x, low, high)
    for bound, attribute, limit in ((low, "min", xp.maximum), (high, "max", xp.minimum)):
        if bound is None and (value := node.get(attribute)) is not None:
            bound = np.asarray(value, x.dtype)
        if bound is not None:
            x = limit(*_align(x, bound))
    return x


def _leaky_relu(node: Node, x: jax.Array) -> jax.Array:
    return jnp.where(x >= 0, x, x * x.dtype.type(node.get("alpha", 0.01)))


def _prelu(node: Node, x: jax.Array, slope: jax.Array) -> jax.Array:
    x, slope = _align(x, slope)
    return jnp.where(x >= 0, x, x * slope)


def _elu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.elu(x, node.get("alpha", 1.0))


def _hard_sigmoid(node: Node, x: jax.Array) -> jax.Array:
    return jnp.clip(x * x.dtype.type(node.get("alpha", 0.2)) + x.dtype.type(node.get("beta", 0.5)), 0, 1)


def _hard_swish(node: Node, x: jax.Array) -> jax.Array:
    return x * jnp.clip(x * x.dtype.type(1 / 6) + x.dtype.type(0.5), 0, 1)


def _gelu(node: Node, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh")


def _compare(name: str) -> Operator:
    return Operator(lambda node, a, b: getattr(_module(a, b), name)(*_align(a, b)))


def _where(node: Node, condition: Value, a: Value, b: Value) -> Value:
    return _module(condition, a, b).where(*_align(condition, a, b))


# ONNX's TensorProto.DataType numbers of types that can be cast to; the real ones all mean the network's own dtype.
_REAL_TYPES = (1, 10, 11, 16)
_CAST_TYPES = {2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 12: np.uint32}


def _cast(node: Node, x: Value) -> Value:
    to = node.get("to")
    if to in _REAL_TYPES:
        real = _module(x).issubdtype(x.dtype, _module(x).floating)
        return x if real else x.astype(np.float32)
    if to not in _CAST_TYPES:
        raise ValueError(f"a cast to ONNX data type {to} is not supported")
    dtype = np.dtype(_CAST_TYPES[to])
    return x.astype(dtype if isinstance(x, np.ndarray) else jax.dtypes.canonicalize_dtype(dtype))


# Shapes ---------------------------------------------------------------------------------------------------------------


def _shape(node: Node, x: Value) -> np.ndarray:
    return np.asarray(x.shape, np.int64)[node.get("start", 0) : node.get("end")]


def _size(node: Node, x: Value) -> np.ndarray:
    return np.asarray(x.size, np.int64)


def _reshape(node: Node, x: Value, shape: np.ndarray) -> Value:
    wanted = [
        x.shape[i] if n == 0 and not node.get("allowzero", 0) and i < x.ndim else int(n) for i, n in enumerate(shape)
    ]
    return x.reshape(wanted)


def _flatten(node: Node, x: Value) -> Value:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(node: Node, x: Value) -> Value:
    return x.transpose(node.get("perm", tuple(reversed(range(x.ndim)))))


def _squeeze(node: Node, x: Value, axes: Value = None) -> Value:
    which = node.ints("axes", axes)
    return x.squeeze(None if which is None else which)


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    return _module(x).expand_dims(x, node.ints("axes", axes))


def _concat(node: Node, *values: Value) -> Value:
    return _module(*values).concatenate(values, axis=_axis(node, 1, values[0].ndim))


def _split(node: Node, x: Value, sizes: Value = None) -> tuple[Value, ...]:
    axis = _axis(node, 0, x.ndim)
    parts = node.ints("split", sizes)
    if parts is None:
        each = -(-x.shape[axis] // len(node.outputs))
        parts = tuple(min(each, x.shape[axis] - start) for start in range(0, x.shape[axis], each))
    ends = list(itertools.accumulate(parts))
    return tuple(x[(slice(None),) * axis + (slice(end - n, end),)] for n, end in zip(parts, ends, strict=True))


def _slice(
    node: Node, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> Value:
    first, last = node.ints("starts", starts), node.ints("ends", ends)
    if first is None or last is None:
        raise ValueError("starts or ends are missing")
    which = node.ints("axes", axes) or tuple(range(len(first)))
    stride = node.ints("steps", steps) or (1,) * len(first)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(which, first, last, stride, strict=True):
        index[axis] = slice(start, end, step)
    if isinstance(x, np.ndarray):
        return x[tuple(index)]
    for axis, part in enumerate(index):
        # lax.slice rather than indexing: its transpose is a pad, that of a gather a scatter.
        start, end, step = part.indices(x.shape[axis])
        if step < 0:
            x = lax.rev(x, (axis,))
            start, end, step = x.shape[axis] - 1 - start, x.shape[axis] - 1 - end, -step
        x = lax.slice_in_dim(x, start, max(start, end), step, axis)
    return x


def _gather(node: Node, x: Value, indices: Value) -> Value:
    axis = _axis(node, 0, x.ndim)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return x[(slice(None),) * axis + (int(indices),)]
    if isinstance(x, np.ndarray) and isinstance(indices, np.ndarray):
        return x.take(indices, axis)
    return jnp.take(x, indices, axis)


def _expand(node: Node, x: Value, shape: np.ndarray) -> Value:
    target = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
    (x,) = (x.reshape((1,) * (len(target) - x.ndim) + x.shape),)
    return _module(x).broadcast_to(x, target)


def _tile(node: Node, x: Value, repeats: np.ndarray) -> Value:
    return _module(x).tile(x, tuple(int(n) for n in repeats))


def _constant_of_shape(node: Node, shape: np.ndarray) -> np.ndarray:
    value = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(())
    return np.full(tuple(int(n) for n in shape), value)


def _range(node: Node, start: np.ndarray, limit: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _pad(node: Node, x: jax.Array, pads: Value = None, value: Value = None, axes: Value = None) -> jax.Array:
    amounts = node.ints("pads", pads)
    if amounts is None:
        raise ValueError("pads are missing")
    which = node.ints("axes", axes) or tuple(range(x.ndim))
    width = [(0, 0)] * x.ndim
    for axis, before, after in zip(which, amounts[: len(which)], amounts[len(which) :], strict=True):
        width[axis] = (before, after)
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = jnp.asarray(node.get("value", 0.0) if value is None else value, x.dtype).reshape(())
        return lax.pad(x, fill, [(before, after, 0) for before, after in width])
    if mode not in ("reflect", "edge", "wrap") or min(map(min, width)) < 0:
        raise ValueError(f"padding of mode {mode!r} by {amounts} is not supported")
    return jnp.pad(x, width, mode=mode)


def _depth_to_space(node: Node, x: jax.Array) -> jax.Array:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "CRD":
        cells = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)  # [N, C/b², H, b, W, b]
    else:
        cells = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)  # [N, C/b², H, b, W, b]
    return cells.reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(node: Node, x: jax.Array) -> jax.Array:
    n, c, h, w = x.shape
    b = node.get("blocksize")
    cells = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)  # [N, b, b, C, H/b, W/b]
    return cells.reshape(n, c * b**2, h // b, w // b)


# Sums over positions, and matrix products -----------------------------------------------------------------------------


def _reduce(name: str, *, square: bool = False, root: bool = False) -> Operator:
    def function(node: Node, x: Value, axes: Value = None) -> Value:
        which = node.ints("axes", axes)
        if not which:
            if node.get("noop_with_empty_axes", 0):
                return x
            which = tuple(range(x.ndim))
        xp = _module(x)
        result = getattr(xp, name)(x * x if square else x, axis=which, keepdims=bool(node.get("keepdims", 1)))
        return xp.sqrt(result) if root else result

    return Operator(function, static=(1,))


def _global_pool(name: str) -> Operator:
    return Operator(lambda node, x: getattr(jnp, name)(x, axis=tuple(range(2, x.ndim)), keepdims=True))


def _matmul(node: Node, a: jax.Array, b: jax.Array) -> jax.Array:
    if min(a.ndim, b.ndim) > 1:
        a, b = _align(a, b)
    return jnp.matmul(a, b)


def _gemm(node: Node, a: jax.Array, b: jax.Array, c: Value = None) -> jax.Array:
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    y = a @ b * a.dtype.type(node.get("alpha", 1.0))
    if c is None:
        return y
    y, c = _align(y, c)
    return y + c * y.dtype.type(node.get("beta", 1.0))


def _softmax(function: Callable[..., jax.Array]) -> Operator:
    def apply(node: Node, x: jax.Array) -> jax.Array:
        if node.opset >= 13:
            return function(x, axis=node.get("axis", -1))
        axis = _axis(node, 1, x.ndim)  # before opset 13, all axes from here on were one
        return function(x.reshape(*x.shape[:axis], -1), axis=-1).reshape(x.shape)

    return Operator(apply)


def _batch_normalization(
    node: Node, x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, variance: jax.Array
) -> jax.Array:
    if node.get("training_mode", 0):
        raise ValueError("it is in training mode (statistics of the batch): export the network in inference mode")
    factor = scale * lax.rsqrt(variance + variance.dtype.type(node.get("epsilon", 1e-5)))
    return x * per_channel(factor, x.ndim) + per_channel(bias - mean * factor, x.ndim)


def _normalise(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(axes, keepdims=True) + x.dtype.type(epsilon))


def _instance_normalization(node: Node, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    normal = _normalise(x, tuple(range(2, x.ndim)), node.get("epsilon", 1e-5))
    return normal * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def _layer_normalization(node: Node, x: jax.Array, scale: jax.Array, bias: Value = None) -> jax.Array:
    axis = _axis(node, -1, x.ndim)
    normal, scale = _align(_normalise(x, tuple(range(axis, x.ndim)), node.get("epsilon", 1e-5)), scale)
    return normal * scale if bias is None else normal * scale + _align(normal, bias)[1]


def _dropout(node: Node, x: jax.Array, ratio: Value = None, training: Value = None) -> jax.Array:
    if training is not None and bool(training):
        raise ValueError("it is in training mode (random): export the network in inference mode")
    return x


OPERATORS: dict[str, Operator] = {
    # element by element
    **{
        op: _unary(name)
        for op, name in {
            "Abs": "abs",
            "Ceil": "ceil",
            "Cos": "cos",
            "Exp": "exp",
            "Floor": "floor",
            "Log": "log",
            "Neg": "negative",
            "Not": "logical_not",
            "Reciprocal": "reciprocal",
            "Sin": "sin",
            "Sqrt": "sqrt",
            "Tanh": "tanh",
        }.items()
    },
    **{
        op: _nary(name)
        for op, name in {
            "Add": "add",
            "And": "logical_and",
            "Equal": "equal",
            "Greater": "greater",
            "GreaterOrEqual": "greater_equal",
            "Less": "less",
            "LessOrEqual": "less_equal",
            "Max": "maximum",
            "Min": "minimum",
            "Mul": "multiply",
            "Or": "logical_or",
            "Pow": "power",
            "Sub": "subtract",
            "Sum": "add",
        }.items()
    },
    "Cast": Operator(_cast),
    "Clip": Operator(_clip),
    "Div": Operator(_divide),
    "Elu": Operator(_elu),
    "Erf": _activation(jax.scipy.special.erf),
    "Gelu": Operator(_gelu),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": Operator(_hard_swish),
    "LeakyRelu": Operator(_leaky_relu),
    "Mean": Operator(_mean),
    "Mish": _activation(jax.nn.mish),
    "PRelu": Operator(_prelu),
    "Relu": _activation(jax.nn.relu),
    "Sigmoid": _activation(jax.nn.sigmoid),
    "Softplus": _activation(jax.nn.softplus),
    "Softsign": _activation(jax.nn.soft_sign),
    "Where": Operator(_where),
    # shapes
    "Concat": Operator(_concat),
    "ConstantOfShape": Operator(_constant_of_shape, static=(0,)),
    "DepthToSpace": Operator(_depth_to_space),
    "Expand": Operator(_expand, static=(1,)),
    "Flatten": Operator(_flatten),
    "Gather": Operator(_gather),
    "Identity": Operator(lambda node, x: x),
    "Pad": Operator(_pad, static=(1, 3)),
    "Range": Operator(_range, static=(0, 1, 2)),
    "Reshape": Operator(_reshape, static=(1,)),
    "Shape": Operator(_shape),
    "Size": Operator(_size),
    "Slice": Operator(_slice, static=(1, 2, 3, 4)),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split, static=(1,)),
    "Squeeze": Operator(_squeeze, static=(1,)),
    "Tile": Operator(_tile, static=(1,)),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze, static=(1,)),
    # sums and products
    "BatchNormalization": Operator(_batch_normalization),
    "Dropout": Operator(_dropout, static=(2,)),
    "Gemm": Operator(_gemm),
    "GlobalAveragePool": _global_pool("mean"),
    "GlobalMaxPool": _global_pool("max"),
    "InstanceNormalization": Operator(_instance_normalization),
    "LayerNormalization": Operator(_layer_normalization),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": Operator(_matmul),
    "ReduceL2": _reduce("sum", square=True, root=True),
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceProd": _reduce("prod"),
    "ReduceSum": _reduce("sum"),
    "ReduceSumSquare": _reduce("sum", square=True),
    "Softmax": _softmax(jax.nn.softmax),
    # convolution, pooling, resampling
    "AveragePool": Operator(average_pool),
    "Conv": Operator(conv),
    "ConvTranspose": Operator(conv_transpose),
    "MaxPool": Operator(max_pool),
    "Resize": Operator(resize, static=(1, 2, 3)),
    "Upsample": Operator(resize, static=(1,)),
}
"""Every operator that a network may use."""
