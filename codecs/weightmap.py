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
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, size_of
from jaxwrap.codecs.files import GrowingFile, OpenFile, digest_of, write_atomically

Mode = Literal["wa", "iwa", "fwa", "calibrated"]
"""One map per frame in display order (wa), one per I frame in coding order (iwa), or one for all frames: the mean over
them (fwa), or one weight per plane, calibrated on a codec's own errors (calibrated)."""

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


class MapWriter(GrowingFile):
    """Writes a map file map by map, to ``path`` (``.dat``) and its ``.json``; a context manager.

    ``size`` is (height, width) of luma; ``count`` the number of maps so far. Nothing bears the file's name before
    `finish`, and nothing is left of a writer that is closed without it. Raises `ValueError` for a name without
    ``.dat``, `OSError` where another process is writing the file.
    """

    def __init__(self, path: str | Path, *, size: tuple[int, int], chroma: Chroma) -> None:
        self.size, self.chroma = size, chroma
        record_bytes = 4 * sum(h * w for h, w in plane_shapes(size, chroma))
        super().__init__(_dat(path), header_bytes=4, record_bytes=record_bytes)

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
        self._append(b"".join(p[i].tobytes() for i in range(len(planes[0])) for p in planes))

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

        Raises `ValueError` for a mode that does not fit the number of maps, and for what a description does not hold,
        such as an error that is NaN or a seed of NumPy; nothing is written then.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"map mode {mode!r} was given; known: {', '.join(get_args(Mode))}")
        if self.count < 1 or (mode == "fwa" and self.count != 1):
            wanted = "1" if mode == "fwa" else "1 or more"
            raise ValueError(f"{self.count} maps were given for mode {mode}; wanted {wanted}")
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
            "sha256": "",
            "details": details or {},
            "checksum": "",
        }
        path = self.path.with_suffix(".json")
        try:
            description = json.dumps(fields, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the description {fields} of {self.path} cannot be written as JSON: {error}") from error
        _parse_info(description, str(path))  # whatever a reader would refuse, before anything bears the file's name
        fields = json.loads(description)
        fields["sha256"] = self._publish(self.count.to_bytes(4, "little"))
        fields["checksum"] = _checksum(fields)
        write_atomically(path, json.dumps(fields, indent=1).encode())
        return MapInfo(**fields)


class MapReader(OpenFile):
    """Reads maps a few at a time, from a checked file; a context manager.

    The pair is looked at once as a whole: description, length, count and hash. ``data`` is a binary file that can be
    sought (`io.BytesIO` for bytes in memory), ``description`` the ``.json``, ``name`` what errors call the pair.
    `MapReader.open` takes a path. Raises `ValueError` naming the file, what came and what was wanted.
    """

    def __init__(self, data: BinaryIO, description: bytes, name: str) -> None:
        self._file, self._name = data, name
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
        for needed in (path, path.with_suffix(".json")):
            if not needed.is_file():
                raise FileNotFoundError(
                    f"{needed} is missing: a map is a .dat and its description, a .json beside it; copy both, or run "
                    "jaxwrap importance again"
                )
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
        self._file.seek(4 + 4 * self._samples * start)
        records = np.frombuffer(self._file.read(4 * self._samples * (stop - start)), "<f4")
        maps = frame_of(split_planes(records.reshape(stop - start, self._samples), self._shapes))
        _check_values(maps, self._name, start)
        return maps


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
        writer.append(maps)
        return writer.finish(
            mode=mode, receiver=receiver, sketches=sketches, standard_error=standard_error, seed=seed, details=details
        )


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
