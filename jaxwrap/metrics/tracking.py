"""Multi-object tracking: people linked over the frames of a video, and MOTA, IDF1 and HOTA of the tracks.

A sequence is a float array of MOTChallenge rows: frame (from 1), track id, left, top, width, height in pixels, then
confidence, −1, −1, −1 in results ``[R, 10]``, and flag, class, visibility in truth ``[R, 9]`` (MOT16's columns).

Tracker and scores are those of the library ``trackers`` (Roboflow): ByteTrack (Zhang et al., ECCV 2022), CLEAR MOT
(Bernardin and Stiefelhagen, 2008), identity scores (Ristani et al., 2016) and HOTA (Luiten et al., IJCV 2021) as
TrackEval, MOTChallenge's own evaluation, defines and pools them. Pooled over sequences, MOTA and IDF1 are those of
summed counts; HOTA sums detections and weights associations by true positives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

PEDESTRIAN = 1
DISTRACTORS = (2, 7, 8, 12)
"""MOT16's classes person on vehicle, static person, distractor, reflection: finding one is neither right nor wrong."""

OVERLAP = 0.5
"""Least intersection over union of a track's box with the object it has found, for MOTA and IDF1."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrackingScores:
    """MOTA in (−∞, 1]; IDF1 and HOTA in ``[0, 1]``."""

    mota: float
    idf1: float
    hota: float


@dataclasses.dataclass(frozen=True, slots=True)
class TrackingCounts:
    """What a sequence, or a segment of one, adds to pooled scores: the library's counts."""

    clear: dict[str, Any]
    identity: dict[str, Any]
    hota: dict[str, Any]


def track(
    detections: Iterable[tuple[ArrayLike, ArrayLike]],
    fps: float,
    *,
    confident: float = 0.5,
    tentative: float = 0.1,
    new: float = 0.6,
    overlap: float = 0.1,
    confirmations: int = 2,
    patience: float = 1.0,
) -> np.ndarray:
    """Rows ``[R, 10]`` of the objects found in the frames of one video, in their order; the same for the same input.

    Thresholds of scores are those of ByteTrack's released code, the rest is the library's defaults. None was fitted.

    Args:
      detections: for each frame boxes ``[K, 4]`` (corners x0, y0, x1, y1 in pixels) and scores ``[K]`` of one class.
      fps: frames per second.
      confident: from this score on, boxes are linked first.
      tentative: from this score on, boxes are linked to the tracks that are left; what lies below is not looked at.
      new: least score of a box that begins a track.
      overlap: least intersection over union of a box with its track's predicted one.
      confirmations: frames in a row that a track is seen in before its boxes are given out.
      patience: seconds after which a lost track ends.

    Raises:
      ValueError: shapes that differ, or a rate that is not positive.
    """
    import supervision
    from trackers import ByteTrackTracker

    if not fps > 0:
        raise ValueError(f"{fps} frames per second: wanted a positive rate")
    tracker = ByteTrackTracker(
        lost_track_buffer=round(30 * patience),  # the library counts frames of 30 Hz
        frame_rate=fps,
        track_activation_threshold=new,
        minimum_consecutive_frames=confirmations,
        minimum_iou_threshold=overlap,
        high_conf_det_threshold=confident,
    )
    rows = [np.zeros((0, 10))]
    for frame, (frame_boxes, frame_scores) in enumerate(detections, start=1):
        boxes, scores = np.asarray(frame_boxes, np.float64), np.asarray(frame_scores, np.float64)
        if scores.ndim != 1 or boxes.shape != (len(scores), 4):
            raise ValueError(f"frame {frame}: boxes {boxes.shape}, scores {scores.shape}: wanted [K, 4] and [K]")
        seen = scores >= tentative
        found: Any = tracker.update(supervision.Detections(boxes[seen], confidence=scores[seen]))
        kept = found.tracker_id >= 0
        corners, ids = found.xyxy[kept], found.tracker_id[kept]
        rest = np.full((len(ids), 3), -1.0)
        columns = (np.full(len(ids), frame), ids + 1, corners[:, :2], corners[:, 2:] - corners[:, :2])
        rows.append(np.column_stack([*columns, np.reshape(found.confidence, -1)[kept], rest])[np.argsort(ids)])
    return np.concatenate(rows)


