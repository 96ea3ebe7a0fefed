"""The C header of the patched encoders, compiled alone and compared with NumPy."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxwrap.codecs.reference

HEADER = Path(jaxwrap.codecs.reference.__file__).parent / "jaxwrap_weights.h"

DRIVER = r"""
#define JAXWRAP_WEIGHTS_IMPLEMENTATION
#include "jaxwrap_weights.h"

/* FILE MODE PERIOD TAU WIDTH HEIGHT CHROMA BITS FRAMES CODED_WIDTH CODED_HEIGHT PICTURES, commands on stdin. */
int main(int argc, char **argv) {
  static short samples[2][3][160 * 160];
  static jw_state state;
  jw_settings settings = jw_defaults();
  const char *error;
  char command[16];
  int p, x, y, w, h, width = atoi(argv[10]), height = atoi(argv[11]);
  FILE *file = argc == 13 ? fopen(argv[12], "rb") : NULL;
  settings.map = argv[1], settings.mode = atoi(argv[2]), settings.period = atoi(argv[3]), settings.tau = atof(argv[4]);
  error = jw_open(&state, &settings, atoi(argv[5]), atoi(argv[6]), atoi(argv[7]), atoi(argv[8]), atoi(argv[9]), width,
                  height, "hm");
  if (error) {
    fprintf(stderr, "%s\n", error);
    return 3;
  }
  for (int side = 0; side < 2; side++)
    for (p = 0; p < state.planes; p++) {
      size_t count = (size_t) (width >> (p > 0)) * (size_t) (height >> (p > 0));
      if (!file || fread(samples[side][p], 2, count, file) != count) return 4;
    }
  fclose(file);
  while (scanf("%15s %d %d %d %d %d", command, &p, &x, &y, &w, &h) == 6) {
    int stride = width >> (p > 0);
    short *org = samples[0][p], *rec = samples[1][p];
    if (!strcmp(command, "picture")) {
      if ((error = jw_picture(&state, x, y))) printf("%s\n", error); else printf("%d\n", state.loaded);
    }
    else if (!strcmp(command, "mean")) printf("%.17g\n", jw_mean(&state, p, x, y, w, h));
    else if (!strcmp(command, "offset")) printf("%d\n", jw_qp_offset(&state, x, y, w, h));
    else if (!strcmp(command, "alone")) printf("%.17g\n", jw_form(&state, p, x, y, w, h, org + y * stride + x, stride,
             rec + y * stride + x, stride, NULL, 0, NULL, 0));
    else {
      int tight = !strcmp(command, "cost"); /* a block in a buffer of its own, as encoders hold it */
      short *block = (short *) malloc((size_t) (w * h) * sizeof(short));
      for (int j = 0; j < h; j++) memcpy(block + j * w, rec + (y + j) * stride + x, (size_t) w * sizeof(short));
      printf("%.17g\n", state.rows
             ? jw_form(&state, p, x, y, w, h, org + y * stride + x, stride, tight ? block : rec + y * stride + x,
                       tight ? w : stride, org, stride, rec, stride)
             : jw_distortion(&state, p, x, y, w, h, org + y * stride + x, stride, block, w));
      free(block);
    }
  }
  jw_close(&state);
  return 0;
}
"""

COMPILERS = {
    "gcc": ["gcc", "-std=c99", "-O3"],
    "g++": ["g++", "-std=c++11", "-O3"],
    "sanitised": ["gcc", "-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"],
}
SIZES = (4, 8, 12, 16, 24, 32, 48, 64)

# Width and height of the source, and as coded: with padding on both sides, as HM and JM pad.
SOURCE, CODED = (92, 70), (96, 72)


@pytest.fixture(scope="module", params=COMPILERS)
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver as built by one compiler; warnings are errors."""
    command = COMPILERS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on this machine: the encoders' header cannot be compiled")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / ("driver.cpp" if command[0] == "g++" else "driver.c")
    source.write_text(DRIVER)
    flags = ["-Wall", "-Wextra", "-Werror", "-I", str(HEADER.parent), "-o", str(folder / "driver"), str(source), "-lm"]
    result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=120)
    if result.returncode and "cannot find" in result.stderr and "san" in result.stderr:
        pytest.skip("no sanitiser library on this machine")
    assert result.returncode == 0, result.stderr
    return folder / "driver"


