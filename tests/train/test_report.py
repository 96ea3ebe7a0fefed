"""The BD table against closed forms, and the page: complete, self-contained, and clear about what it could not show."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxwrap.train.evaluate.points import Point, write_points
from jaxwrap.train.report.curves import BdRow, Series, bd_table, curves_of, fronts_of, mean_curve, winners
from jaxwrap.train.report.figures import block_bits
from jaxwrap.train.report.html import write_report
from jaxwrap.train.report.terminal import bd_rich_table

QPS = (22, 27, 32, 37, 42, 47)
PIXELS = 10**6


def point(
    sequence: str, mode: str, qp: int, bits: float, psnr: float, *, method: str = "sse", codec: str = "x265"
) -> Point:
    return Point(
        key=f"{sequence}/{mode}/{method}/{qp}/{codec}",
        dataset="test",
        sequence=sequence,
        codec=codec,
        codec_version="1",
        config="intra",
        mode=mode,
        method=method,
        method_options="{}",
        lambda_scale=1.0,
        seed=0,
        qp=float(qp),
        frames=1,
        bits=round(bits),
        header_bits=100,
        kbps=bits / 40,
        bpp=round(bits) / PIXELS,
        psnr_y=psnr,
        psnr_yuv=psnr,
        ms_ssim=1 - 10 ** (-psnr / 20),
        encode_s=0.5,
        method_s=0.0,
        wrapper_s=0.1,
        verified=True,
        mode_bits=0 if mode == "codec" else 4,
    )


def anchor_bits(qp: int, sequence: str) -> float:
    return {"a": 4e6, "b": 9e6, "c": 2e6}[sequence] * 2 ** (-(qp - 22) / 5)


def psnr_at(bits: float) -> float:
    return 6.0 * float(np.log2(bits / 1e4))


def rows_of(mode: str, factors: dict[str, float], *, shift: float = 0.0, **options: str) -> list[Point]:
    """Rows whose curve lies at ``factor`` times the anchor's bits at equal PSNR."""
    rows = []
    for sequence, factor in factors.items():
        for qp in QPS:
            bits = anchor_bits(qp, sequence)
            rows.append(point(sequence, mode, qp, factor * bits * 2**shift, psnr_at(bits * 2**shift), **options))
    return rows


CODEC = rows_of("codec", {"a": 1.0, "b": 1.0, "c": 1.0})


def test_bd_rates_of_shifted_curves_are_their_factors_with_the_mean_over_sequences() -> None:
    points = [*CODEC, *rows_of("wrapper-1/2", {"a": 0.9, "b": 0.8, "c": 1.1})]
    row = bd_table(points)[0]
    assert row.series == Series("wrapper-1/2")
    assert row.rate is not None
    interval = row.rate.interval
    assert interval.mean == pytest.approx((-10 - 20 + 10) / 3, abs=1e-3)
    assert interval.num_sequences == 3
    assert interval.low is not None
    assert interval.high is not None
    assert -20 <= interval.low < interval.mean < interval.high <= 10.01
    assert row.quality is not None
    assert row.quality.interval.mean == pytest.approx(-6 * np.log2([0.9, 0.8, 1.1]).mean(), abs=1e-3)
    assert (row.rate.overlap, row.rate.num_inside, row.left_out) == (pytest.approx(1.0), 6, ())
    # Rates 0.8 times the anchor's: log rates from 0.8 to 1 of 2^5 are not common; one point of each lies outside.
    assert row.quality.overlap == pytest.approx((5 + np.log2(0.8)) / (5 - np.log2(0.8)), abs=1e-4)
    assert row.quality.num_inside == 5


def test_a_bd_figure_that_rests_on_few_points_or_a_short_interval_is_weak() -> None:
    def row_of(shift: float) -> BdRow:
        points = [*CODEC, *rows_of("wrapper-1/2", {"a": 1.0}, shift=shift)]
        return next(row for row in bd_table(points) if row.series.mode == "wrapper-1/2")

    # The anchor spans 5 octaves, a point in each; shifting by s octaves leaves 5 − s of 5 + s common.
    weak = {shift: row_of(shift).rate for shift in (1.5, 1.7, 2.5)}
    found = {shift: (rate.num_inside, rate.is_weak) for shift, rate in weak.items() if rate}
    assert found == {1.5: (4, False), 1.7: (4, True), 2.5: (3, True)}
    assert dataclasses.replace(weak[1.5], num_inside=2).is_weak  # type: ignore[type-var]


def test_a_method_is_compared_first_with_sse_in_its_own_mode() -> None:
    points = [*CODEC, *rows_of("bilinear-1/2", {"a": 1.2}), *rows_of("wrapper-1/2", {"a": 0.9})]
    points += rows_of("wrapper-1/2", {"a": 0.81}, method="dqp") + rows_of("wrapper-1/4", {"a": 0.7}, method="dqp")
    first, second, *_ = rows = bd_table(points)
    assert (first.series, first.anchor) == (Series("wrapper-1/2", "dqp"), Series("wrapper-1/2"))
    assert first.rate is not None
    assert first.rate.interval.mean == pytest.approx(-10, abs=1e-3)
    assert first.is_of_method
    assert second.anchor == Series("codec")
    assert [row.is_of_method for row in rows].count(True) == 1  # nothing under sse in wrapper-1/4


