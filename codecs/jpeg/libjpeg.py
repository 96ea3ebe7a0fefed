"""JPEG through a library (libjpeg, in Pillow): the codec that the proxy's rate stands for, as a `jaxwrap.codec.Codec`.

Each plane of each picture is a grayscale baseline JPEG of its own, as in SNW (section 3.3), with the Huffman tables of
Annex K. Eight bits, all intra. Counted is every byte of every file; ``header_bits`` are all but the entropy-coded data.

**Verification.** ``decoded`` holds the samples of FFmpeg's decoder, which shares no code with libjpeg. JPEG, unlike the
video standards, does not define its inverse transform to the bit: ``verified`` means here that libjpeg's decoder gives
the same samples within `DECODER_TOLERANCE`. A file that fails raises `RuntimeError`.
"""

from __future__ import annotations

import io
import time

import av
import numpy as np
from PIL import Image, features

from jaxwrap.arrays import Frame, check_frame, frame_of, num_frames, size_of
from jaxwrap.codec import QP_RANGE, EncodeRequest, EncodeResult, quantiser_step, refuse_patched_options
from jaxwrap.codecs.jpeg.tables import MAX_STEP, flat_table
from jaxwrap.samples import round_half_away, to_integers

MAX_SIZE = 65535
"""Largest width and height of a JPEG file."""

DECODER_TOLERANCE = 1
"""Largest difference between two decoders' samples: that of two accurate integer transforms."""


class Jpeg:
    """JPEG with a flat quantisation table, whose step is that of the request's QP, or with libjpeg's own tables.

    By default ``request.qp`` in `QP_RANGE` gives the step 2^((qp − 4)/6), as in H.264 and H.265, rounded to 1…255. With
    ``quality`` (1…100, libjpeg's scale) the Annex K luma table is scaled instead, and ``request.qp`` has to be None.
    """

    name = "jpeg"

    def __init__(self, *, quality: int | None = None) -> None:
        if quality is not None and not (1 <= quality <= 100 and quality == int(quality)):
            raise ValueError(f"JPEG quality {quality} was given; wanted a whole number from 1 to 100")
        self._quality = quality

    @property
    def version(self) -> str:
        """The library's version, FFmpeg's (whose decoder is used), and the quality where one is set."""
        library = "libjpeg-turbo" if features.check("libjpeg_turbo") else "libjpeg"
        version = features.version("libjpeg_turbo") or features.version("jpg")
        decoder = f"FFmpeg {av.ffmpeg_version_info}"
        return f"{library} {version}, {decoder}" + ("" if self._quality is None else f", quality {self._quality}")

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """Codes 8-bit samples (real ones are clipped and rounded), decodes and verifies them: NumPy uint8, bits int64
        ``[N]``.

        Raises `ValueError` for what this codec does not do (10 bits, inter prediction, weights, presets), and
        `RuntimeError` where a file fails to verify.
        """
        check_frame(frames)
        self.check(size_of(frames), request)
        samples = to_integers(frames, 8)
        settings = self._settings(request)
        bits, header_bits, seconds = np.zeros(num_frames(samples), np.int64), 0, 0.0
        decoded = [np.empty_like(plane) for plane in samples.planes]
        for source, target in zip(samples.planes, decoded, strict=True):
            for i, picture in enumerate(source):
                file = io.BytesIO()
                start = time.perf_counter()
                Image.fromarray(picture).save(file, "JPEG", **settings)
                seconds += time.perf_counter() - start
                data = file.getvalue()
                bits[i] += 8 * len(data)
                header_bits += 8 * header_bytes(data)
                target[i] = _decode_verified(data, picture.shape)
        options = "quality={quality}" if self._quality else "flat table of {qtables[0][0]}"
        return EncodeResult(
            frame_of(decoded),
            bits,
            header_bits,
            seconds,
            f"Pillow JPEG per plane, {options.format(**settings)}",
            verified=True,  # else `_decode_verified` raises
        )

    def _settings(self, request: EncodeRequest) -> dict:
        # Never both: Pillow then scales the tables by the quality.
        if self._quality is not None:
            return {"quality": self._quality}
        return {"qtables": [flat_table(step_of_qp(float(request.qp or 0))).tolist()]}

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """Raises `ValueError` where `encode` would refuse this request for frames of ``size`` = (height, width)."""
        if request.bit_depth != 8:
            raise ValueError(f"{request.bit_depth}-bit samples were given; JPEG here has 8 bits: use bit_depth=8")
        if request.config != "intra":
            raise ValueError(f"configuration {request.config!r} was given; JPEG knows only 'intra'")
        refuse_patched_options("JPEG", request)
        if request.weights is not None:
            raise ValueError("weights were given; JPEG has one table per picture and cannot apply them")
        if request.preset is not None:
            raise ValueError(f"preset {request.preset!r} was given; JPEG has none: leave it None")
        height, width = size
        if not (1 <= height <= MAX_SIZE and 1 <= width <= MAX_SIZE):
            raise ValueError(f"{width}×{height} frames were given; JPEG takes 1 to {MAX_SIZE} rows and columns")
        if self._quality is not None:
            if request.qp is not None:
                raise ValueError(f"QP {request.qp} and quality {self._quality} were given; give one of them")
        elif request.qp is None or not QP_RANGE[0] <= request.qp <= QP_RANGE[1]:
            raise ValueError(f"QP {request.qp} was given; JPEG takes {QP_RANGE[0]} to {QP_RANGE[1]}")


def _decode_verified(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Samples ``[H, W]`` of a grayscale file by FFmpeg; raises unless libjpeg's are within `DECODER_TOLERANCE`."""
    decoder = av.CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    decoder.options = {"err_detect": "+crccheck+bitstream+buffer+explode"}
    try:
        pictures = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
        with Image.open(io.BytesIO(data)) as image:
            reference = np.asarray(image).astype(np.int16)
    except (av.error.FFmpegError, OSError) as error:
        raise RuntimeError(f"a JPEG file of {len(data)} bytes cannot be decoded: {error}") from error
    if [(p.format.name, p.height, p.width) for p in pictures] != [("gray", *shape)] or reference.shape != shape:
        raise RuntimeError(
            f"a grey picture of {shape} was coded by libjpeg, but FFmpeg decodes {pictures}, libjpeg {reference.shape}"
        )
    samples = pictures[0].to_ndarray(format="gray")
    if (difference := int(np.abs(samples - reference).max())) > DECODER_TOLERANCE:
        raise RuntimeError(
            f"FFmpeg's and libjpeg's samples of one JPEG file differ by {difference}; "
            f"at most {DECODER_TOLERANCE} was expected"
        )
    return samples


def step_of_qp(qp: float) -> int:
    """Whole quantisation step of a QP for 8-bit samples and an orthonormal transform: 2^((qp − 4)/6), in 1…255."""
    return int(np.clip(round_half_away(np.asarray(quantiser_step(qp, 8))), 1, MAX_STEP))


def header_bytes(data: bytes) -> int:
    """Bytes of a JPEG file with one scan that are not entropy-coded data: marker segments, and the end marker."""
    position = 2
    while data[position + 1] != 0xDA:  # start of scan
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position + 2 + int.from_bytes(data[position + 2 : position + 4], "big") + 2
