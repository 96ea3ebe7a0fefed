"""Opens what users have — pictures, folders, videos, raw YUV — as clips of integer 4:2:0 samples.

A `ClipReader` decodes frames as they are read, a `Clip` holds them all; both follow these rules:

* Pictures (whatever Pillow reads): first frame, turned upright by their EXIF tag, alpha dropped, 16 bits reduced to
  their upper 8; RGB becomes 8-bit limited-range BT.601 through `jaxwrap.colour`, odd sizes edge-padded to even ones. A
  grey picture is an RGB picture with three equal components. A picture is a clip of one frame at 1 fps.
* Videos (whatever FFmpeg reads): the first video stream. 8- and 10-bit 4:2:0 and grey keep the planes they carry, at
  the range they carry, full range too; everything else is converted by FFmpeg's swscale to 4:2:0 with 8 bits, or 10
  where it has more than 8. Rotation tags are ignored.
* Raw YUV: `jaxwrap.codecs.reference.yuv`, known by its suffix ``.yuv``.
* Luma-only sources get neutral chroma, 2^(d − 1), so that every clip goes through the same wrappers.
* A folder stands for all files in it, sorted by name; hidden files and sub-folders are left out.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import jax
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxwrap.arrays import Frame, Yuv420, frame_of, num_frames, size_of, stack_frames
from jaxwrap.codecs.reference.yuv import count_frames, parse_name, read_yuv
from jaxwrap.colour import rgb_to_yuv420, yuv_to_rgb

if TYPE_CHECKING:
    import av

STILL_FPS = 1.0
"""Frame rate of a picture."""

Kind = Literal["picture", "video", "raw"]

DEFAULT_FPS = 25.0
"""Frame rate of a video that states none."""

# Text is a video to FFmpeg: its terminal demuxer draws any .txt file.
_NOT_VIDEO = ("ansi", "bintext", "idf", "xbin")

# Pixel formats whose planes are kept as they are, and their bit depths.
_KEPT_PIXELS = {"yuv420p": 8, "yuvj420p": 8, "gray": 8, "yuv420p10le": 10, "gray10le": 10}


# Matrix coefficients of ITU-T H.273 that are BT.601's; 2 is "unspecified".
_BT601 = (2, 5, 6)


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One sequence in memory: ``frames`` are integer 4:2:0 samples (uint8, or uint16 for 10 bits) of even width and
    height.

    ``name`` is unique among the clips opened together.
    """

    name: str
    frames: Frame
    bit_depth: int
    fps: float
    source: Path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        return size_of(self.frames)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return num_frames(self.frames)

    def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
        """Frames start, start + step, …, one by one."""
        for n in range(start, self.num_frames, step):
            yield jax.tree.map(lambda plane, n=n: plane[n : n + 1], self.frames)

    def fingerprint(self) -> str:
        """Hash of all samples."""
        digest = hashlib.sha256()
        for plane in self.frames.planes:
            digest.update(np.ascontiguousarray(plane).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class ClipReader:
    """One sequence on disk, decoded as it is read: no more of it is in memory than the frame that is being made.

    ``size``: (height, width) of the frames that come, even. ``num_frames``: what the container says, otherwise the
    number of its packets; of a raw file, its size says; no more than ``max_frames``. A file can hold fewer or more
    frames than it says: only reading tells.
    """

    name: str
    source: Path
    kind: Kind
    size: tuple[int, int]
    num_frames: int
    bit_depth: int
    fps: float
    max_frames: int | None = None

    def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
        """Frames start, start + step, … up to ``max_frames`` or to the end of the file, one by one, as in `Clip`.

        A video is decoded from its first frame, whatever ``start`` is: that costs time but is exact in every
        container. Raises `ValueError` naming the file for frames that change size or format, and for damage.
        """
        try:
            match self.kind:
                case "picture":
                    frames = _picture_frames(self.source)
                case "video":
                    frames = _video_frames(self.source, start, step)
                case "raw":
                    frames = _raw_frames(self.source, start, step)
            stop = self.max_frames
            if self.kind == "picture":
                yield from itertools.islice(frames, start, stop, step)
            else:
                yield from itertools.islice(frames, None if stop is None else max(0, -(-(stop - start) // step)))
        except Exception as error:  # a decoder meets damage with whatever it was doing: any type of error can come
            raise ValueError(f"{self.source}: {error or type(error).__name__}") from error

    def load(self) -> Clip:
        """The whole sequence in memory."""
        frames = stack_frames(list(self.read()))
        return Clip(self.name, frames, self.bit_depth, self.fps, self.source)

    def fingerprint(self) -> str:
        """Hash of the file's length, its first and its last megabyte: tells files apart without reading them whole."""
        digest = hashlib.sha256(str(length := self.source.stat().st_size).encode())
        with self.source.open("rb") as file:
            digest.update(file.read(_SAMPLED))
            file.seek(max(0, length - _SAMPLED))
            digest.update(file.read(_SAMPLED))
        return digest.hexdigest()


_SAMPLED = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that gave no clip, and why."""

    source: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def open_clips(paths: Sequence[str | Path], *, max_frames: int | None = None) -> tuple[list[Clip], list[Unreadable]]:
    """All clips of these files and folders in memory, and the files that could not be read.

    ``max_frames`` is the most frames taken of each. Raises `FileNotFoundError` naming all paths that do not exist, and
    `ValueError` listing every reason where nothing could be read.
    """
    return _sorted_out(iter_clips(paths, max_frames=max_frames))


def open_readers(
    paths: Sequence[str | Path], *, max_frames: int | None = None
) -> tuple[list[ClipReader], list[Unreadable]]:
    """`open_clips` without reading: of each video the first frame is decoded, and its packets are counted where the
    container does not tell their number; pictures are decoded once, which finds damaged ones. Errors as there."""
    opened = (_open(path, name, max_frames) for path, name in _named_files(paths, max_frames))
    return _sorted_out(item if isinstance(item, Unreadable) else item[0] for item in opened)


def iter_clips(paths: Sequence[str | Path], *, max_frames: int | None = None) -> Iterator[Clip | Unreadable]:
    """`open_clips` one file at a time, in the order given: for more data than fits into memory.

    Bad arguments and missing paths raise at the call, before anything is read.
    """
    return (_load(path, name, max_frames) for path, name in _named_files(paths, max_frames))


Opened = TypeVar("Opened", Clip, ClipReader)


def _sorted_out(items: Iterator[Opened | Unreadable]) -> tuple[list[Opened], list[Unreadable]]:
    opened: list[Opened] = []
    unreadable: list[Unreadable] = []
    for item in items:
        if isinstance(item, Unreadable):
            unreadable.append(item)
        else:
            opened.append(item)
    if not opened:
        raise ValueError("\n  ".join(["no picture or video could be read:", *map(str, unreadable)]))
    return opened, unreadable


def _named_files(paths: Sequence[str | Path], max_frames: int | None) -> list[tuple[Path, str]]:
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames {max_frames} was given; wanted 1 or more, or None for all")
    if not paths:
        raise ValueError("no path was given; wanted pictures, videos, raw YUV files or folders of them")
    sources = [Path(path) for path in paths]
    if missing := [str(path) for path in sources if not path.exists()]:
        raise FileNotFoundError(f"these paths do not exist: {', '.join(missing)}")
    files = list(dict.fromkeys(itertools.chain.from_iterable(map(_files_of, sources))))
    return list(zip(files, _unique_names(files), strict=True))


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a folder; an empty folder stands for itself, to be reported."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) or [path]


def _unique_names(files: list[Path]) -> list[str]:
    """The shortest of stem, file name, folder/file name, … that no other file shares."""
    names = [path.stem for path in files]
    for depth in range(1, max((len(path.parts) for path in files), default=0) + 1):
        count = collections.Counter(names)
        if len(count) == len(names):
            break
        names = [
            "/".join(path.parts[-depth:]) if count[name] > 1 else name for path, name in zip(files, names, strict=True)
        ]
    return names


def _load(path: Path, name: str, max_frames: int | None) -> Clip | Unreadable:
    opened = _open(path, name, max_frames)
    if isinstance(opened, Unreadable):
        return opened
    reader, picture = opened
    if picture is not None:
        return Clip(name, picture, reader.bit_depth, reader.fps, path)
    try:
        return reader.load()
    except ValueError as error:
        return Unreadable(path, str(error).removeprefix(f"{path}: "))


def _open(path: Path, name: str, max_frames: int | None) -> tuple[ClipReader, Frame | None] | Unreadable:
    """A reader, and a picture's content, which opening it has decoded."""
    picture = None
    try:
        if path.is_dir():
            raise ValueError("the folder has no files in it")
        if path.stat().st_size == 0:
            raise ValueError("the file is empty (0 bytes)")
        if path.suffix.lower() == ".yuv":
            _, geometry = parse_name(path)
            size = _even(geometry.height, geometry.width)
            count, bit_depth, fps = count_frames(path, geometry), geometry.bit_depth, geometry.fps
            kind: Kind = "raw"
        elif (picture := _read_picture(path)) is not None:
            kind, size, count, bit_depth, fps = "picture", size_of(picture), 1, 8, STILL_FPS
        else:
            kind = "video"
            size, count, bit_depth, fps = _examine_video(path, max_frames)
    except Exception as error:  # as in `ClipReader.read`
        return Unreadable(path, str(error) or type(error).__name__)
    reader = ClipReader(name, path, kind, size, min(count, max_frames or count), bit_depth, fps, max_frames)
    return reader, picture


def _even(height: int, width: int) -> tuple[int, int]:
    return height + height % 2, width + width % 2


def _raw_frames(path: Path, start: int, step: int) -> Iterator[Frame]:
    _, geometry = parse_name(path)
    for n in range(start, count_frames(path, geometry), step):
        yield _as_yuv420(read_yuv(path, geometry, start=n, count=1), geometry.bit_depth)


def _picture_frames(path: Path) -> Iterator[Frame]:
    picture = _read_picture(path)
    if picture is None:
        raise ValueError("it was a picture when it was opened, and is none any more")
    yield picture


def _read_picture(path: Path) -> Yuv420 | None:
    """The picture, or None if Pillow does not know the format; truncated and damaged files raise."""
    rgb = _read_rgb_picture(path)
    return None if rgb is None else rgb_to_yuv420(rgb[None])


def _read_rgb_picture(path: Path) -> np.ndarray | None:
    """RGB uint8 ``[H, W, 3]``; otherwise as `_read_picture`."""
    try:
        opened = Image.open(path)
    except UnidentifiedImageError:
        return None
    with opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        samples = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(samples[..., None], 3, -1)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its samples are 32-bit ({image.mode}), whose range is not defined: convert it to 8 or 16 bits"
        )
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))[..., :3]


@contextlib.contextmanager
def _video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    import av  # here, so that training on pictures needs no PyAV

    try:
        # Playlists may name other places; a clip is one local file.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            stream = next((s for s in container.streams.video if s.codec_context is not None), None)
            if stream is None or stream.codec_context.name in _NOT_VIDEO:
                raise ValueError("it is neither a picture nor a video")
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"neither Pillow nor FFmpeg reads it ({error.strerror})") from error