def test_fronts_of_families_are_under_sse_and_the_front_of_all_is_not() -> None:
    points = [*CODEC, *rows_of("post-1/2", {"a": 0.95}), *rows_of("wrapper-1/2", {"a": 0.9})]
    without = fronts_of(points)
    points += rows_of("wrapper-1/2", {"a": 0.8}, method="refine")
    (before,), (after,) = without.values(), fronts_of(points).values()
    names = ["post + codec", "wrapper + codec", "post + wrapper + codec", "all modes and methods"]
    assert [series.mode for series in before] == [series.mode for series in after] == names
    for series in list(before)[:3]:
        for sequence, curve in before[series].items():
            assert (curve.rate == after[series][sequence].rate).all()
    both = after[Series("post + wrapper + codec", "front")]["a"]
    assert set(both.modes) == {"wrapper-1/2"}
    assert set(after[Series("all modes and methods", "front")]["a"].modes) == {"wrapper-1/2 + refine"}


def test_neural_modes_are_compared_with_linear_resampling_at_their_own_ratio_only() -> None:
    modes = {"bilinear-1/2": 1.2, "lanczos4-2/3": 1.1, "post-1/2": 1.08, "wrapper-1/4": 0.9}
    points = CODEC + [row for mode, factor in modes.items() for row in rows_of(mode, {"a": factor})]
    against_linear = {
        (row.series.label, row.anchor.label): row.rate.interval.mean
        for row in bd_table(points)
        if row.anchor.mode != "codec" and row.rate
    }
    assert against_linear == {("post-1/2", "bilinear-1/2"): pytest.approx(100 * (1.08 / 1.2 - 1), abs=1e-3)}


def test_a_front_over_crossing_modes_takes_the_better_at_every_rate() -> None:
    # Below the crossing the small mode needs half the bits, above it twice: line of another slope in log rate.
    small = []
    for qp in QPS:
        bits = anchor_bits(qp, "a")
        small.append(point("a", "wrapper-1/2", qp, bits / 4, psnr_at(bits) - 6.0 - 0.45 * (42 - qp)))
    points = [p for p in CODEC if p.sequence == "a"] + small
    fronts = fronts_of(points)
    (front,) = next(iter(fronts.values()))[Series("all modes and methods", "front")].values()
    assert [mode for mode, _, _ in winners(front)] == ["wrapper-1/2", "codec"]
    table = {row.series.label: row for row in bd_table(points)}
    gain = table["all modes and methods"].rate
    assert gain is not None
    assert gain.interval.mean < 0
    assert table["wrapper + codec"].rate == gain
    assert (np.diff(front.quality) > 0).all()


def test_the_codec_alone_pays_for_the_choice_where_it_is_one() -> None:
    points = [p for p in CODEC if p.sequence == "a"] + rows_of("post-1/2", {"a": 50.0})
    (front,) = next(iter(fronts_of(points).values()))[Series("post + codec", "front")].values()
    assert front.rate == pytest.approx([(p.bits + 4) / PIXELS for p in reversed(points[:6])])


def test_a_sequence_without_a_bd_figure_is_left_out_with_its_reason() -> None:
    points = [*CODEC, *rows_of("post-1/2", {"a": 0.9}), *rows_of("post-1/2", {"b": 0.9})[:4]]
    points += rows_of("post-1/2", {"c": 1.0}, shift=40.0)
    row = next(row for row in bd_table(points) if row.series.mode == "post-1/2")
    assert row.rate is not None
    assert row.num_sequences == 1
    assert row.rate.interval.low is None
    reasons = dict(row.left_out)
    assert "4 points" in reasons["b"]
    assert "share no quality" in reasons["c"]


def test_the_terminal_says_why_a_figure_is_missing() -> None:
    few = [p for p in rows_of("codec", {"a": 1.0}) + rows_of("post-1/2", {"a": 0.9}) if p.qp in QPS[:3]]
    caption = str(bd_rich_table(bd_table(few)).caption)
    assert "No figure: anchor curve has 3 points; a BD figure wants at least 5: add QPs." in caption


def test_means_over_sequences_take_the_qps_that_all_have() -> None:
    curves = curves_of([p for p in CODEC if (p.sequence, p.qp) != ("a", 22.0) and p.sequence != "c"])
    (series,) = curves.values()
    rate, _ = mean_curve(series[Series("codec")])
    wanted = [(anchor_bits(qp, "a") + anchor_bits(qp, "b")) / 2 / PIXELS for qp in QPS[:0:-1]]
    assert rate == pytest.approx(wanted, rel=1e-4)


