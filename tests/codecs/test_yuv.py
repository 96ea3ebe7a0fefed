"""Raw YUV against FFmpeg's reader of raw video."""

from __future__ import annotations

import av
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codecs.reference.yuv import YuvFormat, count_frames, parse_name, read_yuv, write_yuv


def frames_of(bit_depth: int, *, grey: bool, count: int = 3) -> Frame:
    rng = np.random.default_rng(bit_depth)
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    y, u, v = (rng.integers(0, 2**bit_depth, (count, *s)).astype(dtype) for s in ((16, 24), (8, 12), (8, 12)))
    return Yuv400(y) if grey else Yuv420(y, u, v)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("bit_depth", [8, 10])
def test_files_read_back_and_ffmpeg_reads_the_same(tmp_path, bit_depth, grey):
    frames = frames_of(bit_depth, grey=grey)
    path = write_yuv(tmp_path, "clip_a", frames, bit_depth=bit_depth, fps=29.97)
    assert path.name == f"clip_a_24x16_29.97fps_{bit_depth}bit_P{400 if grey else 420}.yuv"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for plane, source in zip(read_yuv(path).planes, frames.planes, strict=True):
        np.testing.assert_array_equal(plane, source)
        assert plane.dtype == source.dtype
    pixels = ("gray" if grey else "yuv420p") + ("" if bit_depth == 8 else "10le")
    with av.open(str(path), format="rawvideo", options={"video_size": "24x16", "pixel_format": pixels}) as container:
        decoded = [f.to_ndarray() for f in container.decode(video=0)]
    assert len(decoded) == 3
    for i, picture in enumerate(decoded):
        np.testing.assert_array_equal(picture.ravel(), np.concatenate([p[i].ravel() for p in frames.planes]))


def test_a_range_of_frames_is_the_slice_of_all(tmp_path):
    frames = frames_of(10, grey=False, count=5)
    path = write_yuv(tmp_path, "a", frames, bit_depth=10, fps=25)
    part = read_yuv(path, start=2, count=2)
    for plane, source in zip(part.planes, frames.planes, strict=True):
        np.testing.assert_array_equal(plane, source[2:4])
    np.testing.assert_array_equal(read_yuv(path, start=4).y, frames.y[4:])
    for start, count in ((5, None), (0, 6), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="it has 0 to 4"):
            read_yuv(path, start=start, count=count)


def test_a_name_states_the_geometry_and_the_geometry_the_name():
    name, geometry = parse_name("folder/Basketball_Pass_416x240_50fps_8bit_P420.yuv")
    assert name == "Basketball_Pass"
    assert geometry == YuvFormat(416, 240, 50.0, 8, "420")
    assert geometry.bytes_per_frame == 416 * 240 * 3 // 2
    assert parse_name(geometry.file_name("x"))[1] == geometry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip.yuv", "raw files are named name_WIDTHxHEIGHT"),
        ("clip_416x240_50fps_8bit_P420.rgb", "raw files are named"),
        ("clip_415x240_50fps_8bit_P420.yuv", "even width"),
        ("clip_0x240_50fps_8bit_P400.yuv", "positive"),
        ("clip_416x240_0fps_8bit_P420.yuv", "positive"),
        ("clip_416x240_50fps_12bit_P420.yuv", "known: 8, 10"),
        ("clip_416x240_50fps_8bit_P444.yuv", "known: 420, 400"),
    ],
)
def test_a_name_outside_the_convention_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        parse_name(name)


def test_a_size_that_is_no_number_of_frames_is_stated(tmp_path):
    path = write_yuv(tmp_path, "a", frames_of(8, grey=False), bit_depth=8, fps=25)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"has 1628 bytes: 2 frames of 576 bytes .* and 476 bytes"):
        read_yuv(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 frames"):
        count_frames(path, parse_name(path)[1])


def test_ten_bits_in_the_upper_bits_are_noticed(tmp_path):
    path = write_yuv(tmp_path, "a", frames_of(10, grey=False), bit_depth=10, fps=25)
    path.write_bytes((np.fromfile(path, "<u2") << 6).tobytes())
    with pytest.raises(ValueError, match="low bits of two little-endian bytes"):
        read_yuv(path)


@pytest.mark.parametrize("plane", [np.full((1, 4, 4), 256), np.full((1, 4, 4), -1), np.full((1, 4, 4), 0.5)])
def test_samples_outside_the_bit_depth_are_not_written(tmp_path, plane):
    with pytest.raises(ValueError, match="8-bit files hold integers from 0 to 255"):
        write_yuv(tmp_path, "a", Yuv400(plane), bit_depth=8, fps=25)
    assert not list(tmp_path.iterdir())
