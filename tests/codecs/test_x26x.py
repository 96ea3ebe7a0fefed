"""x264 and x265: bits against FFmpeg's own splitting of streams, QPs against what its decoder reads from them."""

from __future__ import annotations

import csv
import io
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420, frame_of
from jaxwrap.codec import CONFIGS, EncodeRequest, Weights, intra_period
from jaxwrap.codecs import x26x
from jaxwrap.codecs.bitstream import nal_units
from jaxwrap.codecs.x26x import ENCODERS, PRESETS, X26x, encoder_version, find_encoders, qp_offsets

CASES = [(e, c, d, k) for e in ENCODERS for c in (Yuv420, Yuv400) for d in (8, 10) for k in CONFIGS]


def moving_picture(
    frames: int = 5, *, chroma: type = Yuv420, bit_depth: int = 8, height: int = 48, width: int = 66
) -> Frame:
    """A smooth random surface moving by a sample per frame, at a size that is no multiple of a block."""
    rng = np.random.default_rng(7)
    surface = rng.normal(size=(height + frames, width + frames)).cumsum(0).cumsum(1)
    surface = (surface - surface.min()) / np.ptp(surface) * (2**bit_depth - 1)
    y = np.stack([surface[i : i + height, i : i + width] for i in range(frames)])
    return Yuv400(y) if chroma is Yuv400 else Yuv420(y, y[:, ::2, ::2], 2**bit_depth - 1 - y[:, 1::2, 1::2])


def noise(height: int = 128, width: int = 192, frames: int = 1) -> Yuv400:
    """Ten-bit noise: every block has coefficients, so that each carries its QP."""
    return Yuv400(np.random.default_rng(3).normal(512, 140, (frames, height, width)).clip(0, 1023))


def captured_stream(codec: X26x, frames: Frame, request: EncodeRequest, monkeypatch: pytest.MonkeyPatch):
    """The result, the parameter sets and the packets (index, bytes) of one encode."""
    kept = {}

    def run(self, *args):
        kept["stream"] = original(self, *args)
        return kept["stream"]

    original = X26x._run_encoder
    monkeypatch.setattr(X26x, "_run_encoder", run)
    result = codec.encode(frames, request)
    monkeypatch.undo()
    return result, *kept["stream"]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_i_pictures_are_where_the_configuration_says(encoder, config, monkeypatch):
    """Which pictures FFmpeg's decoder finds to be I pictures, against `intra_period`; their order in the stream too."""
    frames, fps = moving_picture(20, height=96, width=128), 8.0
    request = EncodeRequest(qp=32, config=config, bit_depth=8, fps=fps)
    _, header, packets = captured_stream(X26x(encoder), frames, request, monkeypatch)
    decoder = av.CodecContext.create({"x264": "h264", "x265": "hevc"}[encoder], "r")
    types = {}
    for number, (index, data) in enumerate([*packets, (None, None)]):
        packet = None if data is None else av.Packet(header + data if number == 0 else data)
        if packet is not None:
            packet.pts = index
        types.update((frame.pts, frame.pict_type) for frame in decoder.decode(packet))
    period = intra_period(config, fps)
    assert period == {"intra": 1, "lowdelay": None, "randomaccess": 8}[config]
    intra = [index for index in range(20) if types[index] == av.video.frame.PictureType.I]
    assert intra == [index for index in range(20) if index % (period or 20) == 0]
    if config == "randomaccess":  # B pictures shown before the I picture at 8 are coded after it: an open GOP
        order = [index for index, _ in packets]
        assert order.index(8) < order.index(7)


@pytest.mark.parametrize(("encoder", "chroma", "bit_depth", "config"), CASES)
def test_frames_survive_the_round_trip_and_repeat_exactly(encoder, chroma, bit_depth, config):
    frames = moving_picture(chroma=chroma, bit_depth=bit_depth)
    request = EncodeRequest(qp=22, config=config, bit_depth=bit_depth)
    first, second = (X26x(encoder).encode(frames, request) for _ in range(2))
    assert type(first.decoded) is chroma
    for plane, source, again in zip(first.decoded.planes, frames.planes, second.decoded.planes, strict=True):
        assert plane.dtype == (np.uint8 if bit_depth == 8 else np.uint16)
        assert plane.shape == source.shape
        # QP 22 has a step of 8 at 8 bits: error 8²/12 = 5.3 if rounded, and the dead zone at most doubles that.
        assert np.mean((plane - source) ** 2) < 10.7 * 4 ** (bit_depth - 8)
        np.testing.assert_array_equal(plane, again)
    assert first.verified
    np.testing.assert_array_equal(first.bits, second.bits)
    assert first.bits.shape == (5,)
    assert 0 < first.header_bits < first.bits[0]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_bits_are_the_stream_without_sei_as_ffmpeg_splits_it(encoder, config, monkeypatch):
    result, header, packets = captured_stream(
        X26x(encoder), moving_picture(9), EncodeRequest(qp=30, config=config, bit_depth=8), monkeypatch
    )
    sei = "6" if encoder == "x264" else "39-40"
    drop = av.BitStreamFilterContext(f"filter_units=remove_types={sei}", _input_stream(encoder))
    for index, data in packets:
        kept = sum(p.size for p in drop.filter(av.Packet(data)))
        assert result.bits[index] == 8 * (kept + (len(header) if index == 0 else 0))
    assert result.header_bits == 8 * len(header)


