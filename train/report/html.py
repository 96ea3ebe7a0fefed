"""The self-contained report: one HTML file with its figures inside, readable without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxwrap.codec import quantiser_step
from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.evaluate.points import Point, read_points
from jaxwrap.train.report.curves import (
    FRONT_ALL,
    LOW_OVERLAP,
    MIN_INSIDE,
    QUALITIES,
    BdMean,
    BdRow,
    Series,
    bd_table,
    curves_of,
    fronts_of,
    winners,
)
from jaxwrap.train.report.figures import bits_figure, importance_figure, rd_figure, sequences_figure
from jaxwrap.train.report.page import embedded, render_page


def read_results(results: Sequence[Path]) -> list[Point]:
    """Rows of several results: CSV files, or folders with a ``results.csv``. Equal points are taken once.

    Raises as `jaxwrap.train.evaluate.points.read_points`, and `ValueError` where nothing is given.
    """
    if not results:
        raise ValueError("no results were given; name at least one results.csv or the folder of a sweep")
    points: dict[str, Point] = {}
    for path in results:
        for point in read_points(_csv_of(path)):
            points.setdefault(point.key, point)
    return list(points.values())


def write_report(results: Sequence[Path], out: Path) -> list[BdRow]:
    """Writes the report on results (CSV files or folders of sweeps) to ``out``, and returns its BD table in YUV-PSNR.

    ``manifest.json``, ``failed.json`` and ``pictures.npz`` beside the first results are shown where present. Raises as
    `read_results` and `bd_table`; the output is written under a temporary name first.
    """
    points = read_results(results)
    folder = _csv_of(results[0]).parent
    curves, fronts = curves_of(points), fronts_of(points)
    rows = bd_table(points)
    label = QUALITIES["psnr_yuv"][0]
    every_sequence, left_out = sequences_figure(curves, fronts, label)
    manifest = _read_json(folder / "manifest.json") or {}
    page = render_page(
        "report.html.jinja",
        title=", ".join(sorted({point.dataset for point in points})),
        points=points,
        sequences=list(dict.fromkeys(point.sequence for point in points)),
        codecs=list(dict.fromkeys(f"{point.codec} ({point.codec_version})" for point in points)),
        qps=sorted({point.qp for point in points}),
        unverified=sum(not point.verified for point in points),
        rd=embedded(rd_figure(curves, label)),
        every_sequence=embedded(every_sequence),
        sequences_left_out=left_out,
        tables=_tables(rows, points),
        low_overlap=LOW_OVERLAP,
        min_inside=MIN_INSIDE,
        left_out=_left_out(rows),
        choices=_choices(points),
        pictures=_pictures(folder / "pictures.npz"),
        timings=_timings(points),
        failures=_read_json(folder / "failed.json") or [],
        versions=manifest.get("versions", {}),
        machine=manifest.get("machine", {}),
        run=manifest.get("run") or {},
        configuration=json.dumps(manifest.get("configuration", {}), indent=1),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())
    return rows


def bd_text(mean: BdMean | None, digits: int) -> str:
    """``−12.3`` (one digit) or ``—``."""
    return "—" if mean is None else _signed(mean.interval.mean, digits)


def bounds_text(mean: BdMean | None) -> str:
    """``−14.0 … −10.1``, or ``—`` where no interval can be given."""
    if mean is None or mean.interval.low is None or mean.interval.high is None:
        return "—"
    return f"{_signed(mean.interval.low, 1)} … {_signed(mean.interval.high, 1)}"


def overlap_text(mean: BdMean | None) -> str:
    """``62%, 4``: overlap and points inside, with a mark where one of them is low."""
    return "—" if mean is None else f"{mean.overlap:.0%}, {mean.num_inside}{' †' if mean.is_weak else ''}"


def comparison_text(row: BdRow) -> str:
    """Title of the group of rows that this one belongs to."""
    return "methods against sse in the same mode" if row.is_of_method else f"against {row.anchor.label}"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if any(c in "123456789" for c in text) else f"{0:.{digits}f}"


def _tables(rows: Sequence[BdRow], points: Sequence[Point]) -> list[dict[str, Any]]:
    """One table per codec and anchor, and one for all methods against sse."""
    ms_ssim = {(row.setting, row.series, row.anchor): row for row in bd_table(points, "ms_ssim")}
    tables: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        other = ms_ssim.get((row.setting, row.series, row.anchor))
        tables.setdefault((row.setting, comparison_text(row)), []).append(
            {
                "name": row.series.label,
                "is_front": row.series.method == "front",
                "options": "" if row.series.method_options == "{}" else row.series.method_options,
                "rate": bd_text(row.rate, 1),
                "is_gain": row.rate is not None and row.rate.interval.mean < 0,
                "bounds": bounds_text(row.rate),
                "rate_overlap": overlap_text(row.rate),
                "quality": bd_text(row.quality, 2),
                "quality_overlap": overlap_text(row.quality),
                "ms_ssim": bd_text(other.rate if other else None, 1),
                "ms_ssim_overlap": overlap_text(other.rate if other else None),
                "is_low": row.rate is not None and row.rate.is_weak,
                "num_sequences": row.num_sequences,
                "num_left_out": len(row.left_out),
            }
        )
    return [
        {"codec": setting.codec, "config": setting.config, "comparison": comparison, "rows": members}
        for (setting, comparison), members in tables.items()
    ]


def _left_out(rows: Sequence[BdRow]) -> list[str]:
    return [
        f"{row.setting.codec}, {row.series.label} against {row.anchor.label}, {sequence}: {reason}"
        for row in rows
        for sequence, reason in row.left_out
    ]


def _choices(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The mode that wins at each rate, per codec and sequence."""
    choices = []
    for setting, series in fronts_of(points).items():
        for sequence, curve in series.get(Series(FRONT_ALL, "front"), {}).items():
            runs = [{"mode": mode, "low": f"{low:.3g}", "high": f"{high:.3g}"} for mode, low, high in winners(curve)]
            choices.append({"codec": setting.codec, "sequence": sequence, "runs": runs})
    return choices