def _examine_video(path: Path, max_frames: int | None) -> tuple[tuple[int, int], int, int, float]:
    """(height, width), number of frames that it says it has, bit depth, frames per second."""
    with _video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise ValueError("it holds no frame that FFmpeg decodes")
        size, pixels, count = _even(first.height, first.width), _pixels_for(first.format), stream.frames
    if count < 1:
        with _video(path) as (container, stream):
            packets = (packet for packet in container.demux(stream) if packet.size)
            count = max(1, sum(1 for _ in itertools.islice(packets, max_frames)))
    return size, count, _KEPT_PIXELS[pixels], float(rate or DEFAULT_FPS)


def _video_frames(path: Path, start: int, step: int) -> Iterator[Frame]:
    layout = None
    with _video(path) as (container, stream):
        for n, frame in _decoded(container, stream):
            layout = layout or (frame.width, frame.height, frame.format.name)
            if layout != (frame.width, frame.height, frame.format.name):
                raise ValueError(
                    f"its frames change size or pixel format at frame {n}; cut it into clips of one format"
                )
            if n >= start and (n - start) % step == 0:
                yield _as_yuv420(_picture_of(frame), _KEPT_PIXELS[_pixels_for(frame.format)])


def rgb_frames(path: Path, start: int = 0) -> Iterator[np.ndarray]:
    """Frames from ``start`` on of one picture, video or raw YUV file as RGB uint8 ``[H, W, 3]``, for networks that look
    at pictures.

    Pictures keep their own RGB and size, odd ones too. Video goes through `jaxwrap.colour`, full range read as such;
    planes whose matrix is tagged other than BT.601, or that are not 4:2:0, are converted by FFmpeg. A video is decoded
    from its first frame. Raises `ValueError` naming the file for damage and for frames that change size.
    """
    try:
        if path.suffix.lower() == ".yuv":
            _, geometry = parse_name(path)
            for frame in _raw_frames(path, start, 1):
                rgb = yuv_to_rgb(frame, bit_depth=geometry.bit_depth)
                yield rgb[0, : geometry.height, : geometry.width]
        elif (picture := _read_rgb_picture(path)) is not None:
            yield from [picture][start:]
        else:
            yield from _video_rgb(path, start)
    except Exception as error:  # as in `ClipReader.read`
        raise ValueError(f"{path}: {error or type(error).__name__}") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as `rgb_frames` gives it, from its header alone. Raises `ValueError` naming the
    file where it is none."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's types for what it cannot read
        raise ValueError(f"{path}: it is no picture that Pillow reads ({error})") from error


