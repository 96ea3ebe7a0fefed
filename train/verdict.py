"""Will QP offsets from importance maps help a wrapper under a codec? Predicted from plain encodes, and measured.

Pictures are single frames, coded all intra at 10 bits. Quality is 10 log₁₀(1 / ‖y − r(ẑ)‖²_M): y are the original
frames, r is the post-processor, M is YUV 6:1:1. Weights are those of the methods ``wa+dqp``: one map of each picture.
BD-rates are per picture, negative where bits are saved, then a mean with its bootstrap interval over pictures.

On coco/train2017, where they were developed, predictions near 0 are off by up to 0.5 % at the default α, and by 0.6 to
1.1 % at α = 0, mostly to the hopeful side; large gains come out a fifth too large. What blocks of another QP do to the
prediction of their neighbours, and what many changes of the QP cost, is modelled in part only. Scores on other
pictures: `jaxwrap.train.bench.verdict`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames, size_of
from jaxwrap.codec import QP_RANGE, EncodeRequest, EncodeResult, Weights, quantiser_step
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.diagnostics import attributed_error, error_terms, pooled_sums
from jaxwrap.importance.maps import ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.prediction import bit_shares, moved_totals, offset_bits
from jaxwrap.importance.weights import DEFAULT_ALPHA, importance_weights
from jaxwrap.metrics.bjontegaard import Interval, bd_rate, bootstrap_mean
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, normalise
from jaxwrap.train.evaluate.modes import BIT_DEPTH, mode_of
from jaxwrap.train.evaluate.workers import Workers
from jaxwrap.train.media import Clip
from jaxwrap.wrappers.switchable import Wrapper

NO_EFFECT = 1.0
"""A prediction of less than this many percent says no effect: predictions are not better than that."""

Effect = Literal["gains", "no effect", "loses", "unknown"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is examined: a wrapper, as a function (height, width) of the original → sandwich."""

    name: str
    sandwich: Callable[[int, int], Sandwich]


def subject_of(wrapper: Wrapper, name: str) -> Subject:
    """A wrapper as it is."""
    return Subject(name, mode_of(wrapper).sandwich)


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture at the bottleneck, N = 1: ``frame`` of ``clip``, samples ``z``, ``wanted`` at the receiver's output,
    ``original`` integer samples, and the receiver."""

    clip: str
    frame: int
    original: Frame
    z: Frame
    wanted: Frame
    receiver: Callable[[Frame], Any]

    @property
    def name(self) -> str:
        """Clip, and frame unless it is the first."""
        return self.clip if self.frame == 0 else f"{self.clip}, frame {self.frame}"


def pictures_of(subject: Subject, clips: Iterable[Clip]) -> Iterator[Picture]:
    """Every frame of every clip, as the subject's pre-processor makes it."""
    functions: dict[tuple[int, int], tuple[Any, Any]] = {}
    for clip in clips:
        frames = change_bit_depth(clip.frames, clip.bit_depth, BIT_DEPTH)
        size = size_of(frames)
        if size not in functions:
            sandwich = subject.sandwich(*size)
            functions[size] = jax.jit(sandwich.bottleneck), sandwich.receive
        bottleneck, receiver = functions[size]
        for n in range(num_frames(frames)):
            samples = jax.tree.map(lambda plane, n=n: plane[n : n + 1], frames)
            wanted = normalise(samples, BIT_DEPTH)
            yield Picture(clip.name, n, samples, jax.device_get(bottleneck(wanted)), wanted, receiver)


def maps_of(pictures: Sequence[Picture], *, sketches: int, seed: int = 0) -> list[ImportanceMap]:
    """A map of each picture by its own, in NumPy; picture n draws from ``fold_in(key(seed), n)``."""
    return [
        jax.device_get(
            importance_map(
                p.receiver,
                p.z,
                key=jax.random.fold_in(jax.random.key(seed), n),
                sketches=sketches,
                metric=yuv_metric,
            )
        )
        for n, p in enumerate(pictures)
    ]


def offset_weights(maps: Sequence[ImportanceMap], alpha: float = DEFAULT_ALPHA) -> list[Weights]:
    """Weights of the maps, for an encoder's QP offsets; in NumPy, as they go to other processes."""
    return [jax.device_get(importance_weights(m, alpha=alpha, applied_as="qp_offset")) for m in maps]


@dataclasses.dataclass(frozen=True)
class _Job:
    """One encode of picture number ``picture``, for `Workers`."""

    picture: int
    codec: X26x
    samples: Frame
    request: EncodeRequest


