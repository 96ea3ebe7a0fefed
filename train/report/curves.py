"""Rate-distortion series and Pareto fronts over modes, from results rows.

A *series* is what one codec does in one mode with one method at one scale of λ, over QPs; each sequence gives it a
curve.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxwrap.metrics.bjontegaard import upper_envelope
from jaxwrap.train.evaluate.modes import MODE_BITS
from jaxwrap.train.evaluate.points import Point

QUALITIES: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    "receiver_snr": ("receiver SNR [dB]", lambda point: point.receiver_snr),
    "psnr_yuv": ("YUV-PSNR 6:1:1 [dB]", lambda point: point.psnr_yuv),
    "psnr_y": ("Y-PSNR [dB]", lambda point: point.psnr_y),
    "ms_ssim": (
        "MS-SSIM, −10 log₁₀(1 − x) [dB]",
        lambda point: (
            None if point.ms_ssim is None or point.ms_ssim >= 1 else -10.0 * float(np.log10(1.0 - point.ms_ssim))
        ),
    ),
    "feature_snr": ("feature SNR [dB]", lambda point: point.feature_snr),
    "ap": ("mAP [points]", lambda point: _in_points(point.ap)),
    "ap50": ("AP at IoU .50 [points]", lambda point: _in_points(point.ap50)),
    "mask_ap": ("mask mAP [points]", lambda point: _in_points(point.mask_ap)),
    "mota": ("MOTA [points]", lambda point: _in_points(point.mota)),
    "idf1": ("IDF1 [points]", lambda point: _in_points(point.idf1)),
    "hota": ("HOTA [points]", lambda point: _in_points(point.hota)),
}
"""Axis label and value of each quality; all grow with the rate, accuracies on the whole. In dB, or in points, which are
hundredths of a score."""

ACCURACIES = ("ap", "ap50", "mask_ap", "mota", "idf1", "hota")
"""Qualities that are a task's score, one of a whole data set."""

OF_A_MODE = ("receiver_snr",)
"""Qualities that are comparable within a mode only: every mode has a receiver of its own."""

Item = TypeVar("Item")
Key = TypeVar("Key")

ANCHOR_MODE = "codec"

LINEAR_KINDS = ("bilinear", "lanczos4")

FRONTS = {
    "bilinear + codec": ("bilinear",),
    "Lanczos + codec": ("lanczos4",),
    "post + codec": ("post",),
    "wrapper + codec": ("wrapper",),
    "post + wrapper + codec": ("post", "wrapper"),
}
"""Families of modes whose Pareto fronts are the rows of SNW table 1, all under sse; the codec alone is an option in
each."""

FRONT_ALL = "all modes and methods"

REMOTE_MODE, LOCAL_MODE = "remote", "local"
"""Remote inference codes the pictures themselves; local inference codes nothing, and has a score but no rate."""

TASK_KINDS = ("fcm", REMOTE_MODE, LOCAL_MODE)
"""Kinds of modes whose quality is what a network makes of them; no pixels come out."""

CONTROL_STAGE = "shuffle"
"""Stage of a method that moves weights to other places: what is gained with it is no matter of where."""


class Setting(NamedTuple):
    """What a comparison holds fixed."""

    codec: str
    config: str


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """What is compared within a setting; a Pareto front is a series too, with the method ``front``.

    ``note`` names what tells it from others of the same mode and method, for its label alone.
    """

    mode: str
    method: str = "sse"
    method_options: str = "{}"
    lambda_scale: float = 1.0
    note: str = dataclasses.field(default="", compare=False)

    @property
    def label(self) -> str:
        """Short name for legends and tables."""
        label = self.mode if self.method in ("sse", "front") else f"{self.mode} + {self.method}"
        if self.note:
            label += f" ({self.note})"
        return label if self.lambda_scale == 1 else f"{label}, λ × {self.lambda_scale:.3g}"

    @property
    def method_label(self) -> str:
        """The same without the mode, for tables of one mode."""
        return dataclasses.replace(self, mode=self.method, method="sse").label

    @property
    def is_control(self) -> bool:
        """Whether it shows what a gain is *not* due to: another λ under sse, or weights moved to other places."""
        return (self.method == "sse" and self.lambda_scale != 1) or CONTROL_STAGE in self.method.split("+")


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
    """One sequence of a series, in the order of the rate: bits per pixel, quality in dB, QP, mode, and seconds of
    encoding (None where they were not taken) of each point."""

    sequence: str
    rate: np.ndarray
    quality: np.ndarray
    qps: tuple[float, ...]
    modes: tuple[str, ...]
    seconds: tuple[float | None, ...]


Curves = dict[Setting, dict[Series, dict[str, Curve]]]
"""Setting → series → sequence → curve."""


def curves_of(points: Iterable[Point], quality: str = "psnr_yuv") -> Curves:
    """Sorts rows into curves, in the order in which modes and methods first occur.

    Rows without the quality are left out, and those of local inference, which have no rate. Raises `ValueError` for an
    unknown quality, or where two rows measure the same point differently.
    """
    if quality not in QUALITIES:
        raise ValueError(f"quality {quality!r} was asked for; known: {', '.join(QUALITIES)}")
    value = QUALITIES[quality][1]
    known = [point for point in points if value(point) is not None and point.mode != LOCAL_MODE]
    names = with_notes(series_of(point) for point in known)
    grouped: dict[Setting, dict[Series, dict[str, dict[float, Point]]]] = {}
    for point in known:
        sequences = grouped.setdefault(Setting(point.codec, point.config), {}).setdefault(names[series_of(point)], {})
        sequence = sequences.setdefault(point.sequence, {})
        if sequence.setdefault(point.qp, point).key != point.key:
            raise ValueError(
                f"{point.sequence}, {point.codec}, {point.mode}, {point.method}, QP {point.qp:g} was measured twice "
                "with different settings, inputs or versions; report on one of the results at a time"
            )
    return {
        setting: {
            series: {
                name: _curve(name, [(point, series.label) for point in by_qp.values()], quality)
                for name, by_qp in sequences.items()
            }
            for series, sequences in of_setting.items()
        }
        for setting, of_setting in grouped.items()
    }


