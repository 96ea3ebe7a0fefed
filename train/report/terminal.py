"""The BD tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from jaxwrap.train.report.bd import LOW_OVERLAP, MIN_INSIDE, BdRow
from jaxwrap.train.report.curves import ACCURACIES
from jaxwrap.train.report.texts import SHORT, bd_text, bounds_text, comparison_text, overlap_text, time_text

_TITLES = {
    "receiver_snr": "BD-rate in receiver SNR (negative: fewer bits at equal quality of what the receiver makes)",
    "psnr_yuv": "BD-rate in YUV-PSNR 6:1:1 (negative: fewer bits at equal quality)",
    "feature_snr": "BD-rate in feature SNR (negative: fewer bits at equal quality of the network's features)",
}

_PRINTED_SCORES = ("ap", "mask_ap", "mota")
"""The score that each task is judged by; the report has the others too."""


def bd_rich_table(rows: Sequence[BdRow]) -> Group:
    """BD-rates, and BD-accuracies of tasks, each with what it rests on: a table per quality. Rows that rest on little,
    and controls, are dimmed.

    What is compared in receiver SNR is left to the report in YUV-PSNR.
    """
    compared = {_compared(row) for row in rows if row.measure == "receiver_snr"}
    shown = [row for row in rows if row.measure == "receiver_snr" or _compared(row) not in compared]
    shown = [row for row in shown if row.measure not in ACCURACIES or row.measure in _PRINTED_SCORES]
    groups = list(dict.fromkeys((row.task, row.measure) for row in shown)) or [("", "psnr_yuv")]
    return Group(*(_table(*group, [row for row in shown if (row.task, row.measure) == group]) for group in groups))


def _compared(row: BdRow) -> tuple[object, ...]:
    return row.comparison, row.setting, row.series, row.anchor_setting, row.anchor.mode


def _table(task: str, measure: str, rows: Sequence[BdRow]) -> Table:
    by_score = measure in ACCURACIES
    title = f"BD-accuracy in points of {SHORT[measure]} (positive: better)" if by_score else _TITLES[measure]
    table = Table(title=f"{task}: {title}" if task else title, title_justify="left")
    for name in ("codec", "mode", "against"):
        table.add_column(name)
    figures = ("BD-accuracy", "BD-rate %") if by_score else ("BD-rate %", "BD dB")
    for name in (figures[0], "95 % interval", "overlap", figures[1], "time", "units" if by_score else "sequences"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        group = (row.setting, comparison_text(row))
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        first, second = (row.quality, row.rate) if by_score else (row.rate, row.quality)
        is_dim = first is None or first.is_weak or row.series.is_control
        num_left_out = 0 if by_score else len(row.left_out)
        table.add_row(
            row.setting.codec,
            row.series.label,
            _anchor_text(row),
            bd_text(first, 2 if by_score else 1),
            bounds_text(first, 2 if by_score else 1),
            overlap_text(first),
            bd_text(second, 1 if by_score else 2),
            time_text(row),
            f"{row.num_sequences}" + (f" of {row.num_sequences + num_left_out}" if num_left_out else ""),
            style="dim" if is_dim else "bold" if row.series.method == "front" else None,
        )
    table.caption = (
        "overlap: common part of the curves' qualities, and measured points inside. "
        f"† below {LOW_OVERLAP:.0%} or {MIN_INSIDE} points: rests on little. time: encoding, over the anchor's."
    )
    if any(row.series.method == "front" for row in rows):
        table.caption += " Fronts include the codec alone."
    reasons = list(dict.fromkeys(reason for row in rows for _, reason in row.left_out))
    for reason in reasons[:3]:
        table.caption += f"\nNo figure: {reason}."
    if len(reasons) > 3:
        table.caption += f"\nNo figure, {len(reasons) - 3} other reasons: see the report."
    return table


def _anchor_text(row: BdRow) -> str:
    if row.comparison in ("generation", "reference"):
        return f"{row.anchor_setting.codec} + sse"
    if row.comparison == "remote":
        return f"remote, {row.anchor_setting.codec}"
    if row.comparison == "best_lambda":
        return f"sse, λ × {row.anchor.lambda_scale:.3g}"
    return f"{row.anchor.label} + sse" if row.comparison == "method" else row.anchor.label
