"""The BD tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from jaxwrap.train.report.bd import LOW_OVERLAP, MIN_INSIDE, BdRow
from jaxwrap.train.report.html import bd_text, bounds_text, comparison_text, overlap_text, time_text

_TITLES = {
    "receiver_snr": "BD-rate in receiver SNR (negative: fewer bits at equal quality of what the receiver makes)",
    "psnr_yuv": "BD-rate in YUV-PSNR 6:1:1 (negative: fewer bits at equal quality)",
}


def bd_rich_table(rows: Sequence[BdRow]) -> Group:
    """BD-rates, each with what it rests on: a table per quality. Rows that rest on little, and controls, are dimmed.

    What is compared in receiver SNR is left to the report in YUV-PSNR.
    """
    compared = {_compared(row) for row in rows if row.measure == "receiver_snr"}
    shown = [row for row in rows if row.measure == "receiver_snr" or _compared(row) not in compared]
    measures = list(dict.fromkeys(row.measure for row in shown)) or ["psnr_yuv"]
    return Group(*(_table(measure, [row for row in shown if row.measure == measure]) for measure in measures))


def _compared(row: BdRow) -> tuple[object, ...]:
    return row.comparison, row.setting, row.series, row.anchor_setting, row.anchor.mode


def _table(measure: str, rows: Sequence[BdRow]) -> Table:
    table = Table(title=_TITLES[measure], title_justify="left")
    for name in ("codec", "mode", "against"):
        table.add_column(name)
    for name in ("BD-rate %", "95 % interval", "overlap", "BD dB", "time", "sequences"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        group = (row.setting, comparison_text(row))
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        is_dim = row.rate is None or row.rate.is_weak or row.series.is_control
        table.add_row(
            row.setting.codec,
            row.series.label,
            _anchor_text(row),
            bd_text(row.rate, 1),
            bounds_text(row.rate),
            overlap_text(row.rate),
            bd_text(row.quality, 2),
            time_text(row),
            f"{row.num_sequences}" + (f" of {row.num_sequences + len(row.left_out)}" if row.left_out else ""),
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
    if row.comparison == "generation":
        return f"{row.anchor_setting.codec} + sse"
    if row.comparison == "best_lambda":
        return f"sse, λ × {row.anchor.lambda_scale:.3g}"
    return f"{row.anchor.label} + sse" if row.comparison == "method" else row.anchor.label
