"""What the reference encoders have in common: files in, a program, an independent decoder, bits out.

An encode writes its samples as raw YUV (and weights as a map file) into a folder of its own, runs the encoder there,
splits the stream into pictures, decodes it with FFmpeg, which shares no code with these encoders, and compares the
samples with the encoder's own reconstruction. A stream that fails raises, so that every result is ``verified``.

QPs are the specification's: at 10 bits as at 8. All run in one thread and without rate control, picture hashes,
psycho-visual options and temporal filtering of the source (not all of them have it); their configuration files are the
user's own, named on the command line and never copied.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, num_frames, size_of
from jaxwrap.codec import CONFIGS, QP_RANGE, Config, EncodeRequest, EncodeResult
from jaxwrap.codecs.bitstream import Standard, access_units, count_bits, decode
from jaxwrap.codecs.reference.launch import EncoderError, launch
from jaxwrap.codecs.reference.programs import PROGRAMS, Identity, find_config, hash_configs, identify, require_program
from jaxwrap.codecs.reference.yuv import YuvFormat, read_yuv, write_yuv
from jaxwrap.samples import max_sample, to_integers

MIN_SIZE = 16
"""Smallest width and height taken, in luma samples, as of `jaxwrap.codecs.x26x`."""

STREAM, RECONSTRUCTION, LOG = "stream.bin", "reconstruction.yuv", "log.txt"


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One encode: the source file's name in the folder where the encoder runs, its geometry and number of frames."""

    source: str
    geometry: YuvFormat
    frames: int
    request: EncodeRequest

    @property
    def qp(self) -> int:
        """The request's QP, which `ReferenceEncoder.check` found to be whole."""
        return int(self.request.qp or 0)

    @property
    def rate(self) -> int:
        """Frames per second as these encoders take them: whole."""
        return max(1, round(self.request.fps))


def shared_options(job: Job) -> dict[str, object]:
    """Options that have the same names in HM, VTM and VVenC: files, geometry, bit depths, QP, no picture hashes."""
    return {
        "InputFile": job.source,
        "BitstreamFile": STREAM,
        "ReconFile": RECONSTRUCTION,
        "SourceWidth": job.geometry.width,
        "SourceHeight": job.geometry.height,
        "FramesToBeEncoded": job.frames,
        "FrameRate": job.rate,
        "InputBitDepth": job.request.bit_depth,
        "InternalBitDepth": job.request.bit_depth,
        "OutputBitDepth": job.request.bit_depth,
        "InputChromaFormat": job.geometry.chroma,
        "QP": job.qp,
        "SEIDecodedPictureHash": 0,
    }


