"""Opens what users have — pictures, folders, videos, raw YUV — as clips of integer 4:2:0 samples.

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
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxwrap.arrays import Frame, Yuv420, frame_of, stack_frames
from jaxwrap.codecs.reference.yuv import count_frames, parse_name, read_yuv
from jaxwrap.colour import rgb_to_yuv420

if TYPE_CHECKING:
    import av

STILL_FPS = 1.0
"""Frame rate of a picture."""

DEFAULT_FPS = 25.0
"""Frame rate of a video that states none."""

# Text is a video to FFmpeg: its terminal demuxer draws any .txt file.
_NOT_VIDEO = ("ansi", "bintext", "idf", "xbin")

# Pixel formats whose planes are kept as they are, and their bit depths.
_KEPT_PIXELS = {"yuv420p": 8, "yuvj420p": 8, "gray": 8, "yuv420p10le": 10, "gray10le": 10}


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One sequence: ``frames`` are integer 4:2:0 samples (uint8, or uint16 for 10 bits) of even width and height.

    ``name`` is unique among the clips opened together.
    """

    name: str
    frames: Frame
    bit_depth: int
    fps: float
    source: Path


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
    clips: list[Clip] = []
    unreadable: list[Unreadable] = []
    for item in iter_clips(paths, max_frames=max_frames):
        if isinstance(item, Clip):
            clips.append(item)
        else:
            unreadable.append(item)
    if not clips:
        raise ValueError("\n  ".join(["no picture or video could be read:", *map(str, unreadable)]))
    return clips, unreadable


def iter_clips(paths: Sequence[str | Path], *, max_frames: int | None = None) -> Iterator[Clip | Unreadable]:
    """`open_clips` one file at a time, in the order given: for more data than fits into memory.

    Bad arguments and missing paths raise at the call, before anything is read.
    """
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames {max_frames} was given; wanted 1 or more, or None for all")
    if not paths:
        raise ValueError("no path was given; wanted pictures, videos, raw YUV files or folders of them")
    sources = [Path(path) for path in paths]
    if missing := [str(path) for path in sources if not path.exists()]:
        raise FileNotFoundError(f"these paths do not exist: {', '.join(missing)}")
    files = list(dict.fromkeys(itertools.chain.from_iterable(map(_files_of, sources))))
    return (_open(path, name, max_frames) for path, name in zip(files, _unique_names(files), strict=True))


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


def _open(path: Path, name: str, max_frames: int | None) -> Clip | Unreadable:
    try:
        if path.is_dir():
            raise ValueError("the folder has no files in it")
        if path.stat().st_size == 0:
            raise ValueError("the file is empty (0 bytes)")
        if path.suffix.lower() == ".yuv":
            frames, bit_depth, fps = _read_raw(path, max_frames)
        elif (picture := _read_picture(path)) is not None:
            frames, bit_depth, fps = picture, 8, STILL_FPS
        else:
            frames, bit_depth, fps = _read_video(path, max_frames)
    except Exception as error:  # a decoder meets damage with whatever it was doing: any type of error can come
        return Unreadable(path, str(error) or type(error).__name__)
    return Clip(name, frames, bit_depth, fps, path)


def _read_raw(path: Path, max_frames: int | None) -> tuple[Yuv420, int, float]:
    _, geometry = parse_name(path)
    count = count_frames(path, geometry)
    frames = read_yuv(path, geometry, count=min(count, max_frames or count))
    return _as_yuv420(frames, geometry.bit_depth), geometry.bit_depth, geometry.fps


def _read_picture(path: Path) -> Yuv420 | None:
    """The picture, or None if Pillow does not know the format; truncated and damaged files raise."""
    try:
        opened = Image.open(path)
    except UnidentifiedImageError:
        return None
    with opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        samples = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        rgb = np.repeat(samples[..., None], 3, -1)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"its samples are 32-bit ({image.mode}), whose range is not defined: convert it to 8 or 16 bits"
        )
    else:
        rgb = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))[..., :3]
    return rgb_to_yuv420(rgb[None])


def _read_video(path: Path, max_frames: int | None) -> tuple[Yuv420, int, float]:
    import av  # here, so that training on pictures needs no PyAV

    try:
        # Playlists may name other places; a clip is one local file.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            stream = next((s for s in container.streams.video if s.codec_context is not None), None)
            if stream is None or stream.codec_context.name in _NOT_VIDEO:
                raise ValueError("it is neither a picture nor a video")
            rate = stream.average_rate or stream.guessed_rate
            pictures: list[Frame] = []
            layout = None
            for frame in itertools.islice(container.decode(stream), max_frames):
                layout = layout or (frame.width, frame.height, frame.format.name)
                if layout != (frame.width, frame.height, frame.format.name):
                    raise ValueError("its frames change size or pixel format; cut it into clips of one format")
                pictures.append(_picture_of(frame))
    except av.error.FFmpegError as error:
        raise ValueError(f"neither Pillow nor FFmpeg reads it ({error.strerror})") from error
    if layout is None:
        raise ValueError("it holds no frame that FFmpeg decodes")
    bit_depth = _KEPT_PIXELS[_pixels_for(frame.format)]
    return _as_yuv420(stack_frames(pictures), bit_depth), bit_depth, float(rate or DEFAULT_FPS)


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
