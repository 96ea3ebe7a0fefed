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
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxwrap.train.evaluate.points import Point, write_points
from jaxwrap.train.report.allocation import Spent, bit_difference_figure, block_bits, spread_bits
from jaxwrap.train.report.bd import BdRow, bd_table
from jaxwrap.train.report.curves import Series, Setting, curves_of, fronts_of, mean_curve, winners
from jaxwrap.train.report.html import write_report
from jaxwrap.train.report.terminal import bd_rich_table

QPS = (22, 27, 32, 37, 42, 47)
PIXELS = 10**6


def point(
    sequence: str,
    mode: str,
    qp: int,
    bits: float,
    psnr: float,
    *,
    method: str = "sse",
    codec: str = "x265",
    lambda_scale: float = 1.0,
    receiver_snr: float | None = None,
    options: str = "{}",
    encode_s: float | None = 0.5,
) -> Point:
    return Point(
        key=f"{sequence}/{mode}/{method}/{options}/{lambda_scale}/{qp}/{codec}",
        dataset="test",
        sequence=sequence,
        codec=codec,
        codec_version="1",
        config="intra",
        mode=mode,
        method=method,
        method_options=options,
        lambda_scale=lambda_scale,
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
        receiver_snr=receiver_snr,
        encode_s=encode_s,
        method_s=0.0,
        wrapper_s=0.1,
        verified=True,
        mode_bits=0 if mode == "codec" else 4,
    )


def anchor_bits(qp: int, sequence: str) -> float:
    return {"a": 4e6, "b": 9e6, "c": 2e6}[sequence] * 2 ** (-(qp - 22) / 5)


def psnr_at(bits: float) -> float:
    return 6.0 * float(np.log2(bits / 1e4))


def rows_of(mode: str, factors: dict[str, float], *, shift: float = 0.0, **options: Any) -> list[Point]:
    """Rows whose curve lies at ``factor`` times the anchor's bits at equal PSNR."""
    rows = []
    for sequence, factor in factors.items():
        for qp in QPS:
            bits = anchor_bits(qp, sequence)
            rows.append(point(sequence, mode, qp, factor * bits * 2**shift, psnr_at(bits * 2**shift), **options))
    return rows


def received(rows: list[Point], factor: float = 1.0) -> list[Point]:
    """The same rows with a receiver SNR, on which they need ``factor`` times the bits again."""
    return [dataclasses.replace(p, receiver_snr=p.psnr_yuv - 20 - 6 * float(np.log2(factor))) for p in rows]


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
    assert first.comparison == "method"
    assert second.anchor == Series("codec")
    assert [row.comparison for row in rows].count("method") == 1  # nothing under sse in wrapper-1/4


def test_controls_come_last_and_methods_are_compared_with_sse_at_the_scale_of_lambda_that_serves_it_best() -> None:
    factors = {"sse": 1.0, "wa+shuffle": 1.02, "wa": 0.95}
    points = [row for method, f in factors.items() for row in rows_of("codec", {"a": f, "b": f}, method=method)]
    for scale, factor in {0.5: 1.01, 2 / 3: 0.98}.items():
        points += rows_of("codec", {"a": factor, "b": factor}, lambda_scale=scale)
    rows = bd_table(points)
    found = [(r.comparison, r.series.label, r.anchor.label, r.series.is_control) for r in rows]
    assert found == [
        ("method", "codec + wa", "codec", False),
        ("method", "codec + wa+shuffle", "codec", True),
        ("method", "codec, λ × 0.5", "codec", True),
        ("method", "codec, λ × 0.667", "codec", True),
        ("best_lambda", "codec + wa", "codec, λ × 0.667", False),
    ]
    rates = [row.rate.interval.mean for row in rows if row.rate]
    assert rates == pytest.approx([-5, 2, 1, -2, 100 * (0.95 / 0.98 - 1)], abs=2e-3)
    # Where the encoder's own λ serves sse best, there is nothing more to compare with.
    own = [p for p in points if p.lambda_scale in (1.0, 0.5)]
    assert {row.comparison for row in bd_table(own)} == {"method"}


def test_other_scales_of_lambda_and_shuffled_weights_take_no_part_in_fronts() -> None:
    points = CODEC + rows_of("wrapper-1/2", {"a": 0.9}) + rows_of("wrapper-1/2", {"a": 0.5}, lambda_scale=0.5)
    points += rows_of("wrapper-1/2", {"a": 0.4}, method="wa+shuffle")
    (fronts,) = fronts_of(points).values()
    assert set(fronts[Series("all modes and methods", "front")]["a"].modes) == {"wrapper-1/2"}


