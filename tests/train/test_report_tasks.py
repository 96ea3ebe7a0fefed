"""Scores of tasks in the report: paired bootstrap against brute force, comparisons against closed forms, the page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from jaxwrap.metrics.bjontegaard import bd_accuracy
from jaxwrap.metrics.detection import average_precision
from jaxwrap.metrics.tracking import tracking_scores
from jaxwrap.train.datasets.motchallenge import write_rows
from jaxwrap.train.evaluate.points import Point, write_points
from jaxwrap.train.report import resampling
from jaxwrap.train.report.bd import BdRow
from jaxwrap.train.report.curves import Series, Setting, curves_of
from jaxwrap.train.report.html import write_report
from jaxwrap.train.report.resampling import draw_curves
from jaxwrap.train.report.runtimes import runtimes_of
from jaxwrap.train.report.task_bd import resolution, task_table
from jaxwrap.train.report.task_results import TaskResults, read_task_results
from jaxwrap.train.report.terminal import bd_rich_table

QPS = (22, 27, 32, 37, 42)
PICTURES = 12
PIXELS = 100 * 100

FACTORS = {
    ("hm", "fcm-a", "sse"): 1.0,
    ("hm", "fcm-a", "wa"): 0.8,
    ("hm", "fcm-a", "wa+shuffle"): 1.02,
    ("hm", "fcm-b", "sse"): 0.9,
    ("hm", "remote", "sse"): 2.5,
    ("jm", "fcm-a", "sse"): 1.3,
    ("vtm", "fcm-a", "sse"): 0.9,
}
"""(codec, mode, method) → bits over those of HM's sse at equal quality."""


def row(sequence: str, place: tuple[str, str, str], qp: int, bits: float, quality: float, **others: Any) -> Point:
    codec, mode, method = place
    return Point(
        key=re.sub(r"\W", "_", f"{sequence}-{codec}-{mode}-{method}-{qp}"),
        dataset="made-up",
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
        header_bits=0,
        kbps=bits / 1000,
        bpp=round(bits) / PIXELS,
        feature_snr=None if mode == "local" else quality,
        encode_s=0.0 if mode == "local" else 0.5,
        method_s=0.2 if method != "sse" else 0.0,
        map_s=0.2 if method.startswith("wa") else None,
        wrapper_s=0.05,
        verified=mode != "local",
        **others,
    )


def made_up_truth(rng: np.random.Generator) -> dict[str, Any]:
    annotations = []
    for image in range(1, PICTURES + 1):
        for place in rng.permutation(9)[: rng.integers(2, 5)]:
            x, y = 33 * (place % 3), 33 * (place // 3)
            box = [int(x), int(y), 20 + int(rng.integers(12)), 20 + int(rng.integers(12))]
            common = {"iscrowd": 0, "area": box[2] * box[3], "category_id": 1 + int(rng.integers(2))}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "bbox": box, **common})
    images = [{"id": n, "file_name": f"picture{n}.jpg", "height": 100, "width": 100} for n in range(1, PICTURES + 1)]
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def found_at(truth: dict[str, Any], image: int, quality: float) -> list[dict[str, Any]]:
    """Boxes move, and their scores spread, with the quality in dB; the same way for the same quality."""
    rng = np.random.default_rng(image)
    results = []
    for annotation in truth["annotations"]:
        shift, score = rng.normal(size=2), rng.uniform()
        if annotation["image_id"] == image and quality > 20 * rng.uniform():
            x, y, w, h = annotation["bbox"]
            moved = 30 / quality * shift
            box = [float(x + moved[0]), float(y + moved[1]), float(w), float(h)]
            category = annotation["category_id"]
            results.append({"image_id": image, "category_id": category, "bbox": box, "score": float(score)})
    return results


