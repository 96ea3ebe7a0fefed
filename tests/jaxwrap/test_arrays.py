from __future__ import annotations

import numpy as np
import pytest

from jaxwrap.arrays import (
    Yuv400,
    Yuv420,
    check_frame,
    crop_to,
    frame_of,
    pad_to_multiple,
    size_of,
    stack_frames,
)


def ramp(height: int, width: int) -> Yuv420:
    y = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    u = np.arange(height * width // 4, dtype=np.float32).reshape(1, height // 2, width // 2)
    return Yuv420(y, u, u + 1)


def test_padding_replicates_edges_and_cropping_undoes_it() -> None:
    frame = ramp(6, 10)
    padded = pad_to_multiple(frame, 8)
    assert size_of(padded) == (8, 16)
    assert padded.u.shape == (1, 4, 8)
    np.testing.assert_array_equal(padded.y[0, 7, 10:], np.full(6, frame.y[0, 5, 9]))
    for a, b in zip(crop_to(padded, 6, 10).planes, frame.planes, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Yuv420(np.zeros((1, 5, 8)), np.zeros((1, 2, 4)), np.zeros((1, 2, 4))), "must be even"),
        (Yuv420(np.zeros((1, 4, 8)), np.zeros((1, 2, 4)), np.zeros((1, 2, 3))), "plane v has shape"),
        (Yuv400(np.zeros((4, 8))), "add a leading axis"),
    ],
)
def test_a_frame_of_the_wrong_shape_is_named(frame: Yuv420 | Yuv400, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_frame(frame)


def test_frames_are_built_from_one_or_three_planes_only() -> None:
    plane = np.zeros((1, 2, 2))
    assert isinstance(frame_of([plane]), Yuv400)
    with pytest.raises(ValueError, match="2 planes given"):
        frame_of([plane, plane])


def test_stacking_keeps_order() -> None:
    stacked = stack_frames([ramp(4, 4), ramp(4, 4)])
    assert stacked.y.shape == (2, 4, 4)
    np.testing.assert_array_equal(stacked.y[0], stacked.y[1])