def test_controls_and_other_scales_of_lambda_are_compared_with_sse_alone() -> None:
    modes = {"codec": 1.0, "bilinear-1/2": 1.2, "wrapper-1/2": 0.9}
    points = [row for mode, f in modes.items() for row in rows_of(mode, {"a": f})]
    points += rows_of("codec", {"a": 0.7}, codec="vvenc") + rows_of("wrapper-1/2", {"a": 0.6}, codec="vvenc")
    for scale, method in ((1.0, "wa"), (0.5, "wa"), (0.5, "sse"), (1.0, "wa+shuffle")):
        points += rows_of("wrapper-1/2", {"a": 0.8}, method=method, lambda_scale=scale)
    rows = [row for row in bd_table(points) if row.comparison in ("mode", "resampling", "generation")]
    assert {row.comparison for row in rows} == {"mode", "resampling", "generation"}
    assert {row.series.label for row in rows if row.series.method not in ("sse", "front")} == {"wrapper-1/2 + wa"}
    assert all(row.series.lambda_scale == 1 for row in rows)


def test_receiver_snr_is_compared_within_a_mode_only() -> None:
    points = received(CODEC) + received(rows_of("codec", {"a": 0.9, "b": 0.9}, method="wa"), 0.9)
    points += received(rows_of("wrapper-1/2", {"a": 0.7})) + rows_of("bilinear-1/2", {"a": 1.2})
    (row,) = bd_table(points, "receiver_snr")
    assert (row.series.label, row.anchor.label, row.measure) == ("codec + wa", "codec", "receiver_snr")
    assert row.rate is not None
    assert row.rate.interval.mean == pytest.approx(100 * (0.9 * 0.9 - 1), abs=1e-2)
    assert fronts_of(points, "receiver_snr") == {}


def test_a_codec_is_compared_with_sse_of_the_next_generation_in_the_same_mode() -> None:
    factors = {("jm", "sse"): 1.5, ("jm", "wa"): 1.2, ("hm", "sse"): 1.0, ("hm", "wa"): 0.9}
    factors |= {("vtm", "sse"): 0.8, ("vvenc", "sse"): 0.85, ("x264", "sse"): 2.0}
    points = [r for (c, m), f in factors.items() for r in rows_of("codec", {"a": f, "b": f}, codec=c, method=m)]
    gaps = {
        (row.setting.codec, row.series.method, row.anchor_setting.codec): row.rate.interval.mean
        for row in bd_table(points)
        if row.comparison == "generation" and row.rate and row.anchor == Series("codec")
    }
    wanted = {
        ("jm", "sse", "hm"): 50.0,
        ("jm", "wa", "hm"): 20.0,
        ("hm", "sse", "vtm"): 25.0,
        ("hm", "wa", "vtm"): 12.5,
        ("hm", "sse", "vvenc"): 100 * (1 / 0.85 - 1),
        ("hm", "wa", "vvenc"): 100 * (0.9 / 0.85 - 1),
    }
    assert gaps == pytest.approx(wanted, abs=2e-2)
    lowdelay = [dataclasses.replace(p, config="lowdelay") if p.codec == "hm" else p for p in points]
    assert all(row.comparison != "generation" for row in bd_table(lowdelay))


def test_encoder_time_is_compared_over_equal_sequences_and_qps() -> None:
    points = [dataclasses.replace(p, encode_s=10.0 if p.sequence == "b" else p.qp) for p in CODEC]
    weighted = rows_of("codec", {"a": 0.9, "c": 0.9}, method="wa")
    weighted = [dataclasses.replace(p, encode_s=None if p.qp == 22 else 1.1 * p.qp) for p in weighted if p.qp != 47]
    (row,) = bd_table([*points, *weighted])
    assert row.time_ratio == pytest.approx(1.1)
    untimed = [dataclasses.replace(p, encode_s=None) for p in (*points, *weighted)]
    assert bd_table(untimed)[0].time_ratio is None