def fronts_of(points: Sequence[Point], quality: str = "psnr_yuv") -> Curves:
    """Pareto fronts over each of `FRONTS` whose modes were all measured, and over all modes (SNW section 4.1).

    Points of a front are those of `jaxwrap.metrics.bjontegaard.upper_envelope`. Families take their sse rows; in
    `FRONT_ALL` every method takes part, since a decoder need not know which one chose the bits. The codec alone is
    charged the bits of the mode too, as it is one of the options here. Controls and other scales of λ take no part.
    None where the quality is one of `OF_A_MODE`.
    """
    if quality in OF_A_MODE:
        return {}
    as_option = [
        dataclasses.replace(
            point, bits=point.bits + MODE_BITS, bpp=point.bpp * (1 + MODE_BITS / point.bits), mode_bits=MODE_BITS
        )
        if point.mode_bits == 0
        else point
        for point in points
    ]
    as_option = [p for p in as_option if p.lambda_scale == 1 and not series_of(p).is_control]
    names = with_notes(map(series_of, as_option))
    value = QUALITIES[quality][1]
    fronts: Curves = {}
    for setting, group in _grouped(as_option, lambda p: Setting(p.codec, p.config)).items():
        under_sse = [p for p in group if p.method == "sse"]
        options_of = {
            label: [p for p in under_sse if _family(p) in (ANCHOR_MODE, *families)]
            for label, families in FRONTS.items()
            if {*families} <= {_family(p) for p in under_sse}
        }
        if {p.mode for p in group} != {ANCHOR_MODE}:
            options_of[FRONT_ALL] = group
        for label, chosen in options_of.items():
            series = fronts.setdefault(setting, {}).setdefault(Series(label, "front"), {})
            for sequence, rows in _grouped(chosen, lambda p: p.sequence).items():
                known = [p for p in rows if value(p) is not None]
                options = [
                    [(p, names[one].label) for p in members] for one, members in _grouped(known, series_of).items()
                ]
                front = upper_envelope([_rate_and_quality([p for p, _ in one], quality) for one in options])
                if front:
                    series[sequence] = _curve(sequence, [options[c][i] for c, i in front], quality)
    return fronts


def mean_curve(curves: dict[str, Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Means over sequences of rate and of quality at each QP that all sequences have (a series, not a front)."""
    common = set.intersection(*(set(curve.qps) for curve in curves.values()))
    at_qp = [
        [(curve.rate[curve.qps.index(qp)], curve.quality[curve.qps.index(qp)]) for curve in curves.values()]
        for qp in sorted(common, reverse=True)
    ]
    if not at_qp:
        return np.zeros(0), np.zeros(0)
    mean = np.asarray(at_qp).mean(axis=1)
    return mean[:, 0], mean[:, 1]


def winners(front: Curve) -> list[tuple[str, float, float]]:
    """Modes along a front: (mode, lowest, highest rate in bits per pixel) of every run of points of one mode."""
    runs = []
    for mode, group in itertools.groupby(zip(front.modes, front.rate, strict=True), key=lambda pair: pair[0]):
        rates = [float(rate) for _, rate in group]
        runs.append((mode, rates[0], rates[-1]))
    return runs


def is_of_a_task(mode: str) -> bool:
    """Whether a mode feeds the rest of a network (`TASK_KINDS`)."""
    return mode.partition("-")[0] in TASK_KINDS


def _in_points(score: float | None) -> float | None:
    return None if score is None else 100.0 * score


def series_of(point: Point) -> Series:
    """The series that a row belongs to."""
    return Series(point.mode, point.method, point.method_options, point.lambda_scale)


def with_notes(series: Iterable[Series]) -> dict[Series, Series]:
    """Each series, under itself, with a note of the options in which it differs from others of its mode and method."""
    named: dict[Series, Series] = {}
    for alike in _grouped(dict.fromkeys(series), lambda one: (one.mode, one.method)).values():
        options = [dict(_flat(json.loads(one.method_options))) for one in alike]
        different = [
            name
            for name in dict.fromkeys(name for one in options for name in one)
            if len({one.get(name) for one in options}) > 1
        ]
        for one, its in zip(alike, options, strict=True):
            note = ", ".join(f"{name.rpartition('.')[2]} {its[name]}" for name in different if name in its)
            named[one] = dataclasses.replace(one, note=note)
    return named


def _flat(options: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names (those of nested options joined by dots) and short texts of options."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = ":".join(map(str, value)) if isinstance(value, list) else str(value)
            yield prefix + name, text if len(text) <= 24 else text[:8] + "…"


def _family(point: Point) -> str:
    return point.mode.partition("-")[0]


def _curve(sequence: str, points: list[tuple[Point, str]], quality: str) -> Curve:
    """Points with the labels of their series, as a curve."""
    ordered = sorted(points, key=lambda pair: pair[0].bpp)
    members = [point for point, _ in ordered]
    return Curve(
        sequence,
        *_rate_and_quality(members, quality),
        tuple(point.qp for point in members),
        tuple(label for _, label in ordered),
        tuple(point.encode_s for point in members),
    )


def _rate_and_quality(points: list[Point], quality: str) -> tuple[np.ndarray, np.ndarray]:
    value = QUALITIES[quality][1]
    return np.array([point.bpp for point in points]), np.array([value(point) for point in points], np.float64)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
