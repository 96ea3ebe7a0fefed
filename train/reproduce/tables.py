"""Results of an experiment condensed into the small files that a notebook ships with.

``NAME_scores.csv``: pooled rows of every data set, a results CSV whose ``dataset`` names the truth too.
``NAME_bd.csv``: the BD rows of the report, with their intervals (`BD_COLUMNS`).
``NAME_pictures.npz``: the first picture as it was coded, its coding units and weights (half floats) by method, without
the picture itself (`jaxwrap.train.evaluate.pictures`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.points import write_points
from jaxwrap.train.report.bd import BdMean, BdRow
from jaxwrap.train.reproduce.wa import Ours

BD_COLUMNS = (
    "task", "measure", "comparison", "codec", "config", "mode", "method", "method_options", "lambda_scale",
    "anchor_codec", "anchor_mode", "anchor_method", "anchor_lambda_scale",
    "rate", "rate_low", "rate_high", "rate_overlap", "rate_inside",
    "quality", "quality_low", "quality_high", "quality_overlap", "quality_inside",
    "time_ratio", "units", "left_out", "reason",
)  # fmt: skip
"""``rate``: BD-rate in per cent; ``quality``: BD-accuracy in points, or BD in dB; ``low`` and ``high``: 95 % interval;
``units``: pictures, videos or pieces that it is over; ``reason``: why a figure is missing, of the first left out."""


def write_tables(ours: Sequence[Ours], folders: Sequence[Path], out: Path, name: str = "fcm") -> list[Path]:
    """Writes the files into ``out`` and returns them; pictures are those of the first folder that has any."""
    out.mkdir(parents=True, exist_ok=True)
    scores = [dataclasses.replace(s, dataset=one.results.title) for one in ours for s in one.results.scores]
    paths = [out / f"{name}_scores.csv", out / f"{name}_bd.csv"]
    write_points(paths[0], scores)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(BD_COLUMNS)
    writer.writerows(_cells(row) for one in ours for row in one.rows)
    write_atomically(paths[1], text.getvalue().encode())
    pictures = next((folder / "pictures.npz" for folder in folders if (folder / "pictures.npz").is_file()), None)
    if pictures is not None:
        with np.load(pictures) as archive:
            kept = {key: archive[key] for key in archive.files if key != "source" and "/decoded/" not in key}
        kept = {key: array.astype(np.float16) if "/weights/" in key else array for key, array in kept.items()}
        content = io.BytesIO()
        np.savez_compressed(content, **kept)
        paths.append(out / f"{name}_pictures.npz")
        write_atomically(paths[-1], content.getvalue())
    return paths


def _cells(row: BdRow) -> list[object]:
    series, anchor = row.series, row.anchor
    return [
        row.task, row.measure, row.comparison, *row.setting, series.mode, series.method, series.method_options,
        series.lambda_scale, row.anchor_setting.codec, anchor.mode, anchor.method, anchor.lambda_scale,
        *_figures(row.rate), *_figures(row.quality), _short(row.time_ratio), row.num_sequences, len(row.left_out),
        row.left_out[0][1] if row.left_out else "",
    ]  # fmt: skip


def _figures(mean: BdMean | None) -> list[object]:
    if mean is None:
        return ["", "", "", "", ""]
    interval = mean.interval
    return [*(_short(v) for v in (interval.mean, interval.low, interval.high, mean.overlap)), mean.num_inside]


def _short(value: float | None) -> object:
    return "" if value is None else round(value, 4)
