"""WA-RDO's tables 1 and 2 and its runtimes beside ours, with every difference in conditions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.report.bd import BdRow
from jaxwrap.train.report.curves import REMOTE_MODE, Series, Setting
from jaxwrap.train.report.resampling import Draws, draw_curves
from jaxwrap.train.report.runtimes import runtimes_of
from jaxwrap.train.report.task_bd import resolution, task_table
from jaxwrap.train.report.task_results import TaskResults, read_task_results
from jaxwrap.train.report.texts import SHORT, bd_text, bounds_text
from jaxwrap.train.reproduce.published import (
    WA_DATA,
    WA_REMOTE,
    WA_TABLE_1,
    WA_TABLE_2,
    WA_TIME_AGAINST_VVC,
    DataSet,
)

CODECS = {"avc": ("jm", "x264"), "hevc": ("hm", "x265"), "vvc": ("vtm", "vvenc")}
"""Standard → encoders here that stand for it, the reference encoder first."""

SCORES = {"detection": "ap", "segmentation": "mask_ap", "tracking": "mota"}
"""Task → the score that the paper judges it by."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """One data set of ours: its results, BD rows, and the curve that takes the place of the paper's anchor.

    ``mode``: the feature wrapper of most points. ``anchor``: AVC under sse in it, or None where AVC was not measured.
    """

    results: TaskResults
    draws: Draws
    rows: tuple[BdRow, ...]
    mode: str
    anchor: Setting | None

    @property
    def measure(self) -> str:
        """The score that counts."""
        return SCORES[self.results.kind]

    @property
    def counterpart(self) -> DataSet | None:
        """The paper's data set that is most like this one, or None."""
        alike = [data for data in WA_DATA if (data.task, data.is_video) == (self.results.kind, self.is_video)]
        most = max(round(point.bits / point.bpp / point.frames) for point in self.results.points if point.bits)
        sized = [data for data in alike if data.pixels is None or data.pixels >= most]
        return min(sized, key=lambda data: data.pixels or 0, default=None)

    @property
    def is_video(self) -> bool:
        """Whether sequences have more than a frame."""
        return any(point.frames > 1 for point in self.results.points)

    def against_anchor(self, codec: str, series: Series) -> BdRow | None:
        """A codec's series against AVC under sse."""
        for row in self.rows:
            if (
                row.measure == self.measure
                and row.comparison in ("method", "reference")
                and (row.setting.codec, row.series) == (codec, series)
                and (row.anchor_setting, row.anchor) == (self.anchor, Series(self.mode))
            ):
                return row
        return None

    def row(self, measure: str, comparison: str, codec: str, series: Series, against: str) -> BdRow | None:
        """A comparison by its names; ``against``: codec of the anchor."""
        return next(
            (
                row
                for row in self.rows
                if (row.measure, row.comparison, row.setting.codec, row.series, row.anchor_setting.codec)
                == (measure, comparison, codec, series, against)
            ),
            None,
        )


def read_ours(folders: Sequence[Path]) -> list[Ours]:
    """Results of the folders of `jaxwrap evaluate --task …`, compared as in the report.

    Raises `FileNotFoundError` naming all folders that are not there, `ValueError` where none has a feature wrapper's
    scores, else as `read_task_results` and `draw_curves`.
    """
    if missing := [folder for folder in folders if not folder.exists()]:
        raise FileNotFoundError(
            f"no results at {', '.join(map(str, missing))}; give folders that `jaxwrap evaluate` wrote"
        )
    found = []
    for results in read_task_results(folders):
        modes = [score.mode for score in results.coded if score.mode != REMOTE_MODE]
        if not modes:
            continue
        mode = max(dict.fromkeys(modes), key=modes.count)
        settings = {Setting(s.codec, s.config) for s in results.coded if (s.mode, s.method) == (mode, "sse")}
        anchor = next((s for name in CODECS["avc"] for s in sorted(settings) if s.codec == name), None)
        draws = draw_curves(results)
        found.append(Ours(results, draws, tuple(task_table(results, draws)), mode, anchor))
    if not found:
        raise ValueError(
            f"no scores of a feature wrapper in {', '.join(map(str, folders))}; wanted folders of `jaxwrap evaluate "
            "--task … --run FCM`, with scores.csv"
        )
    return found


def shown_beside(ours: Sequence[Ours]) -> Group:
    """Tables 1 and 2, what the paper claims, seconds, and how the conditions differ."""
    return Group(
        _table_1(ours), *_without_counterpart(ours), _claims(ours), _table_2(ours), _seconds(ours), differences(ours)
    )


