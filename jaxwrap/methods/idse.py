"""Method ``idse``: weights of whole blocks from a sketched Jacobian (FP-RDO section III, input-dependent SE).

Where a map keeps the diagonal of JᵀMJ, rows keep what samples of a block do to the receiver together: the encoder's
distortion of a block is Σ_s (r_s · q)² + τ Σ q², r_s being the part of row s in that block (equation 14). Errors whose
effects cancel cost little. Encoder-side only: the decoder is told nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.codec import RowWeights
from jaxwrap.importance.blocks import frame_mean
from jaxwrap.importance.jacobian import Jacobian, sketched_rows
from jaxwrap.importance.memory import chunk_frames
from jaxwrap.importance.receiver import Metric, as_partial, float_dtype, output_of, root_metric
from jaxwrap.importance.sketch import SketchKind, TopDct, check_sketch
from jaxwrap.importance.weights import DEFAULT_ALPHA, check_map, check_weighting
from jaxwrap.methods.plan import Plan
from jaxwrap.methods.wa import metric_part, take_frames


@dataclasses.dataclass(frozen=True, eq=False)
class Idse:
    """ℓ sketched rows of the receiver's Jacobian at each frame → `RowWeights`.

    ``rows``: ℓ; FP-RDO section IV uses 2 to 8. With fewer than 8 an encoder fits its errors to a few random directions,
    and loses (README, "Results"). ``metric``, ``sketch``, ``memory_budget``: as in `importance_map`;
    ``alpha``: as in `importance_weights`. Rows come divided by √((1 + α) · mean h) of their frame, with h = Σ_s r_s²
    and τ = α / (1 + α): so λ stays as it is, and Σ_s r_s² + τ are the weights that `Wa` makes of as many sketches from
    the same key.
    """

    name: ClassVar[str] = "idse"
    draws: ClassVar[bool] = True
    weights_as: ClassVar[Literal["rows"]] = "rows"

    rows: int = 8
    metric: Metric = None
    sketch: SketchKind | TopDct = "rademacher"
    memory_budget: int | None = None
    alpha: float = DEFAULT_ALPHA

    def __post_init__(self) -> None:
        check_sketch(self.sketch, self.rows)
        check_weighting(self.alpha)

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """z as it is, with the rows of each frame.

        Raises `ValueError` as `sketched_rows` does, and without a key; `MapError` for a frame whose rows are all 0.
        """
        if key is None:
            raise ValueError(f"{self.name} draws random sketches: give plan a key (jax.random.key(0))")
        num = num_frames(z)
        size = num if self.memory_budget is None else self._frames_within(receiver, z, self.memory_budget)
        parts = []
        for start in range(0, num, size):
            numbers = range(start, min(start + size, num))
            own = take_frames(z, numbers) if size < num else z
            metric = metric_part(self.metric, receiver, own, numbers, num) if size < num else self.metric
            part = self._scaled(receiver, own, metric, key, start)
            parts.append(part if size == num else jax.device_get(part))
        rows = parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: np.concatenate(p), *parts)
        return Plan(z, RowWeights(rows, self.alpha / (1.0 + self.alpha)))

    def _scaled(self, receiver: Callable[[Frame], Any], z: Frame, metric: Metric, key: jax.Array, start: int) -> Frame:
        jacobian = Jacobian(receiver, z, metric)
        rows = sketched_rows(jacobian, key, self.rows, sketch=self.sketch, frame_offset=start).planes
        h = jax.tree.map(lambda p: jnp.sum(p * p, 1), rows)
        check_map(h)
        scale = jax.lax.rsqrt((1.0 + self.alpha) * frame_mean(h))  # [N]
        return jax.tree.map(lambda p: p * scale[:, None, None, None], rows)

    def _frames_within(self, receiver: Callable[[Frame], Any], z: Frame, budget: int) -> int:
        function, num = as_partial(receiver), num_frames(z)
        shape = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, float_dtype(p.dtype)), z)
        one = jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape[1:]), p.dtype), shape)
        root = root_metric(self.metric, output_of(function, shape), on_host=True)
        return min(num, chunk_frames(function, one, root, budget, num, self.sketch, False, False, num, None))