@dataclasses.dataclass(frozen=True)
class ReferenceEncoder:
    """A reference encoder as a `jaxwrap.codec.Codec`; picklable, cheap to construct: nothing is looked for before it
    is needed.

    ``binary``: its program (default: environment variable, else PATH). ``configs``: folder of its configuration files
    (default: `jaxwrap.codecs.reference.programs.find_config`). ``timeout_s``: wall time that an encode may take.
    ``keep``: a folder in which each encode leaves a folder with its stream, reconstruction and log, failed ones too.
    """

    name: ClassVar[str]
    standard: ClassVar[Standard]
    qp_range: ClassVar[tuple[int, int]] = QP_RANGE
    presets: ClassVar[tuple[str, ...]] = ()
    config_files: ClassVar[tuple[str, ...]] = ()
    """Paths of all configuration files that it may be given, in their folder."""

    # How the program says who it is: arguments, pattern of the version, name before it.
    _banner: ClassVar[tuple[tuple[str, ...], str, str]]

    binary: Path | None = None
    configs: Path | None = None
    timeout_s: float = 3600.0
    keep: Path | None = None

    @property
    def program(self) -> Path:
        """The binary. Raises `RuntimeError` where it is missing."""
        return require_program(self.name, self.binary)

    @property
    def identity(self) -> Identity:
        """Version, patch level and hash of the binary. Raises `RuntimeError` where it is missing or another program."""
        program = self.program
        try:
            return identify(program, *self._banner)
        except RuntimeError as error:
            variable, names = PROGRAMS[self.name]
            raise RuntimeError(f"{error}. Point {variable} at {' or '.join(names)}") from error

    @property
    def version(self) -> str:
        """What its encodes depend on: the identity of the binary, and the hash of its configuration files, such as
        ``HM 18.0, jaxwrap patch v1, modes diag, idse, sha256 0123456789ab, configurations 0123456789ab``. Errors as in
        `identity`; configuration files that are missing are left to `check`."""
        identity = str(self.identity)
        configs = hash_configs(self.name, self.program, self.config_files, self.configs)
        return f"{identity}, configurations {configs[:12]}" if configs else identity

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """Raises `ValueError` where `encode` would refuse this request for frames of ``size`` = (height, width), and
        `RuntimeError` where the encoder is missing."""
        max_sample(request.bit_depth)
        height, width = size
        if min(height, width) < MIN_SIZE:
            raise ValueError(
                f"{self.name} was given {width}×{height} frames; it takes {MIN_SIZE}×{MIN_SIZE} or more: pad them first"
            )
        low, high = self.qp_range
        if not (isinstance(request.qp, int | float | np.number) and low <= request.qp <= high) or request.qp % 1:
            raise ValueError(f"QP {request.qp} was given; {self.name} takes whole numbers {low} … {high}")
        if request.config not in CONFIGS:
            raise ValueError(f"configuration {request.config!r} was given; known: {', '.join(CONFIGS)}")
        if request.preset is not None and request.preset not in self.presets:
            known = f"it knows: {', '.join(self.presets)}" if self.presets else "it has none: leave the preset out"
            raise ValueError(f"preset {request.preset!r} was given to {self.name}; {known}")
        if not 0.01 <= request.fps <= 300:
            raise ValueError(f"{request.fps} frames per second were given; {self.name} takes 0.01 … 300")
        self._check_weights(request)
        if file := self._config_file(request.config, request):
            self._config_path(file)

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """Encodes, decodes and verifies ``frames`` as one stream.

        Samples are in ``[0, 2^d − 1]`` (real ones are clipped and rounded), at least 16×16, of any size (the encoder
        pads, and the padding is cut away). ``decoded`` holds NumPy integers, ``bits`` int64 ``[N]``; ``seconds`` is the
        encoder's processor time. Raises `ValueError` for what the encoder cannot take, `RuntimeError` where it is
        missing, fails (`jaxwrap.codecs.reference.launch.EncoderError`, with its log), runs too long, or where the
        stream fails to verify.
        """
        check_frame(frames)
        if num_frames(frames) == 0:
            raise ValueError(f"no frame was given to {self.name}; wanted at least one")
        self.check(size_of(frames), request)
        samples = to_integers(frames, request.bit_depth)
        with self._folder() as folder:
            job = Job(
                write_yuv(folder, "source", samples, bit_depth=request.bit_depth, fps=request.fps).name,
                YuvFormat.of(samples, bit_depth=request.bit_depth, fps=request.fps),
                num_frames(samples),
                request,
            )
            command: list[str | Path] = [
                self.program,
                *self._arguments(job),
                *self._weight_arguments(folder, samples, request),
            ]
            finished = launch(command, folder, timeout_s=self.timeout_s)
            (folder / LOG).write_text(finished.log, encoding="utf-8")
            try:
                decoded, bits, header_bits = self._verified(folder, samples, job)
                units = self._units(folder, job)
            except (OSError, ValueError, RuntimeError) as error:
                raise EncoderError(f"{self.name}: {error}", finished.log) from error
        return EncodeResult(
            decoded,
            bits,
            header_bits,
            finished.seconds,
            shlex.join(map(str, command)),
            verified=True,
            units=units,
        )

    def _verified(self, folder: Path, samples: Frame, job: Job) -> tuple[Frame, np.ndarray, int]:
        """(decoded frames, bits of each in display order, bits of parameter sets)."""
        parts = access_units((folder / STREAM).read_bytes(), self.standard)
        packets = [(number, self._decodable(part)) for number, part in enumerate(parts)]
        pictures = decode(packets, self.standard, samples, what=f"the {self.name} stream")
        decoded = frame_of([np.stack(planes) for planes in zip(*(planes for _, planes in pictures), strict=True)])
        counted = [count_bits(parts[number], self.standard) for number, _ in pictures]
        own = read_yuv(folder / RECONSTRUCTION, job.geometry)
        for name, ours, theirs in zip("yuv", decoded.planes, own.planes, strict=False):
            if ours.shape != theirs.shape or (ours != theirs).any():
                raise RuntimeError(
                    f"the stream does not decode to the encoder's reconstruction (plane {name}, {ours.shape} decoded, "
                    f"{theirs.shape} written by the encoder)"
                )
        return decoded, np.array([bits for bits, _ in counted], np.int64), sum(headers for _, headers in counted)

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder for one encode: removed at the end, or moved to where the user wants it kept, without the source."""
        with tempfile.TemporaryDirectory(prefix="jaxwrap-") as name:
            folder = Path(name)
            try:
                yield folder
            finally:
                if self.keep is not None:
                    self.keep.mkdir(parents=True, exist_ok=True)
                    target = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.keep))
                    for file in folder.iterdir():
                        if not file.name.startswith("source_"):
                            shutil.move(file, target / file.name)

    def _config_path(self, file: str) -> Path:
        return find_config(self.name, self.program, file, self.configs)

    def _words(self, options: dict[str, object]) -> list[str]:
        """Options as this encoder's command line has them."""
        return [f"--{name}={value}" for name, value in options.items()]

    # What differs from encoder to encoder.

    def _config_file(self, config: Config, request: EncodeRequest) -> str | None:
        """Path of the configuration file in the encoder's own folder; None where it needs none."""
        raise NotImplementedError

    def _arguments(self, job: Job) -> list[str]:
        """The command line after the program, weights apart; it writes `STREAM` and `RECONSTRUCTION`."""
        raise NotImplementedError

    def _decodable(self, part: bytes) -> bytes:
        """A picture's part of the stream as FFmpeg's decoder takes it; what is counted is the part itself."""
        return part

    def _check_weights(self, request: EncodeRequest) -> None:
        """Raises `ValueError` for weights, λ scale or trace that this encoder does not know."""
        asked = [
            what
            for what, given in (
                ("weights", request.weights is not None),
                (f"λ scale {request.lambda_scale:g}", request.lambda_scale != 1.0),
                ("a trace", request.trace),
            )
            if given
        ]
        if asked:
            raise ValueError(
                f"{' and '.join(asked)} asked of {self.name}, which is an unweighted anchor: only a patched HM or JM "
                "can do that"
            )

    def _weight_arguments(self, folder: Path, samples: Frame, request: EncodeRequest) -> list[str]:
        return []

    def _units(self, folder: Path, job: Job) -> np.ndarray | None:
        return None