def encode_pictures(
    pictures: Sequence[Picture],
    codec: X26x,
    qps: Sequence[int],
    workers: Workers,
    *,
    weights: Sequence[Weights] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[list[EncodeResult]]:
    """Each picture at each QP, all intra: results by picture, then by QP. Raises what an encode raises."""
    jobs = [
        _Job(n, codec, p.z, EncodeRequest(qp, bit_depth=BIT_DEPTH, weights=None if weights is None else weights[n]))
        for n, p in enumerate(pictures)
        for qp in qps
    ]
    results: list[dict[Any, EncodeResult]] = [{} for _ in pictures]
    for job, outcome in workers.encode(jobs):
        if isinstance(outcome, Exception):
            raise outcome
        results[job.picture][job.request.qp] = outcome
        advance()
    return [[found[qp] for qp in qps] for found in results]


def wider(qps: Sequence[int]) -> list[int]:
    """The QPs and one more at either end, where blocks with offsets go."""
    low, high = max(QP_RANGE[0], qps[0] - 5), min(QP_RANGE[1], qps[-1] + 5)
    return [*([low] if low < qps[0] else []), *qps, *([high] if high > qps[-1] else [])]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Rate and received error of one picture: ``bits`` and ``error`` ``[Q]``, plain and with offsets."""

    name: str
    qps: tuple[int, ...]
    plain_bits: np.ndarray
    plain_error: np.ndarray
    bits: np.ndarray
    error: np.ndarray

    def bd_rate(self) -> float:
        """Of the curve with offsets against the plain one, in percent. Raises `ValueError` where it is not defined."""
        plain, moved = (-10 * np.log10(error) for error in (self.plain_error, self.error))
        return bd_rate(self.plain_bits, plain, self.bits, moved).value


@dataclasses.dataclass(frozen=True)
class Score:
    """BD-rates [%] by picture, their mean (None where no picture has one), and pictures without, with the reason."""

    values: dict[str, float]
    interval: Interval | None
    left_out: dict[str, str]

    @property
    def effect(self) -> Effect:
        """What a prediction may claim: the interval's sign, from `NO_EFFECT` on."""
        i = self.interval
        return "no effect" if i is not None and abs(i.mean) < NO_EFFECT else self.measured_effect

    @property
    def measured_effect(self) -> Effect:
        """What the interval alone says, however small."""
        i = self.interval
        if i is None:
            return "unknown"
        if i.low is not None and i.high is not None and i.low <= 0 <= i.high:
            return "no effect"
        return "gains" if i.mean < 0 else "loses"


def score(curves: Sequence[Curves]) -> Score:
    """BD-rates of all pictures whose curves allow one."""
    values: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for curve in curves:
        try:
            values[curve.name] = curve.bd_rate()
        except ValueError as error:
            left_out[curve.name] = str(error)
    return Score(values, bootstrap_mean(list(values.values())) if values else None, left_out)


def received_error(picture: Picture, decoded: Frame) -> float:
    """‖y − r(ẑ)‖²_M, the YUV mean square error 6:1:1 in the normalised range."""
    terms = error_terms(picture.receiver, picture.z, decoded, wanted=picture.wanted, metric=yuv_metric)
    return float(terms.total[0])


def predicted_curves(
    picture: Picture, codec: X26x, plain: Sequence[EncodeResult], weights: Weights, all_qps: Sequence[int],
    qps: Sequence[int],
) -> Curves:  # fmt: skip
    """What the weights will do to a picture, from its plain encodes at ``all_qps``, at ``qps`` among them."""
    block = codec.map_block
    offsets = np.concatenate(
        [codec.coded_offsets(weights.planes, qp=qp, bit_depth=BIT_DEPTH) for qp in all_qps]
    )  # [Q, rows, columns]
    flat = offsets.reshape(len(all_qps), -1)
    bits = np.array([float(np.sum(r.bits)) for r in plain])
    error = np.array([received_error(picture, r.decoded) for r in plain])
    attributed = [
        attributed_error(picture.receiver, picture.z, r.decoded, wanted=picture.wanted, metric=yuv_metric)
        for r in plain
    ]
    parts = np.stack([pooled_sums(jax.device_get(a), block).ravel() for a in attributed])  # [Q, blocks]
    shares = np.stack([bit_shares(picture.z, quantiser_step(qp, BIT_DEPTH), block) for qp in all_qps])
    # The parts sum to the error that coding adds but for the receiver's higher orders, which stay as they are.
    moved_error = error + moved_totals(all_qps, parts, flat) - parts.sum(1)
    moved_bits = moved_totals(all_qps, shares * bits[:, None], flat) + [offset_bits(o) for o in offsets]
    kept = [list(all_qps).index(qp) for qp in qps]
    return Curves(picture.name, tuple(qps), bits[kept], error[kept], moved_bits[kept], moved_error[kept])


def measured_curves(
    picture: Picture, plain: Sequence[EncodeResult], weighted: Sequence[EncodeResult], qps: Sequence[int]
) -> Curves:
    """What the weights really do, from plain and weighted encodes at ``qps``."""
    bits, error = (
        [np.array([f(r) for r in results]) for results in (plain, weighted)]
        for f in (lambda r: float(np.sum(r.bits)), lambda r: received_error(picture, r.decoded))
    )
    return Curves(picture.name, tuple(qps), bits[0], error[0], bits[1], error[1])
