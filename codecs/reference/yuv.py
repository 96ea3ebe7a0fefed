"""Raw YUV files: planar unsigned samples without a header, the geometry in the name.

``name_WIDTHxHEIGHT_FPSfps_BITSbit_P420.yuv`` (``P400``: luma only), for example ``Mobile_352x288_25fps_8bit_P420.yuv``.
Frame after frame, planes y, u, v in raster order; 8 bits in one byte, 10 bits in the low bits of two little-endian
bytes, full code range ``[0, 2^d − 1]``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, num_frames, size_of
from jaxwrap.samples import BIT_DEPTHS, max_sample

_NAME = re.compile(
    r"(?P<name>.+)_(?P<w>\d+)x(?P<h>\d+)_(?P<fps>\d+(?:\.\d+)?)fps_(?P<bits>\d+)bit_P(?P<chroma>\d+)\.yuv"
)

CONVENTION = "name_WIDTHxHEIGHT_FPSfps_BITSbit_P420.yuv (or P400)"


@dataclasses.dataclass(frozen=True, slots=True)
class YuvFormat:
    """Geometry of a raw file: sizes in luma samples, frames per second, bits per sample, 4:2:0 or 4:0:0."""

    width: int
    height: int
    fps: float
    bit_depth: int = 8
    chroma: str = "420"

    def __post_init__(self) -> None:
        if self.chroma not in ("420", "400"):
            raise ValueError(f"chroma format {self.chroma!r} was given; known: 420, 400")
        if self.bit_depth not in BIT_DEPTHS:
            raise ValueError(f"bit depth {self.bit_depth} was given; known: {', '.join(map(str, BIT_DEPTHS))}")
        if min(self.width, self.height) < 1 or not self.fps > 0:
            raise ValueError(f"{self.width}×{self.height} at {self.fps:g} fps was given; all have to be positive")
        if self.chroma == "420" and (self.width % 2 or self.height % 2):
            raise ValueError(f"{self.width}×{self.height} in 4:2:0 was given; wanted even width and height")

    @property
    def dtype(self) -> np.dtype:
        """Samples on disk."""
        return np.dtype("u1" if self.bit_depth == 8 else "<u2")

    @property
    def plane_shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each plane."""
        luma, half = (self.height, self.width), (self.height // 2, self.width // 2)
        return [luma] if self.chroma == "400" else [luma, half, half]

    @property
    def bytes_per_frame(self) -> int:
        """Bytes of all planes of one frame."""
        return sum(h * w for h, w in self.plane_shapes) * self.dtype.itemsize

    def file_name(self, name: str) -> str:
        """The name that states this geometry."""
        return f"{name}_{self.width}x{self.height}_{self.fps:g}fps_{self.bit_depth}bit_P{self.chroma}.yuv"

    @staticmethod
    def of(frames: Frame, *, bit_depth: int, fps: float) -> YuvFormat:
        """Geometry of frames in memory."""
        height, width = size_of(frames)
        return YuvFormat(width, height, fps, bit_depth, "400" if isinstance(frames, Yuv400) else "420")


def parse_name(path: str | Path) -> tuple[str, YuvFormat]:
    """(name, geometry) that a file's name states. Raises `ValueError` with the convention where it states none."""
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(f"{Path(path).name} does not state its geometry; raw files are named {CONVENTION}")
    try:
        return match["name"], YuvFormat(
            int(match["w"]), int(match["h"]), float(match["fps"]), int(match["bits"]), match["chroma"]
        )
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: {error}") from error


def count_frames(path: str | Path, geometry: YuvFormat) -> int:
    """Number of frames of a file. Raises `ValueError` unless its size is a whole, positive number of frames."""
    size = Path(path).stat().st_size
    frames, rest = divmod(size, geometry.bytes_per_frame)
    if rest or not frames:
        raise ValueError(
            f"{path} has {size} bytes: {frames} frames of {geometry.bytes_per_frame} bytes "
            f"({geometry.width}×{geometry.height}, {geometry.bit_depth} bits, {geometry.chroma}) and {rest} bytes; "
            "wanted whole frames: is the geometry in its name right?"
        )
    return frames


def read_yuv(path: str | Path, geometry: YuvFormat | None = None, *, start: int = 0, count: int | None = None) -> Frame:
    """Frames ``start … start + count − 1`` (default: to the end) as NumPy integers; only these are read.

    ``geometry`` is taken from the name where not given. Raises `ValueError` for a file whose size does not fit it, a
    range outside the file, and samples above 2^d − 1.
    """
    geometry = geometry or parse_name(path)[1]
    available = count_frames(path, geometry)
    count = available - start if count is None else count
    if start < 0 or count < 1 or start + count > available:
        raise ValueError(f"frames {start} to {start + count - 1} of {path} were asked for; it has 0 to {available - 1}")
    samples = geometry.bytes_per_frame // geometry.dtype.itemsize
    data = np.fromfile(path, geometry.dtype, samples * count, offset=start * geometry.bytes_per_frame)
    top = max_sample(geometry.bit_depth)
    if (found := int(data.max())) > top:
        raise ValueError(
            f"{path} holds a sample of {found}; {geometry.bit_depth} bits end at {top}. "
            "Samples belong into the low bits of two little-endian bytes"
        )
    rows = data.reshape(count, samples)
    ends = np.cumsum([h * w for h, w in geometry.plane_shapes])
    return frame_of(
        [
            np.ascontiguousarray(rows[:, end - h * w : end].reshape(count, h, w), geometry.dtype.newbyteorder("="))
            for end, (h, w) in zip(ends, geometry.plane_shapes, strict=True)
        ]
    )


def write_yuv(folder: str | Path, name: str, frames: Frame, *, bit_depth: int, fps: float) -> Path:
    """Writes integer frames into ``folder`` under the name that states their geometry, and returns the path.

    Raises `ValueError` for samples that are not integers in ``[0, 2^d − 1]`` (`jaxwrap.samples.to_integers` makes
    them). The file appears under its name when it is complete.
    """
    check_frame(frames)
    geometry = YuvFormat.of(frames, bit_depth=bit_depth, fps=fps)
    planes = [np.asarray(plane) for plane in frames.planes]
    for label, plane in zip("yuv", planes, strict=False):
        if not np.issubdtype(plane.dtype, np.integer) or plane.min() < 0 or plane.max() > max_sample(bit_depth):
            raise ValueError(
                f"plane {label} ({plane.dtype}, {plane.min()} … {plane.max()}) was given; "
                f"{bit_depth}-bit files hold integers from 0 to {max_sample(bit_depth)}"
            )
    path = Path(folder) / geometry.file_name(name)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            for i in range(num_frames(frames)):
                for plane in planes:
                    file.write(plane[i].astype(geometry.dtype).tobytes())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path
