"""The self-contained report: one HTML file with its figures inside, readable without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxwrap.codec import quantiser_step
from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.evaluate.points import Point, read_points
from jaxwrap.train.report.allocation import Spent, bit_difference_figure, bits_figure, importance_figure
from jaxwrap.train.report.bd import LOW_OVERLAP, MIN_INSIDE, BdRow, bd_table
from jaxwrap.train.report.curves import (
    FRONT_ALL,
    LOCAL_MODE,
    QUALITIES,
    Curves,
    Series,
    Setting,
    curves_of,
    fronts_of,
    is_of_a_task,
    winners,
)
from jaxwrap.train.report.figures import panels_of_codecs, panels_of_modes, rd_figure, sequences_figure
from jaxwrap.train.report.page import embedded, render_page
from jaxwrap.train.report.resampling import draw_curves
from jaxwrap.train.report.task_bd import task_table
from jaxwrap.train.report.task_html import shown_task
from jaxwrap.train.report.task_results import read_task_results
from jaxwrap.train.report.texts import (
    SHORT,
    bd_text,
    bounds_text,
    comparison_text,
    left_out_lines,
    overlap_text,
    time_text,
)

_BESIDE = {"receiver_snr": "psnr_yuv", "psnr_yuv": "ms_ssim"}
"""Quality whose BD-rate is shown beside that of a table's own."""


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
    """Writes the report on results (CSV files or folders of sweeps) to ``out``, and returns the rows of its BD tables:
    of tasks in feature SNR and in their scores; of pixels in receiver SNR, where it was measured, then in YUV-PSNR.

    ``manifest.json``, ``failed.json`` and ``pictures.npz`` beside the first results are shown where present. Raises as
    `read_results`, `bd_table` and `draw_curves`; the output is written under a temporary name first.
    """
    points = read_results(results)
    folder = _csv_of(results[0]).parent
    tasks = [(task, draw_curves(task)) for task in read_task_results(results)]
    of_tasks = [(task, draws, task_table(task, draws)) for task, draws in tasks]
    pixels = [point for point in points if not is_of_a_task(point.mode)]
    of_pixels = [row for measure in ("receiver_snr", "psnr_yuv") for row in bd_table(pixels, measure)]
    coded = [point for point in points if point.mode != LOCAL_MODE]
    manifest = _read_json(folder / "manifest.json") or {}
    page = render_page(
        "report.html.jinja",
        title=", ".join(sorted({point.dataset for point in points})),
        points=points,
        sequences=list(dict.fromkeys(point.sequence for point in points)),
        codecs=list(dict.fromkeys(f"{point.codec} ({point.codec_version})" for point in coded)),
        qps=sorted({point.qp for point in coded}),
        unverified=sum(not point.verified for point in coded),
        tasks=[shown_task(*one) for one in of_tasks],
        pixels=_pixels(pixels, of_pixels) if pixels else None,
        low_overlap=LOW_OVERLAP,
        min_inside=MIN_INSIDE,
        pictures=_pictures(folder / "pictures.npz"),
        timings=_timings(pixels),
        failures=_read_json(folder / "failed.json") or [],
        versions=manifest.get("versions", {}),
        machine=manifest.get("machine", {}),
        run=manifest.get("run") or {},
        configuration=json.dumps(manifest.get("configuration", {}), indent=1),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode())
    return [row for _, _, rows in of_tasks for row in rows] + of_pixels


def _pixels(points: Sequence[Point], rows: Sequence[BdRow]) -> dict[str, Any]:
    """What is shown of modes that give pixels."""
    curves, fronts = curves_of(points), fronts_of(points)
    received = panels_of_modes(curves_of(points, "receiver_snr"))
    label = QUALITIES["psnr_yuv"][0]
    return {
        "rd": embedded(rd_figure(panels_of_codecs(curves), label)),
        "received": embedded(rd_figure(received, QUALITIES["receiver_snr"][0])) if received else None,
        "every_sequence": _sequences(curves, fronts, label),
        "tables": _tables(rows, points),
        "left_out": left_out_lines(rows),
        "choices": _choices(points),
    }