def test_series_of_one_method_are_told_apart_by_the_options_that_differ() -> None:
    options = ['{"alpha":0.5,"rows":1}', '{"alpha":0.5,"rows":4}']
    points = CODEC + [r for o in options for r in rows_of("codec", {"a": 0.9}, method="idse", options=o)]
    labels = [series.label for series in curves_of(points)[Setting("x265", "intra")]]
    assert labels == ["codec", "codec + idse (rows 1)", "codec + idse (rows 4)"]
    nested = [r for o in ('{"wa":{"k":1},"dqp":{"b":[1,2]}}', '{"wa":{"k":1}}') for r in rows_of(
        "codec", {"a": 0.9}, method="wa+dqp", options=o)]  # fmt: skip
    assert [s.label for s in curves_of(nested)[Setting("x265", "intra")]] == [
        "codec + wa+dqp (b 1:2)",
        "codec + wa+dqp",
    ]


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


def printed(rows: list[BdRow]) -> str:
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(bd_rich_table(rows))
    return console.export_text()


def test_the_terminal_says_why_a_figure_is_missing() -> None:
    few = [p for p in rows_of("codec", {"a": 1.0}) + rows_of("post-1/2", {"a": 0.9}) if p.qp in QPS[:3]]
    assert "No figure: anchor curve has 3 points; a BD figure wants at least 5: add QPs." in printed(bd_table(few))


def test_means_over_sequences_take_the_qps_that_all_have() -> None:
    curves = curves_of([p for p in CODEC if (p.sequence, p.qp) != ("a", 22.0) and p.sequence != "c"])
    (series,) = curves.values()
    rate, _ = mean_curve(series[Series("codec")])
    wanted = [(anchor_bits(qp, "a") + anchor_bits(qp, "b")) / 2 / PIXELS for qp in QPS[:0:-1]]
    assert rate == pytest.approx(wanted, rel=1e-4)


def test_two_measurements_of_one_point_are_refused() -> None:
    with pytest.raises(ValueError, match="measured twice"):
        curves_of([*CODEC, dataclasses.replace(CODEC[0], key="other", bits=1)])
    with pytest.raises(ValueError, match="known: receiver_snr, psnr_yuv, psnr_y, ms_ssim"):
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
    points[:18] = received(points[:18])
    points += received(rows_of("codec", {"a": 0.9}, method="wa+only:sse"), 1.1)
    folder = tmp_path / "sweep"
    folder.mkdir()
    write_points(folder / "results.csv", points)
    (folder / "manifest.json").write_text(
        json.dumps({"configuration": {"qps": [22]}, "versions": {"jax": "0.10"}, "machine": {}, "run": None})
    )
    failure = {"sequence": "d<e>", "codec": "x264", "mode": "codec", "method": "sse", "qp": 22.0, "error": "no stream"}
    (folder / "failed.json").write_text(json.dumps([failure]))
    about = {"sequence": "a", "qp": 32.0, "codecs": [["x265", "wrapper-1/2"], ["hm", "wrapper-1/2"]]}
    pictures = {
        "about": np.array(json.dumps(about)),
        "source": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "x265/weights/dqp": rng.uniform(0.2, 2, (24, 32)).astype(np.float32),
        "hm/weights/wa": rng.uniform(0.2, 2, (24, 32)).astype(np.float32),
        "hm/coded": rng.integers(0, 1024, (24, 32), np.uint16),
    }
    for name in ("dqp", "sse"):
        pictures[f"x265/decoded/{name}"] = rng.integers(0, 1024, (24, 32), np.uint16)
        pictures[f"x265/bits/{name}"] = np.array([12345, 12349])
    for name in ("wa", "sse"):
        pictures[f"hm/units/{name}"] = np.array(units_of(24, 32, 8, rng))
        pictures[f"hm/bits/{name}"] = np.array([54321, 54329])
    np.savez(folder / "pictures.npz", **pictures)  # type: ignore[arg-type]

    out = tmp_path / "new" / "report.html"
    rows = write_report([folder], out)
    page = out.read_text()
    assert len(page) < 5_000_000
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.links == []  # nothing is fetched
    assert len(tags.images) == 7  # two of curves, one per codec of sequences, hm's bits, x265's map and counted bits
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
        "54,321 bits",
        "Receiver SNR: x265, intra, methods against sse in the same mode",
        "YUV-PSNR: x264, intra, against x265 with sse in the same mode",
        "Bits that hm itself wrote",
        "x264",
        "jax 0.10",
    ):
        assert text in page
    expected = next(row for row in rows if row.series.label == "wrapper-1/2" and row.anchor.mode == "codec")
    assert expected.rate is not None
    assert f"{expected.rate.interval.mean:+.1f}".replace("-", "−") in page
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]

    text = printed(rows)
    assert all(row.series.label in text for row in rows)  # nothing is wrapped or cut at 140 columns
    assert re.search(
        r"x265 +│ wrapper-1/2 \+ dqp +│ wrapper-1/2 \+ sse +│ +−5\.6 │ +— │ +100%, 6 │ .* │ +1\.00 │", text
    )
    assert re.search(r"x265 +│ wrapper-1/2 +│ codec +│ +−6\.7", text)
    assert re.search(r"x264 +│ codec +│ x265 \+ sse +│ +\+30\.0", text)
    assert text.index("receiver SNR") < text.index("codec + wa+only:sse") < text.index("YUV-PSNR")


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


