"""How reference encoders are run, with programs that stand in for HM and JM: Python scripts around x265 and x264 in
their lossless modes, so that what must be decoded is known; their own packets say what each picture has to cost."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420, frame_of
from jaxwrap.codec import CONFIGS, DECISIONS, EncodeRequest, RowWeights, Weights
from jaxwrap.codecs.bitstream import access_units, count_bits, nal_units
from jaxwrap.codecs.reference.encoder import LOG, MIN_SIZE, STREAM, ReferenceEncoder
from jaxwrap.codecs.reference.hm import Hm
from jaxwrap.codecs.reference.jm import Jm
from jaxwrap.codecs.reference.launch import EncoderError, launch
from jaxwrap.codecs.reference.patched import decision_mask
from jaxwrap.codecs.reference.programs import PROGRAMS, find_config
from jaxwrap.codecs.reference.vtm import Vtm
from jaxwrap.codecs.reference.vvenc import Vvenc

ENCODERS = (Hm, Jm, Vtm, Vvenc)
HM_FILES = [f"encoder_{c}_main{d}.cfg" for c in ("intra", "lowdelay_P", "randomaccess") for d in ("", "10")]
JM_FILES = [f"HM-like/encoder_JM_{c}_HE.cfg" for c in ("Intra", "LP", "RA_B")]

# Behaves as its first line's settings say: a banner, and what goes wrong.
STAND_IN = """#!{python}
BANNER, TROUBLE, LIBRARY = {banner!r}, {trouble!r}, {library!r}
import json, pathlib, sys, time
import av
from fractions import Fraction

words = sys.argv[1:]
if not words or words == ["-v"]:
    print(BANNER)
    sys.exit(1)
options = dict(w.removeprefix("--").split("=", 1) for w in words if "=" in w)
print("one line of the log")
if TROUBLE == "status":
    print("no such profile", file=sys.stderr)
    sys.exit(3)
if TROUBLE == "hang":
    time.sleep(60)
if TROUBLE == "crash":
    import os
    os.abort()
source = pathlib.Path(options["InputFile"])
width, height = int(options["SourceWidth"]), int(options["SourceHeight"])
hm = LIBRARY == "libx265"
depth = int(options["InputBitDepth" if hm else "SourceBitDepthLuma"])
grey = options["InputChromaFormat"] == "400" if hm else options["YUVFormat"] == "0"
data = source.read_bytes()
count = int(options["FramesToBeEncoded"])
size = len(data) // count
context = av.CodecContext.create(LIBRARY, "w")
context.width, context.height = width, height
context.pix_fmt = ("gray" if grey else "yuv420p") + ("10le" if depth == 10 else "")
context.framerate, context.time_base, context.thread_count = Fraction(25), Fraction(1, 25), 1
if hm:  # B pictures, and parameter sets again at every I picture
    params = "lossless=1:pools=none:frame-threads=1:log-level=none:info=0:repeat-headers=1:keyint=4:min-keyint=4"
    context.options = {{"x265-params": params + ":scenecut=0:bframes=2:b-adapt=0"}}
else:
    context.options = {{"qp": "0", "x264-params": "bframes=2:b-adapt=0"}}
packets = []
for number in range(count):
    frame = av.VideoFrame(width, height, context.pix_fmt)
    frame.pts, start = number, number * size
    for plane in frame.planes:
        row = plane.width * (2 if depth == 10 else 1)
        lines = [data[start + i * row : start + (i + 1) * row] for i in range(plane.height)]
        plane.update(b"".join(line.ljust(plane.line_size, b"\\0") for line in lines))
        start += row * plane.height
    packets += context.encode(frame)
packets += context.encode(None)
stream = b"".join(bytes(p) for p in packets)
pathlib.Path(options["BitstreamFile" if hm else "OutputFile"]).write_bytes(stream)
if TROUBLE == "reconstruction":
    data = bytes([data[0] ^ 1]) + data[1:]
if TROUBLE == "truncated":
    data = data[:-1]
