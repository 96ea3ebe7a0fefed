"""Exact diagonals diag(JᵀMJ) of local receivers by comb probing: an oracle for sketched maps, and a way to small maps.

Samples whose errors reach different outputs can share one forward derivative. With q one on a comb of samples, p apart,
and p more than the receiver's reach, M^½ J q holds the columns of all of them side by side; the sum of squares over
each one's part of the output is its entry of the diagonal. All samples of a plane take p² derivatives, those of a
packed frame p² × channels (channels at one place reach the same outputs), for all frames of a batch at once; and
(p + u)² more for certainty, see below. u, of which p is a multiple, is the least step of samples that is a whole step
of every output: 1 for outputs of z's size or whole multiples of it, 2 behind a stride of 2.

How far a sample reaches is measured, not declared: single samples are probed in the corners, in the centre and at
random places, at z and at random other samples (units that are dead at z may be alive there), and the largest extent is
taken, in output samples, relative to the sample's own place times the ratio of the sizes. As that is a measurement, the
result is made safe in four ways. Every comb leaves a guard of outputs round each part that nothing may reach. All is
done twice, with spacings p and p + u, which have no more than u in common, so that what reaches past a guard lands in
the part of a different sample each time (unless it reaches p (p + u) / u samples far, or a multiple of that, in both
directions, and nothing between; a spacing that would pass the picture's size has one tooth, which may reach all). A
value in a guard, or a difference between the two, at any sample of any frame, widens the reach and starts again. And
samples drawn at random are computed again on their own. Only what is alive at z counts in all of this: a reach that z
does not show cannot spoil the diagonal at z.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, frame_of, num_frames
from jaxwrap.importance.checks import finite_frames, refuse
from jaxwrap.importance.jacobian import Jacobian, forward
from jaxwrap.importance.receiver import Metric, Receiver, apply, weighted
from jaxwrap.importance.sketch import accumulator_dtype
from jaxwrap.packing import TileLayout, from_tiles, to_tiles

PROBES = 24
"""Single samples per size of plane whose reach is measured: 4 corners, the centre, the others at random."""

CHECKED = 8
"""Single samples of each plane, drawn at random, that the result is compared with."""

AT_ONCE = 8
"""Derivatives per compiled call: they share one forward pass, and each takes about its memory."""


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The places that combs are laid over, each of them with ``channels`` samples: the planes of one size, numbered
    ``planes``; or the channels of a packed frame."""

    height: int
    width: int
    planes: tuple[int, ...]
    tiles: TileLayout | None = None

    @property
    def channels(self) -> int:
        return self.tiles.channels if self.tiles else len(self.planes)

    def tangent(self, mask: jax.Array, channel: jax.Array, z: Frame) -> Frame:
        """q of one comb: ``mask`` ``[height, width]`` in one channel of every frame."""
        if self.tiles is None:
            planes = [jnp.zeros_like(p) for p in z.planes]
            for i, number in enumerate(self.planes):
                own = (mask & (channel == i))[None]
                planes[number] = jnp.broadcast_to(own, planes[number].shape).astype(planes[number].dtype)
            return frame_of(planes)
        t = self.tiles
        mask = jnp.pad(mask, ((0, t.tile_height - t.height), (0, t.tile_width - t.width)))
        one_hot = jnp.arange(t.channels) == channel
        tile = mask[None, :, :, None] & one_hot[None, None, None]
        return from_tiles(jnp.broadcast_to(tile, (num_frames(z), *tile.shape[1:])).astype(z.y.dtype), t)

    def split(self, values: np.ndarray) -> list[Any]:
        """``[N, height, width, channels]`` → the planes; 0 in the padding of tiles."""
        if self.tiles is None:
            return [values[..., i] for i in range(self.channels)]
        t = self.tiles
        padding = ((0, 0), (0, t.tile_height - t.height), (0, t.tile_width - t.width), (0, 0))
        return [from_tiles(np.pad(values, padding), t).y]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """What samples x of one axis reach on the same axis of an output: floor(x · ratio) + [low, high]."""

    ratio: Fraction
    low: int
    high: int

    @property
    def guard(self) -> int:
        """Outputs on either side that must stay 0: as many as a step of one sample, at least 1."""
        return max(1, math.ceil(self.ratio))

    @property
    def extent(self) -> int:
        return self.high - self.low + 1

    def widened(self) -> _Axis:
        more = -(-self.extent // 2)
        return _Axis(self.ratio, self.low - more, self.high + more)


@dataclasses.dataclass(frozen=True)
class _Comb:
    """Combs over a grid: ``spacing`` (down, across), and per output array its two axes."""

    spacing: tuple[int, int]
    axes: tuple[tuple[_Axis, _Axis], ...]

    def wider(self, grid: _Grid) -> _Comb:
        """The same with the next spacing: their greatest common divisor is what the ratios ask for, `_unit`."""
        down, across = (p + _unit([pair[i] for pair in self.axes]) for i, p in enumerate(self.spacing))
        return _Comb((min(down, grid.height), min(across, grid.width)), self.axes)


def exact_diagonal(
    receiver: Receiver,
    z: Frame,
    *,
    metric: Metric = None,
    tiles: TileLayout | None = None,
    spatial_axes: tuple[int, int] = (1, 2),
) -> Frame:
    """diag(JᵀMJ) at z, exact up to rounding: NumPy arrays shaped like z, float32 or wider.

    Args:
      receiver: pure and local: every output array is ``[N, …]`` with a picture in ``spatial_axes``, in proportion to z
        (strides, upsampling and borders of any kind are allowed), and a sample reaches a part of it only.
      z: samples ``[N, H, W]`` per plane.
      metric: diagonal of M, as in `importance_map`.
      tiles: the layout of packed frames, whose receiver unpacks them first; the entries of their padding are 0.
      spatial_axes: (2, 3) for outputs ``[N, C, H, W]``.

    Raises:
      ValueError: outputs without a picture in them; receivers that are not local (attention, global pooling), in a
        picture of this size: use `importance_map`; receivers that mix frames, or that use the padding of tiles; NaN or
        infinity in the output or its derivative.
    """
    jacobian = Jacobian(receiver, z, metric)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jacobian.output):
        if leaf.ndim < 3 or max(spatial_axes) >= leaf.ndim or min(spatial_axes) < 1:
            raise ValueError(
                f"the receiver's {jax.tree_util.keystr(path) or 'output'} has shape {leaf.shape}, without a picture in "
                f"axes {spatial_axes}: comb probing wants outputs [N, H, W, …]; use importance_map for others"
            )
    if tiles is None:
        sizes = [p.shape[1:] for p in jacobian.z.planes]
        grids = [
            _Grid(height, width, tuple(i for i, size in enumerate(sizes) if size == (height, width)))
            for height, width in dict.fromkeys(sizes)
        ]
    else:
        to_tiles(z, tiles)  # raises where the layout does not fit
        grids = [_Grid(tiles.height, tiles.width, (0,), tiles)]
    refuse(~finite_frames(apply(jacobian.receiver, jacobian.z)), "the receiver's output holds NaN or infinity in", 0)
    diagonal = frame_of([p for grid in grids for p in grid.split(_grid_diagonal(jacobian, grid, spatial_axes))])
    spoilt = np.array([not all(np.isfinite(p[n]).all() for p in diagonal.planes) for n in range(num_frames(z))])
    refuse(spoilt, "the receiver's derivative is NaN or infinite in", 0)
    if tiles is not None:
        _check_padding(jacobian, tiles)
    _check_samples(jacobian, diagonal)
    return diagonal