def _video_rgb(path: Path, start: int) -> Iterator[np.ndarray]:
    size = None
    with _video(path) as (container, stream):
        for n, frame in _decoded(container, stream):
            size = size or (frame.width, frame.height)
            if size != (frame.width, frame.height):
                raise ValueError(f"its frames change size at frame {n}; cut it into clips of one size")
            if n >= start:
                yield _rgb_of(frame)


def _rgb_of(frame: av.VideoFrame) -> np.ndarray:
    from av.video.reformatter import ColorRange

    name = frame.format.name
    if name not in _KEPT_PIXELS or frame.colorspace not in _BT601:
        return frame.to_ndarray(format="rgb24")
    depth = _KEPT_PIXELS[name]
    planes: Frame = _as_yuv420(_picture_of(frame), depth)
    if name == "yuvj420p" or frame.color_range == ColorRange.JPEG:
        planes = _limited(planes, depth)
    return yuv_to_rgb(planes, bit_depth=depth)[0, : frame.height, : frame.width]


def _limited(frame: Frame, bit_depth: int) -> Frame:
    """Real-valued samples of limited range for integer ones of full range (BT.601, section 2.5.3 against JFIF)."""
    scale, peak = float(1 << (bit_depth - 8)), float((1 << bit_depth) - 1)
    luma, *chroma = (plane.astype(np.float64) for plane in frame.planes)
    middle = 128.0 * scale
    return frame_of(
        [luma * (219.0 * scale / peak) + 16.0 * scale]
        + [(plane - middle) * (224.0 * scale / peak) + middle for plane in chroma]
    )


