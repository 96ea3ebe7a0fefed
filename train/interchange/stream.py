"""Streams of features as CompressAI-Vision's wrappers of standard encoders write them: a header, then the encoder's
stream.

The header (its repository at commit 31165daf62af4e7fff02b39ba23b39e8c24278b1, ``codecs/std_codecs.py``) is big-endian:
bit depth u8; height, width and number of frames u32; then of each frame the range of the features, minimum and maximum
as float32: 13 + 8 N bytes, all of which count as rate. The sizes of the layers are not in it but in a JSON file
(`packing`), and its decoder asks that the range is the one of its own table within 1e-4.

Its tables share the file's bytes evenly among the frames; `jaxwrap` counts each frame's own.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

from jaxwrap.codecs.files import write_atomically

_SEQUENCE = struct.Struct(">BIII")
_FRAME = struct.Struct(">ff")


@dataclasses.dataclass(frozen=True, slots=True)
class StreamHeader:
    """``ranges``: (minimum, maximum) of each frame, of float32 precision."""

    bit_depth: int
    height: int
    width: int
    ranges: tuple[tuple[float, float], ...]

    @property
    def bits(self) -> int:
        """Length of the header."""
        return 8 * (_SEQUENCE.size + _FRAME.size * len(self.ranges))


def write_stream(path: Path, header: StreamHeader, coded: bytes) -> None:
    """Writes the header and the encoder's stream."""
    content = _SEQUENCE.pack(header.bit_depth, header.height, header.width, len(header.ranges))
    write_atomically(path, b"".join([content, *(_FRAME.pack(*pair) for pair in header.ranges), coded]))


def read_stream(path: Path) -> tuple[StreamHeader, bytes]:
    """The header and the encoder's stream. Raises `ValueError` naming the file where it is too short, or its numbers
    make no sense."""
    content = path.read_bytes()
    if len(content) < _SEQUENCE.size:
        raise ValueError(f"{path} has {len(content)} bytes; the header of a stream of features has {_SEQUENCE.size}")
    bit_depth, height, width, frames = _SEQUENCE.unpack_from(content)
    end = _SEQUENCE.size + _FRAME.size * frames
    if not 8 <= bit_depth <= 16 or not (height and width and frames) or len(content) < end:
        raise ValueError(
            f"{path} is no stream of features, or is cut: its header says {bit_depth} bits, {width}×{height} and "
            f"{frames} frames, and it has {len(content)} bytes"
        )
    ranges = tuple(_FRAME.iter_unpack(content[_SEQUENCE.size : end]))
    return StreamHeader(bit_depth, height, width, ranges), content[end:]