pathlib.Path(options["ReconFile"]).write_bytes(data)
pathlib.Path("packets.json").write_text(json.dumps([[p.pts, len(bytes(p))] for p in packets]))
if "WeightTrace" in options:
    lines = [f"bits {{n}} I 0 0 64 48 {{100 + n}}" for n in range(count - (TROUBLE == "trace"))]
    head = "jaxwrap trace 1 " + ("hm" if hm else "jm")
    pathlib.Path(options["WeightTrace"]).write_text("\\n".join([head, *lines, ""]))
"""
HM_BANNER = "\nHM software: Encoder Version [18.0] (including RExt)[Linux][GCC 12.2.0][64 bit]"
PATCH_LINE = "jaxwrap patch v1, modes diag, idse"


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Path]:
    """Writes a program and the configuration files beside it, as a source tree has them."""

    def make(trouble: str = "", *, banner: str = f"{HM_BANNER}\n{PATCH_LINE}", library: str = "libx265") -> Path:
        tree = tmp_path / "tree"
        path = tree / "bin" / "release" / f"encoder{trouble}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STAND_IN.format(python=sys.executable, banner=banner, trouble=trouble, library=library))
        path.chmod(0o755)
        for file in [*(f"cfg/{name}" for name in HM_FILES), *(f"bin/{name}" for name in JM_FILES)]:
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            (tree / file).touch()
        return path

    return make


def jm_stand_in(make: Callable[..., Path]) -> Path:
    return make(banner=f"JM-19.0\n{PATCH_LINE}", library="libx264")


def noise(frames: int = 5, *, chroma: type = Yuv420, bit_depth: int = 10, height: int = 48, width: int = 64) -> Frame:
    """Integers that no lossy coder keeps."""
    rng = np.random.default_rng(2)
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    y, u, v = (rng.integers(0, 2**bit_depth, (frames, height // s, width // s), dtype) for s in (1, 2, 2))
    return Yuv400(y) if chroma is Yuv400 else Yuv420(y, u, v)


def maps(frames: Frame, num: int) -> Frame:
    """Weights with values that float32 holds."""
    rng = np.random.default_rng(4)
    return frame_of([rng.integers(1, 64, (num, *p.shape[1:])) / 32.0 for p in frames.planes])


@pytest.mark.parametrize(("chroma", "bit_depth"), [(Yuv420, 8), (Yuv400, 10)])
def test_the_decoded_stream_is_returned_and_its_bits_are_those_of_the_encoders_own_packets(
    stand_in, tmp_path, chroma, bit_depth
):
    frames = noise(9, chroma=chroma, bit_depth=bit_depth)
    result = Hm(stand_in(), keep=tmp_path / "kept").encode(frames, EncodeRequest(qp=30, bit_depth=bit_depth))
    for decoded, original in zip(result.decoded.planes, frames.planes, strict=True):
        np.testing.assert_array_equal(decoded, original)
    (kept,) = (tmp_path / "kept").iterdir()
    packets = dict(json.loads((kept / "packets.json").read_text()))
    # Packets at each fourth picture begin with the parameter sets, which count the first time only; the slice that then
    # comes first has a longer start code.
    first = next(iter(access_units((kept / STREAM).read_bytes(), "hevc")))
    headers = count_bits(first, "hevc")[1]
    repeats = np.array([headers - 8 if n % 4 == 0 and n > 0 else 0 for n in range(9)])
    np.testing.assert_array_equal(result.bits, 8 * np.array([packets[n] for n in range(9)]) - repeats)
    assert result.header_bits == headers > 0
    assert result.verified
    assert result.units is None
    assert result.seconds > 0
    assert "one line of the log" in (kept / LOG).read_text()
    assert not list(kept.glob("source*"))


def test_pictures_of_an_avc_encoder_come_in_display_order_though_coded_in_another(stand_in):
    frames = noise(7, bit_depth=8)
    result = Jm(jm_stand_in(stand_in)).encode(frames, EncodeRequest(qp=30, bit_depth=8))
    np.testing.assert_array_equal(result.decoded.y, frames.y)


def test_real_samples_are_rounded_and_clipped_before_they_are_written(stand_in):
    frames = Yuv400(np.linspace(-3.0, 260.0, 48 * 64).reshape(1, 48, 64))
    result = Hm(stand_in()).encode(frames, EncodeRequest(qp=30, bit_depth=8))
    np.testing.assert_array_equal(result.decoded.y, np.floor(frames.y.clip(0, 255) + 0.5))


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("status", "ended with status 3: .*no such profile\nThe end of its log"),
        ("crash", "was ended by signal 6"),
        ("reconstruction", "does not decode to the encoder's reconstruction.*plane y"),
        ("truncated", "wanted whole frames"),
    ],
)
def test_an_encoder_that_fails_raises_with_its_log_and_leaves_it_where_asked(stand_in, tmp_path, trouble, message):
    encoder = Hm(stand_in(trouble), keep=tmp_path / "kept")
    with pytest.raises(EncoderError, match=message) as caught:
        encoder.encode(noise(1), EncodeRequest(qp=30))
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert "one line of the log" in again.log
    assert "--QP=30" in again.log
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_an_encoder_that_takes_too_long_is_stopped(stand_in):
    start = time.monotonic()
    with pytest.raises(EncoderError, match=r"took more than 0\.3 s and was stopped"):
        Hm(stand_in("hang"), timeout_s=0.3).encode(noise(1), EncodeRequest(qp=30))
    assert time.monotonic() - start < 30  # it would sleep for 60 s


def test_children_of_a_program_that_is_stopped_are_stopped_too(tmp_path):
    with pytest.raises(EncoderError, match="stopped"):
        launch(["sh", "-c", "sleep 60 & echo $! > child; wait"], tmp_path, timeout_s=0.5)
    stat = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    if not stat.parents[1].is_dir():
        pytest.skip("no /proc: nothing tells whether the child is still there")
    state = ""
    for _ in range(100):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            return  # gone
        if state == "Z":
            return  # dead, and not yet collected
        time.sleep(0.05)
    pytest.fail(f"the child is still there, in state {state}")


def test_processor_time_is_measured_not_time_spent_waiting(tmp_path):
    idle = launch(["sleep", "1"], tmp_path, timeout_s=30)
    busy = launch([sys.executable, "-c", "while __import__('time').process_time() < 0.5: pass"], tmp_path, timeout_s=60)
    assert idle.seconds < 0.5 <= busy.seconds


def test_a_program_that_cannot_be_started_is_named(tmp_path):
    with pytest.raises(EncoderError, match="/no/such/encoder cannot be started"):
        launch(["/no/such/encoder"], tmp_path, timeout_s=1)


def test_version_names_patch_modes_and_the_hash_of_the_binary(stand_in, tmp_path):
    for path, encoder, wanted in (
        (stand_in(), Hm, "HM 18.0, jaxwrap patch v1, modes diag, idse"),
        (stand_in("x", banner=HM_BANNER), Hm, "HM 18.0"),
        (stand_in("y", banner=f"JM-19.0\n{PATCH_LINE}"), Jm, "JM 19.0, jaxwrap patch v1, modes diag, idse"),
    ):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert str(encoder(path).identity) == f"{wanted}, sha256 {digest[:12]}"


def test_a_rebuilt_binary_is_asked_again(stand_in):
    before = Hm(stand_in()).version
    after = Hm(stand_in(banner=HM_BANNER)).version
    assert "patch" in before
    assert "patch" not in after


def test_another_program_is_not_taken_for_an_encoder(stand_in):
    with pytest.raises(RuntimeError, match="does not say that it is HM; it prints: hello"):
        Hm(stand_in(banner="hello")).version  # noqa: B018


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_missing_encoder_is_a_runtime_error_that_names_its_variable(encoder, monkeypatch, tmp_path):
    variable, programs = PROGRAMS[encoder.name]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(RuntimeError, match=f"set {variable} to its {programs[-1]}"):
        encoder().version  # noqa: B018
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(RuntimeError, match="is no executable file"):
        encoder().version  # noqa: B018


def test_an_encoder_is_found_by_its_variable_and_on_path(stand_in, monkeypatch):
    path = stand_in()
    monkeypatch.setenv("JAXWRAP_HM", str(path))
    assert Hm().program == path
    monkeypatch.delenv("JAXWRAP_HM")
    path.rename(path.with_name("TAppEncoder"))
    monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)
    assert Hm().program == path.with_name("TAppEncoder")


def test_configuration_files_are_found_by_option_then_variable_then_beside_the_binary(stand_in, monkeypatch, tmp_path):
    binary, file = stand_in(), HM_FILES[0]
    assert find_config("hm", binary, file) == tmp_path / "tree" / "cfg" / file
    for folder in ("named", "set"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    monkeypatch.setenv("JAXWRAP_HM_CFG", str(tmp_path / "set"))
    assert find_config("hm", binary, file) == tmp_path / "set" / file
    assert find_config("hm", binary, file, tmp_path / "named") == tmp_path / "named" / file
    with pytest.raises(ValueError, match=r"needs its configuration file encoder_lowdelay_P_main10\.cfg, which is"):
        Hm(binary).check((48, 64), EncodeRequest(qp=30, config="lowdelay"))
    monkeypatch.delenv("JAXWRAP_HM_CFG")
    with pytest.raises(ValueError, match="set JAXWRAP_HM_CFG to the folder"):
        find_config("hm", tmp_path / "elsewhere" / "encoder", file)


def test_every_configuration_file_that_an_encode_is_given_is_part_of_the_version(stand_in, tmp_path):
    encoder = Hm(stand_in())
    identity, _, before = encoder.version.partition(", configurations ")
    assert identity == str(encoder.identity)
    assert len(before) == 12
    seen = {before}
    # 25 frames per second: I pictures 24 apart, which is no multiple of 16.
    for config, bit_depth, fps in itertools.product(CONFIGS, (8, 10), (25.0, 60.0)):
        request = EncodeRequest(qp=30, config=config, bit_depth=bit_depth, fps=fps)
        file = encoder._config_file(config, request)
        assert file in encoder.config_files
        path = tmp_path / "tree" / "cfg" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path.read_text() if path.exists() else ''}QP : 3\n")
        changed = encoder.version.rpartition(" ")[2]
        assert changed not in seen
        seen.add(changed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert Hm(encoder.binary, configs=elsewhere).version == identity  # none is there: `check` says so


def test_weights_are_written_as_given_and_named_with_mode_period_and_decisions(stand_in, tmp_path):
    frames = noise(3)
    cases = {
        "one map": (maps(frames, 1), 0),
        "one per picture": (maps(frames, 3), 1),
        "the same for all": (frame_of([np.repeat(p, 3, axis=0) for p in maps(frames, 1).planes]), 0),
    }
    for name, (planes, period) in cases.items():
        kept = tmp_path / name
        weights = Weights(planes, decisions=("sse", "filters"))
        result = Hm(stand_in(), keep=kept).encode(frames, EncodeRequest(qp=30, weights=weights))
        assert "--WeightMap=map.dat" in result.command, name
        assert ["--WeightMode=0", "--WeightQPOffset=0"][1] in result.command, name
        assert f"--WeightPeriod={period} --WeightDecisions=9" in result.command, name
        content = next(kept.glob("*/map.dat")).read_bytes()
        num = struct.unpack("<I", content[:4])[0]
        assert num == (3 if period else 1), name
        values = np.concatenate([p[n].ravel() for n in range(num) for p in planes.planes])
        np.testing.assert_array_equal(np.frombuffer(content[4:], "<f4"), values.astype("<f4"), err_msg=name)


def test_qp_offsets_are_asked_for_with_what_the_encoder_needs_for_them(stand_in):
    frames = noise(1)
    weights = Weights(maps(frames, 1), "qp_offset", ())
    hm = Hm(stand_in()).encode(frames, EncodeRequest(qp=30, weights=weights)).command
    assert "--WeightQPOffset=1" in hm
    assert "--WeightDecisions=0" in hm
    assert "--MaxCuDQPDepth=2" in hm


def test_rows_are_written_with_their_tau(stand_in, tmp_path):
    frames = noise(2, chroma=Yuv400)
    rows = np.random.default_rng(0).integers(-8, 8, (2, 3, 48, 64)) / 4.0
    result = Hm(stand_in(), keep=tmp_path / "kept").encode(
        frames, EncodeRequest(qp=30, weights=RowWeights(Yuv400(rows), np.float64(0.25)))
    )
    assert "--WeightMap=map.rows --WeightPeriod=1 --WeightDecisions=15 --WeightMode=1" in result.command
    assert "--WeightTau=0.25" in result.command
    content = next((tmp_path / "kept").glob("*/map.rows")).read_bytes()
    assert struct.unpack("<8s6I", content[:32]) == (b"JWROWS\r\n", 1, 3, 64, 48, 400, 2)
    np.testing.assert_array_equal(np.frombuffer(content[32:-32], "<f4").reshape(rows.shape), rows)


def test_lambda_scale_and_trace_work_without_weights(stand_in):
    frames = noise(3)
    result = Hm(stand_in()).encode(frames, EncodeRequest(qp=30, lambda_scale=0.5, trace=True))
    assert "--WeightLambdaScale=0.5" in result.command
    assert "WeightMap" not in result.command
    np.testing.assert_array_equal(result.units, [[n, 0, 0, 64, 48, 100 + n] for n in range(3)])
    with pytest.raises(EncoderError, match=r"pictures \[0, 1\]; hm coded 0 … 2"):
        Hm(stand_in("trace")).encode(frames, EncodeRequest(qp=30, trace=True))


def test_jm_takes_its_options_in_its_own_way(stand_in):
    frames = noise(1, bit_depth=8)
    weights = Weights(maps(frames, 1))
    words = Jm(jm_stand_in(stand_in)).encode(frames, EncodeRequest(qp=30, bit_depth=8, weights=weights)).command.split()
    assert {"WeightMap=map.dat", "QPISlice=30", "Transform8x8Mode=1"} <= set(words)
    assert all(words[i - 1] == "-p" for i, word in enumerate(words) if "=" in word)
    request = EncodeRequest(qp=30, bit_depth=8, preset="no-8x8")
    assert "Transform8x8Mode=0" in Jm(jm_stand_in(stand_in)).encode(frames, request).command


def test_no_weights_reach_an_encoder_that_cannot_use_them(stand_in, tmp_path):
    frames = noise(1)
    weighted = {
        "weights": EncodeRequest(qp=30, weights=Weights(maps(frames, 1))),
        "λ scale": EncodeRequest(qp=30, lambda_scale=2.0),
        "trace": EncodeRequest(qp=30, trace=True),
    }
    unpatched = Hm(stand_in("x", banner=HM_BANNER))
    only_diag = Hm(stand_in("y", banner=f"{HM_BANNER}\njaxwrap patch v1, modes diag"))
    for word, request in weighted.items():
        with pytest.raises(ValueError, match=r"is unpatched: run jaxwrap patch hm --tree PATH"):
            unpatched.check((48, 64), request)
        only_diag.check((48, 64), request)
        for anchor in (Vtm(stand_in()), Vvenc(stand_in())):
            with pytest.raises(ValueError, match=f"{word}.*asked of {anchor.name}, which is an unweighted anchor"):
                anchor.check((48, 64), request)
    rows = RowWeights(frame_of([p[:, None] for p in maps(frames, 1).planes]), 0.5)
    with pytest.raises(ValueError, match="is patched for modes diag; mode idse was wanted"):
        only_diag.check((48, 64), EncodeRequest(qp=30, weights=rows))


def test_weights_of_another_size_or_number_are_refused(stand_in):
    frames = noise(3)
    encoder = Hm(stand_in())
    for planes in (maps(frames, 2), maps(noise(1, width=32), 1), maps(noise(1, chroma=Yuv400), 1)):
        with pytest.raises(ValueError, match="wanted 1 or 3 with"):
            encoder.encode(frames, EncodeRequest(qp=30, weights=Weights(planes)))


@pytest.mark.parametrize(
    ("size", "request_", "message"),
    [
        ((8, 64), EncodeRequest(qp=30), f"takes {MIN_SIZE}×{MIN_SIZE} or more"),
        ((48, 64), EncodeRequest(qp=52), "QP 52 was given; hm takes whole numbers 0 … 51"),
        ((48, 64), EncodeRequest(qp=30.5), "QP 30.5"),
        ((48, 64), EncodeRequest(qp=None), "QP None"),
        ((48, 64), EncodeRequest(qp=float("nan")), "QP nan"),
        ((48, 64), EncodeRequest(qp=30, bit_depth=12), "12"),
        ((48, 64), EncodeRequest(qp=30, preset="slow"), "preset 'slow' was given to hm; it has none"),
        ((48, 64), EncodeRequest(qp=30, config="fast"), "configuration 'fast'"),  # type: ignore[arg-type]
        ((48, 64), EncodeRequest(qp=30, fps=0.0), "0.0 frames per second"),
        ((48, 64), EncodeRequest(qp=30, lambda_scale=0.0), "λ scale 0.0"),
    ],
)
def test_what_the_encoder_cannot_do_is_refused_before_it_runs(stand_in, size, request_, message):
    with pytest.raises(ValueError, match=message):
        Hm(stand_in()).check(size, request_)


@pytest.mark.parametrize(("config", "highest"), [("intra", 51), ("lowdelay", 48), ("randomaccess", 47)])
def test_jm_refuses_qps_from_which_some_pictures_would_leave_the_range(stand_in, config, highest):
    encoder = Jm(jm_stand_in(stand_in))
    encoder.check((48, 64), EncodeRequest(qp=highest, config=config))
    with pytest.raises(ValueError, match=f"QP {highest + 1} was given; jm takes"):
        encoder.check((48, 64), EncodeRequest(qp=highest + 1, config=config))


def test_no_frames_are_refused(stand_in):
    with pytest.raises(ValueError, match="no frame was given to hm"):
        Hm(stand_in()).encode(noise(0), EncodeRequest(qp=30))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_adapters_are_picklable_before_anything_is_looked_for(encoder):
    given: ReferenceEncoder = encoder(binary=Path("/no/such"), timeout_s=7.0)
    assert pickle.loads(pickle.dumps(given)) == given


def test_decisions_are_numbered_as_the_encoders_know_them():
    assert [decision_mask((d,)) for d in DECISIONS] == [1, 2, 4, 8]
    assert decision_mask(()) == 0
    assert decision_mask(DECISIONS) == 15


def test_kinds_of_nal_units_are_read_from_where_each_standard_has_them():
    # First bytes written by hand from the standards: an SPS, a PPS, a slice and a user-data SEI of each.
    cases = {
        "avc": ([b"\x67", b"\x68", b"\x65", b"\x06"], [7, 8, 5, 6]),
        "hevc": ([b"\x42\x01", b"\x44\x01", b"\x26\x01", b"\x4e\x01"], [33, 34, 19, 39]),
        "vvc": ([b"\x00\x79", b"\x00\x81", b"\x00\x41", b"\x00\xb9"], [15, 16, 8, 23]),
    }
    for standard, (headers, kinds) in cases.items():
        stream = b"".join(b"\0\0\0\1" + h + b"\xff\x05\x02\x03\x80" for h in headers)
        units = list(nal_units(stream, standard))  # type: ignore[arg-type]
        assert [unit.kind for unit in units] == kinds, standard
        assert b"".join(unit.data for unit in units) == stream
        assert [unit.sei_payload for unit in units] == [None, None, None, 255 + 5], standard


def test_parameter_sets_are_dropped_where_they_repeat_and_kept_where_they_change():
    def stream(height: int) -> bytes:
        context = av.CodecContext.create("libx265", "w")
        context.width, context.height, context.pix_fmt, context.time_base = 64, height, "gray", Fraction(1, 25)
        context.options = {"x265-params": "pools=none:log-level=none:info=0"}
        frame = av.VideoFrame(64, height, "gray")
        frame.pts = 0
        return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])

    one, other = stream(48), stream(64)
    parts = access_units(one + other + one + one, "hevc")
    headers = [count_bits(part, "hevc")[1] for part in parts]
    assert parts[:3] == [one, other, one]
    assert headers[0] == headers[2] > headers[3] == 0
    assert one.endswith(parts[3][4:])