def _tables(rows: Sequence[BdRow], points: Sequence[Point]) -> list[dict[str, Any]]:
    """One table per quality, codec and comparison."""
    beside = {measure: {_compared(row): row for row in bd_table(points, other)} for measure, other in _BESIDE.items()}
    tables: dict[tuple[str, Setting, str], list[dict[str, Any]]] = {}
    for row in rows:
        other = beside[row.measure].get(_compared(row))
        tables.setdefault((row.measure, row.setting, comparison_text(row)), []).append(
            {
                "name": row.series.label,
                "is_front": row.series.method == "front",
                "is_control": row.series.is_control,
                "options": "" if row.series.method_options == "{}" else row.series.method_options,
                "rate": bd_text(row.rate, 1),
                "is_gain": row.rate is not None and row.rate.interval.mean < 0,
                "bounds": bounds_text(row.rate),
                "rate_overlap": overlap_text(row.rate),
                "quality": bd_text(row.quality, 2),
                "quality_overlap": overlap_text(row.quality),
                "beside": bd_text(other.rate if other else None, 1),
                "beside_overlap": overlap_text(other.rate if other else None),
                "time": time_text(row),
                "is_low": row.rate is not None and row.rate.is_weak,
                "num_sequences": row.num_sequences,
                "num_left_out": len(row.left_out),
            }
        )
    return [
        {
            "quality": SHORT[measure],
            "beside": SHORT[_BESIDE[measure]],
            "codec": setting.codec,
            "config": setting.config,
            "comparison": comparison,
            "rows": members,
        }
        for (measure, setting, comparison), members in tables.items()
    ]


def _compared(row: BdRow) -> tuple[Any, ...]:
    return row.setting, row.series, row.anchor_setting, row.anchor


def _sequences(curves: Curves, fronts: Curves, label: str) -> list[dict[str, Any]]:
    """Small multiples per codec."""
    figures = []
    for setting, series in curves.items():
        front = fronts.get(setting, {}).get(Series(FRONT_ALL, "front"), {})
        image, left_out = sequences_figure(series, front, label)
        figures.append(
            {"codec": setting.codec, "config": setting.config, "image": embedded(image), "left_out": left_out}
        )
    return figures


def _choices(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The mode that wins at each rate, per codec and sequence."""
    choices = []
    for setting, series in fronts_of(points).items():
        for sequence, curve in series.get(Series(FRONT_ALL, "front"), {}).items():
            runs = [{"mode": mode, "low": f"{low:.3g}", "high": f"{high:.3g}"} for mode, low, high in winners(curve)]
            choices.append({"codec": setting.codec, "sequence": sequence, "runs": runs})
    return choices


def _pictures(path: Path) -> dict[str, Any] | None:
    """Importance and bit pictures, from what the sweep kept (`jaxwrap.train.evaluate.pictures`)."""
    if not path.is_file():
        return None
    with np.load(path) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"]))
    shown = [
        _pictures_of(codec, mode, arrays, f"{about['sequence']}, {mode}, {codec} at QP {about['qp']:g}")
        for codec, mode in about["codecs"]
    ]
    return {"codecs": shown, **_counted(arrays, about)}


def _pictures_of(codec: str, mode: str, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """Maps of one codec, and its bit differences where it told its coding units."""
    methods = _methods_of(arrays, f"{codec}/bits/")
    spent = [
        Spent(name, units, arrays.get(f"{codec}/weights/{name}"))
        for name in methods
        if (units := arrays.get(f"{codec}/units/{name}")) is not None
    ]
    difference, problem = None, None
    if len(spent) > 1 and spent[0].method == "sse":
        title = f"Bits of coding units per 16×16 luma samples: {where}"
        try:
            difference = embedded(bit_difference_figure(arrays[f"{codec}/coded"], spent[0], spent[1:], title))
        except ValueError as error:
            problem = str(error)
    maps = [
        {"method": name, "image": embedded(importance_figure(arrays["source"], weights, f"Weights of {name}: {where}"))}
        for name in methods
        if difference is None and (weights := arrays.get(f"{codec}/weights/{name}")) is not None
    ]
    real_bits = [{"method": name, "bits": int(arrays[f"{codec}/bits/{name}"][0])} for name in methods]
    return {
        "codec": codec,
        "mode": mode,
        "maps": maps,
        "difference": difference,
        "problem": problem,
        "real_bits": real_bits,
    }


def _counted(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
    """Where a JPEG would spend its bits on what the first codec decoded: for codecs that tell no coding units."""
    (codec, mode), *_ = about["codecs"]
    decoded = {name: arrays[f"{codec}/decoded/{name}"] for name in _methods_of(arrays, f"{codec}/decoded/")}
    step = quantiser_step(about["qp"], BIT_DEPTH)
    if not decoded:
        return {"counted": None, "step": f"{step:.1f}"}
    title = (
        "Bits per 8×8 block of the decoded luma, counted as a JPEG would (not the encoder's own bits): "
        f"{about['sequence']}, {mode}, {codec} at QP {about['qp']:g}"
    )
    return {"counted": embedded(bits_figure(decoded, step, title)), "step": f"{step:.1f}"}


def _methods_of(arrays: Mapping[str, np.ndarray], prefix: str) -> list[str]:
    """Names of methods that have an array of this kind, sse first."""
    return sorted((name.removeprefix(prefix) for name in arrays if name.startswith(prefix)), key=lambda n: n != "sse")


def _timings(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Mean milliseconds per frame of each codec, mode and method at the encoder's own λ."""
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        if point.lambda_scale == 1:
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