def detection_sweep(folder: Path, factors: Mapping[tuple[str, str, str], float] = FACTORS) -> TaskResults:
    """What a sweep of a detector leaves."""
    (folder / "predictions").mkdir(parents=True)
    truth = made_up_truth(np.random.default_rng(0))
    (folder / "truth.json").write_text(json.dumps(truth))
    rows, scores = [], []
    places = [(place, qp) for place in factors for qp in QPS]
    for place, qp in [*places, (("none", "local", "sse"), 0)]:
        members, results = [], []
        for image in range(1, PICTURES + 1):
            weight = 1 + image / PICTURES
            bits = 0.0 if place[1] == "local" else 1e5 * weight * 2 ** ((22 - qp) / 5) * factors[place]
            quality = 200.0 if place[1] == "local" else 5 * (46 - qp) / 5
            members.append(row(f"picture{image}", place, qp, bits, quality))
            here = found_at(truth, image, quality)
            (folder / "predictions" / f"{members[-1].key}.json").write_text(json.dumps(here))
            results += here
        rows += members
        found = average_precision(truth, results)
        bits = sum(member.bits for member in members)
        whole = row("(all)", place, qp, bits, quality, ap=found.ap, ap50=found.ap50)
        scores.append(dataclasses.replace(whole, bpp=bits / PIXELS / PICTURES, frames=PICTURES))
    write_points(folder / "results.csv", rows)
    write_points(folder / "scores.csv", scores)
    (results_of_task,) = read_task_results([folder])
    return results_of_task


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> TaskResults:
    return detection_sweep(tmp_path_factory.mktemp("sweep") / "out")


def folder_of(results: TaskResults) -> Path:
    assert results.truth is not None
    return results.truth.parent


def chosen(rows: list[BdRow], **wanted: Any) -> BdRow:
    (found,) = (r for r in rows if all(getattr(r, name) == value for name, value in wanted.items()))
    return found


HM, JM, VTM = (Setting(codec, "intra") for codec in ("hm", "jm", "vtm"))


def test_a_draw_scores_the_drawn_pictures_with_their_repetitions_and_their_own_bits(sweep: TaskResults) -> None:
    draws = draw_curves(sweep, draws=3, seed=5)
    names = sorted(f"picture{n}" for n in range(1, PICTURES + 1))
    assert [unit.sequence for unit in draws.units] == names
    drawn = np.random.default_rng(5).integers(0, PICTURES, (3, PICTURES))
    truth = json.loads((folder_of(sweep) / "truth.json").read_text())
    members = {(p.sequence, p.qp): p for p in sweep.points if (p.codec, p.mode, p.method) == ("hm", "fcm-a", "wa")}
    for number, draw in enumerate(drawn):
        curve = draws.curves["ap"][HM, Series("fcm-a", "wa")][number]
        assert curve is not None
        for place, qp in enumerate(reversed(QPS)):
            pictures = [members[names[n], float(qp)] for n in draw]
            rate = sum(p.bits for p in pictures) / (PIXELS * PICTURES)
            assert np.exp(curve.log_rate[place]) == pytest.approx(rate)
            # Copies are pictures of their own to the library.
            images, annotations, results = [], [], []
            for copy, picture in enumerate(pictures, start=1):
                image = int(picture.sequence.removeprefix("picture"))
                images.append({**truth["images"][image - 1], "id": copy})
                mine = [{**a, "image_id": copy} for a in truth["annotations"] if a["image_id"] == image]
                annotations += [{**a, "id": 100 * copy + n} for n, a in enumerate(mine)]
                found = json.loads((folder_of(sweep) / "predictions" / f"{picture.key}.json").read_text())
                results += [{**r, "image_id": copy} for r in found]
            again = average_precision(
                {"images": images, "annotations": annotations, "categories": truth["categories"]}, results
            )
            assert curve.accuracy[place] == pytest.approx(100 * again.ap, abs=1e-6)


def test_bd_accuracy_has_the_interval_of_paired_draws_and_bd_rate_its_closed_form(sweep: TaskResults) -> None:
    draws = draw_curves(sweep, draws=60)
    rows = task_table(sweep, draws)
    of_wa = chosen(rows, measure="ap", comparison="method", series=Series("fcm-a", "wa"))
    assert of_wa.anchor == Series("fcm-a")
    assert of_wa.quality is not None
    assert of_wa.quality.interval.mean > 0
    assert of_wa.num_sequences == PICTURES
    series = draws.curves["ap"]
    pairs = zip(series[HM, Series("fcm-a")], series[HM, Series("fcm-a", "wa")], strict=True)
    figures = [bd_accuracy(anchor, test).value for anchor, test in pairs if anchor and test]
    assert (of_wa.quality.interval.low, of_wa.quality.interval.high) == tuple(np.percentile(figures, [2.5, 97.5]))
    # Equal accuracies at 0.8 times the rate, in every draw: pairing leaves no doubt about the rate.
    assert of_wa.rate is not None
    assert of_wa.rate.interval.mean == pytest.approx(-20, abs=0.1)
    assert of_wa.rate.interval.low == pytest.approx(-20, abs=0.1)
    half = resolution(rows, "ap")
    assert half is not None
    assert 0 < half < 20


