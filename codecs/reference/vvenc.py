"""VVenC, Fraunhofer's encoder of H.266/VVC: an unweighted anchor that is quicker than VTM.

No configuration file is needed: the preset names its effort (default ``medium``). Perceptual QP adaptation, temporal
filtering of the source and what builds on it are off. ``intra`` codes every picture by itself, ``lowdelay`` one I
picture and then pictures without reordering; all begin with an I picture. QPs are the specification's in ``intra``;
in the others I pictures have a QP that is lower by VVenC's own offset, as those of HM and VTM have. VVenC wants I
pictures of random access a multiple of its groups of pictures apart, and takes groups of 16 here: the multiple nearest
to `jaxwrap.codec.intra_period`, 32 instead of 24 at 25 frames per second.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxwrap.codec import Config, EncodeRequest, intra_period
from jaxwrap.codecs.bitstream import Standard
from jaxwrap.codecs.reference.encoder import Job, ReferenceEncoder, shared_options

_GOP = 16


@dataclasses.dataclass(frozen=True)
class Vvenc(ReferenceEncoder):
    """VVenC as a `jaxwrap.codec.Codec`. Fields: `jaxwrap.codecs.reference.encoder`; ``configs`` is not used."""

    name: ClassVar[str] = "vvenc"
    standard: ClassVar[Standard] = "vvc"
    qp_range: ClassVar[tuple[int, int]] = (0, 63)
    presets: ClassVar[tuple[str, ...]] = ("faster", "fast", "medium", "slow", "slower")
    _banner: ClassVar[tuple[tuple[str, ...], str, str]] = (("--version",), r"vvencFFapp version (\S+)", "VVenC")

    def _config_file(self, config: Config, request: EncodeRequest) -> None:
        return None

    def _arguments(self, job: Job) -> list[str]:
        request = job.request
        period = intra_period(request.config, request.fps)
        # The preset comes first: what stands after it overrides what it sets.
        options: dict[str, object] = {"preset": request.preset or "medium"}
        options |= shared_options(job) | {
            "Threads": 0,
            "PerceptQPA": 0,
            "MCTF": 0,
            "BIM": 0,
            "STA": 0,  # no I pictures at scene cuts
            "POC0IDR": 1,
        }
        if request.config == "intra":
            options |= {"GOPSize": 1, "IntraPeriod": 1, "IntraQPOffset": 0}
        elif period is None:
            options |= {"GOPSize": 8, "PicReordering": 0, "IntraPeriod": -1, "DecodingRefreshType": "none"}
        else:
            options |= {"GOPSize": _GOP, "IntraPeriod": _GOP * max(1, round((period + 0.5) / _GOP))}
        return self._words(options)