def _table_1(ours: Sequence[Ours]) -> Table:
    table = Table(title="WA-RDO, table 1: BD-accuracy against AVC under sse [points]", title_justify="left")
    table.add_column("method, codec")
    for one in ours:
        data = one.counterpart
        table.add_column(f"paper: {data.name if data else '—'}", justify="right")
        table.add_column(f"ours: {one.results.title}, {SHORT[one.measure]}", justify="right")
    cells = []
    for one in ours:
        cells += [_number(_published(one.counterpart, WA_REMOTE)), _remote(one)]
    table.add_row("AVC sse, against remote inference", *cells)
    table.add_section()
    for (method, standard), published in WA_TABLE_1.items():
        cells = []
        for one in ours:
            cells += [_number(_published(one.counterpart, published)), _own(one, method, standard)]
        table.add_row(f"{method}, {standard.upper()}", *cells)
    table.add_section()
    for codec, series in _more(ours):
        cells = []
        for one in ours:
            row = one.against_anchor(codec, dataclasses.replace(series, mode=one.mode))
            cells += ["", _figure(row)]
        table.add_row(f"{series.method_label}, {codec}", *cells)
    table.caption = (
        "ours: 95 % interval of a paired bootstrap in brackets; —: not measured, or no figure. "
        "The last rows are not in the paper."
    )
    return table


def _without_counterpart(ours: Sequence[Ours]) -> list[Table]:
    """What the paper has of data that we have nothing like."""
    taken = [one.counterpart for one in ours]
    missing = [data for data in WA_DATA if data not in taken]
    if not missing:
        return []
    table = Table(title="WA-RDO, table 1: data without a counterpart here", title_justify="left")
    table.add_column("method, codec")
    for data in missing:
        table.add_column(data.name, justify="right")
    table.add_row("AVC sse, against remote inference", *(_number(_published(data, WA_REMOTE)) for data in missing))
    for (method, standard), published in WA_TABLE_1.items():
        table.add_row(f"{method}, {standard.upper()}", *(_number(_published(data, published)) for data in missing))
    table.caption = "HiEve's column is lost in the text that we have, but for its first row."
    return [table]


def _claims(ours: Sequence[Ours]) -> Table:
    """A codec generation: weighted HEVC against VVC under sse, weighted AVC against HEVC under sse."""
    table = Table(
        title="The paper's claim, a codec generation closed: against sse of the later codec", title_justify="left"
    )
    for name in ("data", "series", "against"):
        table.add_column(name)
    for name in ("BD-accuracy [points]", "BD-rate on feature SNR [%]"):
        table.add_column(name, justify="right")
    for one in ours:
        for earlier, later in (("hevc", "vvc"), ("avc", "hevc")):
            for codec, series in _weighted(one, CODECS[earlier]):
                for other in CODECS[later]:
                    accuracy = one.row(one.measure, "reference", codec, series, other)
                    features = one.row("feature_snr", "reference", codec, series, other)
                    if accuracy or features:
                        rate = features.rate if features else None
                        table.add_row(
                            one.results.title,
                            f"{codec}, {series.method_label}",
                            f"{other}, sse",
                            _figure(accuracy),
                            f"{bd_text(rate, 1)} ({bounds_text(rate)})",
                        )
    table.caption = "The paper: HEVC with WA reaches VVC under sse, AVC with WA reaches HEVC under sse (figure 5)."
    return table


def _table_2(ours: Sequence[Ours]) -> Table:
    table = Table(title="WA-RDO, table 2: sketches of a map, AVC", title_justify="left")
    for name in ("sketches", "paper: BD-mAP, SFU", "paper: s, CPU", "paper: s, CPU + GPU"):
        table.add_column(name, justify="right")
    for one in ours:
        table.add_column(f"ours: {one.results.title}, {SHORT[one.measure]}", justify="right")
        table.add_column("ours: s, map + encoder", justify="right")
    of_number = [_by_sketches(one) for one in ours]
    published = {column.number: column for column in WA_TABLE_2}
    for number in sorted({*published, *(n for found in of_number for n in found)}):
        column = published.get(number)
        cells = ["", "", ""] if column is None else [f"{v:.2f}" for v in (column.bd_map, column.cpu_s, column.gpu_s)]
        for one, found in zip(ours, of_number, strict=True):
            series = found.get(number)
            row = None if series is None or one.anchor is None else one.against_anchor(one.anchor.codec, series)
            seconds = None if series is None or one.anchor is None else _spent(one, one.anchor, series)
            cells += [_figure(row), "—" if seconds is None else f"{seconds:.2f}"]
        table.add_row(str(number), *cells)
    return table


