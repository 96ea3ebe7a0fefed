"""The papers' assumptions on a wrapper of one's own, measured on pictures and clips, and what follows for its bits.

Each measurement is one of `jaxwrap.importance.diagnostics`; the prediction is `jaxwrap.train.verdict`'s. Maps are of
every frame, encodes of a few of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxwrap.arrays import Frame, crop_to, size_of
from jaxwrap.codec import EncodeResult, Weights
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.diagnostics import (
    BlockEnergy,
    SketchError,
    block_energy,
    diagonal_error,
    error_terms,
    map_correlation,
    pooled_means,
    sketch_errors,
)
from jaxwrap.importance.jacobian import Jacobian, sketched_rows
from jaxwrap.importance.maps import ImportanceMap, yuv_metric
from jaxwrap.importance.prediction import weight_spread_bits
from jaxwrap.metrics.bjontegaard import Interval, bootstrap_mean
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.evaluate.workers import Workers
from jaxwrap.train.media import Clip
from jaxwrap.train.verdict import (
    Curves,
    Picture,
    Score,
    Subject,
    encode_pictures,
    maps_of,
    offset_weights,
    pictures_of,
    predicted_curves,
    score,
    wider,
)

SKETCH_COUNTS = (2, 4, 8, 16, 32)
REFERENCE_SKETCHES = 32
ENERGY_BLOCKS = (4, 8, 16, None)

BLOCK = 16
"""Side of the blocks whose means are correlated, in luma samples."""

_ROW_PICTURES = 3
"""Pictures whose Jacobian is sketched many times."""


@dataclasses.dataclass(frozen=True)
class CodecTerms:
    """`ErrorTerms` and what maps make of them under one codec: a list over QPs for each picture.

    ``calibrated``: Σ w_p ‖q_p‖² with one weight per plane, found at the middle QP on the other pictures.
    """

    qps: list[int]
    pictures: list[str]
    wrapper: list[list[float]]
    coding: list[list[float]]
    cross: list[list[float]]
    linear: list[list[float]]
    diagonal: list[list[float]]
    calibrated: list[list[float]]

    def ratio(self, name: str) -> np.ndarray:
        """A quantity over ‖e‖², ``[pictures, Q]``."""
        return np.array(getattr(self, name)) / np.array(self.coding)

    def total_error(self) -> np.ndarray:
        """‖y − r(ẑ)‖², ``[pictures, Q]``."""
        return np.array(self.wrapper) + np.array(self.coding) - np.array(self.cross)


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Pearson's coefficient between maps: of their samples, and of means over 16×16 blocks."""

    samples: Interval
    blocks: Interval