def test_every_codec_is_compared_with_its_own_sse_with_reference_encoders_other_wrappers_and_remote_inference(
    sweep: TaskResults,
) -> None:
    rows = task_table(sweep, draw_curves(sweep, draws=2))
    for measure in ("feature_snr", "ap", "ap50"):
        found = {
            (r.setting.codec, r.series.label, r.comparison, r.anchor_setting.codec, r.anchor.label): r.rate
            for r in rows
            if r.measure == measure
        }
        a, wa = "fcm-a", "fcm-a + wa"
        wanted = {
            ("hm", wa, "method", "hm", a): 0.8,
            ("hm", "fcm-a + wa+shuffle", "method", "hm", a): 1.02,
            ("hm", "fcm-b", "mode", "hm", a): 0.9,
            ("hm", a, "reference", "jm", a): 1 / 1.3,
            ("hm", wa, "reference", "jm", a): 0.8 / 1.3,
            ("hm", a, "reference", "vtm", a): 1 / 0.9,
            ("hm", wa, "reference", "vtm", a): 0.8 / 0.9,
            ("jm", a, "reference", "hm", a): 1.3,
            ("jm", a, "reference", "vtm", a): 1.3 / 0.9,
            ("vtm", a, "reference", "jm", a): 0.9 / 1.3,
            ("vtm", a, "reference", "hm", a): 0.9,
            ("hm", a, "remote", "hm", "remote"): 1 / 2.5,
            ("hm", wa, "remote", "hm", "remote"): 0.8 / 2.5,
            ("hm", "fcm-b", "remote", "hm", "remote"): 0.9 / 2.5,
            ("jm", a, "remote", "hm", "remote"): 1.3 / 2.5,
            ("vtm", a, "remote", "hm", "remote"): 0.9 / 2.5,
        }
        assert set(found) == set(wanted)
        for place, factor in wanted.items():
            rate = found[place]
            assert rate is not None
            # Rates are whole bits.
            assert rate.interval.mean == pytest.approx(100 * (factor - 1), abs=0.2)
    of_snr = chosen(rows, measure="feature_snr", comparison="method", series=Series("fcm-a", "wa"))
    assert of_snr.num_sequences == PICTURES


def test_a_score_that_falls_with_the_rate_has_a_bd_accuracy_but_no_bd_rate(sweep: TaskResults) -> None:
    spoiled = [
        dataclasses.replace(s, ap=0.01) if (s.method, s.qp) == ("wa", 27.0) and s.codec == "hm" else s
        for s in sweep.scores
    ]
    rows = task_table(dataclasses.replace(sweep, scores=tuple(spoiled), truth=None), draw_curves(sweep, draws=2))
    of_wa = chosen(rows, measure="ap", comparison="method", series=Series("fcm-a", "wa"))
    assert of_wa.rate is None
    assert of_wa.quality is not None
    assert of_wa.left_out[0][1].startswith("test curve is not monotone where the accuracies overlap")
    few = [s for s in sweep.scores if s.qp != 22.0]
    rows = task_table(dataclasses.replace(sweep, scores=tuple(few)), draw_curves(sweep, draws=2))
    assert all(r.rate is None and r.quality is None for r in rows if r.measure == "ap")
    assert "4 points" in next(r for r in rows if r.measure == "ap").left_out[0][1]


def test_points_without_predictions_or_a_picture_have_figures_but_no_interval(sweep: TaskResults) -> None:
    gone = next(p for p in sweep.points if (p.codec, p.mode, p.qp) == ("jm", "fcm-a", 32.0))
    kept = {key: file for key, file in sweep.predictions.items() if key != gone.key}
    draws = draw_curves(dataclasses.replace(sweep, predictions=kept), draws=2)
    assert draws.curves["ap"][JM, Series("fcm-a")] == [None, None]
    rows = task_table(sweep, draws)
    against_jm = chosen(rows, measure="ap", comparison="reference", anchor_setting=JM, series=Series("fcm-a", "wa"))
    assert against_jm.quality is not None
    assert against_jm.quality.interval.low is None
    none = draw_curves(dataclasses.replace(sweep, truth=None), draws=2)
    assert (none.units, none.curves) == ((), {})