def _seconds(ours: Sequence[Ours]) -> Table:
    """Seconds per picture, and in per cent of VVC's as the paper gives them."""
    table = Table(title="Seconds per picture at the sender (WA-RDO, figure 6)", title_justify="left")
    for name in ("data", "codec", "method"):
        table.add_column(name)
    for name in ("map", "method", "wrapper", "encode", "over sse", "against VVC under sse"):
        table.add_column(name, justify="right")
    for one in ours:
        lines = [line for line in runtimes_of(one.results.points) if line.series.mode == one.mode]
        later = next(
            (
                line
                for name in CODECS["vvc"]
                for line in lines
                if (line.setting.codec, line.series.method) == (name, "sse")
            ),
            None,
        )
        for line in lines:
            parts = [_number(v, 3) for v in (line.map_s, line.method_s, line.wrapper_s, line.encode_s)]
            known = later is not None and later.spent and line.spent is not None
            share = (
                f"{100 * (line.spent / later.spent - 1):+.0f} %"
                if known and line.spent and later and later.spent
                else "—"
            )
            table.add_row(
                one.results.title, line.setting.codec, line.series.method_label, *parts, _number(line.ratio), share
            )
    told = ", ".join(f"{codec.upper()} {share:+.0f} %" for codec, share in WA_TIME_AGAINST_VVC.items())
    table.caption = f"The paper, its methods without a map per frame against VVC under sse: {told}."
    return table


def differences(ours: Sequence[Ours]) -> Text:
    """How our conditions differ from the paper's, a line each."""
    points = [point for one in ours for point in one.results.points]
    networks = ", ".join(sorted({point.network for point in points if point.network})) or "not told"
    modes = ", ".join(dict.fromkeys(one.mode for one in ours))
    versions = ", ".join(sorted({f"{p.codec} {p.codec_version}" for p in points if p.mode != "local"}))
    qps = ", ".join(f"{qp:g}" for qp in sorted({p.qp for p in points if p.mode != "local"}))
    data = "; ".join(_data_line(one) for one in ours)
    anchors = ", ".join(sorted({one.anchor.codec if one.anchor else "none (AVC not measured)" for one in ours}))
    truth = "; ".join(
        f"{one.results.title}: {'the network on the originals' if one.results.is_pseudo else 'annotations'}"
        for one in ours
    )
    configs = ", ".join(sorted({p.config for p in points if p.mode != "local"}))
    remote = ", ".join(sorted({p.codec for p in points if p.mode == REMOTE_MODE})) or "not measured"
    resolved = "; ".join(
        f"{one.results.title} {half:.2f} points of {SHORT[one.measure]}"
        for one in ours
        if (half := resolution(one.rows, one.measure)) is not None
    )
    lines = {
        "data": (", ".join(column.name for column in WA_DATA), data),
        "truth": ("annotations", truth),
        "network": ("those of FCM's test conditions (larger detectors and trackers)", networks),
        "wrapper, split": ("FCTM v7.0's own wrappers, one per task", f"{modes}, trained here (see its notes)"),
        "anchor": ("FCTM with JM 19.1 under sse", f"the same wrapper under sse with {anchors}"),
        "codecs": ("JM 19.1 high profile, HM 18.0 main-RExt, FCTM v7.0 with VVC", versions),
        "configuration": ("FCM common test conditions", configs),
        "QPs": ("FCM common test conditions", qps),
        "remote inference": ("VVC", remote),
        "sketches, α": ("4 sketches; α not stated", _options(points)),
        "map of fwa": ("mean over 3000 pictures of OIv6", "of the wrapper's training pictures (see its notes)"),
        "decisions": ("partition and RDOQ", _decisions(points)),
        "intervals": ("none given", f"what our data resolve: {resolved or 'not known'}"),
        "machine": ("Xeon Platinum 8462Y, one thread; RTX 2080", "see manifest.json; seconds are not comparable"),
    }  # fmt: skip
    text = Text("How the conditions differ\n", style="bold")
    for name, (theirs, here) in lines.items():
        text.append(f"  {name}: ", style="bold")
        text.append(f"paper: {theirs}. Ours: {here}.\n", style="not bold")
    return text