def _pictures(path: Path) -> dict[str, Any] | None:
    """Importance and bit pictures, from what the sweep kept."""
    if not path.is_file():
        return None
    with np.load(path) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"]))
    names = [name.partition("/")[2] for name in arrays if name.startswith("decoded/")]
    names.sort(key=lambda name: name != "sse")
    where = f"{about['sequence']}, {about['mode']}, {about['codec']} at QP {about['qp']:g}"
    maps = [
        {
            "method": name,
            "image": embedded(
                importance_figure(arrays["source"], arrays[f"weights/{name}"], f"Weights of {name}: {where}")
            ),
        }
        for name in names
        if f"weights/{name}" in arrays
    ]
    step = quantiser_step(about["qp"], BIT_DEPTH)
    decoded = {name: arrays[f"decoded/{name}"] for name in names}
    title = f"Bits per 8×8 block of the decoded luma, counted as a JPEG would (not the encoder's own bits): {where}"
    return {
        "about": about,
        "maps": maps,
        "bits": embedded(bits_figure(decoded, step, title)),
        "step": f"{step:.1f}",
        "real_bits": [{"method": name, "bits": int(arrays[f"bits/{name}"][0])} for name in names],
    }


def _timings(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Mean milliseconds per frame of each codec, mode and method."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.codec, point.mode, point.method), []).append(point)

    def mean(members: list[Point], column: str) -> str:
        known = [getattr(p, column) / p.frames for p in members if getattr(p, column) is not None]
        return f"{1000 * float(np.mean(known)):.1f}" if known else ""

    columns = ("encode_s", "decode_s", "wrapper_s", "method_s", "map_s")
    return [
        {"codec": codec, "mode": mode, "method": method, **{c: mean(members, c) for c in columns}}
        for (codec, mode, method), members in groups.items()
    ]


def _csv_of(path: Path) -> Path:
    return path / "results.csv" if path.is_dir() else path


def _read_json(path: Path) -> Any:
    """Content of a file that may be absent. Raises `ValueError` where it is there but damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); move it away to report without it") from error
