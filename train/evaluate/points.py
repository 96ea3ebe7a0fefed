"""The results row: one rate-distortion point of one clip, and the CSV files that hold them.

A cell is empty where nothing was measured. Floats are written so that reading gives the same float back.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxwrap.codecs.files import write_atomically


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One row of ``results.csv``; the fields are its columns, in their order.

    ``bits`` counts everything that a decoder needs: the stream with its ``header_bits`` (parameter sets), the method's
    side information, and ``mode_bits`` for telling the mode. ``kbps`` = bits · fps / (1000 · frames); ``bpp`` is per
    pixel of the original. Qualities are in dB, but ``ms_ssim`` in [0, 1]. Seconds are wall time of the whole clip,
    without compilation; ``encode_s`` of an encoder that is a program is its processor time; ``wrapper_s`` is pre- and
    post-processor (of features: reduction and restoration, without the network), ``method_s`` the plan, ``map_s`` the
    part of it that made an encoder's weights. ``lambda_scale`` multiplies the encoder's own λ.
    ``receiver_snr`` is what coding alone costs the receiver, 10 log₁₀(‖r(z)‖²_M / ‖r(ẑ) − r(z)‖²_M) over the clip, z
    the samples before the method; empty where no network looks at them, or nothing was lost. ``feature_snr`` is what a
    network's features lose on the whole way, 10 log₁₀(‖y‖²_M / ‖ŷ − y‖²_M), y being its own and ŷ those behind the
    codec; ``network`` is its name. ``ap`` … ``hota``: scores of its task, of data sets only. PSNR is empty where no
    picture is decoded.
    ``method_options`` is JSON. ``verified``: an independent decoder reproduced the encoder's reconstruction.
    """

    key: str
    dataset: str
    sequence: str
    codec: str
    codec_version: str
    config: str
    mode: str
    method: str
    method_options: str
    lambda_scale: float
    seed: int
    qp: float
    frames: int
    bits: int
    header_bits: int
    kbps: float
    bpp: float
    psnr_y: float | None = None
    psnr_yuv: float | None = None
    ms_ssim: float | None = None
    receiver_snr: float | None = None
    ap: float | None = None
    ap50: float | None = None
    mask_ap: float | None = None
    mota: float | None = None
    idf1: float | None = None
    hota: float | None = None
    encode_s: float | None = None
    map_s: float | None = None
    method_s: float | None = None
    decode_s: float | None = None
    wrapper_s: float | None = None
    verified: bool = False
    mode_bits: int = 0
    feature_snr: float | None = None
    network: str = ""


COLUMNS = tuple(field.name for field in dataclasses.fields(Point))

LATER = ("feature_snr", "network")
"""Columns that files of earlier versions lack; they are read as if these were empty."""

NAMES = ("key", "dataset", "sequence", "mode", "seed")
"""Columns that name a row and that its figures do not depend on: rows that differ in nothing else share what was
measured. (What a mode computes, and the seed where a method draws, are in the measurement's key.)"""

MEASUREMENT_VERSION = 2
"""Part of every measurement's key. Raise it by one with every change to this source code after which the same
settings give other figures: in resampling or the arithmetic of networks, in a method, in how an encoder is driven or
its bits counted, in a metric, or in what a column means. Not for wording, speed, or new settings, options and
parameters, which are in the key themselves. Forgetting it lets a sweep take outdated rows from the cache; raising it
without need costs encoding all again."""

TIMINGS = ("encode_s", "map_s", "method_s", "decode_s", "wrapper_s")
"""Columns that differ between two measurements of the same point."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values have equal text, on every platform."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def measurement_of(point: Point) -> dict[str, Any]:
    """What was measured: a point's columns without `NAMES`."""
    return {name: value for name, value in dataclasses.asdict(point).items() if name not in NAMES}


def point_key(settings: Mapping[str, Any]) -> str:
    """Hash of everything that a measurement or a row depends on (settings, content of its inputs, versions).

    32 hexadecimal digits of SHA-256.
    """
    return hashlib.sha256(canonical_json(dict(settings)).encode()).hexdigest()[:32]


def write_points(path: Path, points: Iterable[Point]) -> None:
    """Writes a results CSV (UTF-8, header, LF), by way of a temporary name.

    Raises `OSError` naming the file where the disk is full.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        writer.writerow([_cell(getattr(point, name)) for name in COLUMNS])
    write_atomically(path, text.getvalue().encode())


def read_points(path: Path) -> list[Point]:
    """Reads a results CSV; columns that `Point` does not know are left out.

    Raises `FileNotFoundError`, or `ValueError` where the file is no CSV, has no row, lacks a column, or holds a cell of
    another type (file, line, column and text are named).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}; give a results.csv, or a folder that `jaxwrap evaluate` wrote")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if missing := [name for name in COLUMNS if name not in (*header, *LATER)]:
                listed = (
                    f"lacks the columns {', '.join(missing)}"
                    if len(missing) < len(COLUMNS) - len(LATER)
                    else "is something else"
                )
                raise ValueError(f"{path} {listed}; wanted a results.csv, with the columns {', '.join(COLUMNS)}")
            points = [point_from_cells(row, f"{path}, line {reader.line_num}") for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    if not points:
        raise ValueError(f"{path} has a header but no row; the sweep that writes it found nothing or has not finished")
    return points


def point_from_cells(row: Mapping[str, str | None], where: str) -> Point:
    """A point from the text of its cells. Raises `ValueError` naming ``where`` and every bad cell."""
    values: dict[str, Any] = {}
    bad = []
    for field in dataclasses.fields(Point):
        if field.name in LATER and field.name not in row:
            continue
        text = row.get(field.name)
        try:
            values[field.name] = _parse(str(field.type), text)
        except ValueError:
            bad.append(f"{field.name} = {text!r} (wanted {field.type})")
    if bad:
        raise ValueError(f"{where}: {'; '.join(bad)}")
    return Point(**values)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _parse(kind: str, text: str | None) -> Any:
    if text is None:
        raise ValueError("the row is too short")
    if kind.endswith("| None"):
        if text == "":
            return None
        kind = kind.removesuffix("| None").strip()
    if kind == "str":
        return text
    if kind == "bool":
        return {"True": True, "False": False}[text] if text in ("True", "False") else _refuse(text)
    if kind == "int":
        return int(text)
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
