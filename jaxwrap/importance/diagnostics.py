"""The assumptions behind importance maps, measured on a receiver of one's own.

Notation of WA-RDO section 3: z are the samples before coding, ẑ after, q = ẑ − z; y is what should be received, r the
receiver, η = y − r(z) what the wrapper loses by itself and e = r(ẑ) − r(z) what coding adds; J is the Jacobian of r at
z, M the metric of its output, H = Jᵀ M J, h = diag(H). Norms and inner products are weighted by M. The assumptions, in
the order in which they are made:

1. ‖y − r(ẑ)‖² = ‖η‖² + ‖e‖² − 2⟨e, η⟩, and the last term is small (equation 4): `error_terms`;
2. e ≈ J q: `error_terms`; and qᵀ H q ≈ Σ h_i q_i² (equation 5): `diagonal_error`, `block_energy`;
3. maps stay the same over time and over inputs (figure 3): `map_correlation`;
4. a few sketches are enough (table 2): `sketch_errors`.

Whether they matter for bits is the question of `jaxwrap.importance.prediction`. Frames are ``[N, H, W]`` per plane,
pictures independent of one another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, size_of
from jaxwrap.importance.jacobian import JacobianRows
from jaxwrap.importance.receiver import Metric, Receiver, as_floats, as_partial, output_of, root_metric, weighted
from jaxwrap.importance.sketch import accumulator_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class ErrorTerms:
    """Squared norms at a receiver's output, ``[N]`` each, in the metric's unit.

    ``total`` = ‖y − r(ẑ)‖² = ``wrapper`` + ``coding`` − ``cross``; ``wrapper`` = ‖η‖², ``coding`` = ‖e‖², ``cross`` =
    2⟨e, η⟩ (of either sign), ``linear`` = ‖J q‖².
    """

    total: jax.Array
    wrapper: jax.Array
    coding: jax.Array
    cross: jax.Array
    linear: jax.Array


def error_terms(receiver: Receiver, z: Frame, z_hat: Frame, *, wanted: Any = None, metric: Metric = None) -> ErrorTerms:
    """The terms of WA-RDO equation 4, and the linearisation of the second.

    Args:
      receiver: samples → pytree of float arrays ``[N, …]``.
      z, z_hat: samples before and after coding, ``[N, H, W]`` per plane; integers are taken as float32.
      wanted: y, a pytree like the receiver's output; None for r(z), a wrapper without an error of its own.
      metric: diagonal of M, see `jaxwrap.importance.maps.Metric`.

    Raises `ValueError` where shapes differ or the metric does not fit.
    """
    function, z, z_hat, wanted, root = _prepare(receiver, z, z_hat, wanted, metric)
    return _error_terms(function, z, z_hat, wanted, root)


@jax.jit
def _error_terms(function: jax.tree_util.Partial, z: Frame, z_hat: Frame, wanted: Any, root: Any) -> ErrorTerms:
    q = jax.tree.map(jnp.subtract, z_hat, z)
    at_z, linear = jax.jvp(lambda frame: function(frame), (z,), (q,))
    at_z_hat = function(z_hat)
    e = weighted(jax.tree.map(jnp.subtract, at_z_hat, at_z), root)
    eta = weighted(jax.tree.map(jnp.subtract, at_z if wanted is None else wanted, at_z), root)
    left = jax.tree.map(jnp.subtract, eta, e)
    linear = weighted(linear, root)
    return ErrorTerms(_inner(left, left), _inner(eta, eta), _inner(e, e), 2.0 * _inner(e, eta), _inner(linear, linear))


def diagonal_error(h: Frame, z: Frame, z_hat: Frame) -> jax.Array:
    """qᵀ diag(h) q of each picture, ``[N]``: what an encoder that weights its squared errors by h believes.

    ``h``: 1 or N maps.
    """
    q = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32), z_hat, z)
    return _inner(jax.tree.map(lambda w, error: jnp.broadcast_to(jnp.asarray(w), error.shape) * error, h, q), q)


# Nodes of the two-point Gauss-Legendre rule on [0, 1]; both weights are 1/2.
_NODES = (0.5 - 0.5 / math.sqrt(3.0), 0.5 + 0.5 / math.sqrt(3.0))


def attributed_error(receiver: Receiver, z: Frame, z_hat: Frame, *, wanted: Any = None, metric: Metric = None) -> Frame:
    """The received error divided among the samples that cause it: a with Σ a = ‖y − r(ẑ)‖² − ‖y − r(z)‖².

    a = q ⊙ ∫₀¹ ∇D(z + t q) dt for D(z) = ‖y − r(z)‖²_M, the integral by two gradients. The sum is exact where D has at
    most degree 4 along q, as for any r of degree 2. For a linear r and y = r(z) it is a_i = q_i (H q)_i, which unlike
    h_i q_i² keeps what errors do together; and if the errors of some samples grow by a factor 1 + ε, D grows by 2 ε
    times their part, so that the parts are right to first order for moving quality between them. Values may be
    negative: an error that cancels another's.

    Arguments and errors as for `error_terms`. Returns a frame like z.
    """
    return _attributed_error(*_prepare(receiver, z, z_hat, wanted, metric))


@jax.jit
def _attributed_error(function: jax.tree_util.Partial, z: Frame, z_hat: Frame, wanted: Any, root: Any) -> Frame:
    target = function(z) if wanted is None else wanted
    q = jax.tree.map(jnp.subtract, z_hat, z)

    def error(at: Frame) -> jax.Array:
        left = weighted(jax.tree.map(jnp.subtract, function(at), target), root)
        return _inner(left, left).sum()

    slopes = [jax.grad(error)(jax.tree.map(lambda a, b, t=t: a + t * b, z, q)) for t in _NODES]
    return jax.tree.map(lambda step, first, second: step * (first + second) * 0.5, q, *slopes)


def pooled_means(frame: Frame, block: int) -> np.ndarray:
    """Mean over the samples of all planes in each ``block × block`` of luma, ``[N, ⌈H/block⌉, ⌈W/block⌉]`` float64.

    At the border, over the samples inside the picture.
    """
    return pooled_sums(frame, block) / pooled_sums(jax.tree.map(np.ones_like, jax.device_get(frame)), block)


def pooled_sums(frame: Frame, block: int) -> np.ndarray:
    """Sum over the samples of all planes in each ``block × block`` of luma, ``[N, ⌈H/block⌉, ⌈W/block⌉]`` float64."""
    height, _ = size_of(frame)
    total: Any = 0.0
    for plane in frame.planes:
        values = np.asarray(plane, np.float64)
        side = block * values.shape[1] // height
        rows, columns = (np.arange(0, length, side) for length in values.shape[1:])
        total = total + np.add.reduceat(np.add.reduceat(values, rows, axis=1), columns, axis=2)
    return np.asarray(total)


def map_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation coefficient between two maps of equal shape, over all their values."""
    if a.shape != b.shape:
        raise ValueError(f"maps of shapes {a.shape} and {b.shape} were given; they must be alike: crop them first")
    x, y = (np.asarray(m, np.float64).ravel() - np.mean(m, dtype=np.float64) for m in (a, b))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    if scale == 0:
        raise ValueError("a constant map was given: it has no correlation with another")
    return float(x @ y) / scale


