"""The words and figures that page and terminal share."""

from __future__ import annotations

from collections.abc import Sequence

from jaxwrap.train.report.bd import BdMean, BdRow

SHORT = {
    "receiver_snr": "receiver SNR",
    "psnr_yuv": "YUV-PSNR",
    "ms_ssim": "MS-SSIM",
    "feature_snr": "feature SNR",
    "ap": "mAP",
    "ap50": "AP at IoU .50",
    "mask_ap": "mask mAP",
    "mota": "MOTA",
    "idf1": "IDF1",
    "hota": "HOTA",
}
"""Names of qualities in tables."""


def bd_text(mean: BdMean | None, digits: int) -> str:
    """``−12.3`` (one digit) or ``—``."""
    return "—" if mean is None else _signed(mean.interval.mean, digits)


def bounds_text(mean: BdMean | None, digits: int = 1) -> str:
    """``−14.0 … −10.1``, or ``—`` where no interval can be given."""
    if mean is None or mean.interval.low is None or mean.interval.high is None:
        return "—"
    return f"{_signed(mean.interval.low, digits)} … {_signed(mean.interval.high, digits)}"


def overlap_text(mean: BdMean | None) -> str:
    """``62%, 4``: overlap and points inside, with a mark where one of them is low."""
    return "—" if mean is None else f"{mean.overlap:.0%}, {mean.num_inside}{' †' if mean.is_weak else ''}"


def time_text(row: BdRow) -> str:
    """``1.03``: seconds of encoding over the anchor's; ``—`` where they were not taken."""
    return "—" if row.time_ratio is None else f"{row.time_ratio:.2f}"


def comparison_text(row: BdRow) -> str:
    """Title of the group of rows that this one belongs to."""
    return {
        "method": "methods against sse in the same mode",
        "best_lambda": f"methods against sse at its own best λ ({row.anchor.label})",
        "mode": f"against {row.anchor.label}",
        "resampling": f"against {row.anchor.label}",
        "generation": f"against {row.anchor_setting.codec} with sse in the same mode",
        "reference": f"against {row.anchor_setting.codec} with sse in the same mode",
        "remote": f"against remote inference, {row.anchor_setting.codec}",
    }[row.comparison]


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if any(c in "123456789" for c in text) else f"{0:.{digits}f}"


def left_out_lines(rows: Sequence[BdRow]) -> list[str]:
    """Why figures are missing, a line each."""
    return [
        f"{SHORT[row.measure]}, {row.setting.codec}, {row.series.label} against {row.anchor_setting.codec}, "
        f"{row.anchor.label}, {sequence}: {reason}"
        for row in rows
        for sequence, reason in row.left_out
    ]
