"""The BD table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jaxwrap.train.report.curves import LOW_OVERLAP, MIN_INSIDE, BdRow
from jaxwrap.train.report.html import bd_text, bounds_text, comparison_text, overlap_text


def bd_rich_table(rows: Sequence[BdRow]) -> Table:
    """BD-rate and BD-PSNR, each with what it rests on; rows whose BD-rate rests on little are dimmed."""
    table = Table(title="BD-rate in YUV-PSNR 6:1:1 (negative: fewer bits at equal quality)", title_justify="left")
    for name in ("codec", "mode", "against"):
        table.add_column(name)
    for name in ("BD-rate %", "95 % interval", "overlap", "BD-PSNR dB", "overlap", "sequences"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        group = (row.setting, comparison_text(row))
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        is_weak = row.rate is None or row.rate.is_weak
        table.add_row(
            row.setting.codec,
            row.series.label,
            f"{row.anchor.label} + sse" if row.is_of_method else row.anchor.label,
            bd_text(row.rate, 1),
            bounds_text(row.rate),
            overlap_text(row.rate),
            bd_text(row.quality, 2),
            overlap_text(row.quality),
            f"{row.num_sequences}" + (f" of {row.num_sequences + len(row.left_out)}" if row.left_out else ""),
            style="dim" if is_weak else "bold" if row.series.method == "front" else None,
        )
    table.caption = (
        "overlap: common part of the curves (their qualities for BD-rate, log rates for BD-PSNR), and measured points "
        f"inside. † below {LOW_OVERLAP:.0%} or {MIN_INSIDE} points: rests on little. Fronts include the codec alone."
    )
    reasons = list(dict.fromkeys(reason for row in rows for _, reason in row.left_out))
    for reason in reasons[:3]:
        table.caption += f"\nNo figure: {reason}."
    if len(reasons) > 3:
        table.caption += f"\nNo figure, {len(reasons) - 3} other reasons: see the report."
    return table
