"""The JPEG codec against FFmpeg's decoder, tables read back from the files, and byte counts of single files."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
from PIL import Image

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.codec import EncodeRequest, Weights
from jaxwrap.codecs.jpeg import libjpeg
from jaxwrap.codecs.jpeg.libjpeg import Jpeg, header_bytes, step_of_qp


def pictures(seed: int = 0, frames: int = 2, height: int = 40, width: int = 56) -> Yuv420:
    """Smooth random pictures at a size whose chroma is no multiple of 8."""
    rng = np.random.default_rng(seed)
    y, u, v = (rng.normal(0, 6, (frames, height // s, width // s)).cumsum(1) + 128 for s in (1, 2, 2))
    return Yuv420(*(np.clip(p, 0, 255) for p in (y, u, v)))


def eight_bits(qp: float | None = 28, **changes) -> EncodeRequest:
    return EncodeRequest(**({"qp": qp, "bit_depth": 8} | changes))


def saved(picture: np.ndarray, **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **settings)
    return file.getvalue()


def test_bits_are_those_of_one_grey_file_per_plane():
    frames = pictures()
    result = Jpeg(quality=60).encode(frames, eight_bits(None))
    for i in range(2):
        files = [saved(np.floor(p[i] + 0.5).astype(np.uint8), quality=60) for p in frames.planes]
        assert result.bits[i] == 8 * sum(map(len, files))


@pytest.mark.parametrize(("qp", "step"), [(0, 1), (4, 1), (10, 2), (28, 16), (30, 20), (51, 228)])
def test_a_qp_gives_the_flat_table_of_its_step(qp, step, monkeypatch):
    tables = []

    def keep(file):
        image = opened(file)
        tables.append(image.quantization)
        return image

    opened = Image.open
    monkeypatch.setattr(Image, "open", keep)
    Jpeg().encode(pictures(), eight_bits(qp))
    assert step == step_of_qp(qp)
    assert tables == [{0: [step] * 64}] * 6


@pytest.mark.parametrize(("settings", "qp"), [({}, 4), ({}, 51), ({"quality": 1}, None), ({"quality": 100}, None)])
def test_decoded_samples_are_ffmpegs_and_those_of_libjpeg_within_one(settings, qp, monkeypatch):
    files = []

    def keep(file):
        files.append(file.getvalue())
        return opened(file)

    opened = Image.open
    monkeypatch.setattr(Image, "open", keep)
    frames = pictures()
    frames.y[1] = np.random.default_rng(2).choice([0, 255], frames.y[1].shape)  # coefficients as large as they get
    result = Jpeg(**settings).encode(frames, eight_bits(qp))
    assert result.verified
    ours = [picture for plane in result.decoded.planes for picture in plane]
    for file, picture in zip(files, ours, strict=True):
        with av.open(io.BytesIO(file), format="mjpeg") as container:
            (frame,) = container.decode(video=0)
        np.testing.assert_array_equal(frame.to_ndarray(format="gray"), picture)
        assert np.abs(np.asarray(opened(io.BytesIO(file))).astype(int) - picture).max() <= 1


def test_a_file_that_two_decoders_read_differently_is_refused(monkeypatch):
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened(file).point(lambda sample: min(sample + 2, 255)))
    with pytest.raises(RuntimeError, match=r"differ by [23]; at most 1"):
        Jpeg().encode(pictures(), eight_bits())


def test_a_truncated_file_is_refused():
    data = saved(np.random.default_rng(0).integers(0, 256, (40, 56)).astype(np.uint8), quality=90)
    with pytest.raises(RuntimeError, match="cannot be decoded"):
        libjpeg._decode_verified(data[: len(data) // 2], (40, 56))


def test_files_of_one_geometry_share_their_header_and_nothing_behind_it():
    files = [saved(np.floor(pictures(seed).y[0]).astype(np.uint8), quality=50) for seed in (1, 2)]
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*files, strict=False)))
    size = header_bytes(files[0]) - 2  # the end marker stands behind the data
    assert files[0][:size] == files[1][:size]
    assert size <= common <= size + 2
    assert Jpeg().encode(Yuv400(pictures().y), eight_bits()).header_bits == 2 * 8 * header_bytes(files[0])


def test_error_and_bits_follow_the_qp():
    frames = pictures()
    results = [Jpeg().encode(frames, eight_bits(qp)) for qp in (10, 22, 34, 46)]
    errors = [np.mean((r.decoded.y - frames.y) ** 2) for r in results]
    assert errors == sorted(errors)
    assert [r.bits.sum() for r in results] == sorted((r.bits.sum() for r in results), reverse=True)


def test_the_version_names_library_decoder_and_quality():
    assert "libjpeg" in Jpeg().version
    assert "FFmpeg" in Jpeg().version
    assert Jpeg(quality=50).version.endswith("quality 50")


@pytest.mark.parametrize(
    ("codec", "request_", "message"),
    [
        (Jpeg(), eight_bits(bit_depth=10), "10-bit samples were given; JPEG here has 8"),
        (Jpeg(), eight_bits(config="lowdelay"), "only 'intra'"),
        (Jpeg(), eight_bits(preset="medium"), "leave it None"),
        (Jpeg(), eight_bits(None), "0 to 51"),
        (Jpeg(), eight_bits(52), "0 to 51"),
        (Jpeg(), eight_bits(weights=Weights(pictures())), "one table per picture"),
        (Jpeg(quality=50), eight_bits(30), "give one of them"),
    ],
)
def test_a_request_that_jpeg_cannot_meet_is_named(codec, request_, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(pictures(), request_)


@pytest.mark.parametrize("quality", [0, 101, 50.5])
def test_a_quality_outside_the_scale_is_refused(quality):
    with pytest.raises(ValueError, match="from 1 to 100"):
        Jpeg(quality=quality)