def _decoded(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers; damage after the first frame is named by the frame where it is met."""
    import av

    n = 0
    try:
        for frame in container.decode(stream):
            yield n, frame
            n += 1
    except av.error.FFmpegError as error:
        if n == 0:
            raise
        raise ValueError(
            f"it is damaged where frame {n} should be ({error.strerror}); limit it to the {n} frames before"
        ) from error


def _pixels_for(source: av.VideoFormat) -> str:
    """The pixel format in which a source's frames are kept."""
    if source.name in _KEPT_PIXELS:
        return source.name
    return "yuv420p" if max(component.bits for component in source.components) <= 8 else "yuv420p10le"


def _picture_of(frame: av.VideoFrame) -> Frame:
    pixels = _pixels_for(frame.format)
    if pixels != frame.format.name:
        frame = frame.reformat(format=pixels)
    dtype = np.dtype("u1" if _KEPT_PIXELS[pixels] == 8 else "<u2")
    return frame_of(
        [
            np.frombuffer(memoryview(p), dtype).reshape(1, p.height, -1)[..., : p.width].astype(dtype.newbyteorder("="))
            for p in frame.planes
        ]
    )


def _as_yuv420(frames: Frame, bit_depth: int) -> Yuv420:
    """Luma edge-padded to even sizes (chroma is rounded up already), neutral chroma where there is none."""
    _, h, w = frames.y.shape
    y = np.pad(frames.y, ((0, 0), (0, h % 2), (0, w % 2)), mode="edge")
    if isinstance(frames, Yuv420):
        return Yuv420(y, frames.u, frames.v)
    neutral = np.full_like(y[:, ::2, ::2], 1 << (bit_depth - 1))
    return Yuv420(y, neutral, neutral.copy())