def _grid_diagonal(jacobian: Jacobian, grid: _Grid, spatial_axes: tuple[int, int]) -> np.ndarray:
    """The diagonal at the grid's places, ``[N, height, width, channels]``."""
    comb = _measured(jacobian, grid, spatial_axes)
    while True:
        first = _probe(jacobian, grid, comb, spatial_axes)
        second = None if first is None else _probe(jacobian, grid, comb.wider(grid), spatial_axes)
        if first is not None and second is not None and not _differs(first, second, jacobian.output).any():
            return first
        comb = _fit(grid, [(y.widened(), x.widened()) for y, x in comb.axes])


def _differs(one: Any, other: Any, output: Any, largest: Any = None) -> np.ndarray:
    """Whether entries of the diagonal differ by more than rounding. √ε: columns are summed in another order, and
    outputs in half precision are rounded."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(output))
    return np.abs(a - b) > math.sqrt(eps) * np.abs(b) + 10 * eps * (np.abs(b).max() if largest is None else largest)


def _probe(jacobian: Jacobian, grid: _Grid, comb: _Comb, spatial_axes: tuple[int, int]) -> np.ndarray | None:
    """The same from one comb; None as soon as a guard is reached."""
    down, across = comb.spacing
    offsets = np.stack(np.meshgrid(*(np.arange(n) for n in (grid.channels, down, across)), indexing="ij"), -1)
    parts = []
    for chunk, count in _chunks(offsets.reshape(-1, 3)):
        energy, clear = _run_combs(
            jacobian.receiver, jacobian.z, jacobian.root, chunk, grid=grid, comb=comb, spatial_axes=spatial_axes
        )
        if not clear:
            return None
        parts.append(np.asarray(energy)[:count])
    n = num_frames(jacobian.z)
    rows, cols = -(-grid.height // down), -(-grid.width // across)
    energies = np.concatenate(parts).reshape(grid.channels, down, across, n, rows, cols)
    whole = energies.transpose(3, 4, 1, 5, 2, 0).reshape(n, rows * down, cols * across, grid.channels)
    return whole[:, : grid.height, : grid.width]


def _measured(jacobian: Jacobian, grid: _Grid, spatial_axes: tuple[int, int]) -> _Comb:
    """The comb that the reach of single samples asks for."""
    rng = np.random.default_rng(0)
    size = (grid.height, grid.width)
    places = np.array(
        [(0, y, x) for y in (0, size[0] - 1) for x in (0, size[1] - 1)] + [(0, size[0] // 2, size[1] // 2)]
    )
    places = np.concatenate([places, np.zeros((PROBES - len(places), 3), places.dtype)])
    places[5:, 1:] = rng.integers(0, size, (PROBES - 5, 2))
    places[:, 0] = rng.integers(0, grid.channels, PROBES)

    bounds = []  # per z and chunk, per output array: [places, first and last row, first and last column]
    for z in _alive(jacobian.z, rng):
        for chunk, count in _chunks(places):
            found = _run_reach(jacobian.receiver, z, jacobian.root, chunk, grid=grid, spatial_axes=spatial_axes)
            bounds.append([np.asarray(b)[:count] for b in found])
    whole = [np.concatenate(b) for b in zip(*bounds, strict=True)]
    everywhere = np.tile(places, (len(whole[0]) // PROBES, 1))
    axes = []
    for leaf, bound in zip(jax.tree.leaves(jacobian.output), whole, strict=True):
        reached = bound[:, 0] >= 0
        pair = [
            _best_axis(everywhere[reached, 1 + i], bound[reached, 2 * i : 2 * i + 2], size[i], leaf.shape[axis])
            for i, axis in enumerate(spatial_axes)
        ]
        axes.append((pair[0], pair[1]))
    return _fit(grid, axes)


def _alive(z: Frame, rng: np.random.Generator) -> list[Frame]:
    """z; its samples in random order; white noise over its range."""

    def shuffled(plane: jax.Array) -> jax.Array:
        return jnp.asarray(rng.permutation(np.asarray(plane).ravel()).reshape(plane.shape))

    def noise(plane: jax.Array) -> jax.Array:
        low, high = float(plane.min()), float(plane.max())
        return jnp.asarray(rng.uniform(low, max(high, low + 1e-3), plane.shape), plane.dtype)

    return [z, jax.tree.map(shuffled, z), jax.tree.map(noise, z)]


def _best_axis(places: np.ndarray, bounds: np.ndarray, size: int, output_size: int) -> _Axis:
    """The ratio, and the extent that follows from it, that let combs be narrowest.

    The ratio of the sizes is the first guess; borders that are cut or added make it a little wrong, so simple fractions
    near it are tried: a wrong one makes the extents drift with the place.
    """
    exact = Fraction(output_size, size)
    ratios = {exact, *(exact.limit_denominator(d) for d in range(1, 17))} - {Fraction(0)}
    candidates = []
    for ratio in sorted(ratios, key=lambda r: r.denominator):
        own = np.array([math.floor(int(x) * ratio) for x in places])
        low, high = (int((bounds[:, 0] - own).min()), int((bounds[:, 1] - own).max())) if len(own) else (0, 0)
        candidates.append(_Axis(ratio, low, high))
    return min(candidates, key=lambda axis: _spacing([axis]))


def _spacing(axes: Sequence[_Axis]) -> int:
    """Least p for which p · ratio is whole, and holds extent and guards, for every axis."""
    unit = _unit(axes)
    return unit * max(math.ceil((axis.extent + 2 * axis.guard) / (unit * axis.ratio)) for axis in axes)


def _unit(axes: Sequence[_Axis]) -> int:
    """What every spacing is a multiple of."""
    return math.lcm(*(axis.ratio.denominator for axis in axes))


def _fit(grid: _Grid, axes: Sequence[tuple[_Axis, _Axis]]) -> _Comb:
    """The comb for these reaches. An axis shorter than its spacing has one tooth, which may reach everything."""
    spacing = [_spacing([pair[i] for pair in axes]) for i in (0, 1)]
    if spacing[0] >= grid.height and spacing[1] >= grid.width:
        raise ValueError(
            f"the receiver is not local: a sample of {grid.width}×{grid.height} reaches outputs as far as "
            f"{spacing[1]}×{spacing[0]} samples apart (attention, global pooling, or a picture smaller than the "
            "receptive field), so no two can share a derivative; use importance_map"
        )
    return _Comb((min(spacing[0], grid.height), min(spacing[1], grid.width)), tuple(axes))


def _check_padding(jacobian: Jacobian, tiles: TileLayout) -> None:
    """Raises `ValueError` where the padding of packed frames reaches the output."""
    shape = (num_frames(jacobian.z), tiles.tile_height, tiles.tile_width, tiles.channels)
    q = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    q[:, : tiles.height, : tiles.width] = 0
    padding = jax.tree.map(lambda p, like: jnp.asarray(p, like.dtype), from_tiles(q, tiles), jacobian.z)
    if _column_energy(jacobian.receiver, jacobian.z, jacobian.root, padding) > 0:
        raise ValueError("the receiver uses the padding of tiles: unpack the frame first, or probe it without tiles")


def _check_samples(jacobian: Jacobian, diagonal: Frame) -> None:
    """Raises `ValueError` where single columns, each in one frame alone, disagree with the diagonal."""
    rng = np.random.default_rng(1)
    largest = max(float(p.max()) for p in diagonal.planes)
    for number, plane in enumerate(diagonal.planes):
        places = np.stack([rng.integers(0, size, CHECKED) for size in plane.shape], 1)
        for frame, row, column in places:
            planes = [np.zeros(p.shape, np.float32) for p in diagonal.planes]
            planes[number][frame, row, column] = 1
            q = jax.tree.map(lambda p, like: jnp.asarray(p, like.dtype), frame_of(planes), jacobian.z)
            found = float(_column_energy(jacobian.receiver, jacobian.z, jacobian.root, q))
            probed = float(plane[frame, row, column])
            if _differs(probed, found, jacobian.output, largest):
                raise ValueError(
                    f"comb probing gave {probed:.6g} for plane {'yuv'[number]} of frame {frame} at row {row}, column "
                    f"{column}; alone it is {found:.6g}: does the receiver mix frames (batch statistics in training "
                    "mode)? Otherwise use importance_map"
                )


def _chunks(places: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Pieces of `AT_ONCE` rows, the last filled up by repetition, and how many are its own."""
    pieces = [places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)]
    return [(np.concatenate([p, np.repeat(p[:1], AT_ONCE - len(p), 0)]), len(p)) for p in pieces]


