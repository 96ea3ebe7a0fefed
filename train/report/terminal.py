"""The BD table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jaxwrap.train.report.curves import BdRow
from jaxwrap.train.report.html import LOW_OVERLAP, bounds, percent


def bd_rich_table(rows: Sequence[BdRow]) -> Table:
    """BD-rate, its interval and what it rests on; rows of low overlap are dimmed and marked."""
    table = Table(title="BD-rate in YUV-PSNR 6:1:1 (negative: fewer bits at equal quality)", title_justify="left")
    for name, justify in (("codec", "left"), ("mode", "left"), ("against", "left"), ("BD-rate %", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("95 % interval", "BD-PSNR dB", "overlap", "points", "sequences"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        group = (row.setting, row.anchor)
        if previous is not None and group != previous:
            table.add_section()
        previous = group
        low = row.overlap is None or row.overlap < LOW_OVERLAP
        table.add_row(
            row.setting.codec,
            row.series.label,
            row.anchor.label,
            percent(row.rate),
            bounds(row.rate),
            "—" if row.quality is None else f"{row.quality.mean:+.2f}".replace("-", "−"),
            "—" if row.overlap is None else f"{row.overlap:.0%}{' †' if low else ''}",
            str(row.num_points or "—"),
            f"{row.rate.num_sequences if row.rate else 0}" + (f" of {_total(row)}" if row.left_out else ""),
            style="dim" if low else "bold" if row.series.method == "front" else None,
        )
    table.caption = (
        f"† overlap below {LOW_OVERLAP:.0%}: rests on a small part of the curves. Fronts include the codec alone."
    )
    return table


def _total(row: BdRow) -> int:
    return (row.rate.num_sequences if row.rate else 0) + len(row.left_out)
