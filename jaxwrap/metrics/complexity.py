"""Multiply–accumulates (MAC) and parameters of a function, read off its traced program.

Counted as thop counts, the tool of SNW section 3.2: every multiply–accumulate of convolutions and dense products,
zero padding included; no biases, no activations, no element-wise work. The program is what JAX traces, so a separable
convolution has to be traced in its mathematical form (``implementation="grouped"``): as shifted adds it would count
for nothing.

Resampling is element-wise work too, and is stated apart by `resampling_macs`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jax
from flax import nnx
from jax.extend import core

from jaxwrap.wrappers.resample import Kind, phase_taps


@dataclasses.dataclass(frozen=True, slots=True)
class Macs:
    """Multiply–accumulates of convolutions and of dense (matrix) products; a 1×1 convolution may be either."""

    convolution: int = 0
    dense: int = 0

    @property
    def total(self) -> int:
        """Both kinds together."""
        return self.convolution + self.dense

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.convolution + other.convolution, self.dense + other.dense)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.convolution * times, self.dense * times)

    def per_pixel(self, height: int, width: int, *, num_frames: int = 1) -> float:
        """Per luma sample of ``num_frames`` pictures of ``height × width``."""
        return self.total / (num_frames * height * width)


def count_macs(fn: Callable[..., Any], *args: Any) -> Macs:
    """MACs of ``fn(*args)``; the arguments may be arrays or `jax.ShapeDtypeStruct`s (any pytree of them).

    Loops of known length count every turn, branches the dearest one. Raises `ValueError` for loops of unknown length.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def resampling_macs(height: int, width: int, new_height: int, new_width: int, kind: Kind) -> int:
    """MACs of resampling one plane in two separable passes, in the order that `resample.resample_plane` takes."""
    vertical = _taps_per_sample(height, new_height, kind) * new_height
    horizontal = _taps_per_sample(width, new_width, kind) * new_width
    if new_height <= height:
        return round(vertical * width + horizontal * new_height)
    return round(horizontal * height + vertical * new_width)


def count_parameters(module: nnx.Module) -> int:
    """Number of trainable numbers of an NNX module."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def _taps_per_sample(size: int, new_size: int, kind: Kind) -> Fraction:
    if size == new_size:
        return Fraction(0)
    phases = phase_taps(kind, Fraction(new_size, size))
    return Fraction(sum(len(taps) for _, taps in phases), len(phases))


def _count(jaxpr: core.Jaxpr) -> Macs:
    total = Macs()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        operands, results = ([_shape(v) for v in side] for side in (equation.invars, equation.outvars))
        if name == "conv_general_dilated":
            kernel = operands[1]
            out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += Macs(convolution=math.prod(results[0]) * math.prod(kernel) // out_features)
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(operands[0][axis] for axis in contracted)
            total += Macs(dense=math.prod(results[0]) * depth)
        elif name == "cond":
            total += max((_count(j) for j in _inner(equation.params["branches"])), key=lambda m: m.total)
        else:
            inner = sum((_count(j) for j in _inner(equation.params)), Macs())
            if name == "while" and inner.total:
                raise ValueError(
                    "a while loop holds convolutions or products: its length is unknown, count its body instead"
                )
            total += inner * equation.params["length"] if name == "scan" else inner
    return total


def _inner(value: Any) -> Iterator[core.Jaxpr]:
    """The programs inside an equation's parameters: what jit, scan, custom derivatives, checkpoint, … call."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inner(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _inner(item)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))  # tokens have none
