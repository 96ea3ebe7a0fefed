"""CompressAI-Vision's files: packed features, streams and tables, against its own numbers and against loops."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.interchange.packing import (
    PUBLISHED_RANGES,
    PyramidLayout,
    pack_features,
    read_packed,
    read_sizes,
    write_packed,
    write_sizes,
)
from jaxwrap.train.interchange.stream import StreamHeader, read_stream, write_stream
from jaxwrap.train.interchange.summary import read_summary, summary_rows

MINIMUM, MAXIMUM = PUBLISHED_RANGES["SFUHW"]
SHAPES = {"p4": (16, 5, 9), "p3": (16, 10, 18), "p2": (16, 20, 36)}


def made_up(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Two frames of numbers from −32 to 32 that every machine makes alike, ``[2, h, w, C]``."""
    numbers = np.arange(2 * np.prod(shape), dtype=np.int64)
    values = ((numbers * 2654435761 + seed) % 8192) / 128 - 32
    return values.astype(np.float32).reshape(2, *shape).transpose(0, 2, 3, 1)


FEATURES = {name: made_up(shape, n) for n, (name, shape) in enumerate(SHAPES.items())}


def test_samples_are_those_of_compressai_vision() -> None:
    packed = pack_features(FEATURES, minimum=MINIMUM, maximum=MAXIMUM)
    assert packed.layout.heights == (80, 20, 5)
    assert packed.filling == 529
    # What reshape_feature_pyramid_to_frame and min_max_normalization of its codecs/utils.py (commit 31165daf) make of
    # the same tensors, NCHW, with torch 2 on a CPU.
    digest = hashlib.sha256(packed.samples.astype("<u2").tobytes()).hexdigest()
    assert digest[:32] == "74244c213275b70deced4bd81db47cc6"


@pytest.mark.parametrize(
    ("shapes", "heights", "width"),
    [  # its files in data/mpeg-fcm: SFUHW/fpn-sizes, MPEGHIEVE/fpn-sizes/13.json, MPEGSAM/fpn-sizes
        (
            {"p2": (256, 200, 336), "p3": (256, 100, 168), "p4": (256, 50, 84), "p5": (256, 25, 42)},
            (3200, 800, 200, 50),
            5376,
        ),
        ({"75": (512, 19, 34), "105": (128, 76, 136), "90": (256, 38, 68)}, (1216, 608, 304), 1088),
        ({"imgenc": (256, 64, 64)}, (1024,), 1024),
    ],
)
def test_layouts_are_those_that_it_ships(
    tmp_path: Path, shapes: dict[str, tuple[int, int, int]], heights: tuple[int, ...], width: int
) -> None:
    layout = PyramidLayout.of(shapes)
    assert (layout.heights, layout.width) == (heights, width)
    write_sizes(tmp_path / "sizes.json", layout)
    assert read_sizes(tmp_path / "sizes.json") == layout
    content = json.loads((tmp_path / "sizes.json").read_text())
    assert list(content["fpn"]) == list(content["subframe_heights"]) == [layer.name for layer in layout.layers]


def test_every_channel_is_a_tile_in_raster_order() -> None:
    layout = PyramidLayout.of(SHAPES)
    frames = layout.pack(FEATURES)
    top = 0
    for layer, height in zip(layout.layers, layout.heights, strict=True):
        columns = layout.width // layer.width
        for c in range(layer.channels):
            y, x = top + c // columns * layer.height, c % columns * layer.width
            tile = frames[:, y : y + layer.height, x : x + layer.width]
            np.testing.assert_array_equal(tile, FEATURES[layer.name][..., c])
        top += height
    for name, array in layout.unpack(frames).items():
        np.testing.assert_array_equal(array, FEATURES[name])


def test_tall_channels_lie_side_by_side() -> None:
    assert PyramidLayout.of({"x": (8, 9, 5)}).size == (2 * 9, 4 * 5)


