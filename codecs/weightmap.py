"""Weight maps on disk: what an importance run hands to an encoder, and to a later run.

``NAME.dat``: the number of maps as unsigned 32-bit little endian; then per map its planes (y, or y, u, v) as 32-bit
little-endian floats in raster order at native plane size; all finite and ≥ 0. This is the layout of the published VTM
fork for weighted RDO (RDO_IQA_FR), so maps interchange.

``NAME.json`` beside it: what the floats do not say (`MapInfo`), the SHA-256 of the ``.dat``, and a checksum of the
description itself, so that no change of either file passes for another map. Both are written under temporary names and
renamed, the ``.dat`` first: whatever interrupts the writer, a reader gets a matching pair or an error.

Maps may be written (`MapWriter`) and read (`MapReader`) a few at a time: memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, get_args

import numpy as np

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, size_of
from jaxwrap.codecs.files import GrowingFile, digest_of, write_atomically

Mode = Literal["fwa", "iwa", "wa", "calibrated"]
"""One map for all frames (fwa, calibrated), one per I frame in coding order (iwa), or one per frame in display order
(wa)."""

Chroma = Literal["400", "420"]


@dataclasses.dataclass(frozen=True, slots=True)
class MapInfo:
    """The ``.json`` of a map file.

    ``width`` and ``height`` are in luma samples. ``sketches`` and ``standard_error`` (relative, per sample; None where
    unknown) say how well the maps are known, ``seed`` and ``receiver`` from what they were computed. ``details`` holds
    further values that a run wants to keep, such as α. ``sha256`` is that of the ``.dat``; ``checksum`` the SHA-256 of
    the other fields as JSON with sorted keys, no spaces and ASCII only.
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
    details: dict[str, Any]
    checksum: str