@dataclasses.dataclass(frozen=True)
class CodecVerdict:
    """What is predicted for one codec.

    ``spread_bits``: ½ log₂ of arithmetic over geometric mean of its blocks' weights. ``moved``: share of the blocks
    whose QP changes at the middle QP. ``offsets``: least and greatest ΔQP.
    """

    score: Score
    curves: list[Curves]
    spread_bits: float
    moved: float
    offsets: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All that was measured. ``over_time``: by distance in frames, empty for pictures; ``same_frame``: between two
    independent maps of one frame, the most that sketch noise allows; ``between_inputs``: between pairs of clips,
    (samples, blocks) each, over ``common_size`` (height, width) from the top left corner, where a frozen map lies."""

    subject: str
    settings: dict[str, Any]
    terms: dict[str, CodecTerms]
    over_time: dict[int, Correlation]
    clips_over_time: int
    same_frame: Correlation
    between_inputs: list[tuple[float, float]]
    common_size: tuple[int, int]
    resized: bool
    sketch_errors: list[SketchError]
    energy: list[BlockEnergy]
    verdicts: dict[str, CodecVerdict]

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return _plain(dataclasses.asdict(self))


def diagnose(
    subject: Subject,
    clips: Sequence[Clip],
    codecs: Sequence[X26x],
    *,
    qps: Sequence[int],
    sketches: int,
    alpha: float,
    num_pictures: int,
    seed: int,
    processes: int,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Diagnosis, tuple[Picture, Weights]]:
    """Measures; also returns one picture with its weights, to be shown.

    Args:
      qps: rising, at least 5 for BD figures.
      sketches, alpha: of the maps and weights that are examined.
      num_pictures: frames that are encoded, spread over the clips.
      advance: told (what, done, total) as the work proceeds.
    """
    pictures = list(pictures_of(subject, clips))
    coded = _spread_over(pictures, num_pictures)
    maps = []
    for n in range(len(pictures)):
        maps += maps_of(pictures[n : n + 1], sketches=sketches, seed=seed + n)
        advance("maps", n + 1, len(pictures))
    coded_maps = [maps[n] for n in coded]
    examined = [pictures[n] for n in coded]
    again = maps_of(examined, sketches=sketches, seed=seed + len(pictures))

    errors, energies = [], []
    for n, picture in enumerate(examined[:_ROW_PICTURES]):
        key = jax.random.fold_in(jax.random.key(seed + len(pictures) + 1), n)
        count = max(SKETCH_COUNTS) + REFERENCE_SKETCHES
        rows = sketched_rows(Jacobian(picture.receiver, picture.z, yuv_metric), key, count)
        errors.append(sketch_errors(rows, counts=SKETCH_COUNTS, reference=REFERENCE_SKETCHES))
        energies.append([block_energy(rows, block) for block in ENERGY_BLOCKS])
        advance("sketches", n + 1, min(_ROW_PICTURES, len(examined)))

    sizes = [math.prod(size_of(picture.z)) for picture in examined[:_ROW_PICTURES]]
    weights = offset_weights(coded_maps, alpha)
    all_qps = wider(qps)
    terms, verdicts = {}, {}
    encodes = 0
    total = len(codecs) * len(examined) * len(all_qps)

    def one_more() -> None:
        nonlocal encodes
        encodes += 1
        advance("encodes", encodes, total)

    with Workers(processes) as workers:
        for codec in codecs:
            plain = encode_pictures(examined, codec, all_qps, workers, advance=one_more)
            inner = [[results[all_qps.index(qp)] for qp in qps] for results in plain]
            terms[codec.name] = _terms(examined, inner, coded_maps, qps)
            verdicts[codec.name] = _verdict(examined, codec, plain, weights, all_qps, qps)
            advance(f"{codec.name}: error at the receiver", 1, 1)

    pairs, common = _between_inputs(pictures, maps)
    over_time, clips_over_time = _over_time(pictures, maps)
    settings = {
        "clips": [clip.name for clip in clips],
        "frames": len(pictures),
        "encoded": [p.name for p in examined],
        "codecs": {codec.name: codec.version for codec in codecs},
        "qps": list(qps),
        "sketches": sketches,
        "alpha": alpha,
        "seed": seed,
        "metric": "YUV 6:1:1",
        "bit_depth": BIT_DEPTH,
    }
    diagnosis = Diagnosis(
        subject=subject.name,
        settings=settings,
        terms=terms,
        over_time=over_time,
        clips_over_time=clips_over_time,
        same_frame=_mean_correlation([_correlate(a.h, b.h) for a, b in zip(coded_maps, again, strict=True)]),
        between_inputs=pairs,
        common_size=common,
        resized=len({size_of(p.z) for p in pictures}) > 1,
        sketch_errors=_mean_sketch_errors(errors),
        energy=[_sum_energy(parts, sizes) for parts in zip(*energies, strict=True)],
        verdicts=verdicts,
    )
    return diagnosis, (examined[0], weights[0])


def _spread_over(pictures: Sequence[Picture], count: int) -> list[int]:
    """Numbers of at most ``count`` frames: of each clip equally many, evenly spaced, the first among them."""
    by_clip = [list(g) for _, g in itertools.groupby(range(len(pictures)), key=lambda n: pictures[n].clip)]
    if len(by_clip) >= count:
        return [by_clip[i * len(by_clip) // count][0] for i in range(count)]
    each = count // len(by_clip)
    return [
        frames[i * len(frames) // min(each, len(frames))] for frames in by_clip for i in range(min(each, len(frames)))
    ]


def _terms(
    pictures: Sequence[Picture],
    results: Sequence[Sequence[EncodeResult]],
    maps: Sequence[ImportanceMap],
    qps: Sequence[int],
) -> CodecTerms:
    middle = len(qps) // 2
    names = ("wrapper", "coding", "cross", "linear", "diagonal")
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    plane_errors, calibrations = [], []
    for picture, of_picture, importance in zip(pictures, results, maps, strict=True):
        lists: dict[str, list[float]] = {name: [] for name in names}
        for result in of_picture:
            terms = error_terms(picture.receiver, picture.z, result.decoded, wanted=picture.wanted, metric=yuv_metric)
            for name in names[:-1]:
                lists[name].append(float(getattr(terms, name)[0]))
            lists["diagonal"].append(float(diagonal_error(importance.h, picture.z, result.decoded)[0]))
        for name in names:
            found[name].append(lists[name])
        errors = [_error(picture.z, result.decoded) for result in of_picture]
        plane_errors.append([[float(np.square(p).sum()) for p in q.planes] for q in errors])
        calibration = Calibration("plane", size_of(picture.z), len(picture.z.planes))
        calibrations.append(calibration.update(picture.receiver, picture.z, errors[middle], metric=yuv_metric).sums)
    numerators, denominators = (np.array([c[name] for c in calibrations]) for name in ("numerator", "denominator"))
    # The metric is a mean over samples, so a weight is worth less on a larger picture.
    samples = np.array([[math.prod(size_of(picture.z))] for picture in pictures])
    others = [[m for m in range(len(pictures)) if m != n] or [n] for n in range(len(pictures))]
    pooled = [(samples * numerators)[o].sum(0) / denominators[o].sum(0) for o in others]
    gains = np.array(pooled) / samples  # [pictures, planes]
    calibrated = np.einsum("nqp,np->nq", np.array(plane_errors), gains)
    return CodecTerms(list(qps), [p.name for p in pictures], **found, calibrated=calibrated.tolist())


def _verdict(
    pictures: Sequence[Picture],
    codec: X26x,
    plain: Sequence[Sequence[EncodeResult]],
    weights: Sequence[Weights],
    all_qps: Sequence[int],
    qps: Sequence[int],
) -> CodecVerdict:
    curves = [
        predicted_curves(picture, codec, results, w, all_qps, qps)
        for picture, results, w in zip(pictures, plain, weights, strict=True)
    ]
    middle = qps[len(qps) // 2]
    offsets = np.concatenate([codec.coded_offsets(w.planes, qp=middle, bit_depth=BIT_DEPTH).ravel() for w in weights])
    spread = float(np.mean([weight_spread_bits(pooled_means(w.planes, codec.map_block)) for w in weights]))
    moved = float(np.mean(offsets != 0))
    return CodecVerdict(score(curves), curves, spread, moved, (int(offsets.min()), int(offsets.max())))


def _error(z: Frame, decoded: Frame) -> Frame:
    return jax.tree.map(lambda a, b: np.asarray(a, np.float32) - np.asarray(b, np.float32), decoded, z)


def _correlate(a: Frame, b: Frame) -> tuple[float, float]:
    """(of samples, of block means)."""
    samples = [np.concatenate([np.ravel(p) for p in frame.planes]) for frame in (a, b)]
    blocks = [pooled_means(frame, BLOCK) for frame in (a, b)]
    return _correlate_arrays(*samples), _correlate_arrays(*blocks)


def _correlate_arrays(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's coefficient; two maps that are constant (but for rounding) agree, and one has nothing to say of
    another."""
    constant = [float(np.std(m)) < 1e-5 * float(np.mean(m)) for m in (a, b)]
    return float(all(constant)) if any(constant) else map_correlation(a, b)