def test_layers_that_do_not_fit_are_listed() -> None:
    with pytest.raises(ValueError, match=r"to the width 64 of the largest: b \(16 of 9×9\), c \(2 of 7×7\); "):
        PyramidLayout.of({"a": (16, 16, 16), "b": (16, 9, 9), "c": (2, 7, 7)})
    with pytest.raises(ValueError, match="no layer was given"):
        PyramidLayout.of({})


def test_packed_files_come_back_exactly(tmp_path: Path) -> None:
    packed = pack_features(FEATURES, minimum=MINIMUM, maximum=MAXIMUM)
    yuv, sizes = write_packed(tmp_path, "clip", packed, fps=50)
    assert yuv.name == "clip_144x105_50fps_10bit_p400_input.yuv"
    planes = np.fromfile(yuv, "<u2").reshape(2, 106, 144)  # even sides
    assert (planes[:, 105] == packed.filling).all()
    again = read_packed(yuv, sizes, minimum=MINIMUM, maximum=MAXIMUM)
    np.testing.assert_array_equal(again.samples, packed.samples)
    assert again.layout == packed.layout
    (tmp_path / "second").mkdir()
    copy, _ = write_packed(tmp_path / "second", "clip", again, fps=50)
    assert copy.read_bytes() == yuv.read_bytes()


def test_features_come_back_within_a_step_and_what_is_clipped_is_counted() -> None:
    packed = pack_features(FEATURES, minimum=MINIMUM, maximum=MAXIMUM)
    step = (MAXIMUM - MINIMUM) / 1023
    outside = 0
    for name, array in packed.features().items():
        expected = np.clip(FEATURES[name], MINIMUM, MAXIMUM)
        assert (array <= expected + 1e-5).all()
        assert (expected - array < step + 1e-5).all()
        outside += ((FEATURES[name] < MINIMUM) | (FEATURES[name] > MAXIMUM)).sum()
    assert packed.clipped == outside > 0


def test_eight_bits_are_one_byte(tmp_path: Path) -> None:
    packed = pack_features(FEATURES, minimum=-32.0, maximum=32.0, bit_depth=8)
    yuv, sizes = write_packed(tmp_path, "clip", packed, fps=30)
    assert yuv.stat().st_size == 2 * 106 * 144
    again = read_packed(yuv, sizes, minimum=-32.0, maximum=32.0, bit_depth=8)
    np.testing.assert_array_equal(again.samples, packed.samples)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {"maximum": -20.0}, "wanted minimum < maximum"),
        ({"a": np.full((1, 4, 4, 4), np.nan)}, {}, "not finite"),
        ({"a": np.zeros((1, 4, 4, 4)), "b": np.zeros((2, 2, 2, 4))}, {}, "with one N"),
    ],
)
def test_features_that_cannot_be_packed_are_refused(
    features: dict[str, np.ndarray], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack_features(features, **({"minimum": MINIMUM, "maximum": MAXIMUM} | options))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is no file of feature sizes"),
        ('{"fpn": {"a": [1, 4, 4]}, "subframe_heights": {}}', "is no file of feature sizes"),
        ('{"fpn": {"a": [1, 4, 4, 4]}, "subframe_heights": {"a": 16}}', r"take \{'a': 8\} rows .* says \{'a': 16\}"),
    ],
)
def test_bad_files_of_sizes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_sizes(tmp_path / "sizes.json")


def test_a_stream_has_its_header_before_it(tmp_path: Path) -> None:
    path = tmp_path / "features.bin"
    header = StreamHeader(10, 728, 416, ((-0.5, 1.25), (-0.5, 1.25)))
    write_stream(path, header, b"stream")
    expected = struct.pack(">B3I4f", 10, 728, 416, 2, -0.5, 1.25, -0.5, 1.25)
    assert path.read_bytes() == expected + b"stream"
    assert read_stream(path) == (header, b"stream")
    assert header.bits == 8 * len(expected)
    path.write_bytes(expected[:-1])
    with pytest.raises(ValueError, match="or is cut: its header says 10 bits, 416×728 and 2 frames"):
        read_stream(path)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="has 1 bytes"):
        read_stream(path)


