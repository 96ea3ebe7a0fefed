"""Method ``refine:encoder``: refinement re-linearised at what a real encoder makes of the samples.

The proxy is not the encoder: its ẑ and its bits are others. Each round encodes the samples z_k for real, giving ẑ_k and
R_k bits, and then descends (`jaxwrap.methods.refine`) on a proxy that was moved towards the encoder at z_k,

    ẑ(z') = proxy(z') + ½ (ẑ_k − proxy(z_k)),      R(z') = R_k · R_proxy(z') / R_proxy(z_k).

Half, because a quantiser's error changes as soon as the samples do: what the encoder did to z_k holds for z' in part
only. On four photographs with x265 the real L fell by 7 to 10 % at QP 27 with ½, by 4 to 9 % with the whole difference
and by 6 to 9 % without any.

The result of a round is encoded again, and kept only where the real L = ‖y − r(ẑ)‖²_M / g + λ R has fallen, so that L
never rises; where it has not, the next round takes smaller steps. What plain refinement gives, with as many steps as
all rounds together, is tried in the end, so that L is never above its either. g is measured with the encoder's own
error at the start. Pictures of an intra configuration are judged one by one, others a clip at a time, since they
predict from each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, num_frames, stack_frames
from jaxwrap.codec import Codec, EncodeRequest, EncodeResult
from jaxwrap.importance.receiver import Metric, Receiver
from jaxwrap.importance.weights import clip_ends
from jaxwrap.methods.plan import Plan
from jaxwrap.methods.refine import Problem, Refine, Refined, descend, encode, pose_problem, with_gain

_CARRIED = 0.5
"""Share of ẑ_k − proxy(z_k) that is carried over to other samples."""

_FAILED_ROUND = 0.3
"""Factor on the step size of the next round where a round did not help."""


def relinearised_samples(
    receiver: Receiver,
    z: Frame,
    codec: Codec,
    encoder: Codec,
    request: EncodeRequest,
    *,
    rounds: int = 3,
    clips: Sequence[int] | None = None,
    target: Any = None,
    metric: Metric = None,
    steps: int = 10,
    learning_rate: float = 0.1,
    rate_weight: float = 1.0,
) -> Refined:
    """Refines a batch of frames for a real encoder, in ``rounds`` + 2 encodes. Not to be traced.

    Args:
      receiver, z, codec, target, metric, steps (of each round), learning_rate, rate_weight: as in
        `jaxwrap.methods.refine.refine_samples`.
      encoder: the codec that z is for. Clips are encoded one by one.
      request: what it is asked for, with one QP for all.
      clips: number of frames of each clip in the batch; None: all are one clip.

    Returns:
      `Refined`, with the real L of every encode, ``[rounds + 2, N]``: of the start, of what each round tried, kept or
      not, and of plain refinement. (Outside intra, L is decided on summed over a clip.)

    Raises:
      ValueError: as `refine_samples`; no rounds, no single QP, clips that do not add up to the batch, or what the
        encoder refuses.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds were asked for; at least 1 is needed (method refine encodes nothing)")
    if request.qp is None or np.ndim(request.qp) != 0:
        raise ValueError(f"QP {request.qp} was given; refinement at an encoder takes one QP for all pictures")
    ends = clip_ends(clips, num_frames(z))
    problem, best = pose_problem(
        receiver, z, codec, qp=request.qp, target=target, metric=metric, bit_depth=request.bit_depth,
        rate_weight=rate_weight,
    )  # fmt: skip
    start = best
    decoded, bits = _encode(encoder, start, request, ends)
    problem = with_gain(problem, start, decoded)
    cost = np.asarray(_cost(problem, decoded, bits))
    history = [cost]
    step_size = np.full(num_frames(z), learning_rate, np.float32)
    for number in range(rounds + 1):
        if number < rounds:
            proxy = _moved_proxy(problem, best, decoded, bits)
            tried = descend(proxy, best, steps=steps, learning_rate=jnp.asarray(step_size)).z
        else:
            plain = with_gain(problem, start)
            tried = descend(plain, start, steps=rounds * steps, learning_rate=learning_rate).z
        new_decoded, new_bits = _encode(encoder, tried, request, ends)
        new_cost = np.asarray(_cost(problem, new_decoded, new_bits))
        history.append(new_cost)
        better = _judge(new_cost - cost, ends, alone=request.config == "intra")
        best, decoded = _choose(better, (tried, new_decoded), (best, decoded))
        bits, cost = np.where(better, new_bits, bits), np.where(better, new_cost, cost)
        step_size = np.where(better, step_size, _FAILED_ROUND * step_size)
    return Refined(best, jnp.asarray(np.stack(history)))