def pseudo_truth(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tracks of uncompressed sequences as truth ``[R, 9]``: what a coded sequence should not change."""
    return {name: np.column_stack([r[:, :6], np.ones((len(r), 3))]) for name, r in rows.items()}


def targets(truth: np.ndarray) -> np.ndarray:
    """Rows of truth ``[R, 9]`` that a tracker has to find, people of flag 1: bool ``[R]``."""
    return (truth[:, 6] != 0) & (truth[:, 7] == PEDESTRIAN)


def distractors(truth: np.ndarray) -> np.ndarray:
    """Rows of truth ``[R, 9]`` that it may find or not: bool ``[R]``."""
    return np.isin(truth[:, 7], DISTRACTORS)


def tracking_scores(truth: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> TrackingScores:
    """Pooled MOTA, IDF1 and HOTA of all sequences, by name.

    Errors as in `tracking_counts`.
    """
    return pooled_scores(tracking_counts(truth, rows).values())


def tracking_counts(
    truth: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], *, segment: int | None = None
) -> dict[tuple[str, int], TrackingCounts]:
    """Counts by (sequence, number of the segment from 0), to be pooled by `pooled_scores` in any multiset.

    Only people count: as in MOTChallenge's protocol, a row that fits a distractor's box (`DISTRACTORS`) best is left
    out, found or not, before anything is counted.

    Args:
      truth: rows of each sequence.
      rows: the tracker's, of the same sequences; an empty array ``[0, 10]`` where it found nothing.
      segment: frames of a segment, the unit of a bootstrap where there are few sequences; default: whole sequences.
        Each segment is scored by itself, so an identity that changes between two costs nothing: pooled IDF1 and HOTA
        then measure tracks no longer than that.

    Raises:
      ValueError: sequences that one side lacks, rows of other widths or with numbers that are not finite, a track id
        that a frame has twice, no object in the truth.
    """
    if differ := sorted(set(truth) ^ set(rows)):
        raise ValueError(f"sequences that only the truth or only the results have: {', '.join(differ)}")
    for name in truth:
        _check_rows(name, "truth", truth[name], 9)
        _check_rows(name, "results", rows[name], 10)
    if not any(targets(r).any() for r in truth.values()):
        raise ValueError(
            f"no object in the truth of {', '.join(truth) or 'no sequence'}: tracking scores are not defined"
        )
    counts = {}
    for name in truth:
        # The truth alone says where segments begin, so that all results of a sequence have the same ones.
        told, last = (
            int(r[:, 0].max(initial=1)) for r in (truth[name], np.vstack([truth[name][:, :1], rows[name][:, :1]]))
        )
        starts = range(1, told + 1, segment or told)
        for number, (first, following) in enumerate(zip(starts, [*starts[1:], last + 1], strict=True)):
            counts[name, number] = _counts(truth[name], rows[name], range(first, following))
    return counts


def pooled_scores(counts: Iterable[TrackingCounts]) -> TrackingScores:
    """Scores of sequences or segments taken together; one may come several times, as a bootstrap draws it.

    MOTA and IDF1 are 0 where they hold no object.
    """
    from trackers.eval import aggregate_clear_metrics, aggregate_hota_metrics, aggregate_identity_metrics

    units = list(counts)
    return TrackingScores(
        mota=float(aggregate_clear_metrics([u.clear for u in units])["MOTA"]),
        idf1=float(aggregate_identity_metrics([u.identity for u in units])["IDF1"]),
        hota=float(aggregate_hota_metrics([u.hota for u in units])["HOTA"]),
    )


def _counts(truth: np.ndarray, rows: np.ndarray, frames: range) -> TrackingCounts:
    from trackers.eval import box_iou, compute_clear_metrics, compute_hota_metrics, compute_identity_metrics

    objects, excused = targets(truth), distractors(truth)
    object_ids, track_ids, overlaps = [], [], []
    for frame in frames:
        there, found = truth[:, 0] == frame, rows[rows[:, 0] == frame]
        overlap = box_iou(truth[there, 2:6], found[:, 2:6], box_format="xywh")
        # The library does this for files only, so it is done here as TrackEval does (`MotChallenge2DBox`).
        fits = np.where(overlap < OVERLAP - np.finfo(float).eps, 0.0, overlap)
        matched, by = linear_sum_assignment(-fits)
        removed = by[(fits[matched, by] > 0) & excused[there][matched]]
        counted = objects[there]
        object_ids.append(truth[there, 1][counted].astype(int))
        track_ids.append(np.delete(found[:, 1], removed).astype(int))
        overlaps.append(np.delete(overlap[counted], removed, axis=1))
    return TrackingCounts(
        clear=compute_clear_metrics(object_ids, track_ids, overlaps, threshold=OVERLAP),
        identity=compute_identity_metrics(object_ids, track_ids, overlaps, threshold=OVERLAP),
        hota=compute_hota_metrics(object_ids, track_ids, overlaps),
    )


def _check_rows(name: str, side: str, rows: np.ndarray, columns: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(f"{side} of {name}: shape {rows.shape}, wanted [R, {columns}]")
    if not np.isfinite(rows[:, :7]).all() or (rows[:, 0] < 1).any() or (rows[:, :2] % 1 != 0).any():
        raise ValueError(f"{side} of {name}: wanted finite numbers, whole frames (from 1) and whole ids")
    places, times = np.unique(rows[:, :2], axis=0, return_counts=True)
    if (times > 1).any():
        frame, identity = places[times > 1][0].astype(int)
        raise ValueError(f"{side} of {name}: id {identity} comes more than once in frame {frame}")