def shapes(size: tuple[int, int], chroma: int) -> list[tuple[int, int]]:
    width, height = size
    return [(height, width)] + ([(height // 2, width // 2)] * 2 if chroma == 420 else [])


def write_dat(path: Path, maps: list[list[np.ndarray]]) -> Path:
    planes = b"".join(plane.astype("<f4").tobytes() for planes in maps for plane in planes)
    path.write_bytes(struct.pack("<I", len(maps)) + planes)
    return path


def write_rows(path: Path, frames: list[list[list[np.ndarray]]], chroma: int) -> Path:
    height, width = frames[0][0][0].shape
    data = struct.pack("<8s6I", b"JWROWS\r\n", 1, len(frames[0]), width, height, chroma, len(frames))
    data += b"".join(p.astype("<f4").tobytes() for rows in frames for planes in rows for p in planes)
    path.write_bytes(data + hashlib.sha256(data).digest())
    return path


def pictures(rng: np.random.Generator, folder: Path, chroma: int, bits: int) -> tuple[list[np.ndarray], Path]:
    """Errors q per plane, as coded; half of the samples are at the ends of the range, where sums are largest."""
    largest = 2**bits - 1
    both = []
    for _ in range(2):
        planes = [rng.integers(0, largest + 1, shape) for shape in shapes(CODED, chroma)]
        both.append([np.where(rng.random(p.shape) < 0.5, p, np.where(p > largest // 2, largest, 0)) for p in planes])
    path = folder / "pictures.raw"
    path.write_bytes(b"".join(p.astype("<i2").tobytes() for planes in both for p in planes))
    return [rec - org for org, rec in zip(*both, strict=True)], path


def run(driver: Path, arguments: list[object], commands: list[str]) -> subprocess.CompletedProcess[str]:
    command = [str(driver), *map(str, arguments)]
    return subprocess.run(command, input="\n".join(commands), capture_output=True, text=True, timeout=60)


def values(driver: Path, arguments: list[object], commands: list[str]) -> np.ndarray:
    result = run(driver, arguments, commands)
    assert result.returncode == 0, result.stderr
    return np.array([float(line) for line in result.stdout.split()])


def options(path: Path, mode: int, chroma: int, bits: int, picture: Path, *, tau: float = 0.0) -> list[object]:
    return [path, mode, 0, tau, *SOURCE, chroma, bits, 1, *CODED, picture]


def padded(planes: list[np.ndarray], chroma: int, mode: str) -> list[np.ndarray]:
    """Planes of the source, at coded size and in double precision."""
    wanted = shapes(CODED, chroma)
    pads = [((0, h - p.shape[0]), (0, w - p.shape[1])) for p, (h, w) in zip(planes, wanted, strict=True)]
    return [
        np.pad(p.astype(np.float32).astype(np.float64), pad, mode=mode)  # type: ignore[call-overload]
        for p, pad in zip(planes, pads, strict=True)
    ]


def rectangles(rng: np.random.Generator, chroma: int) -> list[tuple[int, int, int, int, int]]:
    """(plane, x, y, w, h): every pair of sizes at a random position, and in the corner at the right and below."""
    found = []
    for plane, (height, width) in enumerate(shapes(CODED, chroma)):
        for w, h in itertools.product(SIZES, SIZES):
            if w <= width and h <= height:
                x, y = (4 * int(rng.integers(0, (room - side) // 4 + 1)) for room, side in ((width, w), (height, h)))
                found += [(plane, x, y, w, h), (plane, width - w, height - h, w, h)]
    return found


def units_in_order(x: int, y: int, side: int) -> list[tuple[int, int]]:
    """Corners of the 4×4 units of a square, in the order in which a quadtree codes them."""
    if side == 4:
        return [(x, y)]
    half = side // 2
    corners = [(x, y), (x + half, y), (x, y + half), (x + half, y + half)]
    return [unit for corner in corners for unit in units_in_order(*corner, half)]


def increment(
    rows: np.ndarray, q: np.ndarray, tau: float, grid: int, block: tuple[int, int, int], alone: bool
) -> tuple[float, float]:
    """What a square block (x, y, side) adds to the form of its grid block, and the magnitude that rounding is
    relative to."""
    x, y, side = block
    products = rows * q
    added = products[:, y : y + side, x : x + side].sum(axis=(1, 2))
    before = np.zeros(len(rows))
    for ux, uy in itertools.takewhile(
        lambda unit: unit != (x, y), units_in_order(x // grid * grid, y // grid * grid, grid)
    ):
        if not alone:
            before += products[:, uy : uy + 4, ux : ux + 4].sum(axis=(1, 2))
    square = tau * float((q[y : y + side, x : x + side] ** 2).sum())
    magnitude = np.abs(products[:, y // grid * grid :, x // grid * grid :][:, :grid, :grid]).sum(axis=(1, 2))
    return float(((before + added) ** 2 - before**2).sum()) + square, float((magnitude**2).sum()) + square


@pytest.mark.parametrize(("chroma", "bits"), [(400, 8), (400, 10), (420, 8), (420, 10)])
def test_weighted_sums_equal_numpy_at_every_size_and_border(
    driver: Path, tmp_path: Path, chroma: int, bits: int
) -> None:
    rng = np.random.default_rng(chroma + bits)
    q, picture = pictures(rng, tmp_path, chroma, bits)
    weights = [np.exp(2 * rng.normal(size=shape)) for shape in shapes(SOURCE, chroma)]
    arguments = options(write_dat(tmp_path / "map.dat", [weights]), 0, chroma, bits, picture)
    blocks = rectangles(rng, chroma)
    lines = [" ".join(map(str, block)) for block in blocks]
    sums = values(driver, arguments, ["cost " + line for line in lines])
    means = values(driver, arguments, ["mean " + line for line in lines])
    full = padded(weights, chroma, "edge")
    areas = [np.s_[y : y + h, x : x + w] for _, x, y, w, h in blocks]
    # A float lane takes 16 terms ≥ 0 of two roundings each: below 18 · 2⁻²⁴ relative.
    wanted = [float((full[p][area] * q[p][area] ** 2).sum()) for (p, *_), area in zip(blocks, areas, strict=True)]
    np.testing.assert_allclose(sums, wanted, rtol=1.2e-6)
    wanted = [float(full[p][area].mean()) for (p, *_), area in zip(blocks, areas, strict=True)]
    np.testing.assert_allclose(means, wanted, rtol=1e-9)


@pytest.mark.parametrize("bits", [8, 10])
def test_a_map_of_ones_gives_the_integer_sum_of_squares(driver: Path, tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(bits)
    q, picture = pictures(rng, tmp_path, 420, bits)
    weights = [np.ones(shape) for shape in shapes(SOURCE, 420)]
    arguments = options(write_dat(tmp_path / "map.dat", [weights]), 0, 420, bits, picture)
    blocks = rectangles(rng, 420)
    lines = [" ".join(map(str, block)) for block in blocks]
    sums = values(driver, arguments, ["cost " + line for line in lines])
    assert sums.tolist() == [int((q[p][y : y + h, x : x + w] ** 2).sum()) for p, x, y, w, h in blocks]
    assert set(values(driver, arguments, ["mean " + line for line in lines])) == {1.0}
    assert set(values(driver, arguments, ["offset " + line for line in lines])) == {0.0}


@pytest.mark.parametrize(("chroma", "bits", "count"), [(400, 10, 1), (420, 8, 4), (420, 10, 16)])
def test_increments_of_rows_equal_the_quadratic_form(
    driver: Path, tmp_path: Path, chroma: int, bits: int, count: int
) -> None:
    rng = np.random.default_rng(count)
    tau = 0.25
    q, picture = pictures(rng, tmp_path, chroma, bits)
    rows = [[rng.normal(size=shape) for shape in shapes(SOURCE, chroma)] for _ in range(count)]
    arguments = options(write_rows(tmp_path / "map.rows", [rows], chroma), 1, chroma, bits, picture, tau=tau)
    full = [padded(planes, chroma, "constant") for planes in rows]
    stacked = [np.stack([planes[p] for planes in full]) for p in range(len(q))]
    commands, wanted, magnitudes = [], [], []
    for plane, (height, width) in enumerate(shapes(CODED, chroma)):
        grid = 8 if plane else 16
        for side in (4, 8, 16, 32, 64):
            for y, x in itertools.product(range(0, height - side + 1, side), range(0, width - side + 1, side)):
                for alone in (False, True):
                    commands.append(f"{'alone' if alone else 'cost'} {plane} {x} {y} {side} {side}")
                    parts = [
                        increment(stacked[plane], q[plane], tau, grid, (x + i, y + j, min(side, grid)), alone)
                        for j in range(0, side, grid)
                        for i in range(0, side, grid)
                    ]
                    wanted.append(sum(part for part, _ in parts))
                    magnitudes.append(sum(magnitude for _, magnitude in parts))
    # Products are float32 and signed: rounding is relative to the sum of magnitudes, 64 terms to a lane.
    difference = np.abs(values(driver, arguments, commands) - np.array(wanted))
    assert (difference <= 4e-6 * np.array(magnitudes)).all()
    assert min(wanted) < 0  # the sample holds increments below 0
    means = values(driver, arguments, [f"mean 0 {x} 8 16 24" for x in range(0, 80, 4)])
    per_sample = (stacked[0] ** 2).sum(axis=0) + tau
    np.testing.assert_allclose(means, [per_sample[8:32, x : x + 16].mean() for x in range(0, 80, 4)], rtol=1e-9)


def test_any_quadtree_of_a_grid_block_adds_up_to_its_whole_form(driver: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    q, picture = pictures(rng, tmp_path, 400, 10)
    rows = [[rng.normal(size=shape) for shape in shapes(SOURCE, 400)] for _ in range(4)]
    arguments = options(write_rows(tmp_path / "map.rows", [rows], 400), 1, 400, 10, picture, tau=0.5)
    halves = [(16, 32), (24, 32), (16, 40), (24, 40)]
    whole = ["cost 0 16 32 16 16"]
    split = [f"cost 0 {x} {y} 8 8" for x, y in halves]
    mixed = [*split[:1], *(f"cost 0 {x} {y} 4 4" for x, y in units_in_order(24, 32, 8)), *split[2:]]
    units = [f"cost 0 {x} {y} 4 4" for x, y in units_in_order(16, 32, 16)]
    form = values(driver, arguments, whole)[0]
    block = np.s_[32:48, 16:32]
    assert form == pytest.approx(
        sum(float((r[0][block].astype(np.float32) * q[0][block]).sum()) ** 2 for r in rows)
        + 0.5 * float((q[0][block] ** 2).sum()),
        rel=1e-5,
    )
    for partition in (split, mixed, units):
        assert values(driver, arguments, partition).sum() == pytest.approx(form, rel=1e-5)


def test_qp_offsets_are_minus_three_octaves_of_the_mean_weight(driver: Path, tmp_path: Path) -> None:
    _, picture = pictures(np.random.default_rng(0), tmp_path, 400, 8)
    for weight, offset in ((0.25, 6), (0.5, 3), (1.1, 0), (1.2, -1), (2.0, -3), (8.0, -9)):
        path = write_dat(tmp_path / "map.dat", [[np.full(shapes(SOURCE, 400)[0], weight)]])
        assert values(driver, options(path, 0, 400, 8, picture), ["offset 0 8 8 16 16"]).tolist() == [offset]


@pytest.mark.parametrize(
    ("period", "frames", "count", "pictures_in_order", "wanted"),
    [
        (0, 9, 1, [(0, 1), (8, 0), (4, 0)], [0, 0, 0]),
        (1, 5, 5, [(0, 1), (4, 0), (2, 0), (1, 0), (3, 0)], [0, 4, 2, 1, 3]),
        # Hierarchical: the second intra picture is coded before those that precede it in display order.
        (4, 9, 3, [(0, 1), (4, 1), (2, 0), (8, 1), (6, 0)], [0, 1, 1, 2, 2]),
    ],
)
def test_each_picture_gets_its_map(
    driver: Path,
    tmp_path: Path,
    period: int,
    frames: int,
    count: int,
    pictures_in_order: list[tuple[int, int]],
    wanted: list[int],
) -> None:
    _, picture = pictures(np.random.default_rng(0), tmp_path, 420, 8)
    maps = [[np.full(shape, 1.0 + n) for shape in shapes(SOURCE, 420)] for n in range(count)]
    arguments = options(write_dat(tmp_path / "map.dat", maps), 0, 420, 8, picture)
    arguments[2], arguments[8] = period, frames
    commands = [line for poc, intra in pictures_in_order for line in (f"picture 0 {poc} {intra} 0 0", "mean 2 4 4 8 8")]
    found = values(driver, arguments, commands)
    assert found[::2].tolist() == wanted
    assert found[1::2].tolist() == [1.0 + n for n in wanted]


def _plane(value: float = 1.0, spoiled: float | None = None) -> list[np.ndarray]:
    plane = np.full((SOURCE[1], SOURCE[0]), value, float)
    if spoiled is not None:
        plane[69, 91] = spoiled
    return [plane]


def _changed(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


BAD: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "missing": (lambda f: f / "none.dat", 0, "cannot be opened"),
    "empty": (lambda f: _changed(write_dat(f / "m.dat", [_plane()]), lambda b: b""), 0, "it has 0 bytes"),
    "truncated": (lambda f: _changed(write_dat(f / "m.dat", [_plane()]), lambda b: b[:-1]), 0, "25763 bytes; 25764"),
    "too long": (lambda f: _changed(write_dat(f / "m.dat", [_plane()]), lambda b: b + b"\0"), 0, "25765 bytes; 25764"),
    "another size": (lambda f: write_dat(f / "m.dat", [[np.ones((70, 96))]]), 0, "26884 bytes; 25764"),
    "huge count": (
        lambda f: _changed(write_dat(f / "m.dat", [_plane()]), lambda b: b"\xff" * 4 + b[4:]),
        0,
        "for 2147483647 maps",
    ),
    "no map": (lambda f: write_dat(f / "m.dat", []), 0, "holds 0 maps"),
    "two maps": (lambda f: write_dat(f / "m.dat", [_plane(), _plane()]), 0, "holds 2 maps; 1 were wanted"),
    "NaN": (lambda f: write_dat(f / "m.dat", [_plane(1, np.nan)]), 0, "is nan at row 69, column 91"),
    "infinite": (lambda f: write_dat(f / "m.dat", [_plane(1, np.inf)]), 0, "is inf at row 69, column 91"),
    "negative": (lambda f: write_dat(f / "m.dat", [_plane(1, -1e-9)]), 0, "is -1e-09 at row 69"),
    "all zero": (lambda f: write_dat(f / "m.dat", [_plane(0)]), 0, "zero everywhere"),
    "rows as a map": (lambda f: write_rows(f / "m.rows", [[_plane()]], 400), 0, "WeightMode=0 wants a .dat map"),
    "a map as rows": (lambda f: write_dat(f / "m.dat", [_plane()]), 1, "does not start with JWROWS"),
    "version": (
        lambda f: _changed(write_rows(f / "m.rows", [[_plane()]], 400), lambda b: b[:8] + b"\2" + b[9:]),
        1,
        "version 2 was given; wanted 1",
    ),
    "chroma": (lambda f: write_rows(f / "m.rows", [[_plane()]], 420), 1, "92x70 in 420 were given"),
    "size of rows": (lambda f: write_rows(f / "m.rows", [[[np.ones((72, 92))]]], 400), 1, "92x72 in 400 were given"),
    "no rows": (
        lambda f: _changed(write_rows(f / "m.rows", [[_plane()]], 400), lambda b: b[:12] + bytes(4) + b[16:]),
        1,
        "0 rows per frame",
    ),
    "no digest": (
        lambda f: _changed(write_rows(f / "m.rows", [[_plane()]], 400), lambda b: b[:-32]),
        1,
        "25792 bytes; 25824",
    ),
    "NaN in rows": (lambda f: write_rows(f / "m.rows", [[_plane(1, np.nan)]], 400), 1, "wanted finite rows"),
    "rows of zero": (lambda f: write_rows(f / "m.rows", [[_plane(0)]], 400), 1, "zero everywhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_maps_are_refused_by_name(driver: Path, tmp_path: Path, name: str) -> None:
    make, mode, wanted = BAD[name]
    path = make(tmp_path)
    result = run(driver, [path, mode, 0, 0.5, *SOURCE, 400, 8, 1, *CODED], [])
    assert result.returncode == 3
    assert result.stderr.startswith(f"jaxwrap: {path}: ")
    assert wanted in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        (1, 2, "WeightMode: 2 was given"),
        (2, -1, "WeightPeriod: -1 was given"),
        (3, "nan", "WeightTau: nan was given"),
        (3, -1, "WeightTau: -1 was given"),
        (6, 422, "pictures are 422"),
        (7, 12, "samples have 12 bits"),
    ],
)
def test_bad_settings_are_refused(driver: Path, tmp_path: Path, place: int, value: object, wanted: str) -> None:
    arguments: list[object] = [write_dat(tmp_path / "m.dat", [_plane()]), 0, 0, 0.0, *SOURCE, 400, 8, 1, *CODED]
    arguments[place] = value
    result = run(driver, arguments, [])
    assert result.returncode == 3
    assert wanted in result.stderr
