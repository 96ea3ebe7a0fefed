"""Figures that papers print, as they print them.

WA-RDO: Fernández-Menduiña, Choi, Racapé, Pavez and Ortega, "Wrapper-aware rate-distortion optimization in feature
coding for machines". BD-accuracy is in points of mAP (detection, segmentation) or MOTA (tracking), against FCTM with
AVC under sse. In the text that we have, table 1 has lost its last column (HiEve) but for the first row.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Codec = Literal["avc", "hevc", "vvc"]


class DataSet(NamedTuple):
    """A column of WA-RDO's table 1: its task, whether it is video, and its largest luma size (width × height), where
    the class of a sequence is one of size."""

    name: str
    task: Literal["detection", "segmentation", "tracking"]
    is_video: bool
    pixels: int | None


WA_DATA = (
    DataSet("OIv6, detection", "detection", False, None),
    DataSet("OIv6, segmentation", "segmentation", False, None),
    DataSet("SFU, class A/B", "detection", True, 2560 * 1600),
    DataSet("SFU, class C", "detection", True, 832 * 480),
    DataSet("SFU, class D", "detection", True, 416 * 240),
    DataSet("TVD", "tracking", True, None),
    DataSet("HiEve", "tracking", True, None),
)

WA_REMOTE: tuple[float | None, ...] = (7.96, 11.18, 0.99, 6.82, 6.80, 7.33, 7.66)
"""Table 1, first row: AVC under sse against remote inference with VVC."""

WA_TABLE_1: dict[tuple[str, Codec], tuple[float | None, ...]] = {
    ("sse", "vvc"): (0.62, 0.66, 0.37, 0.47, 0.68, 0.76, None),
    ("sse", "hevc"): (0.20, 0.24, 0.33, 0.30, 0.38, 0.17, None),
    ("wa", "avc"): (0.21, 0.16, 0.26, 0.32, 0.80, 1.21, None),
    ("wa", "hevc"): (0.34, 0.54, 0.41, 0.75, 1.13, 1.69, None),
    ("iwa", "avc"): (None, None, 0.30, 0.36, 0.65, 1.21, None),
    ("iwa", "hevc"): (None, None, 0.40, 0.46, 1.31, 1.69, None),
    ("fwa", "avc"): (0.19, 0.13, 0.30, 0.36, 0.59, 0.92, None),
    ("fwa", "hevc"): (0.51, 0.39, 0.41, 0.51, 0.86, 1.59, None),
}
"""Table 1: (method, codec) → BD-accuracy of each of `WA_DATA`; None where there is none, or it is lost."""


class Sketches(NamedTuple):
    """A column of WA-RDO's table 2: sketches of a map, BD-mAP of WA with AVC on SFU, seconds per frame (map and
    encoder)."""

    number: int
    bd_map: float
    cpu_s: float
    gpu_s: float


WA_TABLE_2 = (
    Sketches(2, 0.26, 5.92, 1.36),
    Sketches(4, 0.43, 9.07, 1.52),
    Sketches(8, 0.44, 15.03, 1.88),
    Sketches(16, 0.47, 27.76, 2.50),
    Sketches(32, 0.46, 51.36, 3.74),
)

WA_TIME_AGAINST_VVC: dict[Codec, float] = {"avc": -72.0, "hevc": -28.13}
"""Section 4: encoding time of the weighted methods without a map per frame, in per cent of FCTM with VVC."""
