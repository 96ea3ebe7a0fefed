"""The reference encoders themselves, where JAXWRAP_HM, JAXWRAP_JM, JAXWRAP_VTM and JAXWRAP_VVENC name their binaries.

Every encode verifies its stream with FFmpeg's decoder. Here bits and types of pictures are compared with what FFmpeg's
own splitting and decoding of the stream says, and QPs across bit depths. The patches have tests of their own.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import CONFIGS, EncodeRequest, Weights, intra_period
from jaxwrap.codecs.reference.encoder import MIN_SIZE, STREAM, ReferenceEncoder
from jaxwrap.codecs.reference.hm import Hm
from jaxwrap.codecs.reference.jm import NO_8X8, Jm
from jaxwrap.codecs.reference.programs import PROGRAMS, find_program
from jaxwrap.codecs.reference.vtm import Vtm
from jaxwrap.codecs.reference.vvenc import Vvenc

pytestmark = pytest.mark.reference

ENCODERS = {encoder.name: encoder for encoder in (Hm, Jm, Vtm, Vvenc)}
FORMATS = {"avc": "h264", "hevc": "hevc", "vvc": "vvc"}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> ReferenceEncoder:
    """Each encoder that this machine has; it keeps its streams."""
    if find_program(request.param) is None:
        pytest.skip(f"{request.param} is not on this machine: set {PROGRAMS[request.param][0]} to its binary")
    return ENCODERS[request.param](keep=tmp_path / "kept")


def moving_picture(frames: int, *, chroma: type, bit_depth: int, height: int = 46, width: int = 66) -> Frame:
    """A smooth random surface moving by a sample per frame."""
    rng = np.random.default_rng(7)
    surface = rng.normal(size=(height + frames, width + frames)).cumsum(0).cumsum(1)
    surface = (surface - surface.min()) / np.ptp(surface) * (2**bit_depth - 1)
    y = np.stack([surface[i : i + height, i : i + width] for i in range(frames)])
    return Yuv400(y) if chroma is Yuv400 else Yuv420(y, y[:, ::2, ::2], 2**bit_depth - 1 - y[:, 1::2, 1::2])


def stream_of(encoder: ReferenceEncoder) -> Path:
    (path,) = encoder.keep.glob(f"*/{STREAM}")
    return path


def psnr(decoded: np.ndarray, original: np.ndarray, bit_depth: int) -> float:
    top = 2.0**bit_depth - 1
    return 10 * np.log10(top**2 / np.mean((decoded - original) ** 2))


@pytest.mark.parametrize("config", CONFIGS)
def test_bits_are_the_streams_and_i_pictures_are_where_the_configuration_has_them(encoder, config):
    # At 8 frames per second I pictures are 8 apart, and 16 in encoders of H.266.
    num = {"intra": 2, "lowdelay": 4, "randomaccess": 17}[config]
    frames = moving_picture(num, chroma=Yuv420, bit_depth=10, height=32, width=32)
    result = encoder.encode(frames, EncodeRequest(qp=37, config=config, fps=8.0))
    path = stream_of(encoder)
    with av.open(path, format=FORMATS[encoder.standard]) as container:
        types = [av.video.frame.PictureType(f.pict_type).name for f in container.decode(video=0)]
    period = intra_period(config, 8.0)
    if encoder.standard == "vvc" and period == 8:
        period = 16
    wanted = [True] + [period is not None and n % period == 0 for n in range(1, len(types))]
    assert [kind == "I" for kind in types] == wanted
    # Parameter sets are sent once, so that what they repeat is not counted; nothing else is left out.
    left_out = 8 * path.stat().st_size - result.bits.sum()
    repeats = sum(wanted) - 1
    assert 0 <= left_out <= repeats * result.header_bits + 8 * 64
    assert left_out == 0 or repeats or encoder.name == "vvenc"  # an SEI message that names the encoder
    assert 0 < result.header_bits < result.bits[0]
    # Bits belong to the picture that they code: an I picture costs more than any other.
    assert result.bits[wanted].min() > result.bits[np.logical_not(wanted)].max(initial=0)


@pytest.mark.parametrize("chroma", [Yuv420, Yuv400])
def test_qps_mean_the_same_at_8_and_10_bits_and_odd_sizes_are_cropped(encoder, chroma):
    height, width = (46, 66) if chroma is Yuv420 else (45, 67)
    found = []
    for bit_depth in (8, 10):
        frames = moving_picture(1, chroma=chroma, bit_depth=bit_depth, height=height, width=width)
        result = encoder.encode(frames, EncodeRequest(qp=27, bit_depth=bit_depth))
        assert [p.shape for p in result.decoded.planes] == [p.shape for p in frames.planes]
        assert result.verified
        found.append((psnr(result.decoded.y, frames.y, bit_depth), float(result.bits[0])))
    # A QP's step is 4 times as large in 10-bit samples. One QP is about 1 dB and 6 % of the bits.
    assert abs(found[0][0] - found[1][0]) < 0.8
    assert found[0][1] == pytest.approx(found[1][1], rel=0.06)


def test_streams_at_8_bits_decode_right_where_vector_code_does_not(encoder):
    # FFmpeg 8 decodes the second picture of these streams of VTM and VVenC wrongly with AVX2; encode would raise.
    chroma, height, width = (Yuv400, 45, 67) if encoder.name == "vtm" else (Yuv420, 32, 64)
    frames = moving_picture(2, chroma=chroma, bit_depth=8, height=height, width=width)
    preset = "faster" if encoder.name == "vvenc" else None
    assert encoder.encode(frames, EncodeRequest(qp=32, bit_depth=8, preset=preset)).verified


def test_the_smallest_pictures_are_coded_and_higher_qps_cost_less(encoder):
    frames = moving_picture(1, chroma=Yuv420, bit_depth=10, height=MIN_SIZE, width=MIN_SIZE)
    bits = [int(encoder.encode(frames, EncodeRequest(qp=qp)).bits.sum()) for qp in (12, 47)]
    assert bits[0] > bits[1]


def test_the_same_request_gives_the_same_stream(encoder):
    frames = moving_picture(1, chroma=Yuv420, bit_depth=10)
    first, second = (encoder.encode(frames, EncodeRequest(qp=32)) for _ in range(2))
    np.testing.assert_array_equal(first.decoded.y, second.decoded.y)
    np.testing.assert_array_equal(first.bits, second.bits)


def test_jm_without_8x8_transform_codes_other_bits(tmp_path):
    if find_program("jm") is None:
        pytest.skip("jm is not on this machine: set JAXWRAP_JM to its binary")
    frames = moving_picture(1, chroma=Yuv420, bit_depth=8)
    bits = {
        preset: Jm().encode(frames, EncodeRequest(qp=32, bit_depth=8, preset=preset)).bits for preset in (None, NO_8X8)
    }
    assert bits[None] < bits[NO_8X8]


@pytest.mark.parametrize("name", ["hm", "jm"])
@pytest.mark.parametrize("applied_as", ["distortion", "qp_offset"])
def test_weights_move_quality_to_where_they_are(name, applied_as):
    if find_program(name) is None:
        pytest.skip(f"{name} is not on this machine: set {PROGRAMS[name][0]} to its binary")
    encoder = ENCODERS[name]()
    if encoder.identity.modes is None:
        pytest.skip(f"{encoder.program} is unpatched: run jaxwrap patch {name} and build it")
    # 10 bits at a width that JM's adapter has to pad.
    frames = moving_picture(1, chroma=Yuv420, bit_depth=10, height=80, width=130)
    planes = []
    for plane in frames.planes:
        w = np.full(plane.shape, 0.25)
        w[..., plane.shape[-1] // 2 :] = 4.0
        planes.append(w / w.mean())
    plain = encoder.encode(frames, EncodeRequest(qp=32))
    weighted = encoder.encode(frames, EncodeRequest(qp=32, weights=Weights(Yuv420(*planes), applied_as), trace=True))
    left, right = (
        psnr(weighted.decoded.y[..., part], frames.y[..., part], 10)
        - psnr(plain.decoded.y[..., part], frames.y[..., part], 10)
        for part in (slice(0, 65), slice(65, 130))
    )
    # At a fixed QP the weights decide within what the quantiser leaves open; with offsets of ±3 QPs it moves too.
    assert left < -0.3
    assert right > (0.05 if applied_as == "distortion" else 1.0)
    columns = weighted.units[:, 1]
    bits = weighted.units[:, 5]
    assert bits[columns >= 64].sum() > bits[columns < 64].sum()
