"""From the points of `jaxwrap bench rdo` to its tables: BD-rates with intervals, and encoder times.

A *series* is a method (``sse``, ``wa``, …) at a scale of λ; a *curve* is what it gives for one receiver, encoder,
preset and configuration: (bits, quality) of every picture at every QP. BD-rates are per picture, then a mean with a
bootstrap interval over pictures. A picture whose curves allow none is counted as left out, in every comparison.

Plain SSE at the scale of λ that suits it best is found on the pictures that are reported: this favours the anchor.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from jaxwrap.codecs.files import write_atomically
from jaxwrap.metrics.bjontegaard import Interval, bd_rate, bootstrap_mean
from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.report.bd import LOW_OVERLAP

SSE = "sse"
CONTROLS = ("shuffle", "only:")
"""Stages by which a series is a control or an ablation: it tells why, and is no way to code."""
GENERATIONS = ("jm", "hm", "vvenc", "vtm")
"""Reference encoders, from the older standard to the newer, and within one from the lesser to the greater effort."""

FEW = 4
"""With fewer pictures the bootstrap interval is their range: more than 2.5 % of resamples repeat a single one."""

Quality = Literal["receiver_snr", "psnr_yuv"]


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What the tables need of a point, and where in them it belongs; the fields are the columns of ``points.csv``.

    ``preset`` is the encoder's (empty: its default), ``series`` the method's name in the tables, ``encode_s`` the
    encoder's own seconds; the rest is as in results rows. Floats are rounded, so that a file of them stays small.
    """

    receiver: str
    config: str
    preset: str
    codec: str
    series: str
    lambda_scale: float
    sequence: str
    qp: float
    bits: int
    receiver_snr: float
    psnr_yuv: float
    encode_s: float

    @classmethod
    def of(cls, point: Point, receiver: str, preset: str, series: str) -> Measured:
        """A point of a sweep. Raises `ValueError` where it has no receiver SNR."""
        if point.receiver_snr is None or point.psnr_yuv is None:
            raise ValueError(f"{point.sequence}, {series}, QP {point.qp:g}: no receiver SNR, for the receiver gives 0")
        figures = (point.receiver_snr, point.psnr_yuv, point.encode_s or 0.0)
        return cls(
            receiver, point.config, preset, point.codec, series, round(point.lambda_scale, 4), point.sequence,
            point.qp, point.bits, *(round(figure, 4) for figure in figures),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Place:
    """What two curves have in common when they are compared within one encoder."""

    receiver: str
    config: str
    preset: str
    codec: str


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """A method by its name in the tables, and the scale of λ."""

    name: str
    lambda_scale: float = 1.0

    @property
    def is_control(self) -> bool:
        """Whether it is there for comparison only: one of `CONTROLS`, or another λ."""
        return self.lambda_scale != 1.0 or any(stage in self.name for stage in CONTROLS)

    def __str__(self) -> str:
        return self.name if self.lambda_scale == 1.0 else f"{self.name}, λ × {self.lambda_scale:.3g}"


Curve = dict[str, list[Measured]]
"""By picture, the points in the order of their QPs."""


class Curves:
    """All curves of a list of points, by place and series; points that are there twice count once."""

    def __init__(self, measured: Iterable[Measured]) -> None:
        self._points: dict[tuple[Place, Series], dict[str, dict[float, Measured]]] = {}
        for m in measured:
            key = Place(m.receiver, m.config, m.preset, m.codec), Series(m.series, m.lambda_scale)
            self._points.setdefault(key, {}).setdefault(m.sequence, {})[m.qp] = m

    @property
    def places(self) -> list[Place]:
        """In the order in which they came."""
        return list(dict.fromkeys(place for place, _ in self._points))

    def series(self, place: Place) -> list[Series]:
        """Those of a place, in the order in which they came."""
        return [series for where, series in self._points if where == place]

    def curve(self, place: Place, series: Series) -> Curve:
        """By picture. Raises `KeyError` where there is none."""
        found = self._points[place, series]
        return {name: [points[qp] for qp in sorted(points)] for name, points in found.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """BD-rate [%] of a test curve against an anchor, over ``interval.num_sequences`` pictures; ``left_out`` others
    allowed none. ``overlap``: qualities that both curves of a picture reach, as a fraction of those that they span
    together; the least of all pictures.
    ``interval`` and ``overlap`` are None where no picture has a BD-rate."""

    interval: Interval | None
    left_out: int
    overlap: float | None = None

    @property
    def is_worse(self) -> bool:
        """Whether the whole interval says that the test curve needs more rate."""
        return self.interval is not None and self.interval.low is not None and self.interval.low > 0

    def __str__(self) -> str:
        i = self.interval
        if i is None:
            return "—"
        weak = " †" if self.overlap is not None and self.overlap < LOW_OVERLAP else ""
        return f"{i.mean:+.1f} %" + ("" if i.low is None else f" ({i.low:+.1f} … {i.high:+.1f})") + weak


def compare(anchor: Curve, test: Curve, quality: Quality = "receiver_snr") -> Comparison:
    """BD-rate per picture that both have, and its mean over them."""
    found, left_out = [], 0
    for name in anchor.keys() & test.keys():
        sides = [
            ([p.bits for p in curve[name]], [getattr(p, quality) for p in curve[name]]) for curve in (anchor, test)
        ]
        try:
            found.append(bd_rate(*sides[0], *sides[1]))
        except ValueError:
            left_out += 1
    if not found:
        return Comparison(None, left_out)
    return Comparison(bootstrap_mean(sorted(one.value for one in found)), left_out, min(one.overlap for one in found))


def time_ratio(anchor: Curve, test: Curve) -> float | None:
    """Encoder seconds of the test curve over those of the anchor; None unless both are of the same pictures and QPs."""
    seconds = [{(n, p.qp): p.encode_s for n, points in c.items() for p in points} for c in (anchor, test)]
    if seconds[0].keys() != seconds[1].keys() or not all(all(side.values()) for side in seconds):
        return None
    a, b = (sum(side.values()) for side in seconds)
    return b / a


def best_sse(curves: Curves, place: Place) -> Series | None:
    """The scale of λ at which plain SSE needs the least rate, or None without an anchor."""
    anchor = Series(SSE)
    scales = [series for series in curves.series(place) if series.name == SSE]
    if anchor not in scales:
        return None

    def mean(series: Series) -> float:
        if series == anchor:
            return 0.0
        found = compare(curves.curve(place, anchor), curves.curve(place, series)).interval
        return np.inf if found is None else found.mean

    return min(scales, key=mean)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One comparison of the tables: a series of a place against one of the same encoder, or of another."""

    place: Place
    series: Series
    anchor_codec: str
    anchor: Series
    against: Literal["own sse", "own best sse", "later codec"]
    snr: Comparison
    psnr: Comparison
    time: float | None


def rows_of(curves: Curves) -> list[Row]:
    """Every series against its own encoder's SSE, at λ as it is and at its best scale; and those that are no
    controls against the SSE of every later one of `GENERATIONS`."""
    rows = []
    for place in curves.places:
        best = best_sse(curves, place)
        if best is None:
            continue
        for series in curves.series(place):
            if series != Series(SSE):
                rows.append(_row(curves, place, series, place, Series(SSE), "own sse"))
            if series != best:
                rows.append(_row(curves, place, series, place, best, "own best sse"))
        for other in curves.places:
            alike = dataclasses.replace(other, codec=place.codec) == place
            if alike and _is_later(other.codec, place.codec) and Series(SSE) in curves.series(other):
                rows += [
                    _row(curves, place, series, other, Series(SSE), "later codec")
                    for series in curves.series(place)
                    if not series.is_control
                ]
    return rows


def _is_later(codec: str, than: str) -> bool:
    return {codec, than} <= {*GENERATIONS} and GENERATIONS.index(codec) > GENERATIONS.index(than)


def _row(curves: Curves, place: Place, series: Series, where: Place, anchor: Series, against: Any) -> Row:
    a, b = curves.curve(where, anchor), curves.curve(place, series)
    time = time_ratio(a, b) if where == place else None
    return Row(place, series, where.codec, anchor, against, compare(a, b), compare(a, b, "psnr_yuv"), time)


ROW_COLUMNS = (
    "receiver", "config", "preset", "codec", "series", "lambda_scale", "against", "anchor_codec", "anchor_lambda_scale",
    "bd_rate", "low", "high", "pictures", "left_out", "overlap",
    "bd_rate_psnr", "psnr_low", "psnr_high", "encoder_time",
)  # fmt: skip


def row_cells(row: Row) -> dict[str, Any]:
    """A row of the tables' CSV: `ROW_COLUMNS`; BD-rates in percent on receiver SNR, then on PSNR-YUV."""
    snr, psnr = row.snr.interval, row.psnr.interval
    return dict(
        zip(
            ROW_COLUMNS,
            (
                row.place.receiver, row.place.config, row.place.preset, row.place.codec, row.series.name,
                row.series.lambda_scale, row.against, row.anchor_codec, row.anchor.lambda_scale,
                *_figures(snr), 0 if snr is None else snr.num_sequences, row.snr.left_out,
                None if row.snr.overlap is None else round(row.snr.overlap, 3), *_figures(psnr),
                None if row.time is None else round(row.time, 3),
            ),
            strict=True,
        )
    )  # fmt: skip


def _figures(interval: Interval | None) -> list[float | None]:
    found = (None,) * 3 if interval is None else (interval.mean, interval.low, interval.high)
    return [None if value is None else round(value, 3) for value in found]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The tables as one CSV, columns `ROW_COLUMNS`."""
    _write_csv(path, ROW_COLUMNS, (list(row_cells(row).values()) for row in rows))


def write_measured(path: Path, measured: Iterable[Measured]) -> None:
    """Points as a CSV, columns as the fields of `Measured`."""
    names = [field.name for field in dataclasses.fields(Measured)]
    _write_csv(path, names, ([getattr(m, name) for name in names] for m in measured))


def read_measured(path: Path) -> list[Measured]:
    """Reads what `write_measured` wrote. Raises `ValueError` naming columns that are missing, or the line of a bad
    cell."""
    kinds = {
        field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in dataclasses.fields(Measured)
    }
    measured = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in kinds if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; wanted points of `jaxwrap bench rdo`")
        for row in reader:
            try:
                measured.append(Measured(**{name: kind(row[name]) for name, kind in kinds.items()}))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return measured


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    write_atomically(path, text.getvalue().encode())


def own_table(rows: Sequence[Row], place: Place) -> Table:
    """The series of one receiver and encoder against its own SSE."""
    named = " ".join(filter(None, (place.codec, place.preset, place.config)))
    table = Table(title=f"{place.receiver}, {named}: BD-rate", title_justify="left")
    own = {row.series: row for row in rows if row.place == place and row.against == "own sse"}
    best = {row.series: row for row in rows if row.place == place and row.against == "own best sse"}
    anchors = {row.anchor for row in best.values()}
    best_name = next((str(anchor) for anchor in anchors if anchor != Series(SSE)), None)
    table.add_column("series")
    against_best = [f"against {best_name}"] if best_name else []
    for column in ("receiver SNR, against sse", *against_best, "PSNR-YUV, against sse", "encoder"):
        table.add_column(column, justify="right")
    for series, row in own.items():
        at_best = best.get(series)
        cells = [str(row.snr), str(row.psnr), "—" if row.time is None else f"× {row.time:.2f}"]
        if best_name:
            cells.insert(1, "" if at_best is None else str(at_best.snr))
        is_worse = at_best is not None and at_best.snr.is_worse
        table.add_row(str(series), *cells, style="red" if is_worse else None)
    table.caption = caption([*own.values(), *best.values()])
    return table


def generation_table(rows: Sequence[Row]) -> Table | None:
    """Encoders against the SSE of later ones (JM-weighted against HM-SSE, HM-weighted against VTM-SSE: the claim of
    WA-RDO), or None where no two were measured alike."""
    chosen = [row for row in rows if row.against == "later codec"]
    if not chosen:
        return None
    table = Table(
        title="Against a later encoder's SSE: BD-rate on receiver SNR, the gap that remains", title_justify="left"
    )
    for column in ("receiver", "series", "against"):
        table.add_column(column)
    table.add_column("BD-rate", justify="right")
    for row in chosen:
        where = ", ".join(filter(None, (row.place.receiver, row.place.config, row.place.preset)))
        table.add_row(where, f"{row.place.codec} {row.series}", f"{row.anchor_codec} {row.anchor}", str(row.snr))
    table.caption = caption(chosen)
    return table


def caption(rows: Sequence[Row]) -> str:
    """How many pictures the figures rest on."""
    counts = sorted({row.snr.interval.num_sequences for row in rows if row.snr.interval is not None})
    left_out = max((row.snr.left_out for row in rows), default=0)
    noun = "picture" if counts == [1] else "pictures"
    text = f"{' or '.join(map(str, counts)) or 'no'} {noun}, 95 % bootstrap interval"
    if counts and counts[0] < FEW:
        text += f" (of fewer than {FEW}: no more than their range)"
    if any("†" in f"{row.snr}{row.psnr}" for row in rows):
        text += f"; † some curves share less than {LOW_OVERLAP:.0%} of their qualities"
    return text + (f"; up to {left_out} left out (curves not monotone or without overlap)" if left_out else "")


def verdict_lines(rows: Sequence[Row]) -> list[str]:
    """The aim, checked at the encoder's own λ: which weighted methods are worse than SSE at its own best λ, beyond
    their interval; the largest gain at each receiver; the largest encoder time. Controls do not count, nor does a worse
    figure of fewer than `FEW` pictures, whose interval is their range."""
    weighted = [row for row in rows if row.series.name != SSE and not row.series.is_control]
    at_best = [row for row in weighted if row.against == "own best sse"]
    judged = [row for row in at_best if row.snr.interval is not None and row.snr.interval.num_sequences >= FEW]
    worse = [row for row in judged if row.snr.is_worse]
    lines = [
        f"worse than SSE at its own best λ, beyond the interval: {len(worse)} of {len(judged)} comparisons over "
        f"{FEW} pictures or more" + (": " if worse else "") + "; ".join(f"{_where(row)} {row.snr}" for row in worse)
    ]
    never = {row.series.name for row in judged} - {row.series.name for row in worse}
    lines.append(f"never worse: {', '.join(sorted(never)) or 'none'}")
    for receiver in dict.fromkeys(row.place.receiver for row in at_best):
        gains = [(row.snr.interval.mean, row) for row in at_best if row.place.receiver == receiver and row.snr.interval]
        if gains:
            _, best = min(gains, key=lambda gain: gain[0])
            lines.append(f"largest gain, {receiver}: {_where(best)} {best.snr} against {best.anchor}")
    timed = [row for row in weighted if row.against == "own sse" and row.time is not None]
    if timed:
        slowest = max(timed, key=lambda row: row.time or 0.0)
        lines.append(f"largest encoder time: {_where(slowest)} × {slowest.time:.2f}")
    return lines


def _where(row: Row) -> str:
    place = row.place
    return f"{', '.join(filter(None, (place.receiver, place.codec, place.preset, place.config)))}, {row.series}"