def _data_line(one: Ours) -> str:
    sequences = {point.sequence: point.frames for point in one.results.points}
    pictures = sum(sequences.values())
    units = f"{len(sequences)} videos of {pictures} pictures together" if one.is_video else f"{pictures} pictures"
    return f"{one.results.title} ({units})"


def _options(points: Sequence[Point]) -> str:
    found = set()
    for point in points:
        options = json.loads(point.method_options)
        if point.method == "wa" and "sketches" in options:
            found.add(f"{options['sketches']} sketches, α = {options.get('alpha', 'default')}")
    return ", ".join(sorted(found)) or "wa not measured"


def _decisions(points: Sequence[Point]) -> str:
    only = sorted({p.method for p in points if "only:" in p.method})
    return "all that the patches reach (README of codecs/hm)" + (f"; also {', '.join(only)}" if only else "")


def _published(data: DataSet | None, row: Sequence[float | None]) -> float | None:
    return None if data is None else row[WA_DATA.index(data)]


def _number(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _figure(row: BdRow | None) -> str:
    if row is None or row.quality is None:
        return "—"
    return f"{bd_text(row.quality, 2)} ({bounds_text(row.quality, 2)}){' †' if row.quality.is_weak else ''}"


def _remote(one: Ours) -> str:
    """AVC under sse against remote inference with the latest codec that was measured."""
    if one.anchor is None:
        return "—"
    for name in (*CODECS["vvc"], *CODECS["hevc"], *CODECS["avc"]):
        row = one.row(one.measure, "remote", one.anchor.codec, Series(one.mode), name)
        if row is not None:
            return f"{_figure(row)}, {name}"
    return "—"


def _own(one: Ours, method: str, standard: str) -> str:
    for codec in CODECS[standard]:
        for _, series in _series(one, codec):
            if (series.method, series.lambda_scale) == (method, 1.0) and not _is_other_sketches(one, series):
                row = one.against_anchor(codec, series)
                if row is not None:
                    return f"{_figure(row)}" + ("" if codec == CODECS[standard][0] else f", {codec}")
    return "—"


def _series(one: Ours, codec: str) -> Iterator[tuple[str, Series]]:
    """Series of a codec with the wrapper, once each."""
    for series in dict.fromkeys(row.series for row in one.rows if row.setting.codec == codec):
        if series.mode == one.mode:
            yield codec, series


def _weighted(one: Ours, codecs: Sequence[str]) -> list[tuple[str, Series]]:
    """Series but sse and controls."""
    return [
        (codec, series)
        for name in codecs
        for codec, series in _series(one, name)
        if series.method != "sse" and not series.is_control and series.lambda_scale == 1
    ]


def _more(ours: Sequence[Ours]) -> list[tuple[str, Series]]:
    """Codecs and series that the paper does not have."""
    known = {(method, codec) for method, standard in WA_TABLE_1 for codec in CODECS[standard]}
    found: dict[tuple[str, str, str], tuple[str, Series]] = {}
    for one in ours:
        for codec in (name for names in CODECS.values() for name in names):
            for _, series in _series(one, codec):
                is_plain = series.method == "sse" or series.is_control or series.lambda_scale != 1
                if (series.method, codec) not in known and not is_plain:
                    place = codec, series.method, series.method_options
                    found.setdefault(place, (codec, series))
    return list(found.values())


def _by_sketches(one: Ours) -> Mapping[int, Series]:
    """Number of sketches → series of wa with the anchor's codec."""
    if one.anchor is None:
        return {}
    found = {}
    for _, series in _series(one, one.anchor.codec):
        options = json.loads(series.method_options)
        if series.method == "wa" and series.lambda_scale == 1 and isinstance(options.get("sketches"), int):
            found[options["sketches"]] = series
    return found


def _is_other_sketches(one: Ours, series: Series) -> bool:
    """Whether another series is the same with the paper's 4 sketches."""
    options = json.loads(series.method_options)
    wanted = [n for n in _by_sketches(one) if n == 4]
    return bool(wanted) and series.method == "wa" and options.get("sketches") != 4


def _spent(one: Ours, setting: Setting, series: Series) -> float | None:
    chosen = [
        point
        for point in one.results.points
        if (point.codec, point.config, point.mode) == (*setting, series.mode)
        and (point.method, point.method_options) == (series.method, series.method_options)
    ]
    seconds = [
        (point.encode_s + (point.method_s or 0.0)) / point.frames for point in chosen if point.encode_s is not None
    ]
    return float(np.mean(seconds)) if seconds else None
