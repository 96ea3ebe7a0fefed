"""The patched JM against the unpatched one, the stock decoder and NumPy; on small pictures that end within macroblocks.

Skips unless JAXWRAP_JM names a patched lencod; where needed also JAXWRAP_JM_STOCK, lencod built from the same source
without the patch, and JAXWRAP_JM_DECODER, its ldecod.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxwrap.codecs.reference.trace import BlockCost, read_trace

pytestmark = pytest.mark.reference

Planes = list[np.ndarray]
Options = dict[str, object]

INTRA: Options = {"IntraPeriod": 1, "IDRPeriod": 1}
LOW_DELAY: Options = {}
RANDOM_ACCESS: Options = {"NumberBFrames": 3, "HierarchicalCoding": 1}
QP = 28
TAU = 0.3


class Source(NamedTuple):
    """A clip, and the size that JM codes it with."""

    path: Path
    frames: list[Planes]
    chroma: int
    depth: int

    @property
    def coded(self) -> list[tuple[int, int]]:
        height, width = (-(-n // 16) * 16 for n in self.frames[0][0].shape)
        return [(height, width), (height // 2, width // 2), (height // 2, width // 2)]


class Encode(NamedTuple):
    stream: bytes
    reconstruction: bytes
    log: str
    trace: Path


def binary(variable: str) -> str:
    if not (path := os.environ.get(variable)):
        pytest.skip(f"set {variable} (see the head of this file)")
    return path


@pytest.fixture(scope="module")
def patched() -> str:
    path = binary("JAXWRAP_JM")
    if "jaxwrap patch" not in subprocess.run([path, "-v"], capture_output=True, text=True, check=False).stdout:
        pytest.skip(f"JAXWRAP_JM={path} is unpatched: run jaxwrap patch jm")
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Source]:
    """Moving waves with noise, three frames. At 10 bits JM 19.0 reads widths wrongly that are no multiple of 16."""
    folder = tmp_path_factory.mktemp("clips")

    def make(chroma: int, depth: int) -> Source:
        rng = np.random.default_rng(7)
        height, width = 40, 56 if depth == 8 else 48
        y, x = np.mgrid[:height, :width]
        still = 128 + 60 * np.sin(x / 9) + 40 * np.cos(y / 7) + rng.normal(0, 10, (height, width))
        frames = []
        for t in range(3):
            luma = np.roll(still, (t, 2 * t), (0, 1)) + rng.normal(0, 3, (height, width))
            small = luma[::2, ::2] - 128
            planes = [luma, 128 + 0.4 * small, 128 - 0.3 * small][: 3 if chroma == 420 else 1]
            top = 2**depth - 1
            frames.append([np.clip(np.rint(p * 2 ** (depth - 8)), 0, top).astype(sample_type(depth)) for p in planes])
        path = folder / f"{chroma}-{depth}.yuv"
        path.write_bytes(b"".join(p.tobytes() for planes in frames for p in planes))
        return Source(path, frames, chroma, depth)

    return make


def sample_type(depth: int) -> str:
    return "u1" if depth == 8 else "<u2"


def run(program: str, folder: Path, source: Source, options: Options) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    height, width = source.frames[0][0].shape
    given = {
        **{"InputFile": source.path, "OutputFile": "out.264", "ReconFile": "out.yuv", "StatsFile": "out.stats"},
        **{"LeakyBucketParamFile": "out.leaky", "LeakyBucketRateFile": "none"},
        **{f"{side}Width": width for side in ("Source", "Output")},
        **{f"{side}Height": height for side in ("Source", "Output")},
        **{f"{s}BitDepth{p}": source.depth for s in ("Source", "Output") for p in ("Luma", "Chroma")},
        **{"FramesToBeEncoded": len(source.frames), "YUVFormat": int(source.chroma == 420), "LevelIDC": 40},
        **{"ProfileIDC": 100 if source.depth == 8 else 110, "Transform8x8Mode": 1, "SymbolMode": 1},
        **{"RDOptimization": 1, "UseRDOQuant": 1, "RDOQ_DC": 1, "RDOQ_CR": 1, "RDOQ_DC_CR": 1, "RDOQ_QP_Num": 1},
        **{f"QP{kind}Slice": QP for kind in "IPB"},
        **{"NumberReferenceFrames": 2, "SearchMode": 3, "SearchRange": 8},
        **{"MEDistortionHPel": 2, "MEDistortionQPel": 2, "MDDistortion": 2},
        **options,
    }
    config = folder / "test.cfg"
    lines = [f'{name} = "{v}"\n' if isinstance(v, str | Path) else f"{name} = {v}\n" for name, v in given.items()]
    config.write_text("".join(lines))
    return subprocess.run(
        [program, "-d", config.name], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def encode(program: str, folder: Path, source: Source, options: Options) -> Encode:
    done = run(program, folder, source, options)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    return Encode(
        (folder / "out.264").read_bytes(), (folder / "out.yuv").read_bytes(), done.stdout, folder / "trace.txt"
    )


def map_file(path: Path, maps: list[Planes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<I", len(maps)) + b"".join(p.astype("<f4").tobytes() for m in maps for p in m))
    return path


def row_file(path: Path, rows: list[Planes]) -> Path:
    """Rows ``[ℓ, H, W]`` per plane. The encoder does not look at the hash, so that 32 bytes of zeros do."""
    (count, height, width), chroma = rows[0][0].shape, 400 if len(rows[0]) == 1 else 420
    head = struct.pack("<8s6I", b"JWROWS\r\n", 1, count, width, height, chroma, len(rows))
    body = b"".join(p[s].astype("<f4").tobytes() for planes in rows for s in range(count) for p in planes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body + bytes(32))
    return path


def random_maps(source: Source, count: int, spread: float = 1.0) -> list[Planes]:
    """Weights that change from one 4×4 block to the next and within it."""
    rng = np.random.default_rng(3)

    def one(shape: tuple[int, int]) -> np.ndarray:
        blocks = np.kron(rng.normal(0, 1, (shape[0] // 4, shape[1] // 4)), np.ones((4, 4)))
        return np.exp(spread * (blocks + rng.normal(0, 0.2, shape))).astype(np.float32)

    return [[one(p.shape) for p in source.frames[0]] for _ in range(count)]


def random_rows(source: Source, frames: int, count: int) -> list[Planes]:
    rng = np.random.default_rng(4)
    return [[rng.normal(0, 0.4, (count, *p.shape)).astype(np.float32) for p in source.frames[0]] for _ in range(frames)]


def uniform(source: Source, value: float) -> list[Planes]:
    return [[np.full(p.shape, value) for p in source.frames[0]]]


def vcl_bytes(stream: bytes) -> list[int]:
    """Sizes of the slices' NAL units, without start codes (H.264, annex B; types 1 and 5 in table 7-1)."""
    units = stream.split(b"\0\0\1")[1:]
    return [len(u.rstrip(b"\0")) for u in units if u[0] & 31 in (1, 5)]


