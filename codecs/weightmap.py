"""Weight maps on disk: what an importance run hands to an encoder, and to a later run.

``NAME.dat``: the number of maps as unsigned 32-bit little endian; then per map its planes (y, or y, u, v) as 32-bit
little-endian floats in raster order at native plane size; all finite and ≥ 0. This is the layout of the published VTM
fork for weighted RDO (RDO_IQA_FR), so maps interchange.

``NAME.json`` beside it: what the floats do not say (`MapInfo`), and the SHA-256 of the ``.dat``. Both are written under
temporary names and renamed, the ``.dat`` first: whatever interrupts the writer, a reader gets a matching pair or an
error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, num_frames, size_of
from jaxwrap.codecs.files import write_atomically

Mode = Literal["fwa", "iwa", "wa", "calibrated"]
"""One map for all frames (fwa, calibrated), one per I frame in coding order (iwa), or one per frame in display order
(wa)."""

Chroma = Literal["400", "420"]


@dataclasses.dataclass(frozen=True, slots=True)
class MapInfo:
    """The ``.json`` of a map file.

    ``width`` and ``height`` are in luma samples. ``sketches`` and ``standard_error`` (relative, per sample; None where
    unknown) say how well the maps are known, ``seed`` and ``receiver`` from what they were computed. ``details`` holds
    further values that a run wants to keep, such as α.
    """

    width: int
    height: int
    chroma: Chroma
    maps: int
    mode: Mode
    receiver: str
    sketches: int
    standard_error: float | None
    seed: int | None
    sha256: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_maps(
    path: str | Path,
    maps: Frame,
    *,
    mode: Mode,
    receiver: str,
    sketches: int,
    standard_error: float | None = None,
    seed: int | None = None,
    details: dict[str, Any] | None = None,
) -> MapInfo:
    """Writes ``maps`` (planes ``[N, H, W]``, stored as float32) to ``path`` (``.dat``) and its ``.json``.

    Raises `ValueError` for maps that are negative or not finite, for a name without ``.dat``, and for a mode that does
    not fit the number of maps.
    """
    path = _dat(path)
    check_frame(maps)
    if mode not in get_args(Mode):
        raise ValueError(f"map mode {mode!r} was given; known: {', '.join(get_args(Mode))}")
    count = num_frames(maps)
    single = mode in ("fwa", "calibrated")
    if count < 1 or (single and count != 1):
        raise ValueError(f"{count} maps were given for mode {mode}; wanted {'1' if single else '1 or more'}")
    with np.errstate(over="ignore"):
        planes = [np.asarray(plane).astype("<f4") for plane in maps.planes]
    _check_values(frame_of(planes), f"maps for {path}")
    data = count.to_bytes(4, "little") + b"".join(p[i].tobytes() for i in range(count) for p in planes)
    height, width = size_of(maps)
    info = MapInfo(
        width=width,
        height=height,
        chroma="400" if isinstance(maps, Yuv400) else "420",
        maps=count,
        mode=mode,
        receiver=receiver,
        sketches=sketches,
        standard_error=standard_error,
        seed=seed,
        sha256=hashlib.sha256(data).hexdigest(),
        details=details or {},
    )
    text = json.dumps(dataclasses.asdict(info), indent=1, allow_nan=False)
    write_atomically(path, data)
    write_atomically(path.with_suffix(".json"), text.encode())
    return info


def read_maps(
    path: str | Path, *, size: tuple[int, int] | None = None, chroma: Chroma | None = None
) -> tuple[Frame, MapInfo]:
    """Reads and checks a map file: planes float32 ``[N, H, W]``, and what its ``.json`` says.

    ``size`` (height, width) and ``chroma`` are what the caller's frames have, where it wants them compared. Raises
    `FileNotFoundError` where one of the two files is missing, and `ValueError` naming the file, what came and what was
    wanted for everything else: wrong size, length, hash, values, or a ``.json`` that is not a map's.
    """
    path = _dat(path)
    info = _read_info(path.with_suffix(".json"))
    if size is not None and size != (info.height, info.width):
        raise ValueError(f"{path} holds maps of {info.width}×{info.height}; the frames are {size[1]}×{size[0]}")
    if chroma is not None and chroma != info.chroma:
        raise ValueError(f"{path} holds maps in {info.chroma}; the frames are {chroma}")
    shapes = _plane_shapes(info)
    samples = sum(h * w for h, w in shapes)
    data = path.read_bytes()
    wanted = 4 + 4 * samples * info.maps
    if len(data) != wanted:
        raise ValueError(
            f"{path} has {len(data)} bytes; {wanted} were wanted for {info.maps} maps of {info.width}×{info.height} "
            f"in {info.chroma}"
        )
    if (count := int.from_bytes(data[:4], "little")) != info.maps:
        raise ValueError(f"{path} says that it holds {count} maps; its .json and its length say {info.maps}")
    if (found := hashlib.sha256(data).hexdigest()) != info.sha256:
        raise ValueError(f"{path} has SHA-256 {found}; its .json wants {info.sha256}: write the pair again")
    rows = np.frombuffer(data, "<f4", offset=4).reshape(info.maps, samples)
    ends = np.cumsum([h * w for h, w in shapes])
    planes = [
        rows[:, end - h * w : end].reshape(info.maps, h, w).astype(np.float32)
        for end, (h, w) in zip(ends, shapes, strict=True)
    ]
    maps = frame_of(planes)
    _check_values(maps, str(path))
    return maps, info


def _dat(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".dat":
        raise ValueError(f"map file {path} was given; wanted a name that ends in .dat (its .json lies beside it)")
    return path


def _plane_shapes(info: MapInfo) -> list[tuple[int, int]]:
    luma, half = (info.height, info.width), (info.height // 2, info.width // 2)
    return [luma] if info.chroma == "400" else [luma, half, half]


def _check_values(maps: Frame, what: str) -> None:
    for name, plane in zip("yuv", maps.planes, strict=False):
        bad = ~(np.isfinite(plane) & (plane >= 0))
        if bad.any():
            n, row, column = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{what}: plane {name} of map {n} is {plane[n, row, column]} at row {row}, column {column} "
                f"({int(bad.sum())} such values); weights are finite and ≥ 0"
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**32


def _read_info(path: Path) -> MapInfo:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    names = [field.name for field in dataclasses.fields(MapInfo)]
    if not isinstance(fields, dict) or set(fields) != set(names):
        came = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{path} has {came}; the description of a map file has {sorted(names)}")
    error_ok = fields["standard_error"] is None or (
        isinstance(fields["standard_error"], int | float) and math.isfinite(fields["standard_error"])
    )
    wanted = {
        **dict.fromkeys(("width", "height", "maps"), (_is_count, "a number ≥ 1")),
        "chroma": (lambda v: v in get_args(Chroma), f"one of {', '.join(get_args(Chroma))}"),
        "mode": (lambda v: v in get_args(Mode), f"one of {', '.join(get_args(Mode))}"),
        "receiver": (lambda v: isinstance(v, str), "text"),
        "sketches": (lambda v: v == 0 or _is_count(v), "a number ≥ 0"),
        "standard_error": (lambda _: error_ok, "a finite number or null"),
        "seed": (lambda v: v is None or isinstance(v, int), "a whole number or null"),
        "sha256": (lambda v: isinstance(v, str), "text"),
        "details": (lambda v: isinstance(v, dict), "an object"),
    }
    for name, (valid, description) in wanted.items():
        if not valid(fields[name]):
            raise ValueError(f"{path}: {name} is {fields[name]!r}; wanted {description}")
    info = MapInfo(**fields)
    if info.chroma == "420" and (info.width % 2 or info.height % 2):
        raise ValueError(f"{path} describes {info.width}×{info.height} in 4:2:0; wanted even width and height")
    return info
