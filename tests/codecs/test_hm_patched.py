"""HM with codecs/hm/hm.patch against the unpatched encoder, the stock decoder and NumPy.

Set JAXWRAP_HM (patched encoder), JAXWRAP_HM_STOCK (encoder built from the same sources without the patch) and
JAXWRAP_HM_DECODER (decoder without the patch); a test without the ones that it needs is skipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxwrap.codecs.reference.programs import find_config
from jaxwrap.codecs.reference.trace import Trace, read_trace

pytestmark = pytest.mark.reference

# Neither is a multiple of 8: HM pads the picture, and the coding tree units at its border are split.
WIDTH, HEIGHT = 76, 60
BANNER = "jaxwrap patch v1, modes diag, idse"
NO_FILTERS = ("--SAO=0", "--LoopFilterDisable=1")

CONFIGS = {
    "intra": ("encoder_intra_{}.cfg", 2),
    "lowdelay": ("encoder_lowdelay_{}.cfg", 4),
    "lowdelay_P": ("encoder_lowdelay_P_{}.cfg", 3),
    "randomaccess": ("encoder_randomaccess_{}.cfg", 5),
}
FORMATS = [(400, 8), (400, 10), (420, 8), (420, 10)]


def _program(variable: str) -> Path:
    if not (value := os.environ.get(variable)):
        pytest.skip(f"{variable} is not set: it names a binary of HM 18.0 (see the head of this file)")
    return Path(value)


@pytest.fixture(scope="session")
def patched() -> Path:
    binary = _program("JAXWRAP_HM")
    if BANNER not in subprocess.run([str(binary)], capture_output=True, text=True, timeout=20).stdout.splitlines():
        pytest.skip(f"JAXWRAP_HM={binary} is not patched: run jaxwrap patch hm --tree PATH and build it")
    return binary


@pytest.fixture(scope="session")
def stock() -> Path:
    return _program("JAXWRAP_HM_STOCK")


@pytest.fixture(scope="session")
def decoder() -> Path:
    return _program("JAXWRAP_HM_DECODER")


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames as planes, as HM reads them."""

    frames: list[list[np.ndarray]]
    chroma: int
    bits: int

    @property
    def raw(self) -> bytes:
        return b"".join(p.astype("<u2" if self.bits > 8 else "u1").tobytes() for frame in self.frames for p in frame)


