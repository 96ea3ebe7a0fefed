"""VTM, the reference encoder of H.266/VVC, version 23: an unweighted anchor, one codec generation after HM.

Configurations are VTM's own: ``encoder_intra_vtm``, ``encoder_lowdelay_P_vtm`` (one I picture, then P) and
``encoder_randomaccess_vtm_gop16``, at the internal bit depth asked for (VTM's own default is 10, also for 8-bit
sources). VTM wants I pictures of random access a multiple of its 16-picture groups apart, so that it takes the nearest
one to `jaxwrap.codec.intra_period`: 32 instead of 24 at 25 frames per second. Its filters of pictures (adaptation
parameter sets) count as bits of their pictures, not as headers.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxwrap.codec import Config, EncodeRequest, intra_period
from jaxwrap.codecs.bitstream import Standard
from jaxwrap.codecs.reference.encoder import Job, ReferenceEncoder, shared_options

_FILES: dict[Config, str] = {
    "intra": "encoder_intra_vtm.cfg",
    "lowdelay": "encoder_lowdelay_P_vtm.cfg",
    "randomaccess": "encoder_randomaccess_vtm_gop16.cfg",
}
_GOP = 16


@dataclasses.dataclass(frozen=True)
class Vtm(ReferenceEncoder):
    """VTM as a `jaxwrap.codec.Codec`; it has no presets. Fields: `jaxwrap.codecs.reference.encoder`."""

    name: ClassVar[str] = "vtm"
    standard: ClassVar[Standard] = "vvc"
    qp_range: ClassVar[tuple[int, int]] = (0, 63)
    config_files: ClassVar[tuple[str, ...]] = tuple(_FILES.values())
    _banner: ClassVar[tuple[tuple[str, ...], str, str]] = ((), r"VTM Encoder Version (\S+)", "VTM")

    def _config_file(self, config: Config, request: EncodeRequest) -> str:
        return _FILES[config]

    def _arguments(self, job: Job) -> list[str]:
        request = job.request
        period = intra_period(request.config, request.fps)
        if period is not None and request.config == "randomaccess":
            period = _GOP * max(1, round((period + 0.5) / _GOP))  # halves up: 24 becomes 32
        options = shared_options(job) | {
            "ConformanceWindowMode": 1,  # pads to whole coding units
            "IntraPeriod": -1 if period is None else period,
            "TemporalSubsampleRatio": 1,  # the intra configuration codes every eighth picture
            "TemporalFilter": 0,
        }
        config = self._config_path(self._config_file(request.config, request))
        return ["-c", str(config), *self._words(options)]