class MapWriter:
    """Writes a map file map by map, to ``path`` (``.dat``) and its ``.json``; a context manager.

    ``size`` is (height, width) of luma. Nothing bears the file's name before `finish`. A writer that is left without it
    keeps what was appended in ``.NAME.dat.part``; ``resume`` goes on there, after the `count` maps that are whole (the
    caller sees to it that they are of the same frames and settings). Raises `ValueError` for a name without ``.dat``,
    `OSError` where another process is writing the file.
    """

    def __init__(self, path: str | Path, *, size: tuple[int, int], chroma: Chroma, resume: bool = False) -> None:
        self.path, self.size, self.chroma = _dat(path), size, chroma
        record_bytes = 4 * sum(h * w for h, w in plane_shapes(size, chroma))
        self._file = GrowingFile(self.path, header_bytes=4, record_bytes=record_bytes, resume=resume)

    @property
    def count(self) -> int:
        """Number of maps written so far."""
        return self._file.records

    def append(self, maps: Frame) -> None:
        """Writes maps ``[N, H, W]`` per plane, stored as float32. Raises `ValueError` where they are of another size or
        format, negative or not finite; nothing is written then."""
        check_frame(maps)
        if size_of(maps) != self.size or chroma_of(maps) != self.chroma:
            (h, w), (height, width) = size_of(maps), self.size
            raise ValueError(
                f"{self.path} holds maps of {width}×{height} in {self.chroma}; {w}×{h} in {chroma_of(maps)} was given"
            )
        with np.errstate(over="ignore"):
            planes = [np.asarray(plane).astype("<f4") for plane in maps.planes]
        _check_values(frame_of(planes), f"maps for {self.path}", self.count)
        self._file.append(b"".join(p[i].tobytes() for i in range(len(planes[0])) for p in planes))

    def finish(
        self,
        *,
        mode: Mode,
        receiver: str,
        sketches: int,
        standard_error: float | None = None,
        seed: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> MapInfo:
        """Gives the file its name and writes the ``.json``.

        Raises `ValueError` for a mode that does not fit the number of maps, and for details that JSON has no form for.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"map mode {mode!r} was given; known: {', '.join(get_args(Mode))}")
        if self.count < 1 or (mode == "fwa" and self.count != 1):
            wanted = "1" if mode == "fwa" else "1 or more"
            raise ValueError(f"{self.count} maps were given for mode {mode}; wanted {wanted}")
        try:
            details = json.loads(json.dumps(details or {}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"details {details} cannot be written as JSON: {error}") from error
        fields: dict[str, Any] = {
            "width": self.size[1],
            "height": self.size[0],
            "chroma": self.chroma,
            "maps": self.count,
            "mode": mode,
            "receiver": receiver,
            "sketches": sketches,
            "standard_error": standard_error,
            "seed": seed,
            "sha256": self._file.publish(self.count.to_bytes(4, "little")),
            "details": details,
        }
        fields["checksum"] = _checksum(fields)
        write_atomically(self.path.with_suffix(".json"), json.dumps(fields, indent=1, allow_nan=False).encode())
        return MapInfo(**fields)

    def discard(self) -> None:
        """Removes what was written so far."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class MapReader:
    """Reads maps a few at a time, from a checked file; a context manager.

    The pair is looked at once as a whole: description, length, count and hash. ``data`` is a binary file that can be
    sought (`io.BytesIO` for bytes in memory), ``description`` the ``.json``, ``name`` what errors call the pair.
    `MapReader.open` takes a path. Raises `ValueError` naming the file, what came and what was wanted.
    """

    def __init__(self, data: BinaryIO, description: bytes, name: str) -> None:
        self._data, self._name = data, name
        self.info, checksum = _parse_info(description, str(Path(name).with_suffix(".json")))
        info = self.info
        self._shapes = plane_shapes((info.height, info.width), info.chroma)
        self._samples = sum(h * w for h, w in self._shapes)
        length, wanted = data.seek(0, 2), 4 + 4 * self._samples * info.maps
        if length != wanted:
            raise ValueError(
                f"{name} has {length} bytes; {wanted} were wanted for {info.maps} maps of {info.width}×{info.height} "
                f"in {info.chroma}"
            )
        data.seek(0)
        if (count := int.from_bytes(data.read(4), "little")) != info.maps:
            raise ValueError(f"{name} says that it holds {count} maps; its .json and its length say {info.maps}")
        if (found := digest_of(data).hexdigest()) != info.sha256:
            raise ValueError(f"{name} has SHA-256 {found}; its .json wants {info.sha256}: write the pair again")
        if checksum != info.checksum:
            raise ValueError(
                f"{Path(name).with_suffix('.json')} has checksum {info.checksum}; its fields make {checksum}: it was "
                "changed after it was written; write the pair again"
            )

    @classmethod
    def open(cls, path: str | Path) -> MapReader:
        """Opens a pair by its ``.dat``. Raises `FileNotFoundError` where one of the two is missing."""
        path = _dat(path)
        description = path.with_suffix(".json").read_bytes()
        data = path.open("rb")
        try:
            return cls(data, description, str(path))
        except BaseException:
            data.close()
            raise

    def read(self, start: int = 0, stop: int | None = None) -> Frame:
        """Maps ``start`` to ``stop`` (default: all that follow), float32 ``[stop − start, H, W]`` per plane.

        Raises `ValueError` for maps that are not there, and for values that are negative or not finite.
        """
        stop = self.info.maps if stop is None else stop
        if not 0 <= start < stop <= self.info.maps:
            raise ValueError(f"maps {start} to {stop} of {self._name} were asked for; it holds {self.info.maps}")
        self._data.seek(4 + 4 * self._samples * start)
        records = np.frombuffer(self._data.read(4 * self._samples * (stop - start)), "<f4")
        maps = frame_of(split_planes(records.reshape(stop - start, self._samples), self._shapes))
        _check_values(maps, self._name, start)
        return maps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()


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
    """Writes ``maps`` (planes ``[N, H, W]``) at once. Errors as in `MapWriter`; nothing is left of a refused file."""
    check_frame(maps)
    with MapWriter(path, size=size_of(maps), chroma=chroma_of(maps)) as writer:
        try:
            writer.append(maps)
            return writer.finish(
                mode=mode,
                receiver=receiver,
                sketches=sketches,
                standard_error=standard_error,
                seed=seed,
                details=details,
            )
        except BaseException:
            writer.discard()
            raise


def read_maps(
    path: str | Path, *, size: tuple[int, int] | None = None, chroma: Chroma | None = None
) -> tuple[Frame, MapInfo]:
    """Reads and checks a map file: planes float32 ``[N, H, W]``, and what its ``.json`` says.

    ``size`` (height, width) and ``chroma`` are what the caller's frames have, where it wants them compared. Errors as
    in `MapReader`.
    """
    with MapReader.open(path) as reader:
        info = reader.info
        if size is not None and size != (info.height, info.width):
            raise ValueError(f"{path} holds maps of {info.width}×{info.height}; the frames are {size[1]}×{size[0]}")
        if chroma is not None and chroma != info.chroma:
            raise ValueError(f"{path} holds maps in {info.chroma}; the frames are {chroma}")
        return reader.read(), info


def chroma_of(frame: Frame) -> Chroma:
    """The name of a frame's chroma format."""
    return "400" if isinstance(frame, Yuv400) else "420"


def plane_shapes(size: tuple[int, int], chroma: Chroma) -> list[tuple[int, int]]:
    """(height, width) of each plane; ``size`` is luma's. Raises `ValueError` for an odd size in 4:2:0."""
    height, width = size
    if chroma == "400":
        return [size]
    if height % 2 or width % 2:
        raise ValueError(f"{width}×{height} in 4:2:0 was given; wanted even width and height")
    return [size, (height // 2, width // 2), (height // 2, width // 2)]


def split_planes(records: np.ndarray, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """``[…, all samples of a picture]`` → float32 planes ``[…, H, W]``."""
    ends = np.cumsum([h * w for h, w in shapes])
    return [
        records[..., end - h * w : end].reshape(*records.shape[:-1], h, w).astype(np.float32)
        for end, (h, w) in zip(ends, shapes, strict=True)
    ]


def _dat(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".dat":
        raise ValueError(f"map file {path} was given; wanted a name that ends in .dat (its .json lies beside it)")
    return path


def _check_values(maps: Frame, what: str, start: int) -> None:
    for name, plane in zip("yuv", maps.planes, strict=False):
        bad = ~(np.isfinite(plane) & (plane >= 0))
        if bad.any():
            n, row, column = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{what}: plane {name} of map {start + n} is {plane[n, row, column]} at row {row}, column {column} "
                f"({int(bad.sum())} such values); weights are finite and ≥ 0"
            )


def _checksum(fields: dict[str, Any]) -> str:
    """SHA-256 (hex) of the fields other than the checksum, in the one form that `MapInfo` states."""
    others = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**32


def _parse_info(description: bytes, path: str) -> tuple[MapInfo, str]:
    """The description, and the checksum that it should have."""
    try:
        fields = json.loads(description)
        checksum = _checksum(fields) if isinstance(fields, dict) else ""
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    names = [field.name for field in dataclasses.fields(MapInfo)]
    if not isinstance(fields, dict) or set(fields) != set(names):
        came = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{path} has {came}; the description of a map file has {sorted(names)}")
    wanted = {
        **dict.fromkeys(("width", "height", "maps"), (_is_count, "a number ≥ 1")),
        "chroma": (lambda v: v in get_args(Chroma), f"one of {', '.join(get_args(Chroma))}"),
        "mode": (lambda v: v in get_args(Mode), f"one of {', '.join(get_args(Mode))}"),
        "receiver": (lambda v: isinstance(v, str), "text"),
        "sketches": (lambda v: v == 0 or _is_count(v), "a number ≥ 0"),
        "standard_error": (lambda v: v is None or _is_finite(v), "a finite number or null"),
        "seed": (lambda v: v is None or isinstance(v, int), "a whole number or null"),
        "sha256": (lambda v: isinstance(v, str), "text"),
        "details": (lambda v: isinstance(v, dict), "an object"),
        "checksum": (lambda v: isinstance(v, str), "text"),
    }
    for name, (valid, form) in wanted.items():
        if not valid(fields[name]):
            raise ValueError(f"{path}: {name} is {fields[name]!r}; wanted {form}")
    info = MapInfo(**fields)
    try:
        plane_shapes((info.height, info.width), info.chroma)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return info, checksum
