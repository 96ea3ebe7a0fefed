"""Does a map still serve? One sketch at the new samples against the map's 16×16 block means.

With m the reference's block means (from n_s sketches), b those of one sketch at the new z brought to the same level
(an encoder's weights are normalised), and s the reference's own spread between single sketches:

    change² = [Σ (b − m)² − Σ s² (1 + 1/n_s)] / K,     spread² = [Σ (m − mean m)² − Σ s² / n_s] / K

over the K blocks of all planes, each plane's own mean in ``spread``: what has changed, and what there was to know, both
without the part that sketches' noise explains. The level is the mean over these blocks: each plane counts alike, so in
4:2:0 chroma more than by its samples, which the means of `ImportanceMap.relative_block_error` and of weights go by. A
map with change = 0 is as good as new; one with change = spread is about as wrong as no map at all (uniform weights).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.importance.maps import ImportanceMap, importance_map
from jaxwrap.importance.receiver import Metric, Receiver
from jaxwrap.importance.sketch import SketchKind, TopDct
from jaxwrap.importance.weights import check_map

TOLERANCE = 0.5
"""Change, over spread, from which a map is stale: a quarter of the variance that a map is there to show is then wrong,
half of what two unlike pictures have on average."""

_STREAM = 0x57A1E


@dataclasses.dataclass(frozen=True, slots=True)
class Staleness:
    """How far a map has become wrong; all ``[N]``.

    ``change`` and ``spread``: root mean squares over the blocks of all planes, relative to the mean over them.
    ``noise``: standard error of change² when nothing has changed. ``scale``: the new map's mean over the same blocks by
    the reference's (weights normalised per frame do not see it, those per sequence do).
    ``frames``: which are stale: change² is above tolerance² · spread² by more than twice its noise.
    """

    change: np.ndarray
    spread: np.ndarray
    noise: np.ndarray
    scale: np.ndarray
    frames: np.ndarray

    @property
    def stale(self) -> bool:
        """Whether the map no longer serves one frame or more."""
        return bool(self.frames.any())


def staleness(
    receiver: Receiver,
    z: Frame,
    reference: ImportanceMap,
    *,
    key: jax.Array,
    metric: Metric = None,
    sketch: SketchKind | TopDct = "rademacher",
    frame_offset: int | Sequence[int] = 0,
    tolerance: float = TOLERANCE,
) -> Staleness:
    """Tells from one sketch per frame (one forward and one backward pass) whether ``reference`` serves the samples z.

    Args:
      reference: map of the same receiver, metric and sketch kind, from 2 sketches or more and without a control
        variate (its errors are not those of single sketches); 1 frame, or one per frame of z.
      key: may be the one that the reference was made with: this sketch is not among its own.
      tolerance: largest change over spread that is accepted, > 0; see `TOLERANCE`.
      receiver, z, metric, sketch, frame_offset: as for `importance_map`, and the same errors.

    Raises:
      ValueError: a reference from 1 sketch, with a control variate, or of another size; a tolerance that is not a
        number > 0.
    """
    if not 0 < tolerance < np.inf:
        raise ValueError(f"a tolerance of {tolerance} was given; wanted a number > 0, such as {TOLERANCE}")
    check_map(reference.h, z)
    single = reference.sketch_spread()
    now = importance_map(
        receiver,
        z,
        key=jax.random.fold_in(key, _STREAM),
        sketches=1,
        metric=metric,
        sketch=sketch,
        frame_offset=frame_offset,
    )
    n = num_frames(z)
    count = reference.sketches if reference.frame_sketches is None else reference.frame_sketches
    share = np.broadcast_to(1 / np.asarray(count, np.float64), (n,))[:, None, None]
    old, new, noise = (_blocks(frame, n) for frame in (reference.block_means(), now.block_means(), single))
    level = old.mean((1, 2))
    scale = new.mean((1, 2)) / level
    variance = noise**2 * (1 + share)
    changed = ((new / scale[:, None, None] - old) ** 2 - variance).mean((1, 2)) / level**2
    known = ((old - old.mean(2, keepdims=True)) ** 2 - noise**2 * share).mean((1, 2)) / level**2
    error = np.sqrt(2 * (variance**2).sum((1, 2))) / variance[0].size / level**2
    change, spread = (np.sqrt(np.maximum(square, 0)) for square in (changed, known))
    return Staleness(change, spread, error, scale, changed - 2 * error > (tolerance * spread) ** 2)


def _blocks(frame: Frame, n: int) -> np.ndarray:
    """Blocks of each plane, ``[N, planes, blocks]``, float64."""
    planes = [np.asarray(p, np.float64).reshape(p.shape[0], -1) for p in frame.planes]
    stacked = np.stack(planes, 1)
    return np.broadcast_to(stacked, (n, *stacked.shape[1:]))