def test_predictions_of_another_sweep_are_refused(sweep: TaskResults) -> None:
    other = tuple(dataclasses.replace(s, ap=(s.ap or 0) + 0.01) for s in sweep.scores)
    with pytest.raises(ValueError, match=r"give ap = 0\.\d+, but scores.csv has 0\.\d+; the files are of different"):
        draw_curves(dataclasses.replace(sweep, scores=other), draws=3)


def test_drawn_scores_are_kept_until_the_draws_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = detection_sweep(tmp_path / "out", {("hm", "fcm-a", "sse"): 1.0})
    first = draw_curves(results, draws=4)
    file = tmp_path / "out" / "draws.npz"
    assert file.is_file()
    calls = []
    original = resampling.ApResampler
    monkeypatch.setattr(resampling, "ApResampler", lambda *args: calls.append(1) or original(*args))
    again = draw_curves(results, draws=4)
    assert not calls
    pairs = zip(*(one.curves["ap"][HM, Series("fcm-a")] for one in (first, again)), strict=True)
    assert all(a and b and (a.accuracy == b.accuracy).all() for a, b in pairs)
    draw_curves(results, draws=4, seed=1)
    assert len(calls) == len(results.scores)
    file.write_bytes(b"damaged")
    draw_curves(results, draws=4)
    assert len(calls) == 2 * len(results.scores)


def test_sweeps_of_one_data_set_are_joined_and_another_truth_is_another_task(
    sweep: TaskResults, tmp_path: Path
) -> None:
    more = {("jm", "fcm-a", "wa"): 1.1, ("hm", "fcm-a", "sse"): 1.0}
    again = detection_sweep(tmp_path / "more", more)
    (both,) = read_task_results([folder_of(sweep), folder_of(again)])
    assert len(both.scores) == len(QPS) * (len(FACTORS) + 1) + 1
    assert set(both.predictions) == set(sweep.predictions) | set(again.predictions)
    truth = json.loads((tmp_path / "more" / "truth.json").read_text())
    (tmp_path / "more" / "truth.json").write_text(json.dumps({**truth, "info": "pseudo"}))
    (tmp_path / "more" / "manifest.json").write_text(json.dumps({"configuration": {"task": {"truth": "pseudo"}}}))
    found = read_task_results([folder_of(sweep), tmp_path / "more"])
    assert [one.title for one in found] == ["made-up", "made-up, pseudo truth"]
    (tmp_path / "more" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="is no manifest of a task's sweep"):
        read_task_results([tmp_path / "more"])
    assert read_task_results([tmp_path]) == []


def tracking_sweep(folder: Path) -> TaskResults:
    """Two short videos of three people who walk to the right; the coded ones miss some, and confuse two."""
    (folder / "truth").mkdir(parents=True)
    (folder / "predictions").mkdir()
    lengths = {"square": 50, "street": 30}
    truth = {}
    for name, frames in lengths.items():
        rows = [[f, i, 20 * i + 2 * f, 40 * i, 12, 30, 1, 1, 1] for f in range(1, frames + 1) for i in (1, 2, 3)]
        truth[name] = np.array(rows, float)
        write_rows(folder / "truth" / f"{name}.txt", truth[name])
    points, scores = [], []
    for place in (("hm", "fcm-a", "sse"), ("hm", "fcm-a", "wa")):
        for qp in QPS:
            found, total = {}, 0
            for name, frames in lengths.items():
                seen = np.random.default_rng(7).uniform(size=len(truth[name])) > (qp - 21) / 30
                rows = np.column_stack([truth[name][:, :6], np.full((len(seen), 4), -1.0)])[seen]
                late = rows[:, 0] > frames - (qp - 20) // 2
                rows[late, 1] += 10
                found[name] = rows
                bits = round(frames * 1e4 * 2 ** ((22 - qp) / 5) * (0.8 if place[2] == "wa" else 1))
                total += bits
                point = row(name, place, qp, bits, 40 - qp / 2)
                points.append(dataclasses.replace(point, frames=frames, bpp=bits / PIXELS / frames))
                (folder / "predictions" / f"{point.key}.json").write_text(json.dumps(rows.tolist()))
            whole = row("(all)", place, qp, total, 40 - qp / 2, **dataclasses.asdict(tracking_scores(truth, found)))
            scores.append(dataclasses.replace(whole, bpp=total / PIXELS / sum(lengths.values())))
    write_points(folder / "results.csv", points)
    write_points(folder / "scores.csv", scores)
    (results,) = read_task_results([folder])
    return results


