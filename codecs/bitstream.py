"""Coded streams: NAL units of H.264, H.265 and H.266, what of them counts as bits, and FFmpeg's decoders.

A byte stream (Annex B of each standard) is a chain of NAL units with start codes. Counted are all of them with their
start codes, but SEI messages with user data and picture hashes: what a decoder needs. Parameter sets that repeat one
that is in force already are not needed either; `without_repeats` drops them before anything is counted or decoded.

FFmpeg's decoders share no code with the encoders whose streams are decoded here.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import av
import numpy as np

from jaxwrap.arrays import Frame, num_frames, size_of

Standard = Literal["avc", "hevc", "vvc"]


class _Syntax(NamedTuple):
    """What differs between the standards; NAL unit types are those of tables 7-1 (H.264, H.265) and 5 (H.266)."""

    decoder: str
    header_bytes: int
    sei: tuple[int, ...]
    parameter_sets: tuple[int, ...]


_SYNTAX: dict[Standard, _Syntax] = {
    "avc": _Syntax("h264", 1, sei=(6,), parameter_sets=(7, 8)),
    "hevc": _Syntax("hevc", 2, sei=(39, 40), parameter_sets=(32, 33, 34)),
    # Adaptation parameter sets (17, 18) carry filters of the pictures, and are no headers in this sense.
    "vvc": _Syntax("vvc", 2, sei=(23, 24), parameter_sets=(12, 13, 14, 15, 16)),
}

SEI_PICTURE_HASH = 132
_SEI_NOT_COUNTED = (4, 5, SEI_PICTURE_HASH)  # registered and unregistered user data


_CPU_FLAG_AVX2 = 0x8000  # and all that came later has higher bits


class NalUnit(NamedTuple):
    """One unit of a byte stream; ``data`` begins with its start code, ``payload`` after it. ``sei_payload``: the
    payload type of its first SEI message, else None."""

    kind: int
    data: bytes
    payload: bytes
    sei_payload: int | None


def nal_units(data: bytes, standard: Standard) -> Iterator[NalUnit]:
    """Splits a byte stream. Raises `RuntimeError` where it does not begin with a start code."""
    syntax = _SYNTAX[standard]
    starts, position = [], data.find(b"\0\0\1")
    while position >= 0:
        starts.append((position - (position > 0 and data[position - 1] == 0), position + 3))
        position = data.find(b"\0\0\1", position + 3)
    if data and (not starts or starts[0][0] != 0):
        raise RuntimeError(f"a part of {len(data)} bytes of a {standard} stream does not begin with a start code")
    for (start, payload), (end, _) in itertools.pairwise([*starts, (len(data), 0)]):
        if standard == "avc":
            kind = data[payload] & 31
        else:
            kind = data[payload] >> 1 & 63 if standard == "hevc" else data[payload + 1] >> 3
        sei = None
        if kind in syntax.sei:
            sei, position = 0, payload + syntax.header_bytes
            while data[position] == 255:
                sei, position = sei + 255, position + 1
            sei += data[position]
        yield NalUnit(kind, data[start:end], data[payload:end], sei)


def count_bits(data: bytes, standard: Standard) -> tuple[int, int]:
    """(bits that count, those of them in parameter sets) of a part of a stream."""
    bits = header_bits = 0
    for unit in nal_units(data, standard):
        if unit.sei_payload not in _SEI_NOT_COUNTED:
            bits += 8 * len(unit.data)
            if unit.kind in _SYNTAX[standard].parameter_sets:
                header_bits += 8 * len(unit.data)
    return bits, header_bits


def without_repeats(data: bytes, standard: Standard, known: set[bytes]) -> bytes:
    """A part of a stream without parameter sets whose payload is in ``known``: encoders repeat them at I pictures."""
    kept = b"".join(unit.data for unit in nal_units(data, standard) if unit.payload not in known)
    # Annex B wants the four-byte start code on the first unit of each picture.
    return b"\0" + kept if kept.startswith(b"\0\0\1") else kept


def access_units(stream: bytes, standard: Standard) -> list[bytes]:
    """The pictures of a stream in coding order, each with the parameter sets and messages that belong to it.

    Parameter sets are left out where all of a picture's repeat those in force. Raises `RuntimeError` where FFmpeg's
    parser loses a byte.
    """
    context = _decoder(standard)
    parts = [bytes(packet) for packet in [*context.parse(stream), *context.parse(None)]]
    if b"".join(parts) != stream:
        raise RuntimeError(f"FFmpeg's parser made {sum(map(len, parts))} bytes of a {standard} stream of {len(stream)}")
    known: set[bytes] = set()
    pictures = []
    for part in parts:
        sets = {u.payload for u in nal_units(part, standard) if u.kind in _SYNTAX[standard].parameter_sets}
        if sets <= known:
            part = without_repeats(part, standard, known)
        else:  # one that is new may replace another of its number, and what refers to that has to be sent again
            known = sets
        pictures.append(part)
    return pictures


def decode(
    packets: Sequence[tuple[int, bytes]], standard: Standard, like: Frame, *, what: str, threads: int = 1
) -> list[tuple[int, list[np.ndarray]]]:
    """Decodes packets in coding order, each with a number: (number, planes) of the pictures in display order.

    ``like``: frames of the number, size, chroma format and dtype that are expected; ``what`` names the stream in
    errors. Raises `RuntimeError` where the decoder rejects the stream or a picture hash in it, or makes other pictures.
    """
    decoder = _decoder(standard)
    decoder.thread_count = threads
    # strict: pictures of H.264 wait for as long as the standard lets them, and so come out in order from the first on.
    decoder.options = {"err_detect": "+crccheck+bitstream+buffer+explode", "strict": "1"}
    pictures: list[av.VideoFrame] = []
    # FFmpeg 8's AVX2 code for the filters of H.266 at 8 bits is wrong in some blocks; what it falls back to is right.
    careful = standard == "vvc" and like.y.dtype == np.uint8
    try:
        with _without_avx2() if careful else nullcontext():
            for number, data in packets:
                packet = av.Packet(data)
                packet.pts = number
                pictures += decoder.decode(packet)
            pictures += decoder.decode(None)
    except av.error.FFmpegError as error:
        raise RuntimeError(f"FFmpeg's decoder rejects {what} or its picture hashes: {error}") from error
    wanted, found = (
        sorted(number for number, _ in packets),
        sorted(f.pts if f.pts is not None else -1 for f in pictures),
    )
    if found != wanted or len(found) != num_frames(like):
        raise RuntimeError(f"{num_frames(like)} pictures were coded in {what}, but these decoded: {found}")
    height, width = size_of(like)
    if bad := next((f for f in pictures if (f.height, f.width) != (height, width)), None):
        raise RuntimeError(f"{width}×{height} was coded in {what}, but {bad.width}×{bad.height} decoded")
    # FFmpeg's decoder gives a 4:0:0 AVC stream neutral chroma planes, which are left out here.
    return [
        (f.pts or 0, [_plane_of(f, i, plane.shape[1:], plane.dtype) for i, plane in enumerate(like.planes)])
        for f in pictures
    ]


@contextmanager
def _without_avx2() -> Iterator[None]:
    """FFmpeg's decoders that start in here, in any thread, do without AVX2 and later instructions."""
    try:
        library = ctypes.CDLL(av.frame.__file__)
        flags, force = library.av_get_cpu_flags(), library.av_force_cpu_flags
    except (OSError, AttributeError):
        yield  # another build of PyAV; a wrong decode would still be found
        return
    force(flags & (_CPU_FLAG_AVX2 - 1))
    try:
        yield
    finally:
        force(-1)  # whatever the machine has


def _decoder(standard: Standard) -> av.VideoCodecContext:
    name = _SYNTAX[standard].decoder
    try:
        decoder = av.CodecContext.create(name, "r")
    except (av.codec.codec.UnknownCodecError, ValueError) as error:
        raise RuntimeError(
            f"PyAV {av.__version__} has no decoder {name}: install PyAV's own wheel "
            "(pip install --upgrade --force-reinstall --only-binary av av)"
        ) from error
    assert isinstance(decoder, av.VideoCodecContext)
    return decoder


def _plane_of(frame: av.VideoFrame, number: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    plane = frame.planes[number]
    if frame.format.components[number].bits > 8 * dtype.itemsize or plane.line_size < shape[1] * dtype.itemsize:
        raise RuntimeError(f"a {frame.format.name} picture was decoded where {shape} samples of {dtype} were coded")
    return (
        np.frombuffer(memoryview(plane), dtype)
        .reshape(-1, plane.line_size // dtype.itemsize)[: shape[0], : shape[1]]
        .copy()
    )