def _encode(encoder: Codec, z: Frame, request: EncodeRequest, ends: list[int]) -> tuple[Frame, np.ndarray]:
    """(decoded samples float32, bits ``[N]``) of every clip encoded by itself."""
    results = [
        encoder.encode(jax.tree.map(lambda p, part=slice(start, end): np.asarray(p[part]), z), request)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    decoded = stack_frames([result.decoded for result in results])
    bits = np.concatenate([np.asarray(result.bits) for result in results]).astype(np.float32)
    return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), decoded), bits


@jax.jit
def _cost(problem: Problem, decoded: Frame, bits: jax.Array) -> jax.Array:
    return problem.cost(decoded, bits)


def _moved_proxy(problem: Problem, z: Frame, decoded: Frame, bits: np.ndarray) -> Problem:
    """The problem with a proxy whose samples at z are half-way to the encoder's, and whose bits there are its."""
    own = encode(problem, z)
    offset = jax.tree.map(lambda theirs, ours: _CARRIED * (theirs - ours), decoded, own.decoded)
    scale = jnp.asarray(bits) / own.bits
    return dataclasses.replace(problem, encode=jax.tree_util.Partial(_shifted, problem.encode, offset, scale))


def _shifted(
    encode: Callable[..., EncodeResult], offset: Frame, scale: jax.Array, z: Frame, request: EncodeRequest
) -> EncodeResult:
    result = encode(z, request)
    decoded = jax.tree.map(jnp.add, result.decoded, offset)
    return dataclasses.replace(result, decoded=decoded, bits=result.bits * scale)


def _judge(change: np.ndarray, ends: list[int], *, alone: bool) -> np.ndarray:
    """Which pictures keep what was tried, ``[N]``: those whose own L fell, or all of a clip whose sum did."""
    if alone:
        return change < 0
    parts = np.split(change, ends[:-1])
    return np.concatenate([np.full(part.shape, part.sum() < 0) for part in parts])


def _choose(better: np.ndarray, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(better[:, None, None], a, b), new, old)


@dataclasses.dataclass(frozen=True, eq=False)
class Relinearise(Refine):
    """`relinearised_samples` as an allocation method; the fields are its arguments.

    ``encoder``: the codec that the plan is for, and ``request`` what it is asked for beside ``qp`` and ``bit_depth``; a
    sweep sets both to those of the point.
    """

    name: ClassVar[str] = "refine:encoder"

    steps: int = 10
    rounds: int = 3
    encoder: Codec | None = None
    request: EncodeRequest = dataclasses.field(default_factory=lambda: EncodeRequest(qp=None))
    clips: tuple[int, ...] | None = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """The refined samples, unweighted. Deterministic: the key is not used. Errors as in `relinearised_samples`."""
        if self.encoder is None:
            raise ValueError("refine:encoder was given no encoder; wanted the codec that its plan is for, such as X26x")
        request = dataclasses.replace(self.request, qp=self.qp, bit_depth=self.bit_depth)
        refined = relinearised_samples(
            receiver, z, self.codec, self.encoder, request,
            rounds=self.rounds, clips=self.clips, target=self.target, metric=self.metric, steps=self.steps,
            learning_rate=self.learning_rate, rate_weight=self.rate_weight,
        )  # fmt: skip
        return Plan(refined.z)
