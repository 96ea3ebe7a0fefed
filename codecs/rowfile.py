"""Jacobian rows on disk: what an encoder that weighs whole blocks (FP-RDO) reads; signed, ℓ rows per frame.

``NAME.rows``, numbers little endian, offsets in bytes::

    0   8 bytes  magic: "JWROWS", carriage return, line feed
    8   u32      version: 1
    12  u32      ℓ, rows per frame
    16  u32      luma width
    20  u32      luma height
    24  u32      chroma format: 400 or 420
    28  u32      frames
    32  per frame, per row: its planes (y, or y, u, v) as 32-bit floats in raster order at native plane size, finite
    end 32 bytes SHA-256 of all that stands before

Rows have the scale of `jaxwrap.importance.jacobian.JacobianRows`: Σ_s (row_s · q)² estimates the receiver's error.
Frames may be written (`RowWriter`) and read (`RowReader`) a few at a time.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxwrap.arrays import frame_of
from jaxwrap.codecs.files import GrowingFile, OpenFile, digest_of
from jaxwrap.codecs.weightmap import Chroma, chroma_of, plane_shapes, split_planes
from jaxwrap.importance.jacobian import JacobianRows

MAGIC = b"JWROWS\r\n"
VERSION = 1
_HEADER = struct.Struct("<8s6I")
_DIGEST_BYTES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class RowInfo:
    """The header of a row file: ``rows`` ℓ per frame; ``width`` and ``height`` of luma; number of ``frames``."""

    rows: int
    width: int
    height: int
    chroma: Chroma
    frames: int


class RowWriter(GrowingFile):
    """Writes a row file frame by frame; a context manager.

    ``rows`` is ℓ, ``size`` (height, width) of luma; ``count`` the number of frames so far. Nothing bears the file's
    name before `finish`, and nothing is left of a writer that is closed without it. Raises `ValueError` for a name
    without ``.rows``, `OSError` where another process is writing the file.
    """

    def __init__(self, path: str | Path, *, rows: int, size: tuple[int, int], chroma: Chroma) -> None:
        self.rows, self.size, self.chroma = rows, size, chroma
        if rows < 1:
            raise ValueError(f"{path}: {rows} rows per frame were asked for; wanted 1 or more")
        record_bytes = 4 * rows * sum(h * w for h, w in plane_shapes(size, chroma))
        super().__init__(_rows_name(path), header_bytes=_HEADER.size, record_bytes=record_bytes)

    def append(self, rows: JacobianRows) -> None:
        """Writes the rows of N frames, stored as float32. Raises `ValueError` where they are of another number, size or
        format, or not finite as float32; nothing is written then."""
        shapes = [(self.rows, *shape) for shape in plane_shapes(self.size, self.chroma)]
        came = [tuple(p.shape[1:]) for p in rows.planes.planes]
        if came != shapes:
            raise ValueError(
                f"{self.path} holds rows [N, ℓ, H, W] with {shapes} after N; planes with {came} were given"
            )
        with np.errstate(over="ignore"):
            planes = [np.asarray(p).astype("<f4") for p in rows.planes.planes]
        _check_values(planes, f"rows for {self.path}", self.count)
        self._append(
            b"".join(p[n, s].tobytes() for n in range(len(planes[0])) for s in range(self.rows) for p in planes)
        )

    def finish(self) -> RowInfo:
        """Writes header and hash, and gives the file its name. Raises `ValueError` where there are no frames."""
        if self.count < 1:
            raise ValueError(f"{self.path}: no frames were given; a row file holds 1 or more")
        height, width = self.size
        self._publish(
            _HEADER.pack(MAGIC, VERSION, self.rows, width, height, int(self.chroma), self.count), append_digest=True
        )
        return RowInfo(self.rows, width, height, self.chroma, self.count)


class RowReader(OpenFile):
    """Reads the rows of a few frames at a time, from a checked file; a context manager.

    Header, length and hash are looked at once. ``data`` is a binary file that can be sought (`io.BytesIO` for bytes in
    memory), ``name`` what errors call it. `RowReader.open` takes a path. Raises `ValueError` naming the file, what came
    and what was wanted.
    """

    def __init__(self, data: BinaryIO, name: str) -> None:
        self._file, self._name = data, name
        length = data.seek(0, os.SEEK_END)
        if length < _HEADER.size + _DIGEST_BYTES:
            raise ValueError(f"{name} has {length} bytes: too short for the header and hash of a row file")
        data.seek(0)
        magic, version, rows, width, height, chroma, frames = _HEADER.unpack(data.read(_HEADER.size))
        if magic != MAGIC:
            raise ValueError(f"{name} starts with {magic!r}; a row file starts with {MAGIC!r}")
        if version != VERSION:
            raise ValueError(f"{name} has version {version}; this program reads version {VERSION}")
        if chroma not in (400, 420) or 0 in (rows, width, height, frames):
            raise ValueError(
                f"{name} says {frames} frames of {rows} rows, {width}×{height}, chroma {chroma}; wanted numbers "
                "≥ 1 and chroma 400 or 420"
            )
        self.info = RowInfo(rows, width, height, "400" if chroma == 400 else "420", frames)
        try:
            self._shapes = plane_shapes((height, width), self.info.chroma)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._samples = sum(h * w for h, w in self._shapes)
        content = _HEADER.size + 4 * self._samples * rows * frames
        if length != content + _DIGEST_BYTES:
            raise ValueError(
                f"{name} has {length} bytes; {content + _DIGEST_BYTES} were wanted for {frames} frames of {rows} rows "
                f"of {width}×{height} in {self.info.chroma}"
            )
        found = digest_of(data, content).digest()
        if (wanted := data.read()) != found:
            raise ValueError(
                f"{name} has SHA-256 {found.hex()}; it ends with {wanted.hex()}: it was changed, write it again"
            )

    @classmethod
    def open(cls, path: str | Path) -> RowReader:
        """Opens a file. Raises `FileNotFoundError` where it is missing."""
        path = _rows_name(path)
        data = path.open("rb")
        try:
            return cls(data, str(path))
        except BaseException:
            data.close()
            raise

    def read(self, start: int = 0, stop: int | None = None) -> JacobianRows:
        """Rows of the frames ``start`` to ``stop`` (default: all that follow), float32 ``[stop − start, ℓ, H, W]``.

        Raises `ValueError` for frames that are not there, and for values that are not finite.
        """
        info = self.info
        stop = info.frames if stop is None else stop
        if not 0 <= start < stop <= info.frames:
            raise ValueError(f"frames {start} to {stop} of {self._name} were asked for; it holds {info.frames}")
        frame_bytes = 4 * self._samples * info.rows
        self._file.seek(_HEADER.size + start * frame_bytes)
        records = np.frombuffer(self._file.read((stop - start) * frame_bytes), "<f4")
        planes = split_planes(records.reshape(stop - start, info.rows, self._samples), self._shapes)
        _check_values(planes, self._name, start)
        return JacobianRows(frame_of(planes))


def write_rows(path: str | Path, rows: JacobianRows) -> RowInfo:
    """Writes the rows of N frames at once. Errors as in `RowWriter`; nothing is left of a refused file."""
    y = rows.planes.y
    if len(y.shape) != 4:
        raise ValueError(f"rows of shape {tuple(y.shape)} were given; wanted [N, ℓ, H, W]")
    with RowWriter(path, rows=y.shape[1], size=tuple(y.shape[2:]), chroma=chroma_of(rows.planes)) as writer:
        writer.append(rows)
        return writer.finish()


def read_rows(path: str | Path) -> tuple[JacobianRows, RowInfo]:
    """Reads and checks a row file: float32 planes ``[N, ℓ, H, W]``. Errors as in `RowReader`."""
    with RowReader.open(path) as reader:
        return reader.read(), reader.info


def _rows_name(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".rows":
        raise ValueError(f"row file {path} was given; wanted a name that ends in .rows")
    return path


def _check_values(planes: list[np.ndarray], what: str, start: int) -> None:
    for name, plane in zip("yuv", planes, strict=False):
        bad = ~np.isfinite(plane)
        if bad.any():
            n, row, line, column = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"{what}: plane {name} of row {row} of frame {start + n} is {plane[n, row, line, column]} at line "
                f"{line}, column {column} ({int(bad.sum())} such values); rows are finite"
            )