@jax.jit
def _column_energy(function: jax.tree_util.Partial, z: Frame, root: Any, q: Frame) -> jax.Array:
    """‖M^½ J q‖² over all frames."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(accumulator_dtype(leaf.dtype))))
        for leaf in jax.tree.leaves(forward(function, z, root, q))
    ]
    return sum(squares[1:], squares[0])


@partial(jax.jit, static_argnames=("grid", "comb", "spatial_axes"))
def _run_combs(
    function: jax.tree_util.Partial,
    z: Frame,
    root: Any,
    offsets: jax.Array,
    *,
    grid: _Grid,
    comb: _Comb,
    spatial_axes: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """Energies of each tooth's part, ``[K, N, rows, cols]``, and whether all guards are 0. ``offsets``: (channel, row,
    column) of K combs."""
    down, across = comb.spacing
    teeth = -(-grid.height // down), -(-grid.width // across)
    rows = jnp.arange(grid.height)[None] % down == offsets[:, 1:2]  # [K, H]
    columns = jnp.arange(grid.width)[None] % across == offsets[:, 2:3]
    energies = _energies(function, z, root, rows, columns, offsets[:, 0], grid, spatial_axes)
    total, clear = [], []
    for energy, axes in zip(energies, comb.axes, strict=True):
        part, inside = energy, jnp.ones((1, 1, 1, 1), bool)
        for i, axis in enumerate(axes):
            part, own = _parts(part, axis, offsets[:, 1 + i], comb.spacing[i], teeth[i], 2 + i, energy.shape[2 + i])
            inside = inside & jnp.expand_dims(own, (1, 2) if i else (1, 3))
        total.append(part)
        outside = jnp.max(jnp.where(inside, 0, energy))
        clear.append(~(outside > _negligible(energy.dtype) * jnp.max(energy)))  # NaN is named later, by its frame
    return sum(total[1:], total[0]), jnp.stack(clear).all()


def _parts(
    energy: jax.Array, axis: _Axis, offset: jax.Array, spacing: int, teeth: int, dimension: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Sums over each tooth's part along one axis of ``[K, N, H', W']``, and the outputs ``[K, size]`` that may be
    reached."""
    places = jnp.arange(size)[None]
    if teeth == 1:
        return jnp.sum(energy, dimension, keepdims=True), jnp.ones((len(offset), size), bool)
    period = int(spacing * axis.ratio)
    start = offset * axis.ratio.numerator // axis.ratio.denominator + axis.low  # [K]
    past = places - start[:, None]  # outputs past the first tooth's reach
    inside = (past >= 0) & (past < teeth * period) & (past % period < axis.extent)
    tooth = jnp.where(inside, past // period, teeth)[:, None, :]  # beyond the last: dropped
    own = (tooth == jnp.arange(teeth)[None, :, None]).astype(energy.dtype)  # [K, teeth, size]
    pattern = "kts,knsw->kntw" if dimension == 2 else "kts,knhs->knht"
    return jnp.einsum(pattern, own, energy, precision="highest"), inside


@partial(jax.jit, static_argnames=("grid", "spatial_axes"))
def _run_reach(
    function: jax.tree_util.Partial,
    z: Frame,
    root: Any,
    places: jax.Array,
    *,
    grid: _Grid,
    spatial_axes: tuple[int, int],
) -> list[jax.Array]:
    """Per output array: first and last row and column that single samples reach in any frame, ``[K, 4]``; −1 where they
    reach nothing. ``places``: (channel, row, column)."""
    rows = jnp.arange(grid.height)[None] == places[:, 1:2]
    columns = jnp.arange(grid.width)[None] == places[:, 2:3]
    bounds = []
    for energy in _energies(function, z, root, rows, columns, places[:, 0], grid, spatial_axes):
        most = jnp.max(energy, (2, 3), keepdims=True)
        reached = jnp.any((energy > _negligible(energy.dtype) * most) & (energy > 0), 1)  # [K, H', W']
        ends = []
        for other in (2, 1):
            line = reached.any(other)
            ends += [jnp.argmax(line, 1), line.shape[1] - 1 - jnp.argmax(line[:, ::-1], 1)]
        bounds.append(jnp.where(reached.any((1, 2))[:, None], jnp.stack(ends, 1), -1))
    return bounds


def _energies(
    function: jax.tree_util.Partial,
    z: Frame,
    root: Any,
    rows: jax.Array,
    columns: jax.Array,
    channels: jax.Array,
    grid: _Grid,
    spatial_axes: tuple[int, int],
) -> list[jax.Array]:
    """Per output array: squares of M^½ J q, summed over all but frames and places, ``[K, N, H', W']``."""
    _, push = jax.linearize(lambda frame: function(frame), z)

    def one(row: jax.Array, column: jax.Array, channel: jax.Array) -> list[jax.Array]:
        q = grid.tangent(row[:, None] & column[None], channel, z)
        tangents = weighted(push(q), root)
        return [
            jnp.sum(
                jnp.square(jnp.moveaxis(leaf, spatial_axes, (1, 2)).astype(accumulator_dtype(leaf.dtype))),
                tuple(range(3, leaf.ndim)),
            )
            for leaf in jax.tree.leaves(tangents)
        ]

    return jax.vmap(one)(rows, columns, channels)


def _negligible(dtype: Any) -> float:
    """Part of the largest square that counts as 0: fast convolutions round outside of their kernels' reach too."""
    return (64 * float(jnp.finfo(dtype).eps)) ** 2
