"""Opening files: pictures and videos made by other libraries come back as the samples that went in."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.codecs.reference.yuv import write_yuv
from jaxwrap.colour import rgb_to_yuv420, yuv_to_rgb
from jaxwrap.train.media import (
    Clip,
    ClipReader,
    Unreadable,
    iter_clips,
    open_clips,
    open_readers,
    picture_size,
    rgb_frames,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3)).astype(np.uint8)


def saved(path: Path, array: np.ndarray = RGB, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def video(path: Path, frames: list[av.VideoFrame], codec: str = "ffv1") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30000, 1001))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for i, frame in enumerate(frames):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise_frame(pixels: str, width: int = 16, height: int = 12) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, pixels)
    for plane in frame.planes:
        wide = "10" in pixels
        samples = np.frombuffer(memoryview(plane), np.uint16 if wide else np.uint8)
        samples[:] = RNG.integers(0, 1024 if wide else 256, samples.shape)
    return frame


def plane_of(frame: av.VideoFrame, number: int) -> np.ndarray:
    plane = frame.planes[number]
    rows = np.frombuffer(memoryview(plane), np.uint16 if "10" in frame.format.name else np.uint8)
    return rows.reshape(plane.height, -1)[:, : plane.width]


def only(path: Path, **options) -> Clip:
    (clip,), bad = open_clips([path], **options)
    assert not bad
    return clip


def reason(path: Path) -> str:
    (item,) = iter_clips([path])
    assert isinstance(item, Unreadable)
    assert item.source == path
    return item.reason


def test_a_picture_becomes_one_frame_of_its_colours(tmp_path):
    clip = only(saved(tmp_path / "a.png"))
    assert (clip.name, clip.bit_depth, clip.fps) == ("a", 8, 1.0)
    for plane, wanted in zip(clip.frames.planes, rgb_to_yuv420(RGB[None]).planes, strict=True):
        np.testing.assert_array_equal(plane, wanted)


def test_alpha_is_dropped_and_the_colour_below_it_kept(tmp_path):
    transparent = np.concatenate([RGB, np.zeros((12, 16, 1), np.uint8)], -1)
    np.testing.assert_array_equal(only(saved(tmp_path / "a.png", transparent)).frames.y, rgb_to_yuv420(RGB[None]).y)


def test_a_palette_with_transparent_entries_keeps_its_colours(tmp_path):
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    wanted = rgb_to_yuv420(np.asarray(palette.convert("RGB"))[None])
    np.testing.assert_array_equal(only(tmp_path / "a.png").frames.y, wanted.y)


def test_grey_pictures_get_neutral_chroma_and_limited_range(tmp_path):
    ramp = np.linspace(0, 255, 16).astype(np.uint8)[None].repeat(12, 0)
    frames = only(saved(tmp_path / "a.png", ramp)).frames
    assert np.unique(frames.u).tolist() == np.unique(frames.v).tolist() == [128]
    assert (frames.y.min(), frames.y.max()) == (16, 235)


def test_sixteen_bit_grey_pictures_are_reduced_to_their_upper_bits(tmp_path):
    grey = RNG.integers(0, 65536, (12, 16)).astype(np.uint16)
    eight = (grey >> 8).astype(np.uint8)
    found = only(saved(tmp_path / "a.png", grey)).frames.y
    np.testing.assert_array_equal(found, only(saved(tmp_path / "b.png", eight)).frames.y)


def test_a_picture_is_turned_upright_by_its_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° to view
    path = saved(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(only(path).frames.y, rgb_to_yuv420(np.rot90(RGB, -1)[None]).y)


def test_odd_pictures_are_padded_to_even_sizes(tmp_path):
    frames = only(saved(tmp_path / "a.png", RGB[:11, :15])).frames
    assert (frames.y.shape, frames.u.shape) == ((1, 12, 16), (1, 6, 8))


@pytest.mark.parametrize(("pixels", "bit_depth"), [("yuv420p", 8), ("yuv420p10le", 10)])
@pytest.mark.parametrize("size", [(16, 12), (15, 11)])
def test_planes_of_a_lossless_video_are_kept(tmp_path, pixels, bit_depth, size):
    frames = [noise_frame(pixels, *size) for _ in range(3)]
    clip = only(video(tmp_path / "a.mkv", frames))
    assert clip.bit_depth == bit_depth
    assert clip.fps == pytest.approx(30000 / 1001)
    assert (clip.frames.y.shape, clip.frames.v.shape) == ((3, 12, 16), (3, 6, 8))
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(clip.frames.y[i, : size[1], : size[0]], plane_of(frame, 0))
        np.testing.assert_array_equal(clip.frames.u[i], plane_of(frame, 1))
        np.testing.assert_array_equal(clip.frames.v[i], plane_of(frame, 2))


@pytest.mark.parametrize(("pixels", "neutral"), [("gray", 128), ("gray10le", 512)])
def test_grey_videos_get_neutral_chroma(tmp_path, pixels, neutral):
    frame = noise_frame(pixels)
    clip = only(video(tmp_path / "a.mkv", [frame]))
    np.testing.assert_array_equal(clip.frames.y[0], plane_of(frame, 0))
    assert np.unique(clip.frames.u).tolist() == np.unique(clip.frames.v).tolist() == [neutral]


@pytest.mark.parametrize(("pixels", "bit_depth"), [("yuv444p", 8), ("yuv422p10le", 10), ("bgr0", 8)])
def test_other_pixel_formats_are_converted_at_their_depth(tmp_path, pixels, bit_depth):
    clip = only(video(tmp_path / "a.mkv", [noise_frame(pixels)]))
    assert clip.bit_depth == bit_depth
    assert clip.frames.u.shape == (1, 6, 8)
    assert clip.frames.y.max() > 128 << (bit_depth - 8)


def test_no_more_frames_than_asked_for_are_taken(tmp_path):
    path = video(tmp_path / "a.mkv", [noise_frame("yuv420p") for _ in range(5)])
    assert only(path, max_frames=2).frames.y.shape[0] == 2
    with pytest.raises(ValueError, match="max_frames 0"):
        open_clips([path], max_frames=0)


def test_raw_files_are_opened_by_their_names(tmp_path):
    y = RNG.integers(0, 1024, (3, 12, 16)).astype(np.uint16)
    colour = write_yuv(tmp_path, "c", Yuv420(y, y[:, ::2, ::2], y[:, 1::2, 1::2]), bit_depth=10, fps=50)
    clip = only(colour, max_frames=2)
    np.testing.assert_array_equal(clip.frames.v, y[:2, 1::2, 1::2])
    assert (clip.bit_depth, clip.fps) == (10, 50.0)
    grey = write_yuv(tmp_path, "g", Yuv400(y[:, :11, :15]), bit_depth=10, fps=50)
    clip = only(grey)
    np.testing.assert_array_equal(clip.frames.y[:, :11, :15], y[:, :11, :15])
    assert clip.frames.u.shape == (3, 6, 8)
    assert np.unique(clip.frames.u).tolist() == [512]


def test_a_folder_is_its_files_in_order_and_bad_ones_are_reported(tmp_path):
    for name in ("b.png", "a.png", ".hidden.png"):
        saved(tmp_path / name)
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty.png").touch()
    saved(tmp_path / "whole.jpg", np.tile(RGB, (8, 8, 1)))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    (tmp_path / "notes.txt").write_text("words\n" * 50)
    (tmp_path / "noise.mp4").write_bytes(RNG.bytes(4000))
    clips, bad = open_clips([tmp_path])
    assert [clip.name for clip in clips] == ["a", "b", "whole"]
    reasons = {item.source.name: item.reason for item in bad}
    assert sorted(reasons) == ["cut.jpg", "empty.png", "noise.mp4", "notes.txt"]
    assert "truncated" in reasons["cut.jpg"]
    assert "0 bytes" in reasons["empty.png"]
    assert "neither" in reasons["noise.mp4"]
    assert "neither" in reasons["notes.txt"]


def test_names_are_unique_and_no_longer_than_needed(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        saved(tmp_path / folder / "same.png")
    saved(tmp_path / "x" / "other.png")
    saved(tmp_path / "x" / "other.bmp")
    clips, _ = open_clips([tmp_path / "x", tmp_path / "y", tmp_path / "x" / "same.png"])
    assert [clip.name for clip in clips] == ["other.bmp", "other.png", "x/same.png", "y/same.png"]


def test_nothing_readable_lists_every_reason(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.yuv").write_bytes(b"1")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"(?s)a\.png: .*0 bytes.*b\.yuv: .*geometry.*none: the folder has no files"):
        open_clips([tmp_path, tmp_path / "none"])


def test_missing_paths_are_named_before_anything_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no1\.png, .*no2"):
        iter_clips([saved(tmp_path / "a.png"), tmp_path / "no1.png", tmp_path / "no2"])
    with pytest.raises(ValueError, match="no path"):
        open_clips([])


def test_floating_point_pictures_have_no_range(tmp_path):
    path = saved(tmp_path / "a.tiff", np.ones((4, 4), np.float32))
    assert "32-bit (F)" in reason(path)


def test_a_raw_file_of_the_wrong_size_is_a_reason(tmp_path):
    path = write_yuv(tmp_path, "a", Yuv400(np.zeros((2, 4, 4), np.uint8)), bit_depth=8, fps=25)
    path.write_bytes(path.read_bytes() + b"1")
    assert "2 frames of 16 bytes" in reason(path)
    assert "and 1 bytes" in reason(path)


def test_a_playlist_opens_nothing_else(tmp_path):
    target = video(tmp_path / "a.ts", [noise_frame("yuv420p", 64, 64)], "mpeg2video")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/{target.name}\n#EXT-X-ENDLIST\n"
    )
    assert "neither" in reason(playlist)


@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "a.tiff", "a.mkv"])
def test_damage_anywhere_in_a_file_is_a_reason_or_a_clip(tmp_path, kind):
    path = tmp_path / kind
    whole = (video(path, [noise_frame("yuv420p")] * 3) if kind == "a.mkv" else saved(path)).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(40):
        data = bytearray(whole)
        for position in rng.integers(0, min(len(data), 400), 4):
            data[position] = rng.integers(256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        (item,) = iter_clips([path])
        assert isinstance(item, Clip | Unreadable)


def reader_of(path: Path, **options) -> ClipReader:
    (reader,), bad = open_readers([path], **options)
    assert not bad
    return reader


def planes_of(frames) -> list[np.ndarray]:
    return [np.concatenate(planes) for planes in zip(*(frame.planes for frame in frames), strict=True)]


@pytest.mark.parametrize("kind", ["ffv1", "h264", "raw", "picture"])
def test_a_reader_gives_the_frames_of_the_whole_clip_from_any_start(tmp_path, kind):
    if kind == "picture":
        path = saved(tmp_path / "a.png")
    elif kind == "raw":
        y = RNG.integers(0, 1024, (7, 12, 16)).astype(np.uint16)
        path = write_yuv(tmp_path, "a", Yuv420(y, y[:, ::2, ::2], y[:, 1::2, 1::2]), bit_depth=10, fps=50)
    else:  # x264 reorders its frames and codes in groups; 7 frames of odd size
        codec = {"h264": "libx264"}.get(kind, kind)
        path = video(tmp_path / "a.mkv", [noise_frame("yuv420p", 34, 18) for _ in range(7)], codec)
    clip, reader = only(path), reader_of(path)
    assert (reader.name, reader.size, reader.bit_depth, reader.fps) == (clip.name, clip.size, clip.bit_depth, clip.fps)
    assert reader.num_frames == clip.num_frames == (1 if kind == "picture" else 7)
    for start, step in ((0, 1), (2, 1), (0, 3), (1, 2), (9, 1)):
        for source in (reader, clip):
            found = list(source.read(start, step=step))
            assert len(found) == len(range(start, clip.num_frames, step))
            if found:
                for plane, whole in zip(planes_of(found), clip.frames.planes, strict=True):
                    np.testing.assert_array_equal(plane, whole[start::step])


def test_a_reader_stops_where_it_was_told(tmp_path):
    path = video(tmp_path / "a.mkv", [noise_frame("yuv420p") for _ in range(6)])
    reader = reader_of(path, max_frames=4)
    assert reader.num_frames == 4
    whole = only(path).frames.y
    for start, step in ((0, 1), (1, 2), (3, 1), (4, 1), (5, 2)):
        found = [frame.y[0] for frame in reader.read(start, step=step)]
        np.testing.assert_array_equal(np.reshape(found, (-1, 12, 16)), whole[start:4:step])


def test_frames_are_counted_where_the_container_does_not_tell(tmp_path):
    frames = [noise_frame("yuv420p") for _ in range(5)]
    for suffix in ("mkv", "avi", "ts"):  # AVI tells its number of frames, the others do not
        assert reader_of(video(tmp_path / f"a.{suffix}", frames, "mpeg4")).num_frames == 5


def test_a_file_that_ends_early_gives_the_frames_that_are_there(tmp_path):
    path = video(tmp_path / "a.avi", [noise_frame("yuv420p", 64, 64) for _ in range(8)])
    whole = only(path).frames
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    # From the header of packet 5 on, nothing is left: what an interrupted download looks like.
    path.write_bytes(path.read_bytes()[: packets[5].pos])
    reader = reader_of(path)
    frames = list(reader.read())
    assert reader.num_frames == 8  # what its header still says
    assert len(frames) == 5
    for plane, source in zip(planes_of(frames), whole.planes, strict=True):
        np.testing.assert_array_equal(plane, source[:5])


def test_damage_midway_is_an_error_that_says_where(tmp_path):
    path = video(tmp_path / "a.avi", [noise_frame("yuv420p", 64, 64) for _ in range(8)])
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: packets[5].pos + packets[5].size // 2])
    assert re.search(r"damaged where frame 5 should be .*limit it to the 5 frames before", reason(path))
    assert only(path, max_frames=5).num_frames == 5


def test_frames_that_change_size_midway_are_an_error_that_says_where(tmp_path):
    """Two H.264 streams one after the other: both headers are legal."""
    for name, size in (("a", 64), ("b", 96)):
        video(tmp_path / f"{name}.h264", [noise_frame("yuv420p", size, 64)] * 3, "libx264")
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join((tmp_path / f"{name}.h264").read_bytes() for name in "ab"))
    assert "change size or pixel format at frame 3" in reason(joined)
    frames = reader_of(joined).read()
    assert [next(frames).y.shape for _ in range(3)] == [(1, 64, 64)] * 3
    with pytest.raises(ValueError, match=r"joined\.h264: its frames change size .* cut it into clips"):
        next(frames)


def test_readers_of_a_folder_report_what_open_clips_reports(tmp_path):
    saved(tmp_path / "a.png")
    saved(tmp_path / "whole.jpg", np.tile(RGB, (8, 8, 1)))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    (tmp_path / "empty.png").touch()
    readers, bad = open_readers([tmp_path])
    clips, same = open_clips([tmp_path])
    assert bad == same
    assert [(r.name, r.size, r.source) for r in readers] == [(c.name, c.size, c.source) for c in clips]
    with pytest.raises(ValueError, match="no picture or video could be read"):
        open_readers([tmp_path / "empty.png"])


def test_fingerprints_tell_contents_apart(tmp_path):
    a, b = (saved(tmp_path / f"{name}.png", RNG.integers(0, 256, (8, 8, 3), np.uint8)) for name in "ab")
    assert reader_of(a).fingerprint() != reader_of(b).fingerprint()
    b.write_bytes(a.read_bytes())
    assert reader_of(a).fingerprint() == reader_of(b).fingerprint()
    assert only(a).fingerprint() == only(b).fingerprint() != reader_of(a).fingerprint()


@pytest.mark.shared
def test_the_shared_clips_and_pictures_open(shared_data):
    for folder, count in (("video", 7), ("kodak", 24)):
        clips, bad = open_clips([shared_data / folder], max_frames=1)
        assert len(clips) == count
        assert not bad
        assert all(clip.frames.y.shape[0] == 1 and clip.bit_depth == 8 for clip in clips)


def test_networks_see_pictures_as_they_are(tmp_path: Path) -> None:
    odd = saved(tmp_path / "odd.png", RGB[:11, :15])
    np.testing.assert_array_equal(next(rgb_frames(odd)), RGB[:11, :15])
    assert picture_size(odd) == (11, 15)
    turned = Image.Exif()
    turned[0x0112] = 6
    path = saved(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(next(rgb_frames(path)), np.rot90(RGB, -1))
    assert picture_size(path) == (16, 12)
    assert not list(rgb_frames(path, 1))
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"note\.png: it is no picture"):
        picture_size(tmp_path / "note.png")


def test_networks_see_video_in_the_colours_of_its_samples(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mkv", [noise_frame("yuv420p") for _ in range(3)])
    expected = yuv_to_rgb(only(path).frames)
    np.testing.assert_array_equal(np.stack(list(rgb_frames(path))), expected)
    np.testing.assert_array_equal(next(rgb_frames(path, 2)), expected[2])
    full = noise_frame("yuv444p")
    path = video(tmp_path / "full.mkv", [full])
    (found,) = rgb_frames(path)
    np.testing.assert_array_equal(found, full.to_ndarray(format="rgb24"))  # by FFmpeg: it is not 4:2:0


@pytest.mark.shared
def test_networks_see_full_range_video_as_jpeg_decoders_do(shared_data: Path) -> None:
    path = shared_data / "video" / "mot16-09_1920x1080.mkv"
    with av.open(str(path)) as container:
        jpeg = bytes(next(container.demux(video=0)))
    expected = np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)
    difference = next(rgb_frames(path)) - expected
    # Pillow interpolates chroma, we repeat it.
    assert abs(difference.mean()) < 0.1
    assert np.abs(difference).mean() < 0.5
