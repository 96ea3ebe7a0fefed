"""The page's part on tasks: what is shown, as the template takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxwrap.metrics.bjontegaard import percentile_interval
from jaxwrap.train.report.bd import BdRow
from jaxwrap.train.report.curves import ACCURACIES, QUALITIES, Setting
from jaxwrap.train.report.page import embedded
from jaxwrap.train.report.resampling import Draws
from jaxwrap.train.report.runtimes import runtimes_of
from jaxwrap.train.report.task_bd import resolution
from jaxwrap.train.report.task_figures import task_figure
from jaxwrap.train.report.task_results import TaskResults
from jaxwrap.train.report.texts import (
    SHORT,
    bd_text,
    bounds_text,
    comparison_text,
    left_out_lines,
    overlap_text,
    time_text,
)


def shown_task(task: TaskResults, draws: Draws, rows: Sequence[BdRow]) -> dict[str, Any]:
    """What is shown of a task: scores without coding, curves, tables, seconds."""
    measures = [name for name in ACCURACIES if any(getattr(score, name) is not None for score in task.coded)]
    figures = [
        {"quality": SHORT[name], "image": embedded(image)}
        for name in ("feature_snr", *measures)
        if name != "ap50" and (image := task_figure(task, name)) is not None
    ]
    return {
        "name": task.title,
        "num_sequences": len({point.sequence for point in task.points}),
        "num_units": len(draws.units),
        "unit": draws.unit_name,
        "num_draws": max((len(one) for series in draws.curves.values() for one in series.values()), default=0),
        "local": [_local(name, task, draws) for name in measures] if task.local else [],
        "resolutions": [
            {"quality": SHORT[name], "points": f"{half:.2f}"}
            for name in measures
            if (half := resolution(rows, name)) is not None
        ],
        "figures": figures,
        "tables": _task_tables(rows),
        "left_out": left_out_lines(rows),
        "runtimes": [
            {
                "codec": f"{line.setting.codec}, {line.setting.config}",
                "mode": line.series.mode,
                "method": line.series.method_label,
                "seconds": [
                    "" if s is None else f"{s:.3f}" for s in (line.map_s, line.method_s, line.wrapper_s, line.encode_s)
                ],
                "ratio": "" if line.ratio is None else f"{line.ratio:.2f}",
            }
            for line in runtimes_of(task.points)
        ],
    }


def _local(measure: str, task: TaskResults, draws: Draws) -> dict[str, str]:
    assert task.local is not None
    score = QUALITIES[measure][1](task.local)
    drawn = draws.local.get(measure)
    interval = None if score is None or drawn is None else percentile_interval(score, drawn, len(draws.units))
    known = interval is not None and interval.low is not None and interval.high is not None
    bounds = f"{interval.low:.1f} … {interval.high:.1f}" if interval is not None and known else "—"
    return {"quality": SHORT[measure], "score": "—" if score is None else f"{score:.1f}", "bounds": bounds}


def _task_tables(rows: Sequence[BdRow]) -> list[dict[str, Any]]:
    """One table per quality, codec and comparison; of scores, the difference in accuracy comes first."""
    tables: dict[tuple[str, Setting, str], list[dict[str, Any]]] = {}
    for row in rows:
        by_score = row.measure in ACCURACIES
        first, second = (row.quality, row.rate) if by_score else (row.rate, row.quality)
        better = first is not None and (first.interval.mean > 0 if by_score else first.interval.mean < 0)
        tables.setdefault((row.measure, row.setting, comparison_text(row)), []).append(
            {
                "name": row.series.label,
                "is_control": row.series.is_control,
                "options": "" if row.series.method_options == "{}" else row.series.method_options,
                "is_gain": better,
                "first": bd_text(first, 2 if by_score else 1),
                "first_bounds": bounds_text(first, 2 if by_score else 1),
                "first_overlap": overlap_text(first),
                "second": bd_text(second, 1 if by_score else 2),
                "second_bounds": bounds_text(second, 1 if by_score else 2),
                "second_overlap": overlap_text(second),
                "time": time_text(row),
                "is_low": first is None or first.is_weak,
                "num_sequences": row.num_sequences,
                "num_left_out": 0 if by_score else len(row.left_out),
            }
        )
    return [
        {
            "quality": SHORT[measure],
            "by_score": measure in ACCURACIES,
            "codec": setting.codec,
            "config": setting.config,
            "comparison": comparison,
            "rows": members,
        }
        for (measure, setting, comparison), members in tables.items()
    ]