def shapes(chroma: int) -> list[tuple[int, int]]:
    return [(HEIGHT, WIDTH)] + ([(HEIGHT // 2, WIDTH // 2)] * 2 if chroma == 420 else [])


def clip(frames: int, chroma: int, bits: int, seed: int = 0) -> Clip:
    """A moving texture with noise: something for every tool to do."""
    rng = np.random.default_rng(seed)
    scene = gaussian_filter(rng.normal(size=(HEIGHT + 40, WIDTH + 40)), 2)
    scene = (scene - scene.min()) / np.ptp(scene)
    made = []
    for n in range(frames):
        luma = scene[n : n + HEIGHT, 2 * n : 2 * n + WIDTH] + 0.03 * rng.normal(size=(HEIGHT, WIDTH))
        planes = [luma]
        if chroma == 420:
            planes += [0.2 + 0.5 * luma[::2, ::2], 0.8 - 0.5 * luma[1::2, 1::2]]
        made.append([np.clip(np.round(p * (2**bits - 1)), 0, 2**bits - 1).astype(int) for p in planes])
    return Clip(made, chroma, bits)


@dataclasses.dataclass(frozen=True)
class Encoded:
    stream: bytes
    reconstruction: bytes
    trace: Trace | None


def command(encoder: Path, source: Clip, config: str, folder: Path, options: tuple[str, ...], qp: int) -> list[str]:
    (folder / "in.yuv").write_bytes(source.raw)
    file = CONFIGS[config][0].format("main" if source.bits == 8 else "main10")
    arguments = {
        "InputFile": folder / "in.yuv",
        "BitstreamFile": folder / "out.bin",
        "ReconFile": folder / "out.yuv",
        "SourceWidth": WIDTH,
        "SourceHeight": HEIGHT,
        "FramesToBeEncoded": len(source.frames),
        "FrameRate": 25,
        "InputBitDepth": source.bits,
        "InternalBitDepth": source.bits,
        "InputChromaFormat": source.chroma,
        "ConformanceWindowMode": 1,
        "Profile": "main-RExt" if source.chroma == 400 else "main10",
        "QP": qp,
        "SEIDecodedPictureHash": 0,
    }
    named = [f"--{name}={value}" for name, value in arguments.items()]
    return [str(encoder), "-c", str(find_config("hm", encoder, file)), *named, *options]


def encode(
    encoder: Path, source: Clip, config: str, folder: Path, *options: str, qp: int = 30, trace: bool = False
) -> Encoded:
    if trace:
        options = (*options, f"--WeightTrace={folder / 'trace.txt'}")
    words = command(encoder, source, config, folder, options, qp)
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr + result.stdout[-2000:]
    return Encoded(
        (folder / "out.bin").read_bytes(),
        (folder / "out.yuv").read_bytes(),
        read_trace(folder / "trace.txt") if trace else None,
    )


def random_planes(chroma: int, seed: int = 0, spread: float = 1.0) -> list[np.ndarray]:
    """Weights from about e⁻² to e², smooth over a few samples, so that neighbouring units differ."""
    rng = np.random.default_rng(seed)
    return [np.exp(spread * 6 * gaussian_filter(rng.normal(size=s), 2)).astype(np.float32) for s in shapes(chroma)]


def write_map(path: Path, maps: list[list[np.ndarray]]) -> str:
    data = b"".join(p.astype("<f4").tobytes() for planes in maps for p in planes)
    path.write_bytes(struct.pack("<I", len(maps)) + data)
    return f"--WeightMap={path}"


def ones(chroma: int) -> list[np.ndarray]:
    return [np.ones(shape) for shape in shapes(chroma)]


def random_rows(chroma: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of a receiver that likes smooth errors: correlated along 4 samples, so that cross terms matter."""
    rng = np.random.default_rng(seed)
    return [
        np.stack([4 * gaussian_filter(rng.normal(size=s), 2) for _ in range(count)]).astype(np.float32)
        for s in shapes(chroma)
    ]


def write_rows(path: Path, frames: list[list[np.ndarray]], chroma: int) -> str:
    count = len(frames[0][0])
    data = struct.pack("<8s6I", b"JWROWS\r\n", 1, count, WIDTH, HEIGHT, chroma, len(frames))
    data += b"".join(planes[s].tobytes() for rows in frames for s in range(count) for planes in rows)
    path.write_bytes(data + hashlib.sha256(data).digest())
    return f"--WeightMap={path}"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("chroma", "bits"), FORMATS)
def test_no_map_and_a_map_of_ones_are_the_unpatched_encoder_bit_for_bit(
    patched: Path, stock: Path, tmp_path: Path, config: str, chroma: int, bits: int
) -> None:
    source = clip(CONFIGS[config][1], chroma, bits)
    wanted = encode(stock, source, config, tmp_path)
    assert encode(patched, source, config, tmp_path) == wanted
    options = (write_map(tmp_path / "map.dat", [ones(chroma)]), "--WeightLambdaScale=1")
    assert encode(patched, source, config, tmp_path, *options) == wanted


def test_a_trace_changes_nothing(patched: Path, tmp_path: Path) -> None:
    source = clip(3, 420, 8)
    plain = encode(patched, source, "lowdelay", tmp_path)
    traced = encode(patched, source, "lowdelay", tmp_path, trace=True)
    assert (traced.stream, traced.reconstruction) == (plain.stream, plain.reconstruction)


@pytest.mark.parametrize("kind", ["diag", "diag with QP offsets", "idse"])
@pytest.mark.parametrize(
    ("config", "chroma", "bits"),
    [
        *(("intra", *form) for form in FORMATS),
        ("lowdelay", 400, 10),
        ("lowdelay", 420, 8),
        ("randomaccess", 400, 8),
        ("randomaccess", 420, 10),
    ],
)
def test_the_stock_decoder_gives_the_reconstruction(
    patched: Path, decoder: Path, tmp_path: Path, config: str, kind: str, chroma: int, bits: int
) -> None:
    source = clip(CONFIGS[config][1], chroma, bits)
    if kind == "idse":
        options = [write_rows(tmp_path / "map.rows", [random_rows(chroma, 4)], chroma)]
        options += ["--WeightMode=1", "--WeightTau=0.3"]
    else:
        options = [write_map(tmp_path / "map.dat", [random_planes(chroma)])]
        options += ["--WeightQPOffset=1", "--MaxCuDQPDepth=2"] if "QP" in kind else []
    encoded = encode(patched, source, config, tmp_path, *options)
    assert encoded.stream != encode(patched, source, config, tmp_path).stream
    words = [str(decoder), "-b", str(tmp_path / "kept.bin"), "-o", str(tmp_path / "decoded.yuv"), "-d", str(bits)]
    (tmp_path / "kept.bin").write_bytes(encoded.stream)
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "decoded.yuv").read_bytes() == encoded.reconstruction


def bits_of_pictures(trace: Trace | None) -> dict[int, int]:
    assert trace is not None
    return {int(n): int(trace.units[trace.units[:, 0] == n, 5].sum()) for n in np.unique(trace.units[:, 0])}


@pytest.mark.parametrize("config", ["lowdelay_P", "randomaccess"])
def test_a_map_reaches_each_picture_by_its_number(patched: Path, tmp_path: Path, config: str) -> None:
    """Only the picture that is coded last gets another map: it alone changes, and it is a P or B picture."""
    source = clip(CONFIGS[config][1], 420, 8)
    plain = encode(patched, source, config, tmp_path, trace=True, qp=24)
    assert plain.trace is not None
    last = int(plain.trace.units[-1, 0])
    assert str(plain.trace.types[-1]) in "PB"
    maps = [ones(420) for _ in source.frames]
    maps[last] = random_planes(420)
    options = (write_map(tmp_path / "map.dat", maps), "--WeightPeriod=1")
    changed = encode(patched, source, config, tmp_path, *options, trace=True, qp=24)
    before, after = bits_of_pictures(plain.trace), bits_of_pictures(changed.trace)
    assert {n for n in before if before[n] != after[n]} == {last}


def test_a_map_per_intra_picture_is_held_until_the_next(patched: Path, tmp_path: Path) -> None:
    source = clip(10, 400, 8)
    period = "--IntraPeriod=8"
    plain = encode(patched, source, "lowdelay_P", tmp_path, period, trace=True, qp=24)
    options = (write_map(tmp_path / "map.dat", [ones(400), random_planes(400)]), "--WeightPeriod=8", period)
    changed = encode(patched, source, "lowdelay_P", tmp_path, *options, trace=True, qp=24)
    before, after = bits_of_pictures(plain.trace), bits_of_pictures(changed.trace)
    assert {n for n in before if before[n] != after[n]} == {8, 9}


def test_each_decision_alone_changes_the_stream_and_none_changes_nothing(patched: Path, tmp_path: Path) -> None:
    source = clip(3, 420, 8)
    name = write_map(tmp_path / "map.dat", [random_planes(420)])
    streams = {
        mask: encode(patched, source, "lowdelay", tmp_path, name, f"--WeightDecisions={mask}", qp=34).stream
        for mask in (0, 1, 2, 4, 8, 15)
    }
    assert streams.pop(0) == encode(patched, source, "lowdelay", tmp_path, qp=34).stream
    assert len({*streams.values(), encode(patched, source, "lowdelay", tmp_path, qp=34).stream}) == 6


def test_qp_offsets_move_bits_to_where_weights_are(patched: Path, tmp_path: Path) -> None:
    source = clip(1, 400, 8)
    plane = np.full((HEIGHT, WIDTH), 0.25)
    plane[:, 32:64] = 4.0
    name = write_map(tmp_path / "map.dat", [[plane]])
    shares, errors = [], []
    for options in ((), (name,), (name, "--WeightQPOffset=1")):
        encoded = encode(patched, source, "intra", tmp_path, *options, "--MaxCuDQPDepth=1", trace=True, qp=22)
        assert encoded.trace is not None
        x, width, bits = encoded.trace.units[:, 1], encoded.trace.units[:, 3], encoded.trace.units[:, 5]
        within = np.clip(np.minimum(x + width, 64) - np.maximum(x, 32), 0, None) / width
        shares.append(float((bits * within).sum() / bits.sum()))
        decoded = np.frombuffer(encoded.reconstruction, np.uint8).reshape(HEIGHT, WIDTH)
        errors.append(float(((decoded - source.frames[0][0])[:, 32:64] ** 2).mean()))
    # QP 16 inside and 28 outside instead of 22: an error of a quarter where weights are 4, and most of the bits.
    assert shares[2] > shares[1] > shares[0]
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("config", ["intra", "lowdelay"])
def test_a_scale_of_lambda_moves_the_rate_with_and_without_a_map(patched: Path, tmp_path: Path, config: str) -> None:
    source = clip(2, 420, 8)
    name = write_map(tmp_path / "map.dat", [ones(420)])
    sizes = []
    for scale in (0.25, 1.0, 4.0):
        option = f"--WeightLambdaScale={scale}"
        plain = encode(patched, source, config, tmp_path, option, qp=26).stream
        assert encode(patched, source, config, tmp_path, option, name, qp=26).stream == plain
        sizes.append(len(plain))
    assert sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("config", ["intra", "randomaccess"])
def test_units_of_the_trace_tile_each_picture_and_their_bits_are_the_slices(
    patched: Path, tmp_path: Path, config: str
) -> None:
    source = clip(CONFIGS[config][1], 420, 8)
    encoded = encode(patched, source, config, tmp_path, "--SAO=0", qp=20, trace=True)
    assert encoded.trace is not None
    coded = (-(-HEIGHT // 8) * 8, -(-WIDTH // 8) * 8)
    for n in range(len(source.frames)):
        covered = np.zeros(coded, int)
        for _, x, y, width, height, _ in encoded.trace.units[encoded.trace.units[:, 0] == n]:
            covered[y : y + height, x : x + width] += 1
        assert (covered == 1).all()
    # Slice NAL units in coding order; what they hold beyond coding units: NAL and slice header, end bits, alignment.
    parts = [part for part in encoded.stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if part]
    slices = [8 * len(part.replace(b"\0\0\3", b"\0\0")) for part in parts if (part[0] >> 1 & 63) < 32]
    order = list(dict.fromkeys(encoded.trace.units[:, 0].tolist()))
    bits = bits_of_pictures(encoded.trace)
    assert len(slices) == len(order)
    for n, size in zip(order, slices, strict=True):
        assert 0 < size - bits[n] < 20 * 8


def check_costs(trace: Trace, weigh: dict[str, np.ndarray], rows: dict[str, np.ndarray] | None, tau: float) -> int:
    """Compares each traced cost with NumPy; returns how many were counted with partial sums other than 0."""
    partial = 0
    for cost in trace.costs:
        q = cost.difference.astype(np.float64)
        height, width = q.shape
        area = np.s_[cost.y : cost.y + height, cost.x : cost.x + width]
        if rows is None:
            wanted = magnitude = float((weigh[cost.plane][area] * q**2).sum())
        else:
            products = rows[cost.plane][:, *area] * q
            grid = 16 if cost.plane == "y" else 8
            square = magnitude = tau * float((q**2).sum())
            wanted = square
            if len(cost.partial):
                added = products.sum(axis=(1, 2))
                wanted += float(((cost.partial + added) ** 2 - cost.partial**2).sum())
                magnitude += float(((np.abs(cost.partial) + np.abs(products).sum(axis=(1, 2))) ** 2).sum())
                partial += bool(cost.partial.any())
            else:
                assert max(width, height) > grid
                for top in range(0, height, grid):
                    for left in range(0, width, grid):
                        part = products[:, top : top + grid, left : left + grid]
                        wanted += float((part.sum(axis=(1, 2)) ** 2).sum())
                        magnitude += float((np.abs(part).sum(axis=(1, 2)) ** 2).sum())
        # The encoder rounds to a whole number; float32 lanes (see test_weights_header) for the rest.
        assert abs(cost.distortion - wanted) <= 0.5 + 4e-6 * magnitude
    return partial


def padded(planes: list[np.ndarray], mode: str) -> dict[str, np.ndarray]:
    """Planes [..., H, W] of a map at the size that HM codes."""
    result = {}
    for name, plane in zip("yuv", planes, strict=False):
        side = 8 if name == "y" else 4
        pad = [(0, 0)] * (plane.ndim - 2) + [(0, -n % side) for n in plane.shape[-2:]]
        result[name] = np.pad(plane, pad, mode=mode).astype(np.float64)  # type: ignore[call-overload]
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("config", "every"), [("intra", 7), ("lowdelay", 41)])
def test_traced_costs_equal_the_weighted_sum(patched: Path, tmp_path: Path, seed: int, config: str, every: int) -> None:
    source = clip(2, 420, 10, seed)
    planes = random_planes(420, seed)
    options = (write_map(tmp_path / "map.dat", [planes]), f"--WeightTraceCosts={every}")
    trace = encode(patched, source, config, tmp_path, *options, trace=True).trace
    assert trace is not None
    check_costs(trace, padded(planes, "edge"), None, 0.0)
    assert {cost.plane for cost in trace.costs} == {"y", "u", "v"}
    assert {len(cost.difference) for cost in trace.costs} >= {4, 8, 16, 32}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("config", "every"), [("intra", 7), ("lowdelay", 41)])
def test_traced_costs_equal_the_quadratic_form(
    patched: Path, tmp_path: Path, seed: int, config: str, every: int
) -> None:
    source = clip(2, 420, 10, seed)
    rows = random_rows(420, 4, seed)
    name = write_rows(tmp_path / "map.rows", [rows], 420)
    options = (name, "--WeightMode=1", "--WeightTau=0.3", f"--WeightTraceCosts={every}")
    trace = encode(patched, source, config, tmp_path, *options, trace=True).trace
    assert trace is not None
    assert check_costs(trace, {}, padded(rows, "constant"), 0.3) > 50
    assert {cost.plane for cost in trace.costs} == {"y", "u", "v"}
    assert min(cost.distortion for cost in trace.costs) < 0


@pytest.mark.parametrize(("config", "qp"), [("intra", 22), ("lowdelay", 22)])
def test_partial_sums_are_those_of_the_units_that_the_stream_holds(
    patched: Path, tmp_path: Path, config: str, qp: int
) -> None:
    """In a grid block of four 8×8 coding units, each but the first was judged beside what the stream has before it."""
    source = clip(2, 400, 8)
    rows = random_rows(400, 3)
    name = write_rows(tmp_path / "map.rows", [rows], 400)
    options = (name, "--WeightMode=1", "--WeightTau=0.3", "--WeightTraceCosts=1", *NO_FILTERS)
    encoded = encode(patched, source, config, tmp_path, *options, qp=qp, trace=True)
    assert encoded.trace is not None
    decoded = np.frombuffer(encoded.reconstruction, np.uint8).reshape(-1, HEIGHT, WIDTH)
    checked = 0
    for n in range(len(source.frames)):
        q = decoded[n].astype(np.float64) - source.frames[n][0]
        products = rows[0].astype(np.float64) * q
        units = encoded.trace.units[encoded.trace.units[:, 0] == n]
        small = {(x, y) for _, x, y, width, _, _ in units.tolist() if width == 8}
        seen: dict[tuple[int, int], list[np.ndarray]] = {}
        for cost in encoded.trace.costs:
            if cost.frame == n and cost.difference.shape == (8, 8):
                seen.setdefault((cost.x, cost.y), []).append(cost.partial)
        for left, top in {(x // 16 * 16, y // 16 * 16) for x, y in small}:
            corners = [(left, top), (left + 8, top), (left, top + 8), (left + 8, top + 8)]
            if not small.issuperset(corners) or left + 16 > WIDTH or top + 16 > HEIGHT:
                continue
            before = np.zeros(3)
            for x, y in corners:
                nearest = min(float(np.abs(partial - before).max()) for partial in seen[x, y])
                assert nearest <= 1e-3 * float(np.abs(products).max())
                before = before + products[:, y : y + 8, x : x + 8].sum(axis=(1, 2))
                checked += 1
    assert checked >= 16


@pytest.mark.parametrize(
    ("change", "options", "wanted"),
    [
        (lambda data: data[:-2], (), "bytes; "),
        (lambda data: data + b"\0", (), "bytes; "),
        (lambda data: data[:4] + b"\0\0\xc0\x7f" + data[8:], (), "is nan at row 0, column 0"),
        (lambda data: data[:4] + struct.pack("<f", -1) + data[8:], (), "is -1 at row 0, column 0"),
        (lambda data: data[:4] + bytes(len(data) - 4), (), "zero everywhere"),
        (lambda data: data, ("--WeightPeriod=1",), "holds 1 maps; 2 were wanted for 2 frames"),
        (lambda data: data, ("--WeightMode=1",), "does not start with JWROWS"),
        (lambda data: data, ("--WeightDecisions=16",), "WeightDecisions: 16 was given"),
    ],
)
def test_a_bad_map_stops_the_encoder_before_the_first_frame(
    patched: Path, tmp_path: Path, change: Callable[[bytes], bytes], options: tuple[str, ...], wanted: str
) -> None:
    path = tmp_path / "map.dat"
    name = write_map(path, [ones(400)])
    path.write_bytes(change(path.read_bytes()))
    words = command(patched, clip(2, 400, 8), "intra", tmp_path, (name, *options), 30)
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    message = [line for line in result.stderr.splitlines() if line.startswith("jaxwrap: ")]
    assert len(message) == 1
    assert wanted in message[0]
    assert "POC" not in result.stdout
    assert not (tmp_path / "out.bin").exists()


def test_the_help_lists_every_option(patched: Path) -> None:
    result = subprocess.run([str(patched), "--help"], capture_output=True, text=True, timeout=20)
    text = result.stdout + result.stderr
    assert BANNER in text.splitlines()
    for name in ("Map", "Mode", "Period", "Decisions", "QPOffset", "Tau", "LambdaScale", "Trace", "TraceCosts"):
        assert f"Weight{name}" in text
