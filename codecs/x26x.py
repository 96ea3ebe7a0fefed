"""x264 and x265 in process, through PyAV's wheel: no custom build, exact bits per picture, every stream verified.

**Constant QP.** Both encoders ignore a map of QP offsets in their own constant-QP mode and without adaptive
quantisation. Every encode, weighted or not, therefore runs one recipe: CRF with ``qcomp=1``, equal I/P/B QPs, no
macroblock tree, no scene cuts, and adaptive quantisation of vanishing strength (1e-4). Its QP is the requested one in
every block of every picture, on the specification's scale at 8 and at 10 bits. x264's two slowest presets run with
``subme=9``, as above that it varies the QP by itself. A weighted and an unweighted encode differ in the map alone.

Equal QPs do not mean the stream of the encoder's own ``qp`` mode. x264's intra pictures equal it byte for byte. x265
signals QPs per block and decides with other Lagrangian multipliers: against its ``qp`` mode, on small clips, up to
+0.7 % bits in intra, −3.6 % squared error at about equal bits in low delay (QP 32), and −2.2 % bits in random access
(QP 47) were found. Compare points of this class with each other, not with those of ``qp`` mode.

**Weights** with ``applied_as="qp_offset"`` give each block ΔQP = −3 log₂ w̄ (`qp_offsets`). Blocks are 16×16 in x264,
its macroblocks, and 32×32 in x265, whose coding units follow a 16×16 map only if the CTU is 16×16, which would handicap
the anchor too. x264 keeps the QP of the macroblock before where the offset differs from it by one, or nothing is coded.
Quantiser and encoder's λ move together, unlike in weighted RDO at a fixed QP. Skipped blocks inherit their QP, so that
in P and B pictures the map acts only in part.

**Bits.** Parameter sets are sent once, ahead of the first picture; they count as ``header_bits`` and in the first
picture's bits. Counted are all NAL units with their start codes, except SEI messages with user data (x264's list of
options) and picture hashes, which no decoder needs.

**Time.** ``seconds`` is the wall time of the encoder, packets included, and of what its verification wants: x264
writes its reconstruction to a file, x265 hashes its pictures. It overstates the encoder's time, most at fast presets.

**Verification.** Streams are decoded by FFmpeg's own decoders, which share no code with the encoders. x265 puts the MD5
of each reconstructed plane into the stream, and the decoder checks it; x264 dumps its reconstruction, which is compared
sample by sample. A stream that fails raises `RuntimeError`, and so never becomes a point on a curve; every result is
``verified``. x265 4.2 fails so, with its own constant-QP mode too, on some P and B pictures that are no wider than one
coding tree unit (64 samples).
"""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import av
import numpy as np
from av.codec.context import Flags
from av.sidedata.sidedata import Type as SideDataType

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, num_frames, size_of
from jaxwrap.codec import (
    CONFIGS,
    QP_RANGE,
    EncodeRequest,
    EncodeResult,
    RowWeights,
    Weights,
    intra_period,
    refuse_patched_options,
)
from jaxwrap.codecs.bitstream import SEI_PICTURE_HASH, Standard, count_bits, decode, nal_units, without_repeats
from jaxwrap.samples import max_sample, round_half_away, to_integers

Encoder = Literal["x264", "x265"]
ENCODERS: tuple[Encoder, ...] = get_args(Encoder)

PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)
"""Effort levels that both encoders name alike; the default is ``medium``."""

# From subme=10 on x264 searches each macroblock's QP by rate and distortion as soon as adaptive quantisation is on.
_QP_SEARCHING_PRESETS = ("veryslow", "placebo")

MIN_SIZE = 16
"""Smallest width and height taken, in luma samples: one macroblock. (x265 refuses less.)"""

# Adaptive quantisation has to be on for the map of offsets to be read; at this strength its own offsets round to zero.
_CONSTANT_QP = "qcomp=1:ipratio=1:pbratio=1:scenecut=0:aq-mode=1:aq-strength=0.0001"


class _Traits(NamedTuple):
    """How one encoder differs from the other."""

    library: str
    standard: Standard
    params_option: str
    params: str
    infinite_keyint: str
    map_block: int
    version_pattern: bytes