def units_of(height: int, width: int, side: int, rng: np.random.Generator) -> list[list[int]]:
    return [
        [0, x, y, side, side, int(rng.integers(200))] for y in range(0, height, side) for x in range(0, width, side)
    ]


def test_bits_of_units_are_spread_evenly_and_none_is_lost() -> None:
    # A quadtree of 64 to 4 samples over a picture that is padded to 72×80, each sample painted by itself.
    rng = np.random.default_rng(0)
    units: list[list[int]] = []

    def divide(x: int, y: int, side: int) -> None:
        fits = x + side <= 80 and y + side <= 72
        if side > 8 and (not fits or rng.uniform() < 0.6):
            for i in range(4):
                divide(x + side // 2 * (i % 2), y + side // 2 * (i // 2), side // 2)
        elif fits:
            units.append([0, x, y, side, side, int(rng.integers(0, 900))])

    for y, x in ((0, 0), (0, 64), (64, 0), (64, 64)):
        divide(x, y, 64)
    painted = np.zeros((80, 80))
    for _, x, y, width, height, bits in units:
        painted[y : y + height, x : x + width] += bits / (width * height)
    assert len({unit[3] for unit in units}) > 2
    spread = spread_bits(np.array(units), (70, 78))
    np.testing.assert_allclose(spread, painted.reshape(5, 16, 5, 16).sum((1, 3)), rtol=1e-12)
    assert spread.sum() == pytest.approx(sum(unit[5] for unit in units))


def test_units_of_two_pictures_or_with_a_hole_are_refused() -> None:
    units = np.array(units_of(32, 48, 16, np.random.default_rng(0)))
    assert spread_bits(units, (32, 48)).tolist() == units[:, 5].reshape(2, 3).tolist()
    for bad in (np.concatenate([units, units[:1]]), units[1:]):
        with pytest.raises(ValueError, match="of a picture of 48×32, some never or more than once"):
            spread_bits(bad, (32, 48))


def test_a_difference_of_bits_is_red_where_a_method_spends_more_and_blue_where_it_spends_fewer() -> None:
    units = np.array(units_of(64, 64, 16, np.random.default_rng(0)))
    more, fewer = units.copy(), units.copy()
    more[0, 5] += 500
    fewer[0, 5] -= 500

    def corner(changed: np.ndarray) -> np.ndarray:
        content = bit_difference_figure(np.zeros((64, 64)), Spent("sse", units, None), [Spent("m", changed, None)], "t")
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        third = pixels[:, int(0.69 * pixels.shape[1]) : int(0.87 * pixels.shape[1])]
        return (third[..., 0] - third[..., 2])[np.abs(third[..., 0] - third[..., 2]) > 60]

    red, blue = corner(more), corner(fewer)
    assert red.size > 500
    assert blue.size > 500
    assert (red > 0).all()
    assert (blue < 0).all()


def test_the_page_says_why_bits_of_units_cannot_be_shown(tmp_path: Path) -> None:
    write_points(tmp_path / "results.csv", rows_of("codec", {"a": 1.0})[:2])
    units = np.array(units_of(16, 32, 16, np.random.default_rng(0)))
    arrays = {
        "about": np.array(json.dumps({"sequence": "a", "qp": 32.0, "codecs": [["jm", "codec"]]})),
        "source": np.zeros((16, 32, 3), np.uint8),
        "jm/coded": np.zeros((16, 32), np.uint16),
        "jm/units/sse": units,
        "jm/units/wa": units[1:],
        "jm/bits/sse": np.array([1, 1]),
        "jm/bits/wa": np.array([1, 1]),
    }
    np.savez(tmp_path / "pictures.npz", **arrays)  # type: ignore[arg-type]
    write_report([tmp_path], tmp_path / "report.html")
    assert "No picture of this codec's bits: 1 coding units cover" in (tmp_path / "report.html").read_text()
