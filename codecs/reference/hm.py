"""HM, the reference encoder of H.265/HEVC, version 18.0: the anchor of WA-RDO, and patched the place of weighted RDO.

Configurations are HM's own: ``encoder_intra_main``, ``encoder_lowdelay_P_main`` (one I picture, then P) and
``encoder_randomaccess_main``, their ``main10`` forms at 10 bits. I pictures of random access are
`jaxwrap.codec.intra_period` apart; where that is no multiple of 16, HM's configuration for groups of 8 pictures is
taken (``misc/…_GOP8``). QPs of P and B pictures follow from the one asked for, as the configuration says. HM repeats
its parameter sets at each I picture; repeats are neither counted nor decoded.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxwrap.codec import Config, EncodeRequest, intra_period
from jaxwrap.codecs.bitstream import Standard
from jaxwrap.codecs.reference.encoder import Job, shared_options
from jaxwrap.codecs.reference.patched import PatchedEncoder

_PROFILES = {8: "main", 10: "main10"}
_FILES: dict[Config, str] = {
    "intra": "encoder_intra_{}.cfg",
    "lowdelay": "encoder_lowdelay_P_{}.cfg",
    "randomaccess": "encoder_randomaccess_{}.cfg",
}
_SMALL_GROUPS = "misc/encoder_randomaccess_{}_GOP8.cfg"
_GOP = 16


@dataclasses.dataclass(frozen=True)
class Hm(PatchedEncoder):
    """HM as a `jaxwrap.codec.Codec`; it has no presets. Fields: `jaxwrap.codecs.reference.encoder`."""

    name: ClassVar[str] = "hm"
    standard: ClassVar[Standard] = "hevc"
    config_files: ClassVar[tuple[str, ...]] = tuple(
        name.format(profile) for profile in _PROFILES.values() for name in (*_FILES.values(), _SMALL_GROUPS)
    )
    _banner: ClassVar[tuple[tuple[str, ...], str, str]] = ((), r"HM software: Encoder Version \[([^\]]+)\]", "HM")

    def _config_file(self, config: Config, request: EncodeRequest) -> str:
        period = intra_period(config, request.fps)
        small = config == "randomaccess" and period is not None and period % _GOP
        return (_SMALL_GROUPS if small else _FILES[config]).format(_PROFILES[request.bit_depth])

    def _arguments(self, job: Job) -> list[str]:
        request = job.request
        period = intra_period(request.config, request.fps)
        options = shared_options(job) | {
            "ConformanceWindowMode": 1,  # pads to whole coding units
            "IntraPeriod": -1 if period is None else period,
            "TemporalFilter": 0,
        }
        if job.geometry.chroma == "400":
            options["Profile"] = "main-RExt"  # the version 1 profiles are 4:2:0 only
        config = self._config_path(self._config_file(request.config, request))
        return ["-c", str(config), *self._words(options)]

    def _qp_offset_options(self) -> dict[str, object]:
        return {"MaxCuDQPDepth": 2}  # QPs of 16×16 blocks in coding tree units of 64, as in JM and x264