_TRAITS: dict[Encoder, _Traits] = {
    "x264": _Traits(
        library="libx264",
        standard="avc",
        params_option="x264-params",
        params=f"{_CONSTANT_QP}:mbtree=0",
        infinite_keyint="infinite",
        map_block=16,
        version_pattern=rb"x264 - (core \d+[^-]*?) - ",
    ),
    "x265": _Traits(
        library="libx265",
        standard="hevc",
        params_option="x265-params",
        params=f"{_CONSTANT_QP}:cutree=0:qg-size=32:hash=1:info=0:log-level=none",
        infinite_keyint="-1",
        map_block=32,
        version_pattern=rb"x265 \(build \d+\) - ([^:]*):",
    ),
}

_X265_CTU = 64  # of every preset but the fastest two


class X26x:
    """x264 or x265 as a `jaxwrap.codec.Codec`. Cheap to construct, and picklable.

    Configurations: ``intra`` codes every picture by itself; ``lowdelay`` one I picture, then P pictures;
    ``randomaccess`` I pictures `intra_period` apart, about one second (open GOP), with the preset's own B pictures
    between. All pictures have the same QP. Psycho-visual options are off (``tune=psnr``). ``preset`` in the
    request is one of `PRESETS`; ``qp`` is a whole number in `QP_RANGE` (x264 at 8 bits: not 0, its lossless mode).

    The same request gives the same bytes; another number of ``threads`` may give other ones, so it is part of
    `version`.
    """

    def __init__(self, encoder: Encoder, *, threads: int = 1) -> None:
        if encoder not in ENCODERS:
            raise ValueError(f"encoder {encoder!r} was given; known: {', '.join(ENCODERS)}")
        if threads < 1:
            raise ValueError(f"{threads} threads were given; wanted 1 or more")
        self._encoder: Encoder = encoder
        self._traits = _TRAITS[encoder]
        self._threads = threads

    @property
    def name(self) -> str:
        """``x264`` or ``x265``."""
        return self._encoder

    @property
    def version(self) -> str:
        """The encoder's own version, FFmpeg's (whose decoder is used), and the threads where not 1."""
        found = encoder_version(self._encoder)
        if found is None:
            raise RuntimeError(_missing(self._encoder))
        threads = "" if self._threads == 1 else f", {self._threads} threads"
        return f"{found}, FFmpeg {av.ffmpeg_version_info}{threads}"

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """Encodes, decodes and verifies ``frames`` as one stream.

        Samples are in ``[0, 2^d − 1]`` (real ones are clipped and rounded), at least 16×16; ``decoded`` holds NumPy
        integers, ``bits`` int64 ``[N]``. Raises `ValueError` for what the encoder cannot take, `RuntimeError` where the
        encoder is missing or the stream fails to verify.
        """
        check_frame(frames)
        if num_frames(frames) == 0:
            raise ValueError(f"no frame was given to {self.name}; wanted at least one")
        self.check(size_of(frames), request)
        samples = to_integers(frames, request.bit_depth)
        offsets = self._qp_offsets(samples, request, request.weights) if isinstance(request.weights, Weights) else None
        options = self._options(request)
        with tempfile.TemporaryDirectory(prefix="jaxwrap-") as folder:
            dump = Path(folder) / "reconstruction.yuv"
            escaped = str(dump).replace("\\", "\\\\").replace(":", "\\:")
            extra = f":dump-yuv={escaped}" if self._encoder == "x264" else ""
            start = time.perf_counter()
            header, packets = self._run_encoder(samples, request, options, extra, offsets)
            seconds = time.perf_counter() - start
            decoded = self._decode(header, packets, samples)
            if self._encoder == "x264":
                _compare_with_dump(decoded, dump)
        bits, header_bits = self._count_bits(header, packets)
        # A stream that does not decode to its encoder's reconstruction has raised above.
        return EncodeResult(
            decoded, bits, header_bits, seconds, self._command(samples, request, options), verified=True
        )

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """Raises `ValueError` where `encode` would refuse this request for frames of ``size`` = (height, width)."""
        max_sample(request.bit_depth)
        height, width = size
        if min(height, width) < MIN_SIZE:
            raise ValueError(
                f"{self.name} was given {width}×{height} frames; it takes {MIN_SIZE}×{MIN_SIZE} or more: pad them first"
            )
        # x264's 8-bit QP 0 is its lossless mode: another profile, without a quantiser and without a map.
        low, high = QP_RANGE[0] + (self._encoder == "x264" and request.bit_depth == 8), QP_RANGE[1]
        if request.qp is None or not low <= request.qp <= high or request.qp != int(request.qp):
            raise ValueError(
                f"QP {request.qp} was given; {self.name} at {request.bit_depth} bits takes whole numbers {low} … {high}"
            )
        if request.config not in CONFIGS:
            raise ValueError(f"configuration {request.config!r} was given; known: {', '.join(CONFIGS)}")
        if request.preset is not None and request.preset not in PRESETS:
            raise ValueError(f"preset {request.preset!r} was given; {self.name} knows: {', '.join(PRESETS)}")
        refuse_patched_options(self.name, request)
        if isinstance(request.weights, RowWeights):
            raise ValueError(
                f"Jacobian rows were given as weights; {self.name} takes QP offsets only, from a map (method wa+dqp): "
                "rows need a patched HM or JM"
            )
        if request.weights is not None and request.weights.applied_as != "qp_offset":
            raise ValueError(
                f"weights to be applied as {request.weights.applied_as!r} were given; {self.name} takes them as QP "
                "offsets only: let the stage dqp turn them into such (method wa+dqp instead of wa). Weights inside the "
                "encoder's RDO need a patched HM or JM"
            )
        if not 0.01 <= request.fps <= 1000:
            raise ValueError(f"{request.fps} frames per second were given; wanted 0.01 … 1000")

    @property
    def map_block(self) -> int:
        """Side of the blocks, in luma samples, that QP offsets are given for."""
        return self._traits.map_block

    def coded_offsets(self, weights: Frame, *, qp: int, bit_depth: int) -> np.ndarray:
        """The QP offsets ``[N, rows, columns]`` that blocks with coefficients are coded with, given these weights.

        Those of `qp_offsets`, but x264 keeps the QP of the macroblock before (at first the picture's) where the two
        differ by one (analyse.c, "If the QP of this MB is within 1 of the previous MB").
        """
        offsets = qp_offsets(weights, block=self.map_block, qp=qp, bit_depth=bit_depth)
        if self._encoder == "x264":
            for picture in offsets.reshape(len(offsets), -1):
                before = 0
                for i, offset in enumerate(picture):
                    before = picture[i] = before if abs(offset - before) == 1 else offset
        return offsets

    def _qp_offsets(self, samples: Frame, request: EncodeRequest, weights: Weights) -> np.ndarray:
        planes = weights.planes
        wanted, given = ([tuple(p.shape[1:]) for p in f.planes] for f in (samples, planes))
        if given != wanted or num_frames(planes) not in (1, num_frames(samples)):
            raise ValueError(
                f"{num_frames(planes)} weight maps with planes of {given} were given; "
                f"wanted 1 or {num_frames(samples)} with {wanted}"
            )
        return qp_offsets(planes, block=self.map_block, qp=int(request.qp or 0), bit_depth=request.bit_depth)

    def _options(self, request: EncodeRequest) -> dict[str, str]:
        params = self._traits.params
        period = intra_period(request.config, request.fps)
        params += f":keyint={self._traits.infinite_keyint if period is None else period}"
        params += ":open-gop=1" if request.config == "randomaccess" else ":bframes=0"
        if self._encoder == "x264":
            params += f":threads={self._threads}"
            if request.preset in _QP_SEARCHING_PRESETS:
                params += ":subme=9"
        else:
            params += ":frame-threads=1" + (":pools=none:no-wpp=1" if self._threads == 1 else f":pools={self._threads}")
        return {
            "preset": request.preset or "medium",
            "tune": "psnr",
            "crf": str(int(request.qp or 0)),
            self._traits.params_option: params,
        }

    def _run_encoder(
        self, samples: Frame, request: EncodeRequest, options: dict[str, str], extra: str, offsets: np.ndarray | None
    ) -> tuple[bytes, list[tuple[int, bytes]]]:
        """Parameter sets, and packets in coding order as (index of the picture, bytes)."""
        height, width = size_of(samples)
        pix_fmt = _pix_fmt(samples, request.bit_depth)
        rate = Fraction(request.fps).limit_denominator(1001)
        context = _open_encoder(self._encoder)
        context.width, context.height, context.pix_fmt = width, height, pix_fmt
        context.framerate, context.time_base = rate, 1 / rate
        context.thread_count = self._threads
        context.flags |= Flags.global_header
        context.options = {**options, self._traits.params_option: options[self._traits.params_option] + extra}
        attach = _RegionsOfInterest(self.map_block, request.bit_depth)
        packets: list[av.Packet] = []
        try:
            for index in range(num_frames(samples)):
                frame = _video_frame([p[index] for p in samples.planes], pix_fmt)
                frame.pts = index
                if offsets is not None:
                    frame = attach(frame, offsets[min(index, len(offsets) - 1)])
                packets += context.encode(frame)
            packets += context.encode(None)
        except av.error.FFmpegError as error:
            raise RuntimeError(f"{self.name} failed on {width}×{height} {pix_fmt} with {options}: {error}") from error
        header = bytes(context.extradata or b"")
        # x265 repeats its parameter sets in all-intra pictures.
        known = {unit.payload for unit in nal_units(header, self._traits.standard)}
        return header, [(int(p.pts or 0), without_repeats(bytes(p), self._traits.standard, known)) for p in packets]

    def _decode(self, header: bytes, packets: list[tuple[int, bytes]], like: Frame) -> Frame:
        first, *others = packets
        what = f"the {self.name} stream"
        try:
            pictures = decode(
                [(first[0], header + first[1]), *others], self._traits.standard, like, what=what, threads=self._threads
            )
        except RuntimeError as error:
            narrow = self._encoder == "x265" and size_of(like)[1] <= _X265_CTU
            advice = f"; x265 miscodes some P and B pictures of {_X265_CTU} samples or less in width: pad them" * narrow
            raise RuntimeError(f"{error}{advice}") from error
        count = num_frames(like)
        if self._encoder == "x265":
            hashes = sum(
                u.sei_payload == SEI_PICTURE_HASH for _, data in packets for u in nal_units(data, self._traits.standard)
            )
            if hashes != count:
                raise RuntimeError(f"{count} pictures were coded by x265, but {hashes} carry a hash to verify")
        in_order = [planes for _, planes in sorted(pictures, key=lambda picture: picture[0])]
        return frame_of([np.stack(planes) for planes in zip(*in_order, strict=True)])

    def _count_bits(self, header: bytes, packets: list[tuple[int, bytes]]) -> tuple[np.ndarray, int]:
        bits = np.zeros(len(packets), np.int64)
        header_bits = 0
        for index, data in [(0, header), *packets]:
            own, headers = count_bits(data, self._traits.standard)
            bits[index] += own
            header_bits += headers
        return bits, header_bits

    def _command(self, samples: Frame, request: EncodeRequest, options: dict[str, str]) -> str:
        height, width = size_of(samples)
        settings = " ".join(f"-{key} {value}" for key, value in options.items())
        block = self.map_block
        regions = "" if request.weights is None else f"  # regions of interest: ΔQP = -3 log2(mean w), {block}x{block}"
        return (
            f"ffmpeg -f rawvideo -pix_fmt {_pix_fmt(samples, request.bit_depth)} -s {width}x{height} "
            f"-r {request.fps:g} -i INPUT -c:v {self._traits.library} -threads {self._threads} "
            f"-flags +global_header {settings} OUTPUT{regions}"
        )