def test_two_measurements_of_one_point_are_refused() -> None:
    with pytest.raises(ValueError, match="measured twice"):
        curves_of([*CODEC, dataclasses.replace(CODEC[0], key="other", bits=1)])
    with pytest.raises(ValueError, match="known: psnr_yuv, psnr_y, ms_ssim"):
        curves_of(CODEC, "vmaf")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.images: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            head, _, data = str(values["src"]).partition(",")
            assert head == "data:image/png;base64"
            self.images.append(base64.b64decode(data))
        self.links += [str(values[name]) for name in ("href", "src") if name in values and tag != "img"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_every_mode_picture_and_failure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = [*CODEC, *rows_of("bilinear-1/2", {"a": 1.2, "b": 1.1, "c": 1.3})]
    points += rows_of("wrapper-1/2", {"a": 0.9, "b": 0.8, "c": 1.1}) + rows_of("wrapper-1/2", {"a": 0.85}, method="dqp")
    points += rows_of("codec", {"a": 1.3}, codec="x264")
    folder = tmp_path / "sweep"
    folder.mkdir()
    write_points(folder / "results.csv", points)
    (folder / "manifest.json").write_text(
        json.dumps({"configuration": {"qps": [22]}, "versions": {"jax": "0.10"}, "machine": {}, "run": None})
    )
    failure = {"sequence": "d<e>", "codec": "x264", "mode": "codec", "method": "sse", "qp": 22.0, "error": "no stream"}
    (folder / "failed.json").write_text(json.dumps([failure]))
    pictures = {
        "about": np.array(json.dumps({"sequence": "a", "codec": "x265", "mode": "wrapper-1/2", "qp": 32.0})),
        "source": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "weights/dqp": rng.uniform(0.2, 2, (24, 32)).astype(np.float32),
    }
    for name in ("dqp", "sse"):
        pictures[f"decoded/{name}"] = rng.integers(0, 1024, (24, 32), np.uint16)
        pictures[f"bits/{name}"] = np.array([12345, 12349])
    np.savez(folder / "pictures.npz", **pictures)  # type: ignore[arg-type]

    out = tmp_path / "new" / "report.html"
    rows = write_report([folder], out)
    page = out.read_text()
    assert len(page) < 5_000_000
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.links == []  # nothing is fetched
    assert len(tags.images) == 4
    for image in tags.images:
        with Image.open(io.BytesIO(image)) as opened:
            assert opened.format == "PNG"
            assert min(opened.size) > 200
    for text in (
        "bilinear-1/2",
        "wrapper-1/2 + dqp",
        "all modes and methods",
        "methods against sse in the same mode",
        "d&lt;e&gt;",
        "no stream",
        "12,345 bits",
        "x264",
        "jax 0.10",
    ):
        assert text in page
    expected = next(row for row in rows if row.series.label == "wrapper-1/2" and row.anchor.mode == "codec")
    assert expected.rate is not None
    assert f"{expected.rate.interval.mean:+.1f}".replace("-", "−") in page
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]

    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(bd_rich_table(rows))
    printed = console.export_text()
    assert all(row.series.label in printed for row in rows)  # nothing is wrapped or cut at 140 columns
    assert re.search(r"x265 +│ wrapper-1/2 \+ dqp +│ wrapper-1/2 \+ sse +│ +−5\.6 │ +— │ +100%, 6 │", printed)
    assert re.search(r"x265 +│ wrapper-1/2 +│ codec +│ +−6\.7", printed)


def test_a_report_needs_no_more_than_a_csv(tmp_path: Path) -> None:
    write_points(tmp_path / "mine.csv", rows_of("codec", {"a": 1.0})[:2])
    assert write_report([tmp_path / "mine.csv", tmp_path / "mine.csv"], tmp_path / "report.html") == []
    assert "2 points: 1 sequence," in (tmp_path / "report.html").read_text()


def test_the_page_says_how_many_points_no_independent_decoder_verified(tmp_path: Path) -> None:
    points = rows_of("codec", {"a": 1.0})
    write_points(tmp_path / "results.csv", points)
    write_report([tmp_path], tmp_path / "report.html")
    assert "Every stream was decoded by an independent decoder" in (tmp_path / "report.html").read_text()
    write_points(
        tmp_path / "results.csv", [*points[:-2], *(dataclasses.replace(p, verified=False) for p in points[-2:])]
    )
    write_report([tmp_path], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "2 of them are not verified by an independent decoder" in page
    assert "Every stream" not in page


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "results.csv").unlink(), "no results at"),
        (lambda folder: (folder / "results.csv").write_text("key,qp\n1,2\n"), "lacks the columns dataset"),
        (lambda folder: (folder / "failed.json").write_text("["), "failed.json is damaged"),
    ],
)
def test_bad_results_are_refused_and_no_page_is_written(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    write_points(tmp_path / "results.csv", CODEC)
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="name at least one"):
        write_report([], tmp_path / "report.html")


def test_block_bits_see_detail_where_it_is() -> None:
    luma = np.full((20, 28), 512, np.uint16)
    luma[8:16, 8:16] += np.random.default_rng(0).integers(0, 200, (8, 8)).astype(np.uint16)
    bits = block_bits(luma, 40.0)
    assert bits.shape == (3, 4)
    assert bits.argmax() == 5
    # A flat mid-grey block: category 0 of DC (2 bits) and end of block (4 bits) in the tables of Annex K.
    assert (np.delete(bits.ravel(), 5) == 6).all()
