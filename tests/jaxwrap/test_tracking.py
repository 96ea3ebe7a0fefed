"""Against counts by hand, and against the evaluation of files by the library that counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trackers.eval import evaluate_mot_sequences

from jaxwrap.metrics.tracking import (
    distractors,
    pooled_scores,
    pseudo_truth,
    targets,
    track,
    tracking_counts,
    tracking_scores,
)

Frames = list[tuple[np.ndarray, np.ndarray]]


def box(x: float, y: float = 0.0) -> list[float]:
    return [x, y, 20.0, 40.0]


def truth_rows(*rows: tuple[int, int, float, int, int]) -> np.ndarray:
    """From (frame, id, x, flag, class)."""
    return np.array([[frame, i, *box(x), flag, kind, 1.0] for frame, i, x, flag, kind in rows], np.float64)


def found_rows(*rows: tuple[int, int, float]) -> np.ndarray:
    """From (frame, id, x)."""
    return np.array([[frame, i, *box(x), 0.9, -1.0, -1.0, -1.0] for frame, i, x in rows], np.float64).reshape(-1, 10)


def made_up(seed: int, frames: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Walkers of several classes and flags, and tracks that miss them, swap them, and see more than there is."""
    rng = np.random.default_rng(seed)
    truth: list[list[float]] = []
    found: list[list[float]] = []
    start, speed = rng.uniform(0, 300, 8), rng.uniform(-4, 4, 8)
    kinds, flags = [1, 1, 1, 1, 1, 7, 12, 3], [1, 1, 1, 1, 0, 0, 0, 0]
    for frame in range(1, frames + 1):
        for i in range(8):
            x = start[i] + frame * speed[i]
            if rng.uniform() < 0.9:
                truth.append([frame, i + 1, *box(x), flags[i], kinds[i], 1.0])
            if rng.uniform() < 0.8:
                identity = i + 1 + 20 * (frame > 12) * (i % 2)
                found.append([frame, identity, *(np.array(box(x)) + rng.normal(0, 2, 4)), 0.9, -1.0, -1.0, -1.0])
        found.append([frame, 50 + frame // 9, *box(rng.uniform(400, 900)), 0.4, -1.0, -1.0, -1.0])
    return np.array(truth), np.array(found)


def walkers(frames: int, *, without: range = range(0)) -> Frames:
    """Two people who walk past each other at different heights; the second is not seen in some frames."""
    result = []
    for n in range(frames):
        boxes = [[10.0 + 3 * n, 0, 30.0 + 3 * n, 40]] + [[200.0 - 3 * n, 60, 220.0 - 3 * n, 100]] * (n not in without)
        result.append((np.array(boxes), np.full(len(boxes), 0.8)))
    return result


def test_scores_are_those_of_hand_counts() -> None:
    truth = truth_rows(*((f, i, 100.0 * i, 1, 1) for f in range(1, 5) for i in (1, 2)))
    found = found_rows(
        *((f, 1, 100.0) for f in range(1, 5)),
        *((f, 2, 200.0) for f in (1, 2)),
        (3, 3, 200.0),  # one switch, then one miss
        (4, 4, 500.0),  # one that is not there
    )
    scores = tracking_scores({"a": truth}, {"a": found})
    assert scores.mota == 1 - (1 + 1 + 1) / 8
    assert scores.idf1 == pytest.approx(2 * 6 / (8 + 8))  # 4 + 2 of 8 objects and of 8 found carry the right id
    # Detection: 7 hits, 1 miss, 1 false. Association of each hit: 4 of track 1 fit wholly, then 2 in 4, then 1 in 4.
    assert scores.hota == pytest.approx(np.sqrt(7 / 9 * (4 * 1 + 2 * 2 / 4 + 1 / 4) / 7))


def test_who_stands_on_a_distractor_is_neither_right_nor_wrong() -> None:
    truth = truth_rows((1, 1, 100, 1, 1), (1, 2, 300, 0, 7), (1, 3, 500, 0, 3), (1, 4, 700, 0, 1))
    np.testing.assert_array_equal(targets(truth), [True, False, False, False])
    np.testing.assert_array_equal(distractors(truth), [False, True, False, False])
    for x, mota in ((300.0, 1), (311.0, 0), (500.0, 0), (700.0, 0)):  # 11 pixels aside overlap by less than half
        found = found_rows((1, 1, 100.0), (1, 2, x))
        assert tracking_scores({"a": truth}, {"a": found}).mota == mota, x


def test_scores_and_pooling_are_those_of_the_library_on_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = {name: made_up(seed, 20 + 10 * seed) for seed, name in enumerate(("a", "b", "c"))}
    truth, found = ({name: pair[side] for name, pair in sequences.items()} for side in (0, 1))
    for folder, rows in (("truth", truth), ("found", found)):
        (tmp_path / folder).mkdir()
        for name, array in rows.items():
            np.savetxt(tmp_path / folder / f"{name}.txt", array, delimiter=",", fmt="%.17g")
    expected: Any = evaluate_mot_sequences(
        tmp_path / "truth", tmp_path / "found", metrics=["CLEAR", "HOTA", "Identity"]
    )
    for name, result in (*expected.sequences.items(), (None, expected.aggregate)):
        chosen = list(truth) if name is None else [name]
        scores = tracking_scores({n: truth[n] for n in chosen}, {n: found[n] for n in chosen})
        assert (scores.mota, scores.idf1, scores.hota) == pytest.approx(
            (result.CLEAR.MOTA, result.Identity.IDF1, result.HOTA.HOTA), rel=1e-12
        )
        assert -0.5 < scores.mota < 0.9
        assert 0.2 < scores.hota < scores.idf1 < 0.9
    assert capsys.readouterr().out == ""


def test_a_sequence_drawn_twice_is_one_more_sequence() -> None:
    truth, found = ({"a": made_up(0)[side], "b": made_up(1)[side]} for side in (0, 1))
    counts = tracking_counts(truth, found)
    drawn = pooled_scores([counts["b", 0], counts["a", 0], counts["b", 0]])
    copied = tracking_scores(truth | {"c": truth["b"]}, found | {"c": found["b"]})
    assert (drawn.mota, drawn.idf1, drawn.hota) == pytest.approx((copied.mota, copied.idf1, copied.hota), rel=1e-12)


def test_segments_are_sequences_of_their_own() -> None:
    truth, found = made_up(2, frames=25)
    beyond = found[-1:].copy()
    beyond[0, 0] = 27  # after the last frame of which the truth tells: the last segment's
    found = np.concatenate([found, beyond])
    counts = tracking_counts({"a": truth}, {"a": found}, segment=10)
    assert list(counts) == [("a", 0), ("a", 1), ("a", 2)]
    pooled = pooled_scores(counts.values())
    parts = [(f"{n}", (10 * n, 10 * n + 10 if n < 2 else 99)) for n in range(3)]
    cut = [{name: r[(r[:, 0] > lo) & (r[:, 0] <= hi)] for name, (lo, hi) in parts} for r in (truth, found)]
    expected = tracking_scores(*cut)
    assert (pooled.mota, pooled.idf1, pooled.hota) == pytest.approx((expected.mota, expected.idf1, expected.hota))
    assert pooled != tracking_scores({"a": truth}, {"a": found})


def test_nothing_found_scores_nothing() -> None:
    truth, nothing = made_up(0)[0], np.zeros((0, 10))
    scores = tracking_scores({"a": truth}, {"a": nothing})
    assert (scores.mota, scores.idf1, scores.hota) == (0, 0, 0)


def test_people_who_pass_each_other_keep_their_ids(capsys: pytest.CaptureFixture[str]) -> None:
    detections = walkers(40)
    rows = track(detections, 25.0)
    assert rows.shape == (2 * 39, 10)  # a track is confirmed in its second frame
    assert sorted(set(rows[:, 1])) == [1, 2]
    for frame, identity, x, y, width, height, confidence, *rest in rows:
        boxes = detections[int(frame) - 1][0]
        np.testing.assert_allclose([x, y, x + width, y + height], boxes[int(y > 0)])
        assert identity == rows[0 if y == rows[0, 3] else 1, 1]
        assert (confidence, *rest) == (0.8, -1, -1, -1)
    np.testing.assert_array_equal(track(iter(detections), 25.0), rows)
    assert capsys.readouterr().out == ""


def test_patience_is_told_in_seconds() -> None:
    for gap, fps, tracks in ((6, 10.0, 2), (14, 10.0, 3), (14, 25.0, 2)):  # 0.6, 1.4 and 0.56 seconds unseen
        rows = track(walkers(40, without=range(15, 15 + gap)), fps)
        assert len(set(rows[:, 1])) == tracks, (gap, fps)
    assert len(set(track(walkers(40, without=range(15, 21)), 10.0, patience=0.3)[:, 1])) == 3


def test_weak_boxes_go_on_with_tracks_but_begin_none() -> None:
    strong = walkers(10)
    weak = [(b, s / 4) for b, s in walkers(20)[10:]]
    assert len(track([(b, s / 4) for b, s in strong], 25.0)) == 0
    assert set(track(strong + weak, 25.0)[:, 0]) == set(range(2, 21))
    assert set(track(strong + weak, 25.0, tentative=0.3)[:, 0]) == set(range(2, 11))


def test_empty_frames_and_videos_give_no_rows() -> None:
    empty = (np.zeros((0, 4)), np.zeros(0))
    assert track([], 25.0).shape == (0, 10)
    assert track([empty, empty], 25.0).shape == (0, 10)
    assert set(track([empty, *walkers(5), empty], 25.0)[:, 0]) == {3, 4, 5, 6}


def test_tracks_are_perfect_against_themselves() -> None:
    rows = {"a": track(walkers(20), 25.0), "b": found_rows((1, 1, 0.0), (2, 1, 5.0))}
    scores = tracking_scores(pseudo_truth(rows), rows)
    assert (scores.mota, scores.idf1, scores.hota) == pytest.approx((1, 1, 1))


def test_bad_input_is_named() -> None:
    truth, found = made_up(0)
    with pytest.raises(ValueError, match="only the truth or only the results have: b, c"):
        tracking_counts({"a": truth, "b": truth}, {"a": found, "c": found})
    with pytest.raises(ValueError, match=r"truth of a: shape \(\d+, 10\), wanted \[R, 9\]"):
        tracking_counts({"a": found}, {"a": found})
    with pytest.raises(ValueError, match=r"results of a: id \d+ comes more than once in frame 1"):
        tracking_counts({"a": truth}, {"a": np.concatenate([found, found[:1]])})
    for column, value in ((0, 0), (0, 1.5), (1, 0.5), (3, np.nan)):
        broken = found.copy()
        broken[3, column] = value
        with pytest.raises(ValueError, match="results of a: wanted finite numbers, whole frames"):
            tracking_counts({"a": truth}, {"a": broken})
    with pytest.raises(ValueError, match="no object in the truth of a: tracking scores are not defined"):
        tracking_counts({"a": truth[~targets(truth)]}, {"a": found})
    with pytest.raises(ValueError, match=r"frame 2: boxes \(2, 4\), scores \(3,\)"):
        track([walkers(1)[0], (np.zeros((2, 4)), np.zeros(3))], 25.0)
    with pytest.raises(ValueError, match="0 frames per second"):
        track([], 0)
