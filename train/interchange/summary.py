"""Curves as CompressAI-Vision tabulates them.

Its runs write a ``summary.csv`` of one row (repository at commit 31165daf62af4e7fff02b39ba23b39e8c24278b1,
``run/eval_split_inference.py``, ``run/eval_remote_inference.py``), with the columns

* pictures: ``Dataset, qp, avg_bpp, end_accuracy``; video: ``Dataset, fps, num_of_coded_frame, qp, bitrate (kbps),
  end_accuracy``;
* seconds, with the network split: ``nn_part_1, encode, decode, nn_part_2`` (and parts of these, ``encode_video`` …);
  with the video itself coded: ``encode, decode, nn_task``; at the end ``inv_mse`` where it was asked for.

Its script for MPEG's templates (``scripts/metrics/gen_mpeg_cttc_csv.py``) puts such rows together in
``final_DATASET.csv``, with a column of numbers before, and of video without ``fps`` and ``num_of_coded_frame``.

``end_accuracy`` of COCO's evaluation is in per cent, MOTA and AP by other evaluators are fractions, and of the latter
the script makes per cent too. We write AP in per cent and tracking scores as fractions. Rates are of the same
definition on both sides, but ours count every bit of a frame itself where theirs share a file's bytes evenly, and our
seconds of encoding are the processor's.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jaxwrap.train.evaluate.points import Point

Accuracy = Literal["ap", "ap50", "mask_ap", "mota", "idf1", "hota"]
Rate = Literal["bpp", "kbps"]

RATE_COLUMNS: dict[Rate, str] = {"bpp": "avg_bpp", "kbps": "bitrate (kbps)"}

_IN_PERCENT = ("ap", "ap50", "mask_ap")

# What one curve has one of.
_CURVE = ("codec", "config", "mode", "method", "method_options", "lambda_scale", "seed", "network")


@dataclasses.dataclass(frozen=True, slots=True)
class SummaryRow:
    """A row of ``summary.csv`` or ``final_DATASET.csv``; ``accuracy`` as it stands there. ``others``: the other columns
    that hold numbers (seconds, ``inv_mse``)."""

    dataset: str
    qp: float
    rate: float
    unit: Rate
    accuracy: float
    fps: float | None
    frames: int | None
    others: dict[str, float]


def summary_rows(points: Iterable[Point], *, accuracy: Accuracy, rate: Rate) -> str:
    """One curve as CSV text, its rows sorted by data set and QP.

    ``rate``: ``"bpp"`` for pictures, ``"kbps"`` for video. ``Dataset`` is the sequence, or the data set of rows about
    all its sequences. Seconds that were not measured are empty. Raises `ValueError` for no points, points of more than
    one curve (what differs is listed), and points without that accuracy.
    """
    chosen = sorted(points, key=lambda point: (_dataset(point), point.qp))
    _check(chosen, accuracy)
    columns = ["Dataset", "qp", RATE_COLUMNS[rate], "end_accuracy"]
    if rate == "kbps":
        columns[1:1] = ["fps", "num_of_coded_frame"]
    split = chosen[0].mode.startswith("fcm-")
    columns += ["nn_part_1", "encode", "decode", "nn_part_2"] if split else ["encode", "decode", "nn_task"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for point in chosen:
        score = getattr(point, accuracy)
        writer.writerow(
            {
                "Dataset": _dataset(point),
                "fps": _number(point.kbps * 1000 * point.frames / point.bits) if point.bits else "",
                "num_of_coded_frame": point.frames,
                "qp": _number(point.qp),
                RATE_COLUMNS["bpp"]: repr(point.bpp),
                RATE_COLUMNS["kbps"]: repr(point.kbps),
                "end_accuracy": repr(100 * score if accuracy in _IN_PERCENT else score),
                "encode": "" if point.encode_s is None else repr(point.encode_s),
                "decode": "" if point.decode_s is None else repr(point.decode_s),
            }
        )
    return text.getvalue()


def read_summary(path: Path) -> list[SummaryRow]:
    """Reads a ``summary.csv`` or ``final_DATASET.csv``, of CompressAI-Vision's or our making.

    Raises `ValueError` naming file, line and column of what is missing or no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            units: list[Rate] = [unit for unit, column in RATE_COLUMNS.items() if column in header]
            lacking = [column for column in ("Dataset", "qp", "end_accuracy") if column not in header]
            if lacking or len(units) != 1:
                raise ValueError(
                    f"{path} is no summary of CompressAI-Vision's: wanted the columns Dataset, qp, end_accuracy and "
                    f"{' or '.join(RATE_COLUMNS.values())}; it has {', '.join(header) or 'none'}"
                )
            return [_row(cells, units[0], f"{path}, line {reader.line_num}") for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error})") from error


def _row(cells: dict[str, str | None], unit: Rate, where: str) -> SummaryRow:
    values: dict[str, float] = {}
    bad = []
    for column, text in cells.items():
        if column in ("Dataset", "", None):  # pandas leaves the head of its own numbers empty
            continue
        try:
            values[column] = float(text) if text else math.nan
        except (TypeError, ValueError):
            bad.append(f"{column} = {text!r}")
    needed = ("qp", RATE_COLUMNS[unit], "end_accuracy")
    bad += [f"{column} is empty" for column in needed if math.isnan(values.get(column, 0.0))]
    if bad:
        raise ValueError(f"{where}: {'; '.join(bad)}; wanted numbers")
    values = {column: value for column, value in values.items() if not math.isnan(value)}
    frames = values.pop("num_of_coded_frame", None)
    return SummaryRow(
        dataset=cells["Dataset"] or "",
        qp=values.pop("qp"),
        rate=values.pop(RATE_COLUMNS[unit]),
        unit=unit,
        accuracy=values.pop("end_accuracy"),
        fps=values.pop("fps", None),
        frames=None if frames is None else int(frames),
        others=values,
    )


def _check(points: Sequence[Point], accuracy: Accuracy) -> None:
    if not points:
        raise ValueError("no points were given; a summary has at least one row")
    differing = [name for name in _CURVE if len({getattr(point, name) for point in points}) > 1]
    if differing:
        listed = ", ".join(f"{n} ({', '.join(sorted({str(getattr(p, n)) for p in points}))})" for n in differing)
        raise ValueError(f"the points are of more than one curve: they differ in {listed}; write a summary for each")
    if without := [f"{_dataset(point)} at QP {point.qp:g}" for point in points if getattr(point, accuracy) is None]:
        raise ValueError(f"these points have no {accuracy}: {', '.join(without)}")


def _dataset(point: Point) -> str:
    return point.dataset if point.sequence == "(all)" else point.sequence


def _number(value: float) -> str:
    """Whole numbers as such, which a rate's rounding may have left by a hair."""
    rounded = round(value, 6)
    return str(int(rounded)) if rounded == int(rounded) else repr(rounded)