def mean_squared_error(source: Source, reconstruction: bytes) -> float:
    original = np.frombuffer(source.path.read_bytes(), sample_type(source.depth)).astype(np.float64)
    decoded = np.frombuffer(reconstruction, sample_type(source.depth)).astype(np.float64)
    return float(np.square(original - decoded).mean())


STOCK_CASES: dict[str, tuple[int, int, Options]] = {
    "intra": (420, 8, INTRA),
    "intra, quick chroma choice": (420, 10, {**INTRA, "FastCrIntraDecision": 1, "I16RDOpt": 1}),
    "intra, grey": (400, 10, INTRA),
    "low delay": (420, 8, LOW_DELAY),
    "low delay, grey": (400, 8, LOW_DELAY),
    "low delay, three QPs per macroblock": (420, 8, {"RDOQ_QP_Num": 3}),
    "low delay, without RDOQ, CAVLC": (420, 10, {"UseRDOQuant": 0, "SymbolMode": 0}),
    "random access": (420, 10, RANDOM_ACCESS),
}


@pytest.mark.parametrize("case", STOCK_CASES)
def test_with_no_map_or_weights_that_mean_squared_error_the_stream_is_that_of_the_unpatched_encoder(
    case: str, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    chroma, depth, options = STOCK_CASES[case]
    source = clip(chroma, depth)
    stock = encode(binary("JAXWRAP_JM_STOCK"), tmp_path / "stock", source, options)
    ones = map_file(tmp_path / "ones.dat", uniform(source, 1.0))
    nothing = row_file(tmp_path / "nothing.rows", [[np.full((2, *p.shape), 1e-12) for p in source.frames[0]]])
    cases: dict[str, Options] = {
        "no map": {},
        "ones": {"WeightMap": ones, "WeightTrace": "trace.txt"},
        "nothing + 1": {"WeightMap": nothing, "WeightMode": 1, "WeightTau": 1.0},
    }
    for name, more in cases.items():
        with_patch = encode(patched, tmp_path / name, source, {**options, **more})
        assert (with_patch.stream, with_patch.reconstruction) == (stock.stream, stock.reconstruction), name


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("chroma", [400, 420])
@pytest.mark.parametrize("kind", ["diag", "offsets", "idse"])
def test_the_stock_decoder_finds_what_the_encoder_reconstructed(
    kind: str, chroma: int, depth: int, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(chroma, depth)
    options: Options = dict(RANDOM_ACCESS)
    if kind == "idse":
        rows = row_file(tmp_path / "r.rows", random_rows(source, 3, 4))
        options |= {"WeightMap": rows, "WeightMode": 1, "WeightPeriod": 1, "WeightTau": TAU}
    else:
        options |= {"WeightMap": map_file(tmp_path / "m.dat", random_maps(source, 1)), "SymbolMode": int(depth == 8)}
        options |= {"WeightQPOffset": int(kind == "offsets")}
    coded = encode(patched, tmp_path / "coded", source, options)
    decoder = [binary("JAXWRAP_JM_DECODER"), "-p", "InputFile=out.264", "-p", "OutputFile=decoded.yuv"]
    subprocess.run(decoder, cwd=tmp_path / "coded", check=True, capture_output=True, timeout=60)
    decoded = np.frombuffer((tmp_path / "coded" / "decoded.yuv").read_bytes(), sample_type(depth)).reshape(3, -1)
    frame_samples = len(coded.reconstruction) // (3 * decoded.itemsize)  # ldecod adds grey chroma to 4:0:0
    assert decoded[:, :frame_samples].tobytes() == coded.reconstruction


@pytest.mark.parametrize(("kind", "options"), [("P", LOW_DELAY), ("B", RANDOM_ACCESS)])
def test_weights_act_in_inter_pictures_themselves(
    kind: str, options: Options, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    """With a map of ones for every picture but those of this type, the others keep their bits and these do not."""
    source = clip(420, 8)
    plain = encode(patched, tmp_path / "plain", source, {**options, "WeightTrace": "trace.txt"})
    types = {int(u[0]): t for u, t in zip(*_units_and_types(plain.trace), strict=True)}
    chosen = max(poc for poc, t in types.items() if t == kind and (kind == "P" or poc not in (0, 2)))
    maps = [random_maps(source, 1)[0] if poc == chosen else uniform(source, 1.0)[0] for poc in range(3)]
    weights = {"WeightMap": map_file(tmp_path / "m.dat", maps), "WeightPeriod": 1, "WeightTrace": "trace.txt"}
    weighted = encode(patched, tmp_path / "weighted", source, {**options, **weights})
    before, after = (_units_and_types(e.trace)[0] for e in (plain, weighted))
    first = int(np.flatnonzero(before[:, 0] == chosen)[0])
    np.testing.assert_array_equal(before[:first], after[:first])
    assert (before[before[:, 0] == chosen, 5] != after[after[:, 0] == chosen, 5]).any()


def _units_and_types(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    trace = read_trace(path)
    return trace.units, tuple(trace.types)


def coded_weights(weights: list[Planes], source: Source) -> list[Planes]:
    """Weights for the size that JM codes, float64: maps repeat their border, rows are 0 there."""

    def padded(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        border = [(0, 0)] * (plane.ndim - 2) + [(0, size[i] - plane.shape[i - 2]) for i in range(2)]
        return np.pad(plane.astype(np.float64), border, mode="edge" if plane.ndim == 2 else "constant")

    return [list(map(padded, planes, source.coded)) for planes in weights]


def quadratic_form(cost: BlockCost, weights: list[Planes]) -> float:
    """What the block costs by the definition, in float64: Σ w q², or Σ_s [(p_s + r_s·q)² − p_s²] + τ Σ q²."""
    values, q = weights[cost.frame]["yuv".index(cost.plane)], cost.difference.astype(np.float64)
    block = values[..., cost.y : cost.y + q.shape[0], cost.x : cost.x + q.shape[1]]
    if block.ndim == 2:
        return float((block * q * q).sum())
    products = (block * q).sum((1, 2))
    return float((products * (products + 2 * cost.partial)).sum() + TAU * (q * q).sum())


def costs_of(
    source: Source, patched: str, folder: Path, options: Options, mode: int, every: int = 1
) -> tuple[Encode, list[Planes]]:
    """A run with random weights that traces costs; the weights for the coded size."""
    if mode == 0:
        weights = random_maps(source, 3)
        options = {**options, "WeightMap": map_file(folder / "m.dat", weights)}
    else:
        weights = random_rows(source, 3, 4)
        options = {**options, "WeightMap": row_file(folder / "r.rows", weights), "WeightTau": TAU}
    more = {"WeightMode": mode, "WeightPeriod": 1, "WeightTrace": "trace.txt", "WeightTraceCosts": every}
    return encode(patched, folder, source, {**options, **more}), coded_weights(weights, source)


@pytest.mark.parametrize("mode", [0, 1], ids=["diag", "idse"])
@pytest.mark.parametrize(("chroma", "depth", "options"), [(400, 10, INTRA), (420, 8, RANDOM_ACCESS)])
def test_costs_that_the_encoder_compared_are_the_quadratic_form(
    mode: int,
    chroma: int,
    depth: int,
    options: Options,
    patched: str,
    clip: Callable[[int, int], Source],
    tmp_path: Path,
) -> None:
    source = clip(chroma, depth)
    coded, weights = costs_of(source, patched, tmp_path, options, mode, every=5)
    costs = read_trace(coded.trace).costs
    assert {(c.plane, c.difference.shape) for c in costs} == {
        *{("y", (n, n)) for n in (4, 8, 16)},
        *({("u", (8, 8)), ("v", (8, 8))} if chroma == 420 else set()),
    }
    assert {c.frame for c in costs} == {0, 1, 2}
    for cost in costs:
        wanted = quadratic_form(cost, weights)
        # Costs are whole numbers; sums are taken in 32-bit lanes, and an increment is a difference of larger squares.
        tolerance = 0.5001 + 1e-5 * (abs(wanted) + float(np.square(cost.partial).sum()))
        assert abs(cost.distortion - wanted) < tolerance


@pytest.mark.parametrize(
    ("side", "options"), [(4, {**INTRA, "Transform8x8Mode": 0, "DisableIntra16x16": 1}), (8, RANDOM_ACCESS)]
)
def test_partial_products_are_those_of_a_candidate_before_in_the_macroblock(
    side: int, options: Options, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    """Where blocks of a size follow one another, p of the next is p + r·q of one of the candidates for the last."""
    source = clip(400, 8)
    coded, rows = costs_of(source, patched, tmp_path, options, mode=1)
    height, width = source.coded[0]
    candidates: list[np.ndarray] = []
    last, checked = (0, 0, 0), 0
    for cost in read_trace(coded.trace).costs:
        if cost.difference.shape != (side, side):
            continue
        here = (cost.frame, cost.y, cost.x)
        if here != last:
            if (cost.x % 16, cost.y % 16) == (0, 0):
                assert not cost.partial.any()
            else:
                assert min(np.abs(cost.partial - c).max() for c in candidates) < 1e-3 * (1 + np.abs(cost.partial).max())
                checked += 1
            candidates, last = [], here
        block = rows[cost.frame][0][:, cost.y : cost.y + side, cost.x : cost.x + side]
        candidates.append(cost.partial + (block * cost.difference).sum((1, 2)))
    assert checked >= 3 * (256 // side**2 - 1) * height * width // 256  # every macroblock of every picture


@pytest.mark.parametrize("mode", [0, 1], ids=["diag", "idse"])
def test_every_macroblock_as_finally_coded_is_among_those_compared(
    mode: int, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(400, 8)
    unfiltered = {f"DFDisable{use}{kind}Slice": 1 for use in ("Ref", "NRef") for kind in "IPB"}
    coded, _ = costs_of(source, patched, tmp_path, {**LOW_DELAY, "DFParametersFlag": 1, **unfiltered}, mode)
    compared: dict[tuple[int, int, int], list[np.ndarray]] = {}
    for cost in read_trace(coded.trace).costs:
        if cost.difference.shape == (16, 16):
            compared.setdefault((cost.frame, cost.y, cost.x), []).append(cost.difference)
    height, width = source.frames[0][0].shape
    decoded = np.frombuffer(coded.reconstruction, np.uint8).reshape(3, height, width).astype(int)
    for t in range(3):
        error = decoded[t] - source.frames[t][0]
        for y in range(0, height, 16):
            for x in range(0, width, 16):
                block = error[y : y + 16, x : x + 16]
                assert any((c[: block.shape[0], : block.shape[1]] == block).all() for c in compared[t, y, x]), (t, y, x)


@pytest.mark.parametrize("options", [INTRA, {**RANDOM_ACCESS, "SymbolMode": 0}], ids=["CABAC", "CAVLC"])
def test_bits_of_the_trace_are_those_of_the_slices(
    options: Options, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    coded = encode(patched, tmp_path, clip(420, 8), {**options, "WeightTrace": "trace.txt"})
    units, types = _units_and_types(coded.trace)
    assert set(types) == ({"I"} if options is INTRA else {"I", "P", "B"})
    assert len(units) == 3 * 12
    assert set(map(tuple, units[:, 1:5])) == {(x, y, 16, 16) for x in range(0, 64, 16) for y in range(0, 48, 16)}
    slices = vcl_bytes(coded.stream)
    assert len(slices) == 3
    # What is left: NAL unit and slice headers, the end of the slice, alignment. Below 20 bytes per slice.
    assert 0 < 8 * sum(slices) - units[:, 5].sum() < 3 * 160


def test_weights_of_four_are_a_quarter_of_lambda(
    patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(420, 8)
    more = {**RANDOM_ACCESS, "FastCrIntraDecision": 1}
    fours = encode(patched, tmp_path / "4", source, {**more, "WeightMap": map_file(tmp_path / "m", uniform(source, 4))})
    quarter = encode(patched, tmp_path / "q", source, {**more, "WeightLambdaScale": 0.25})
    plain = encode(patched, tmp_path / "p", source, more)
    # λ and λ/4 are rounded to 1/32, and the Hadamard costs doubled exactly: few decisions lie between.
    assert len(fours.stream) == pytest.approx(len(quarter.stream), rel=0.01)
    assert mean_squared_error(source, fours.reconstruction) == pytest.approx(
        mean_squared_error(source, quarter.reconstruction), rel=0.01
    )
    assert len(fours.stream) > 1.05 * len(plain.stream)


def test_weights_of_four_with_offsets_are_six_steps_of_qp(
    patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    """λ is proportional to 2^(QP/3): weights of 4 at λ(QP) decide as ones at λ(QP − 6)."""
    source = clip(420, 8)
    weights = {"WeightMap": map_file(tmp_path / "m.dat", uniform(source, 4.0)), "WeightQPOffset": 1}
    moved = encode(patched, tmp_path / "moved", source, {**INTRA, **weights})
    lower = encode(patched, tmp_path / "lower", source, {**INTRA, "QPISlice": QP - 6})
    # CABAC starts from other contexts, and the first macroblock of a picture pays for its QP.
    assert len(moved.stream) == pytest.approx(len(lower.stream), rel=0.02)
    assert mean_squared_error(source, moved.reconstruction) == pytest.approx(
        mean_squared_error(source, lower.reconstruction), rel=0.02
    )
    only = encode(patched, tmp_path / "only", source, {**INTRA, **weights, "WeightDecisions": 0})
    scaled = encode(patched, tmp_path / "s", source, {**INTRA, "QPISlice": QP - 6, "WeightLambdaScale": 4.0})
    assert len(only.stream) == pytest.approx(len(scaled.stream), rel=0.02)  # QPs moved, λ did not


@pytest.mark.parametrize("options", [{**INTRA, "Transform8x8Mode": 0, "DisableIntra4x4": 1}, LOW_DELAY])
def test_each_decision_has_a_bit_of_its_own(
    options: Options, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(420, 8)
    strong = map_file(tmp_path / "m.dat", random_maps(source, 1, spread=2.0))

    def coded(bits: int) -> bytes:
        return encode(
            patched, tmp_path / str(bits), source, {**options, "WeightMap": strong, "WeightDecisions": bits}
        ).stream

    streams = {bits: coded(bits) for bits in (0, 1, 2, 4, 8, 15)}
    plain = encode(patched, tmp_path / "plain", source, options).stream
    assert streams[0] == streams[8] == plain  # JM chooses no filters
    assert len({plain, streams[1], streams[2], streams[4], streams[15]}) == 5


def test_the_map_of_an_i_picture_is_held_until_the_next(
    patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(420, 8)
    maps = random_maps(source, 2)
    options = {"IntraPeriod": 2, "WeightPeriod": 2, "WeightTrace": "trace.txt", "WeightTraceCosts": 11}
    coded = encode(patched, tmp_path, source, {**options, "WeightMap": map_file(tmp_path / "m.dat", maps)})
    trace = read_trace(coded.trace)
    assert dict(zip(trace.units[:, 0].tolist(), trace.types, strict=True)) == {0: "I", 1: "P", 2: "I"}
    assert {cost.frame for cost in trace.costs} == {0, 1, 2}
    held = coded_weights([maps[0], maps[0], maps[1]], source)
    for cost in trace.costs:
        wanted = quadratic_form(cost, held)
        assert abs(cost.distortion - wanted) < 0.5001 + 1e-5 * wanted


def _spoilt(data: bytes, value: float) -> bytes:
    return data[:400] + struct.pack("<f", value) + data[404:]


BAD_MAPS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-4],
    "too long": lambda data: data + bytes(4),
    "no header": lambda data: data[:3],
    "NaN": lambda data: _spoilt(data, float("nan")),
    "negative": lambda data: _spoilt(data, -1.0),
    "all zero": lambda data: data[:4] + bytes(len(data) - 4),
    "wrong count": lambda data: struct.pack("<I", 2) + data[4:] + data[4:],
    "wrong size": lambda data: data[:4] + data[4 : 4 + (len(data) - 4) // 2],
    "rows": lambda data: b"JWROWS\r\n" + data[8:],
}


@pytest.mark.parametrize("fault", BAD_MAPS)
def test_a_bad_map_stops_the_encoder_before_the_first_picture(
    fault: str, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(420, 8)
    path = map_file(tmp_path / "m.dat", random_maps(source, 1))
    path.write_bytes(BAD_MAPS[fault](path.read_bytes()))
    assert "m.dat" in refused(patched, tmp_path / "run", source, {"WeightMap": path})


def refused(program: str, folder: Path, source: Source, options: Options) -> str:
    """The one line that a refusal consists of."""
    done = run(program, folder, source, options)
    assert done.returncode != 0
    assert not (folder / "out.264").exists()
    messages = [line for line in done.stderr.splitlines() if line.startswith("jaxwrap: ")]
    assert len(messages) == 1
    return messages[0]


REFUSED: dict[str, Options] = {
    "RDOptimization": {"RDOptimization": 2, "Transform8x8Mode": 0, "ProfileIDC": 77},
    "PicInterlace": {"PicInterlace": 1},
    "RDOQ_QP_Num": {"WeightQPOffset": 1, "RDOQ_QP_Num": 3},
    "SliceMode": {"WeightQPOffset": 1, "SliceMode": 1, "SliceArgument": 5},
    "RDPictureDecision": {"WeightTrace": "trace.txt", "RDPictureDecision": 1},
    "JWROWS": {"WeightMode": 1},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_the_patch_does_not_cover_is_refused(
    named: str, patched: str, clip: Callable[[int, int], Source], tmp_path: Path
) -> None:
    source = clip(420, 8)
    path = map_file(tmp_path / "m.dat", random_maps(source, 1))
    assert named in refused(patched, tmp_path / "run", source, {"WeightMap": path, **REFUSED[named]})


@pytest.mark.parametrize("argument", ["-v", "-h"])
def test_the_banner_names_patch_and_modes(argument: str, patched: str) -> None:
    printed = subprocess.run([patched, argument], capture_output=True, text=True, check=False)
    assert printed.stdout.splitlines()[0] == "jaxwrap patch v1, modes diag, idse"
    assert ("WeightDecisions" in printed.stderr) == (argument == "-h")