def _input_stream(encoder):
    """A video stream of the right codec to configure FFmpeg's bitstream filter with."""
    container = av.open(io.BytesIO(), "w", format="matroska")
    stream = container.add_stream("libx264" if encoder == "x264" else "libx265", rate=25)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    return stream


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bits_stand_in_the_order_of_the_pictures_under_reordering(encoder):
    frames = moving_picture(9)
    rng = np.random.default_rng(0)
    frames = frame_of([p.copy() for p in frames.planes])
    frames.y[5] = rng.uniform(0, 255, frames.y[5].shape)
    result = X26x(encoder).encode(frames, EncodeRequest(qp=30, config="randomaccess", bit_depth=8))
    assert np.argmax(result.bits) == 5
    assert np.mean((result.decoded.y[5] - frames.y[5]) ** 2) < 200


def realised_qps(header: bytes, packets: list[tuple[int, bytes]], shape: tuple[int, int]) -> np.ndarray:
    """QP per macroblock on the specification's scale, as FFmpeg's H.264 decoder reads it: [N, rows, columns]."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoder.options = {"export_side_data": "venc_params"}
    maps = []
    for pts, data in [*packets, (-1, None)]:
        packet = None
        if data is not None:
            packet = av.Packet(header + data if not maps and pts == 0 else data)
            packet.pts = pts
        for frame in decoder.decode(packet):
            (params,) = [s for s in frame.side_data if s.type.name == "VIDEO_ENC_PARAMS"]
            blocks = [params.block_params(i) for i in range(params.nb_blocks)]
            maps.append(np.array([params.qp + b.delta_qp for b in blocks]).reshape(shape))
    return np.stack(maps)


@pytest.mark.parametrize(
    ("bit_depth", "qp", "preset"),
    [(8, 20, None), (8, 27, None), (10, 22, None), (10, 51, None), *((10, 32, p) for p in PRESETS)],
)
def test_every_macroblock_of_x264_has_the_requested_qp(bit_depth, qp, preset, monkeypatch):
    frames = frame_of([p * (2**bit_depth / 1024) for p in noise(64, 64, 4).planes])
    request = EncodeRequest(qp=qp, config="lowdelay", bit_depth=bit_depth, preset=preset)
    _, header, packets = captured_stream(X26x("x264"), frames, request, monkeypatch)
    assert np.unique(realised_qps(header, packets, (4, 4))).tolist() == [qp + 6 * (bit_depth - 8)]


def test_offsets_that_are_coded_are_those_the_decoder_reads(monkeypatch):
    """Steps of all sizes between neighbours; every macroblock has coefficients, as the picture is noise."""
    frames = noise(96, 128, 2)
    wanted = np.random.default_rng(2).integers(-4, 5, (1, 6, 8))
    weights = Weights(Yuv400(np.kron(2.0 ** (-wanted / 3), np.ones((1, 16, 16)))), "qp_offset")
    codec = X26x("x264")
    _, header, packets = captured_stream(codec, frames, EncodeRequest(qp=30, weights=weights), monkeypatch)
    expected = codec.coded_offsets(weights.planes, qp=30, bit_depth=10)
    assert (expected != wanted).sum() > 5
    found = realised_qps(header, packets, (6, 8)) - 30 - 12
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize(
    ("config", "frames", "bit_depth", "qp"),
    [
        *(("intra", 2, d, qp) for d in (8, 10) for qp in (0, 22, 37, 51)),
        *(("lowdelay", 5, d, 32) for d in (8, 10)),
        ("randomaccess", 20, 10, 47),
    ],
)
def test_every_picture_of_x265_has_the_requested_qp_in_its_own_log(
    config, frames, bit_depth, qp, tmp_path, monkeypatch
):
    original = X26x._run_encoder

    def run(self, samples, request, options, extra, offsets):
        return original(self, samples, request, options, f"{extra}:csv=log.csv:csv-log-level=1", offsets)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(X26x, "_run_encoder", run)
    pictures = frame_of([p * (2**bit_depth / 1024) for p in noise(64, 96, frames).planes])
    X26x("x265").encode(pictures, EncodeRequest(qp=qp, config=config, bit_depth=bit_depth, fps=8))
    names, *rows = csv.reader((tmp_path / "log.csv").read_text().splitlines(), skipinitialspace=True)
    # x265 logs the mean over a picture's blocks, after adaptive quantisation, on the specification's scale.
    found = [float(row[names.index("QP")]) for row in rows if len(row) >= len(names) and row[0].isdigit()]
    assert found == [qp] * frames


@pytest.mark.parametrize("encoder", ENCODERS)
def test_random_access_codes_an_intra_picture_every_eight_frames_at_eight_per_second(encoder, monkeypatch):
    frames = moving_picture(20)
    request = EncodeRequest(qp=30, config="randomaccess", bit_depth=8, fps=8)
    result, header, packets = captured_stream(X26x(encoder), frames, request, monkeypatch)
    decoder = av.CodecContext.create("h264" if encoder == "x264" else "hevc", "r")
    decoder.thread_count = 1
    kinds = {}
    for number, (pts, data) in enumerate([*packets, (-1, None)]):
        packet = None
        if data is not None:
            packet = av.Packet(header + data if number == 0 else data)
            packet.pts = pts
        kinds.update((f.pts, av.video.frame.PictureType(f.pict_type).name) for f in decoder.decode(packet))
    assert [i for i in range(20) if kinds[i] == "I"] == [0, 8, 16]
    assert "B" in kinds.values()
    # The pictures that lead an open group refer to both of its sides, and are coded after the I picture.
    order = [pts for pts, _ in packets]
    assert order.index(8) < order.index(7)
    assert min(result.bits[[8, 16]]) > np.median(result.bits)


@pytest.mark.parametrize(
    ("encoder", "bit_depth", "qp"), [("x264", 8, 1), ("x264", 10, 0), ("x265", 8, 0), ("x265", 10, 0)]
)
def test_the_lowest_qp_still_follows_a_map(encoder, bit_depth, qp):
    frames = moving_picture(1, chroma=Yuv400, bit_depth=bit_depth, height=64, width=64)
    _, weights = checkerboard(32, (64, 64))
    plain, weighted = (
        X26x(encoder).encode(frames, EncodeRequest(qp=qp, bit_depth=bit_depth, weights=w))
        for w in (None, Weights(Yuv400(weights), "qp_offset"))
    )
    assert weighted.bits[0] != plain.bits[0]


def test_the_lossless_mode_of_eight_bit_x264_is_not_taken_for_qp_zero():
    with pytest.raises(ValueError, match="x264 at 8 bits takes whole numbers 1 … 51"):
        X26x("x264").encode(SMALL, EncodeRequest(qp=0, bit_depth=8))


def test_intra_slices_of_x264_without_weights_equal_its_own_constant_qp_mode(monkeypatch):
    frames, qp = moving_picture(3, bit_depth=10), 27
    _, _, ours = captured_stream(X26x("x264"), frames, EncodeRequest(qp=qp), monkeypatch)
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = 66, 48, "yuv420p10le"
    context.time_base, context.framerate, context.thread_count = Fraction(1, 25), Fraction(25), 1
    # x264 counts its own 10-bit QP from 12 below the specification's 0.
    context.options = {"preset": "medium", "tune": "psnr", "x264-params": f"qp={qp + 12}:ipratio=1:keyint=1:threads=1"}
    theirs = []
    for i in range(3):
        planes = [np.floor(p[i] + 0.5).astype(np.uint16) for p in frames.planes]
        picture = x26x._video_frame(planes, "yuv420p10le")
        picture.pts = i
        theirs += context.encode(picture)
    theirs += context.encode(None)
    slices = [
        [u.payload for data in stream for u in nal_units(data, "avc") if u.kind == 5]
        for stream in ([data for _, data in ours], [bytes(p) for p in theirs])
    ]
    # The slice header, a few bytes, states the QP's distance from the picture parameter set's, which differs.
    assert len(slices[0]) == 3
    assert [s[8:] for s in slices[0]] == [s[8:] for s in slices[1]]


def checkerboard(block: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(mask, weights): blocks of weight 4 and 1/4 in turn, so ΔQP −6 and +6."""
    rows, columns = np.indices(shape)
    mask = (rows // block + columns // block) % 2 == 0
    return mask, np.where(mask, 4.0, 0.25)[None]


def test_x264_macroblocks_take_the_offsets_of_the_map(monkeypatch):
    frames = noise()
    _, weights = checkerboard(16, (128, 192))
    request = EncodeRequest(qp=27, weights=Weights(Yuv400(weights), "qp_offset"))
    _, header, packets = captured_stream(X26x("x264"), frames, request, monkeypatch)
    wanted = 27 + 12 + np.where(weights[0, ::16, ::16] > 1, -6, 6)
    np.testing.assert_array_equal(realised_qps(header, packets, (8, 12))[0], wanted)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_weighted_blocks_have_the_error_of_a_uniform_encode_at_their_qp(encoder):
    frames = noise()
    source = np.floor(frames.y + 0.5)
    mask, weights = checkerboard(32, (128, 192))
    codec = X26x(encoder)
    weighted = codec.encode(frames, EncodeRequest(qp=27, weights=Weights(Yuv400(weights), "qp_offset")))
    for region, qp in ((mask, 21), (~mask, 33)):
        uniform = codec.encode(frames, EncodeRequest(qp=qp))
        errors = [np.mean((r.decoded.y - source)[0][region] ** 2) for r in (weighted, uniform)]
        # Prediction across the borders and the deblocking filter differ; one QP would be 26 %.
        np.testing.assert_allclose(errors[0], errors[1], rtol=0.1)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_uniform_weights_change_nothing(encoder, config):
    frames = moving_picture(3)
    ones = frame_of([np.ones((1, *p.shape[1:])) for p in frames.planes])
    plain, weighted = (
        X26x(encoder).encode(frames, EncodeRequest(qp=30, config=config, bit_depth=8, weights=w))
        for w in (None, Weights(ones, "qp_offset"))
    )
    np.testing.assert_array_equal(plain.bits, weighted.bits)


def test_one_map_per_picture_acts_on_its_own_picture():
    frames = noise(64, 64, 3)
    weights = np.ones((3, 64, 64))
    weights[1] = 4.0
    plain, weighted = (
        X26x("x264").encode(frames, EncodeRequest(qp=30, weights=w))
        for w in (None, Weights(Yuv400(weights), "qp_offset"))
    )
    np.testing.assert_array_equal(plain.decoded.y[[0, 2]], weighted.decoded.y[[0, 2]])
    assert weighted.bits[1] > 1.2 * plain.bits[1]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_filter_graph_gives_the_same_stream_as_writing_side_data(encoder, monkeypatch):
    frames = moving_picture(3, bit_depth=10)
    rng = np.random.default_rng(1)
    weights = frame_of([np.exp(rng.normal(size=(3, *p.shape[1:]))).cumsum(1) for p in frames.planes])
    request = EncodeRequest(qp=30, weights=Weights(weights, "qp_offset"))
    _, *written = captured_stream(X26x(encoder), frames, request, monkeypatch)
    monkeypatch.setattr(x26x, "_libavutil_new_side_data", lambda: None)
    _, *filtered = captured_stream(X26x(encoder), frames, request, monkeypatch)
    assert x26x._libavutil_new_side_data() is not None
    assert written == filtered


def test_qp_offsets_equal_a_loop_over_blocks():
    rng = np.random.default_rng(2)
    y, u, v = (np.exp(rng.normal(0, 1.5, s)) for s in ((2, 38, 50), (2, 19, 25), (2, 19, 25)))
    found = qp_offsets(Yuv420(y, u, v), block=16, qp=40, bit_depth=8)
    assert found.shape == (2, 3, 4)
    for n, r, c in np.ndindex(found.shape):
        luma = y[n, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16]
        chroma = [p[n, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for p in (u, v)]
        mean = np.concatenate([luma.ravel(), *(p.ravel() for p in chroma)]).mean()
        assert found[n, r, c] == np.clip(np.round(-3 * np.log2(mean)), -40, 11)


def test_a_zero_weight_takes_the_highest_qp():
    zero = Yuv400(np.zeros((1, 16, 16)))
    assert qp_offsets(zero, block=16, qp=30, bit_depth=10).tolist() == [[[21]]]


def test_a_stream_damaged_after_the_encoder_is_refused(monkeypatch):
    original = X26x._run_encoder

    def damage(self, *args):
        header, packets = original(self, *args)
        index, data = packets[1]
        # The last NAL unit of an x265 packet is the hash, of an x264 packet the slice.
        packets[1] = (index, data[:-9] + bytes([data[-9] ^ 0x55]) + data[-8:])
        return header, packets

    monkeypatch.setattr(X26x, "_run_encoder", damage)
    for encoder in ENCODERS:
        with pytest.raises(RuntimeError, match=r"rejects|reconstruction"):
            X26x(encoder).encode(moving_picture(3), EncodeRequest(qp=22, bit_depth=8))
    with pytest.raises(RuntimeError, match="64 samples or less in width: pad them"):
        X26x("x265").encode(moving_picture(3, width=64), EncodeRequest(qp=22, bit_depth=8))


def test_a_lost_picture_is_refused(monkeypatch):
    original = X26x._run_encoder

    def lose(self, *args):
        header, packets = original(self, *args)
        return header, packets[:-1]

    monkeypatch.setattr(X26x, "_run_encoder", lose)
    for encoder in ENCODERS:
        with pytest.raises(RuntimeError, match="3 pictures were coded"):
            X26x(encoder).encode(moving_picture(3), EncodeRequest(qp=22, bit_depth=8))


SMALL = moving_picture(1, height=16, width=16)
BAD_REQUESTS = [
    ({"qp": None}, "QP None"),
    ({"qp": 52}, "takes whole numbers"),
    ({"qp": -1}, "QP -1"),
    ({"qp": 30.5}, r"QP 30\.5"),
    ({"config": "allintra"}, "intra, lowdelay, randomaccess"),
    ({"bit_depth": 12}, "bit depth 12"),
    ({"preset": "best"}, "ultrafast, superfast"),
    ({"fps": 0.0}, "frames per second"),
    ({"fps": float("nan")}, "frames per second"),
    ({"weights": Weights(SMALL)}, "patched HM or JM"),
    ({"weights": Weights(Yuv400(SMALL.y), "qp_offset")}, "weight maps"),
    ({"weights": Weights(frame_of([p[:, :-2] for p in SMALL.planes]), "qp_offset")}, "weight maps"),
    ({"weights": Weights(frame_of([p - 999 for p in SMALL.planes]), "qp_offset")}, "negative"),
    ({"weights": Weights(frame_of([p * np.nan for p in SMALL.planes]), "qp_offset")}, "non-finite"),
]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("change", "message"), BAD_REQUESTS)
def test_a_request_the_encoder_cannot_meet_is_named(encoder, change, message):
    request = EncodeRequest(**({"qp": 30, "bit_depth": 8} | change))
    with pytest.raises(ValueError, match=message):
        X26x(encoder).encode(SMALL, request)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_frames_smaller_than_a_macroblock_are_refused_and_one_macroblock_is_not(encoder):
    for chroma in (Yuv420, Yuv400):
        with pytest.raises(ValueError, match="16×14 frames; it takes 16×16"):
            X26x(encoder).encode(moving_picture(1, chroma=chroma, height=14, width=16), EncodeRequest(qp=30))
        result = X26x(encoder).encode(moving_picture(1, chroma=chroma, height=16, width=16), EncodeRequest(qp=30))
        assert result.decoded.y.shape == (1, 16, 16)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_luma_of_odd_size_keeps_its_size(encoder):
    frames = moving_picture(2, chroma=Yuv400, height=33, width=47)
    assert X26x(encoder).encode(frames, EncodeRequest(qp=30, bit_depth=8)).decoded.y.shape == (2, 33, 47)


def test_unknown_encoders_and_thread_counts_are_refused():
    with pytest.raises(ValueError, match="known: x264, x265"):
        X26x("x266")
    with pytest.raises(ValueError, match="0 threads"):
        X26x("x264", threads=0)


def test_an_encoder_missing_from_the_build_is_named(monkeypatch):
    def missing(name, *_):
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.CodecContext, "create", missing)
    encoder_version.cache_clear()
    assert [(name, "is missing" in finding) for name, finding in find_encoders()] == [("x264", True), ("x265", True)]
    with pytest.raises(RuntimeError, match="built without libx265"):
        X26x("x265").encode(SMALL, EncodeRequest(qp=30, bit_depth=8))
    with pytest.raises(RuntimeError, match="x264 is missing"):
        _ = X26x("x264").version
    encoder_version.cache_clear()


def test_versions_name_encoder_decoder_and_threads():
    assert X26x("x264").version.startswith("core ")
    assert find_encoders() == [(e, X26x(e).version) for e in ENCODERS]
    assert all("FFmpeg" in version and "unknown" not in version for _, version in find_encoders())
    assert X26x("x265", threads=2).version != X26x("x265").version


def test_a_codec_can_be_sent_to_another_process():
    codec = pickle.loads(pickle.dumps(X26x("x265", threads=2)))
    assert (codec.name, codec.version) == ("x265", X26x("x265", threads=2).version)
    assert "libx265" in codec.encode(SMALL, EncodeRequest(qp=30, bit_depth=8)).command