@dataclasses.dataclass(frozen=True, slots=True)
class SketchError:
    """Relative root mean square error of a map from ``sketches`` sketches: of its samples, and of 16×16 means.

    ``law``: √(2 / n_s), the error of the samples for Gaussian sketches, and the most it can be for Rademacher ones.
    """

    sketches: int
    samples: float
    blocks: float
    law: float


def sketch_errors(
    rows: JacobianRows, *, counts: Sequence[int] = (2, 4, 8, 16, 32), reference: int | None = None
) -> list[SketchError]:
    """How far maps from few sketches are off (WA-RDO table 2 asks what that costs): √(Σ (h_n − h)² / Σ h²).

    h is not known; it is estimated from ``reference`` sketches of their own (default: half of the rows), whose error is
    subtracted, so that the figures are unbiased in their squares.

    Args:
      rows: `jaxwrap.importance.jacobian.sketched_rows`, at least one and a half times as many as the largest count.
      counts: numbers of sketches; each is tried on as many disjoint groups of rows as there are.
    """
    total = rows.rows
    reference = total // 2 if reference is None else reference
    usable = [n for n in counts if n <= total - reference]
    if reference < 2 or not usable:
        raise ValueError(f"{total} rows were given; {max(2, reference)} for reference leave too few for {counts[0]}")
    squares = [np.square(np.asarray(plane, np.float32)) for plane in rows.planes.planes]  # [N, S, H, W]
    pooled = [pooled_means(frame_of([p[:, s] for p in squares]), _REPORT_BLOCK) for s in range(total)]
    samples = _relative_errors(squares, usable, reference)
    blocks = _relative_errors([np.stack(pooled, axis=1)], usable, reference)
    return [SketchError(n, samples[i], blocks[i], math.sqrt(2.0 / n)) for i, n in enumerate(usable)]


_REPORT_BLOCK = 16


def _relative_errors(planes: Sequence[np.ndarray], counts: Sequence[int], reference: int) -> list[float]:
    """Of means over n values along axis 1 against the expectation, which the last ``reference`` of them estimate."""
    energy, noise = 0.0, 0.0
    squares = [0.0] * len(counts)
    for values in planes:
        kept = values[:, -reference:]
        h = kept.mean(1, keepdims=True, dtype=np.float64)
        own = float(np.square(kept - h).sum()) / (reference - 1) / reference
        energy += float(np.square(h).sum()) - own
        noise += own
        for i, n in enumerate(counts):
            groups = (values.shape[1] - reference) // n
            for g in range(groups):
                part = values[:, g * n : (g + 1) * n].mean(1, keepdims=True, dtype=np.float64)
                squares[i] += float(np.square(part - h).sum()) / groups
    return [math.sqrt(max(square - noise, 0.0) / energy) for square in squares]