def test_pieces_of_few_videos_are_drawn_with_their_share_of_the_bits(tmp_path: Path) -> None:
    results = tracking_sweep(tmp_path / "out")
    assert results.kind == "tracking"
    draws = draw_curves(results, draws=40)
    pieces = [(unit.sequence, unit.start, unit.stop) for unit in draws.units]
    assert pieces == [("square", 0, 20), ("square", 20, 40), ("square", 40, 50), ("street", 0, 20), ("street", 20, 30)]
    assert draws.unit_name == "pieces of 20 frames"
    plain = draws.curves["mota"][HM, Series("fcm-a")][0]
    assert plain is not None
    # All frames of one QP have the same number of bits, so any draw has the rate of the whole.
    whole = curves_of(results.coded, "mota")[HM][Series("fcm-a")]["(all)"]
    assert np.exp(plain.log_rate) == pytest.approx(whole.rate, rel=1e-3)
    rows = task_table(results, draws)
    of_wa = chosen(rows, measure="mota", comparison="method", series=Series("fcm-a", "wa"))
    assert of_wa.quality is not None
    assert of_wa.quality.interval.low is not None
    assert 0 < of_wa.quality.interval.low < of_wa.quality.interval.mean < (of_wa.quality.interval.high or 0)
    assert {r.measure for r in rows} == {"feature_snr", "mota", "idf1", "hota"}


def printed(rows: list[BdRow]) -> str:
    console = Console(file=io.StringIO(), width=150, record=True)
    console.print(bd_rich_table(rows))
    return console.export_text()


def test_the_page_shows_scores_against_remote_and_local_inference(sweep: TaskResults, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    rows = write_report([folder_of(sweep)], out)
    page = out.read_text()
    for text in (
        "Task: made-up",
        "draws from 12 pictures",
        "Uncompressed (local inference): mAP ",
        "These 12 pictures resolve about",
        "MAP: hm, intra, methods against sse in the same mode",
        "Feature SNR: hm, intra, against jm with sse in the same mode",
        "Feature SNR: hm, intra, against remote inference, hm",
        "Seconds per picture of made-up",
        "Every stream was decoded by an independent decoder",
    ):
        assert text in page, text
    assert page.count("<img") == 2
    assert "Rate and quality" not in page  # no pixels came out
    text = printed(rows)
    assert re.search(r"hm +│ fcm-a \+ wa +│ fcm-a \+ sse +│ +\+\d+\.\d\d │ .* … ", text)
    assert re.search(r"hm +│ fcm-a \+ wa +│ remote, hm +│", text)
    assert text.index("BD-rate in feature SNR") < text.index("BD-accuracy in points of mAP")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "truth.json").write_text("{"), "truth.json is damaged"),
        (lambda folder: next((folder / "predictions").iterdir()).write_text("["), "is damaged.*without its folder"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    detection_sweep(tmp_path / "out", {("hm", "fcm-a", "sse"): 1.0})
    spoil(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        write_report([tmp_path / "out"], tmp_path / "report.html")


def test_runtimes_are_seconds_per_picture_over_those_of_sse() -> None:
    plain, weighted = (row("a", ("hm", "fcm-a", method), 22, 1e4, 20.0) for method in ("sse", "wa"))
    longer = dataclasses.replace(plain, frames=3, encode_s=2.5, sequence="b")
    lines = runtimes_of([plain, longer, weighted, dataclasses.replace(weighted, lambda_scale=0.5, encode_s=9.0)])
    assert [line.series.method_label for line in lines] == ["sse", "wa"]
    assert lines[0].encode_s == pytest.approx(3.0 / 4)
    assert (lines[1].map_s, lines[1].method_s, lines[1].encode_s) == (0.2, 0.0, 0.5)
    assert lines[1].ratio == pytest.approx(0.7 / 0.75)