def find_encoders() -> list[tuple[Encoder, str]]:
    """(name, version) of each encoder of this PyAV build, or (name, why it is missing): for ``jaxwrap doctor``."""
    return [(e, X26x(e).version if encoder_version(e) else _missing(e)) for e in ENCODERS]


@functools.cache
def encoder_version(encoder: Encoder) -> str | None:
    """The version that the encoder writes into a stream (``core 165``, ``4.2+1-e444744``); None if missing."""
    traits = _TRAITS[encoder]
    try:
        context = _open_encoder(encoder)
    except RuntimeError:
        return None
    context.width = context.height = 64
    context.pix_fmt, context.time_base, context.thread_count = "yuv420p", Fraction(1, 25), 1
    quiet = {"x265-params": "pools=none:log-level=none"} if encoder == "x265" else {}
    context.options = {"preset": "ultrafast", **quiet}
    frame = _video_frame([np.zeros((64, 64), np.uint8), *[np.zeros((32, 32), np.uint8)] * 2], "yuv420p")
    frame.pts = 0
    stream = b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])
    match = re.search(traits.version_pattern, stream)
    return match.group(1).decode("ascii", "replace").strip() if match else "unknown version"


def qp_offsets(weights: Frame, *, block: int, qp: int, bit_depth: int) -> np.ndarray:
    """ΔQP = −3 log₂ w̄ per block, from weights with mean 1: int32 ``[N, ⌈H/block⌉, ⌈W/block⌉]``.

    w̄ is the mean over the samples of all planes in the block (at the border: over those inside the picture). 6 QPs
    double the quantiser's step and multiply the squared error by 4, so these offsets make the error proportional to
    1/w̄. They are rounded to the whole QPs that encoders work in, halves away from zero, and QP + ΔQP is clipped to
    the specification's range at this bit depth. Raises `ValueError` for weights that are negative or not finite.
    """
    height, width = size_of(weights)
    total = np.zeros((num_frames(weights), -(-height // block), -(-width // block)))
    count = np.zeros(total.shape[1:])
    for name, plane in zip("yuv", weights.planes, strict=False):
        w = np.asarray(plane, np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all()):
            raise ValueError(f"weights of plane {name} hold negative or non-finite values; wanted finite values ≥ 0")
        side = block * w.shape[1] // height
        rows, columns = np.arange(0, w.shape[1], side), np.arange(0, w.shape[2], side)
        total += np.add.reduceat(np.add.reduceat(w, rows, axis=1), columns, axis=2)
        count += np.outer(np.diff([*rows, w.shape[1]]), np.diff([*columns, w.shape[2]]))
    with np.errstate(divide="ignore"):
        delta = -3.0 * np.log2(total / count)
    lowest, highest = QP_RANGE[0] - 6 * (bit_depth - 8), QP_RANGE[1]
    return np.asarray(round_half_away(np.clip(delta, lowest - qp, highest - qp)), np.int32)


class _RegionsOfInterest:
    """Gives frames the side data from which FFmpeg's wrappers of both encoders fill their maps of QP offsets.

    PyAV shows side data but offers no way to attach it. It is written through libavutil where the frame's memory looks
    as this code expects, and else made by a graph of ``addroi`` filters, whose cost grows with the square of the number
    of regions.
    """

    _SIZE = 28  # sizeof(AVRegionOfInterest)
    _DTYPE = np.dtype([("self_size", "<u4"), *((n, "<i4") for n in ("top", "bottom", "left", "right", "num", "den"))])
    _AVFRAME_IN_PYAV_FRAME = 24  # after the object header and the table of methods
    _WIDTH_IN_AVFRAME = 104  # after data[8], linesize[8] and extended_data
    _DATA_IN_SIDE_DATA = 8

    def __init__(self, block: int, bit_depth: int) -> None:
        self._block = block
        self._qp_span = 51 + 6 * (bit_depth - 8)  # what FFmpeg multiplies an offset in [−1, 1] with

    def __call__(self, frame: av.VideoFrame, offsets: np.ndarray) -> av.VideoFrame:
        """The frame with offsets ``[rows, columns]`` in QPs; possibly another object."""
        regions = self._regions(offsets, frame)
        if len(regions) == 0:
            return frame
        return frame if self._write(frame, regions) else self._filter(frame, regions)

    def _regions(self, offsets: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
        rows, columns = np.nonzero(offsets)
        regions = np.zeros(len(rows), self._DTYPE)
        regions["self_size"] = self._SIZE
        regions["top"], regions["left"] = rows * self._block, columns * self._block
        regions["bottom"] = np.minimum(regions["top"] + self._block, frame.height)
        regions["right"] = np.minimum(regions["left"] + self._block, frame.width)
        regions["num"] = np.clip(offsets[rows, columns], -self._qp_span, self._qp_span)
        regions["den"] = self._qp_span
        return regions

    def _write(self, frame: av.VideoFrame, regions: np.ndarray) -> bool:
        new_side_data = _libavutil_new_side_data()
        if new_side_data is None:
            return False
        pointer = ctypes.c_void_p.from_address(id(frame) + self._AVFRAME_IN_PYAV_FRAME).value
        if not pointer or ctypes.c_void_p.from_address(pointer).value != frame.planes[0].buffer_ptr:
            return False
        if tuple((ctypes.c_int * 2).from_address(pointer + self._WIDTH_IN_AVFRAME)) != (frame.width, frame.height):
            return False
        data = regions.tobytes()
        side_data = new_side_data(pointer, cast(int, SideDataType.REGIONS_OF_INTEREST.value), len(data))
        if not side_data:
            raise MemoryError(f"no memory for a map of {len(regions)} blocks")
        target = ctypes.c_void_p.from_address(side_data + self._DATA_IN_SIDE_DATA).value
        assert target is not None
        ctypes.memmove(target, data, len(data))
        return True

    def _filter(self, frame: av.VideoFrame, regions: np.ndarray) -> av.VideoFrame:
        graph = av.filter.Graph()
        last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
        for r in regions:
            node = graph.add(
                "addroi",
                f"x={r['left']}:y={r['top']}:w={r['right'] - r['left']}:h={r['bottom'] - r['top']}"
                f":qoffset={r['num']}/{r['den']}",
            )
            last.link_to(node)
            last = node
        last.link_to(graph.add("buffersink"))
        graph.configure()
        graph.push(frame)
        result = graph.pull()
        assert isinstance(result, av.VideoFrame)
        result.pts = frame.pts
        return result


@functools.cache
def _libavutil_new_side_data() -> Callable[[int, int, int], int | None] | None:
    """``av_frame_new_side_data`` of the library PyAV uses; None where PyAV's objects have another size than known."""
    if av.frame.Frame.__basicsize__ != 48:
        return None
    try:
        function = ctypes.CDLL(av.frame.__file__).av_frame_new_side_data
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    return function


def _open_encoder(encoder: Encoder) -> av.VideoCodecContext:
    try:
        context = av.CodecContext.create(_TRAITS[encoder].library, "w")
    except (av.codec.codec.UnknownCodecError, ValueError) as error:
        raise RuntimeError(_missing(encoder)) from error
    assert isinstance(context, av.VideoCodecContext)
    return context


def _missing(encoder: Encoder) -> str:
    return (
        f"{encoder} is missing: PyAV {av.__version__} was built without {_TRAITS[encoder].library}. "
        "Install PyAV's own wheel (pip install --force-reinstall --only-binary av av)"
    )


def _pix_fmt(samples: Frame, bit_depth: int) -> str:
    name = "gray" if isinstance(samples, Yuv400) else "yuv420p"
    return name if bit_depth == 8 else f"{name}{bit_depth}le"


def _video_frame(planes: list[np.ndarray], pix_fmt: str) -> av.VideoFrame:
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pix_fmt)
    for target, plane in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(memoryview(target), plane.dtype).reshape(target.height, -1)
        rows[:, : plane.shape[1]] = plane
    return frame


def _compare_with_dump(decoded: Frame, dump: Path) -> None:
    """Raises unless the decoded pictures equal x264's own reconstruction, planar in display order."""
    pictures = [np.concatenate([p[i].ravel() for p in decoded.planes]) for i in range(num_frames(decoded))]
    expected = b"".join(p.tobytes() for p in pictures)
    if dump.read_bytes() != expected:
        raise RuntimeError(
            "the x264 stream does not decode to its encoder's reconstruction; is the disk of its temporary folder full?"
        )