@dataclasses.dataclass(frozen=True, slots=True)
class BlockEnergy:
    """Where ‖H‖_F² of the blocks on H's diagonal lies, summed over the blocks of a picture and over pictures.

    ``block``: side in luma samples, chroma at the same place included; None for the whole picture. ``total`` =
    ``diagonal`` + off the diagonal within planes + between planes (``within`` is the sum of the first two). Unbiased,
    so that ``total`` − ``within`` may come out slightly negative.
    """

    block: int | None
    total: float
    within: float
    diagonal: float

    @property
    def off_diagonal(self) -> float:
        """Share of the energy that a map does not see."""
        return 1.0 - self.diagonal / self.total

    @property
    def between_planes(self) -> float:
        """Share of the energy that couples planes (channels)."""
        return 1.0 - self.within / self.total


def block_energy(rows: JacobianRows, block: int | None) -> BlockEnergy:
    """Energy off the diagonal of H = Jᵀ M J within blocks, by U-statistics over pairs of sketched rows.

    With independent rows g_s, E[g_s g_sᵀ] = H: E⟨g_s, g_t⟩² = ‖H‖_F², and E Σ_i g_si² g_ti² = Σ_i h_i², s ≠ t, each
    over the samples of a block. The mean over pairs is unbiased at any number of rows, where ‖Σ g gᵀ‖ is not.

    ``rows``: 2 or more per picture (`jaxwrap.importance.jacobian.sketched_rows`). ``block``: side in luma samples (even
    in 4:2:0); None for the whole picture.
    """
    count = rows.rows
    if count < 2:
        raise ValueError(f"{count} row was given; pairs of different rows need at least 2 (16 are usual)")
    if block is not None and (block < 1 or (block % 2 and len(rows.planes.planes) > 1)):
        raise ValueError(f"blocks of {block} samples were asked for; wanted 1 or more, and even sides in 4:2:0")
    sums = _block_energy(jax.tree.map(jnp.asarray, rows.planes), block)
    scale = count**2 / (count * (count - 1))  # the rows are g_s / √S
    return BlockEnergy(block, *(float(value) * scale for value in sums))


@partial(jax.jit, static_argnums=1)
def _block_energy(rows: Frame, block: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    height = rows.y.shape[2]
    grams, diagonal = [], jnp.zeros((), jnp.float32)
    for plane in rows.planes:
        n, s, h, w = plane.shape
        if block is None:
            cells = plane.reshape(n, s, 1, h * w)
        else:
            b = block * h // height
            padded = jnp.pad(plane, ((0, 0), (0, 0), (0, -h % b), (0, -w % b)))  # zeros add nothing
            cells = padded.reshape(n, s, -(-h // b), b, -(-w // b), b).transpose(0, 1, 2, 4, 3, 5)
            cells = cells.reshape(n, s, -1, b * b)  # [N, S, blocks, samples]
        grams.append(jnp.einsum("nski,ntki->nkst", cells, cells))
        square = plane**2
        diagonal = diagonal + jnp.sum(square.sum(1) ** 2 - (square**2).sum(1))

    def of_pairs(gram: jax.Array) -> jax.Array:
        return jnp.sum(gram**2) - jnp.sum(jnp.diagonal(gram, axis1=-2, axis2=-1) ** 2)

    return of_pairs(sum(grams[1:], grams[0])), sum((of_pairs(g) for g in grams), start=jnp.zeros(())), diagonal


def _prepare(receiver: Receiver, z: Frame, z_hat: Frame, wanted: Any, metric: Metric) -> tuple[Any, ...]:
    check_frame(z)
    shapes = [[tuple(p.shape) for p in frame.planes] for frame in (z, z_hat)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"samples before and after coding have planes {shapes[0]} and {shapes[1]}; they must be alike")
    function = as_partial(receiver)
    z, z_hat = as_floats(z), as_floats(z_hat)
    output = output_of(function, z)
    if wanted is not None:
        given, made = (jax.tree.map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, output))
        if given != made:
            raise ValueError(f"what should be received has shapes {given}, the receiver's output {made}")
    return function, z, z_hat, wanted, root_metric(metric, output)


def _inner(a: Any, b: Any) -> jax.Array:
    """⟨a, b⟩ of every picture, ``[N]``."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = accumulator_dtype(x.dtype)
        return (x.astype(wide) * y.astype(wide)).reshape(x.shape[0], -1).sum(1)

    products = [one(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(products[1:], products[0])