POINT = Point(
    key="",
    dataset="SFUHW",
    sequence="BasketballPass",
    codec="hm",
    codec_version="18.0",
    config="randomaccess",
    mode="fcm-yolox-nano",
    method="fold",
    method_options="{}",
    lambda_scale=1.0,
    seed=0,
    qp=27.0,
    frames=97,
    bits=123_456,
    header_bits=0,
    kbps=123_456 * 50 / (1000 * 97),
    bpp=0.25,
    ap=0.125,
    mota=0.5,
    encode_s=3.5,
    decode_s=0.25,
)


def test_video_has_the_columns_of_its_summaries(tmp_path: Path) -> None:
    points = [dataclasses.replace(POINT, qp=32.0), POINT]
    text = summary_rows(points, accuracy="ap", rate="kbps")
    header, first, second = text.splitlines()
    assert header == ("Dataset,fps,num_of_coded_frame,qp,bitrate (kbps),end_accuracy,nn_part_1,encode,decode,nn_part_2")
    assert first == f"BasketballPass,50,97,27,{POINT.kbps!r},12.5,,3.5,0.25,"
    assert second.startswith("BasketballPass,50,97,32,")
    (tmp_path / "summary.csv").write_text(text)
    row, _ = read_summary(tmp_path / "summary.csv")
    assert (row.dataset, row.fps, row.frames, row.qp, row.rate) == ("BasketballPass", 50.0, 97, 27.0, POINT.kbps)
    assert (row.unit, row.accuracy, row.others) == ("kbps", 12.5, {"encode": 3.5, "decode": 0.25})


def test_pictures_have_the_columns_of_its_summaries() -> None:
    point = dataclasses.replace(POINT, mode="remote", sequence="(all)")
    text = summary_rows([point], accuracy="mota", rate="bpp")
    assert text == "Dataset,qp,avg_bpp,end_accuracy,encode,decode,nn_task\nSFUHW,27,0.25,0.5,3.5,0.25,\n"


def test_its_own_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "final_SFU.csv"
    path.write_text(
        ",Dataset,qp,bitrate (kbps),end_accuracy,nn_part_1,encode,encode_video,decode,nn_part_2,inv_mse\n"
        "0,Traffic_2560x1600_30,37,100.5,41.25,1.5,20,18.5,2,3,0.5\n"
        "1,CLASS-AB,0,90.5,40.0,1.5,20,18.5,2,3,\n"
    )
    first, second = read_summary(path)
    assert (first.dataset, first.rate, first.fps, first.frames) == ("Traffic_2560x1600_30", 100.5, None, None)
    assert first.others["encode_video"] == 18.5
    assert first.others["inv_mse"] == 0.5
    assert "inv_mse" not in second.others


def test_tables_that_cannot_be_are_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(POINT, method="sse", codec="x265")
    with pytest.raises(
        ValueError, match=r"more than one curve: they differ in codec \(hm, x265\), method \(fold, sse\)"
    ):
        summary_rows([POINT, other], accuracy="ap", rate="kbps")
    with pytest.raises(ValueError, match="have no hota: BasketballPass at QP 27"):
        summary_rows([POINT], accuracy="hota", rate="kbps")
    with pytest.raises(ValueError, match="no points were given"):
        summary_rows([], accuracy="ap", rate="kbps")
    path = tmp_path / "summary.csv"
    path.write_text("Dataset,qp,end_accuracy\na,1,2\n")
    with pytest.raises(ValueError, match=r"wanted the columns .* avg_bpp or bitrate \(kbps\); it has Dataset, qp"):
        read_summary(path)
    path.write_text("Dataset,qp,avg_bpp,end_accuracy\na,x,,2\n")
    with pytest.raises(ValueError, match="line 2: qp = 'x'; avg_bpp is empty; wanted numbers"):
        read_summary(path)