def _mean_correlation(values: Sequence[tuple[float, float]]) -> Correlation:
    return Correlation(*(bootstrap_mean([v[i] for v in values]) for i in range(2)))


def _over_time(pictures: Sequence[Picture], maps: Sequence[ImportanceMap]) -> tuple[dict[int, Correlation], int]:
    """By distance in frames, and the number of clips. Every frame that has one at this distance serves as I frame.

    Intervals are over clips; where there is one, over its pairs of frames, which overlap.
    """
    by_clip: dict[str, list[Frame]] = {}
    for picture, importance in zip(pictures, maps, strict=True):
        by_clip.setdefault(picture.clip, []).append(importance.h)
    moving = [frames for frames in by_clip.values() if len(frames) > 1]
    result = {}
    for distance in range(1, max(map(len, moving), default=1)):
        long_enough = [frames for frames in moving if len(frames) > distance]
        if len(long_enough) < len(moving):
            break  # the same clips at all distances
        pairs = [
            [_correlate(frames[t], frames[t + distance]) for t in range(len(frames) - distance)]
            for frames in long_enough
        ]
        means = [(float(np.mean([p[0] for p in clip])), float(np.mean([p[1] for p in clip]))) for clip in pairs]
        result[distance] = _mean_correlation(pairs[0] if len(moving) == 1 else means)
    return result, len(moving)


def _between_inputs(
    pictures: Sequence[Picture], maps: Sequence[ImportanceMap]
) -> tuple[list[tuple[float, float]], tuple[int, int]]:
    """Between the first frames of all pairs of clips, cut to the size that all have, in whole blocks."""
    first = [m.h for p, m in zip(pictures, maps, strict=True) if p.frame == 0]
    heights, widths = zip(*(size_of(h) for h in first), strict=True)
    height, width = min(heights), min(widths)
    if len({*heights}) > 1 or len({*widths}) > 1:
        height, width = max(BLOCK, height // BLOCK * BLOCK), max(BLOCK, width // BLOCK * BLOCK)
    cut = [crop_to(h, min(height, size_of(h)[0]), min(width, size_of(h)[1])) for h in first]
    return [_correlate(a, b) for a, b in itertools.combinations(cut, 2)], (height, width)


def _mean_sketch_errors(tables: Sequence[Sequence[SketchError]]) -> list[SketchError]:
    """Root mean square over pictures."""
    return [
        SketchError(
            of_count[0].sketches,
            float(np.sqrt(np.mean([e.samples**2 for e in of_count]))),
            float(np.sqrt(np.mean([e.blocks**2 for e in of_count]))),
            of_count[0].law,
        )
        for of_count in zip(*tables, strict=True)
    ]


def _sum_energy(parts: Sequence[BlockEnergy], samples: Sequence[int]) -> BlockEnergy:
    """Sums over pictures. Energies are of fourth order in J, and the metric is a mean over each picture's samples."""

    def total(name: str) -> Any:
        return sum(n**2 * getattr(part, name) for part, n in zip(parts, samples, strict=True))

    return BlockEnergy(parts[0].block, total("total"), total("within"), total("diagonal"))


def _plain(value: Any) -> Any:
    """JSON types of nested containers and NumPy arrays."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value
