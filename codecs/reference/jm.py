"""JM, the reference encoder of H.264/AVC, version 19.0: FP-RDO's codec, and patched the second place of weighted RDO.

Configurations are JM's own that are set up like HM's: ``HM-like/encoder_JM_Intra_HE``, ``…_LP_HE`` (one I picture, then
P) and ``…_RA_B_HE`` (hierarchical B pictures), with CABAC, RDOQ and one pass per picture. P and B pictures start from a
QP that is higher by 1, as there, and go up to 3 higher with their level. Profiles are High at 8 bits and High 10 at 10
bits. The preset ``no-8x8`` leaves intra 4×4 and 16×16 alone, without the 8×8 transform: what FP-RDO (section IV) works
with.

Two faults of JM 19.0 are worked around here. At more than 8 bits it reads pictures wrongly whose width is no multiple
of 16: they are padded as JM pads others, by repeating the border, and cut afterwards. In 4:0:0 it states 8 bits for
the chroma that is not there, which FFmpeg refuses beside 10-bit luma: for decoding, that one number is replaced.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar, Literal

import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, size_of
from jaxwrap.codec import QP_RANGE, Config, EncodeRequest, EncodeResult, RowWeights, intra_period
from jaxwrap.codecs.bitstream import Standard, nal_units
from jaxwrap.codecs.reference.encoder import RECONSTRUCTION, STREAM, Job
from jaxwrap.codecs.reference.patched import PatchedEncoder

NO_8X8 = "no-8x8"

_MACROBLOCK = 16
_HIGHEST_QP: dict[Config, int] = {"intra": 51, "lowdelay": 48, "randomaccess": 47}
_SPS = 7
_HIGH_PROFILES = (100, 110)

_FILES: dict[Config, str] = {
    "intra": "HM-like/encoder_JM_Intra_HE.cfg",
    "lowdelay": "HM-like/encoder_JM_LP_HE.cfg",
    "randomaccess": "HM-like/encoder_JM_RA_B_HE.cfg",
}


@dataclasses.dataclass(frozen=True)
class Jm(PatchedEncoder):
    """JM as a `jaxwrap.codec.Codec`. Presets: None and ``no-8x8``. Fields: `jaxwrap.codecs.reference.encoder`."""

    name: ClassVar[str] = "jm"
    standard: ClassVar[Standard] = "avc"
    presets: ClassVar[tuple[str, ...]] = (NO_8X8,)
    config_files: ClassVar[tuple[str, ...]] = tuple(_FILES.values())
    _banner: ClassVar[tuple[tuple[str, ...], str, str]] = (("-v",), r"JM-(\S+)", "JM")

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """As in `ReferenceEncoder`."""
        super().check(size, request)
        highest = _HIGHEST_QP[request.config]
        if int(request.qp) > highest:  # type: ignore[arg-type]
            raise ValueError(
                f"QP {request.qp} was given; jm takes 0 … {highest} in {request.config}, where it codes some pictures "
                f"{QP_RANGE[1] - highest} QPs higher"
            )

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """As in `ReferenceEncoder`."""
        check_frame(frames)
        height, width = size_of(frames)
        if request.bit_depth == 8 or width % _MACROBLOCK == 0:
            return super().encode(frames, request)
        self.check((height, width), request)
        weights = request.weights
        if isinstance(weights, RowWeights):  # as the patched JM itself pads them: rows with zeros, weights as pictures
            weights = dataclasses.replace(weights, rows=_padded(weights.rows, mode="constant"))
        elif weights is not None:
            weights = dataclasses.replace(weights, planes=_padded(weights.planes, mode="edge"))
        result = super().encode(_padded(frames, mode="edge"), dataclasses.replace(request, weights=weights))
        cut = [
            plane[:, : original.shape[1], : original.shape[2]]
            for plane, original in zip(result.decoded.planes, frames.planes, strict=True)
        ]
        return dataclasses.replace(result, decoded=frame_of(cut))

    def _decodable(self, part: bytes) -> bytes:
        units = []
        for unit in nal_units(part, self.standard):
            start_code = unit.data[: -len(unit.payload)]
            units.append(start_code + _with_chroma_depth(unit.payload) if unit.kind == _SPS else unit.data)
        return b"".join(units)

    def _config_file(self, config: Config, request: EncodeRequest) -> str:
        return _FILES[config]

    def _arguments(self, job: Job) -> list[str]:
        request, geometry = job.request, job.geometry
        period = intra_period(request.config, request.fps) or 0
        options: dict[str, object] = {
            "InputFile": job.source,
            "OutputFile": STREAM,
            "ReconFile": RECONSTRUCTION,
            "SourceWidth": geometry.width,
            "SourceHeight": geometry.height,
            "OutputWidth": geometry.width,
            "OutputHeight": geometry.height,
            "FramesToBeEncoded": job.frames,
            "FrameRate": job.rate,
            "YUVFormat": 0 if geometry.chroma == "400" else 1,
            "SourceBitDepthRescale": 0,
            "ProfileIDC": 100 if request.bit_depth == 8 else 110,
            **{
                f"{side}BitDepth{plane}": request.bit_depth
                for side in ("Source", "Output")
                for plane in ("Luma", "Chroma")
            },
            "QPISlice": job.qp,
            **{f"QP{kind}Slice": min(job.qp + 1, QP_RANGE[1]) for kind in "PB"},  # as the configurations have them
            "IntraPeriod": period,
            "IDRPeriod": period if request.config == "intra" else 0,
            "Transform8x8Mode": 0 if request.preset == NO_8X8 else 1,
            # One pass per picture: what a trace and a weighted distortion are about.
            "RDPictureDecision": 0,
            "GenerateMultiplePPS": 0,
            "WeightedPrediction": 0,
            "WeightedBiprediction": 0,
        }
        config = self._config_path(self._config_file(request.config, request))
        return ["-d", str(config), *self._words(options)]

    def _words(self, options: dict[str, object]) -> list[str]:
        return [word for name, value in options.items() for word in ("-p", f"{name}={value}")]


def _padded(frames: Frame, *, mode: Literal["edge", "constant"]) -> Frame:
    """Planes ``[…, H, W]`` with a luma width that is a multiple of 16."""
    width = frames.y.shape[-1]
    extra = -width % _MACROBLOCK
    return frame_of(
        [
            np.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, extra * p.shape[-1] // width)], mode=mode)
            for p in map(np.asarray, frames.planes)
        ]
    )


def _with_chroma_depth(sps: bytes) -> bytes:
    """A sequence parameter set of a high profile in 4:0:0 with the bit depth of luma for chroma too (H.264, 7.3.2.1.1
    and 7.4.2.1.1: without chroma it is not used); any other as it is."""
    if sps[1] not in _HIGH_PROFILES:
        return sps
    bits = "".join(f"{byte:08b}" for byte in sps.replace(b"\0\0\3", b"\0\0"))
    position = 32  # after the NAL unit's header, profile, constraints and level
    ends = []
    for _ in ("seq_parameter_set_id", "chroma_format_idc", "bit_depth_luma_minus8", "bit_depth_chroma_minus8"):
        zeros = bits.index("1", position) - position
        position += 2 * zeros + 1
        ends.append(position)
    if bits[ends[0] : ends[1]] != "1":  # Exp-Golomb code of 0: 4:0:0
        return sps
    body = (bits[: ends[2]] + bits[ends[1] : ends[2]] + bits[ends[3] :]).rstrip("0")  # ends with its stop bit
    body += "0" * (-len(body) % 8)
    changed = int(body, 2).to_bytes(len(body) // 8, "big")
    return re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", changed)
