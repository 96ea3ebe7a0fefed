"""A whole diagnosis of a small network: figures against direct computation, the page, the words, the command."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxwrap.arrays import Frame, Yuv420
from jaxwrap.codec import EncodeRequest, Weights
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.diagnostics import BlockEnergy, SketchError
from jaxwrap.metrics.bjontegaard import Interval
from jaxwrap.pipeline import Sandwich
from jaxwrap.train import cli
from jaxwrap.train.diagnose import CodecTerms, CodecVerdict, Correlation, Diagnosis, diagnose
from jaxwrap.train.media import Clip
from jaxwrap.train.report.diagnosis import (
    diagnosis_table,
    enough_error,
    findings,
    verdict_text,
    write_diagnosis,
)
from jaxwrap.train.verdict import Picture, Score, Subject, pictures_of

QPS = (22, 27, 32, 37, 42)


def receiver(frame: Frame) -> Frame:
    """Not quite linear, not quite pointwise, and quick to compile."""
    return jax.tree.map(lambda p: p + 0.03 * jnp.sin(4.0 * p) + 0.05 * (jnp.roll(p, 1, 2) - p), frame)


SUBJECT = Subject("small", lambda height, width: Sandwich(lambda frame: frame, receiver))


def clip(name: str, frames: int, seed: int, size: tuple[int, int] = (64, 96)) -> Clip:
    """Smooth random pictures, at most 96×128, that move."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 220, (12, 16))
    y = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((128, 96), Image.Resampling.BICUBIC))
    noise = rng.normal(0, 6, y.shape)
    planes = [np.roll(y + noise, 2 * t, 1)[: size[0], : size[1]].clip(0, 255).astype(np.uint8) for t in range(frames)]
    chroma = [np.full((frames, size[0] // 2, size[1] // 2), value, np.uint8) for value in (110, 140)]
    chroma[0] += rng.integers(0, 20, chroma[0].shape).astype(np.uint8)
    return Clip(name, Yuv420(np.stack(planes), *chroma), 8, 25.0, Path(name))


STILL = clip("still", 1, 1, (96, 128))


@pytest.fixture(scope="module")
def result() -> tuple[Diagnosis, tuple[Picture, Weights]]:
    return diagnose(
        SUBJECT,
        [clip("video", 3, 0), STILL],
        [X26x("x264")],
        qps=QPS,
        sketches=4,
        alpha=0.5,
        num_pictures=2,
        seed=0,
        processes=1,
    )


def test_terms_are_those_of_encodes_made_by_hand(result: tuple[Diagnosis, tuple[Picture, Weights]]) -> None:
    terms = result[0].terms["x264"]
    assert terms.pictures == ["video", "still"]
    pictures = list(pictures_of(SUBJECT, [STILL]))
    for index in (0, 4):
        decoded = X26x("x264").encode(pictures[0].z, EncodeRequest(QPS[index])).decoded
        floats = jax.tree.map(lambda p: np.asarray(p, np.float32), decoded)
        at_z, at_z_hat = (pictures[0].receiver(samples) for samples in (pictures[0].z, floats))
        e, eta = (
            [np.asarray(a, np.float64) - np.asarray(b) for a, b in zip(x.planes, y.planes, strict=True)]
            for x, y in ((at_z_hat, at_z), (pictures[0].wanted, at_z))
        )
        weights = [6 / 8, 1 / 8, 1 / 8]
        coding = sum(w * np.mean(p * p) for w, p in zip(weights, e, strict=True))
        cross = 2 * sum(w * np.mean(p * q) for w, p, q in zip(weights, e, eta, strict=True))
        wrapper = sum(w * np.mean(p * p) for w, p in zip(weights, eta, strict=True))
        assert terms.coding[1][index] == pytest.approx(coding, rel=1e-3)
        assert terms.wrapper[1][index] == pytest.approx(wrapper, rel=1e-3)
        assert terms.cross[1][index] == pytest.approx(cross, rel=1e-2, abs=1e-7)


def test_what_was_measured_is_of_the_right_size(result: tuple[Diagnosis, tuple[Picture, Weights]]) -> None:
    diagnosis, _ = result
    terms = diagnosis.terms["x264"]
    # Small errors at QP 22: the linearisation holds. Each plane's calibrated weight comes from the other picture.
    np.testing.assert_allclose(terms.ratio("linear")[:, 0], 1.0, atol=0.1)
    np.testing.assert_allclose(terms.ratio("calibrated")[:, 2], 1.0, atol=0.2)  # pictures of sizes 1 : 2
    assert list(diagnosis.over_time) == [1, 2]
    assert diagnosis.clips_over_time == 1
    assert len(diagnosis.between_inputs) == 1
    assert [e.sketches for e in diagnosis.sketch_errors] == [2, 4, 8, 16, 32]
    assert all(e.samples < 1.3 * e.law for e in diagnosis.sketch_errors)
    assert [e.block for e in diagnosis.energy] == [4, 8, 16, None]
    assert all(0 < e.diagonal < 1.05 * e.total for e in diagnosis.energy)
    assert [c.name for c in diagnosis.verdicts["x264"].curves] == ["video", "still"]


def test_the_page_is_whole_and_needs_nothing_else(
    result: tuple[Diagnosis, tuple[Picture, Weights]], tmp_path: Path
) -> None:
    diagnosis, shown = result
    write_diagnosis(diagnosis, shown, tmp_path)
    page = (tmp_path / "diagnosis.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 7
    for image in images:
        assert min(Image.open(io.BytesIO(base64.b64decode(image))).size) > 200
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    assert content["terms"]["x264"]["coding"] == diagnosis.terms["x264"].coding
    assert len(content["findings"]) == 6
    assert content["verdict"]["x264"]["text"] in page.replace("&#39;", "'")
    assert content["settings"]["encoded"] == ["video", "still"]


def interval(mean: float, half: float = 0.1) -> Interval:
    return Interval(mean, mean - half, mean + half, 4)


def made_up(**changes: object) -> Diagnosis:
    """All assumptions hold."""
    flat = [[1.0] * 5] * 2
    terms = CodecTerms(list(QPS), ["a", "b"], flat, flat, [[0.05] * 5] * 2, flat, flat, flat)
    same = Correlation(interval(0.6), interval(0.9))
    verdict = CodecVerdict(Score({"a": -5.0}, interval(-5.0), {}), [], 0.05, 0.6, (-3, 4))
    diagnosis = Diagnosis(
        "made up",
        {"sketches": 4, "alpha": 1.0},
        {"x265": terms},
        {d: same for d in range(1, 6)},
        3,
        same,
        [(0.6, 0.88)] * 3,
        (64, 64),
        False,
        [SketchError(n, (2 / n) ** 0.5, 0.2 / n**0.5, (2 / n) ** 0.5) for n in (2, 4, 8, 16, 32)],
        [BlockEnergy(b, 1.0, 0.95, 0.9) for b in (4, 8, 16, None)],
        {"x265": verdict},
    )
    return dataclasses.replace(diagnosis, **changes)  # type: ignore[arg-type]


def states(diagnosis: Diagnosis) -> list[str]:
    return [finding.state for finding in findings(diagnosis)]


def test_findings_follow_the_figures() -> None:
    assert states(made_up()) == ["holds"] * 6
    terms = made_up().terms["x265"]
    cross = dataclasses.replace(terms, cross=[[0.5] * 5] * 2)
    bent = dataclasses.replace(terms, linear=[[1.0, 1.0, 1.0, 1.0, 0.75]] * 2, diagonal=[[1.0, 0.8, 0.7, 0.5, 0.4]] * 2)
    assert states(made_up(terms={"x265": cross}))[0] == "fails"
    assert states(made_up(terms={"x265": bent}))[1:3] == ["in part", "fails"]
    fading = {d: Correlation(interval(0.3), interval(0.9 - 0.04 * d)) for d in range(1, 6)}
    assert states(made_up(over_time=fading))[3] == "in part"
    assert "for 2 frames" in findings(made_up(over_time=fading))[3].text
    assert states(made_up(over_time={}, clips_over_time=0))[3] == "not measured"
    assert states(made_up(between_inputs=[(0.1, 0.1)] * 3))[4] == "fails"
    assert states(made_up(between_inputs=[(0.1, 0.1)]))[4] == "not measured"
    noisy = [SketchError(n, 1.0, 1.0 / n**0.5, 1.0) for n in (2, 4, 8, 16, 32)]
    assert states(made_up(sketch_errors=noisy))[5] == "fails"
    assert states(made_up(sketch_errors=[dataclasses.replace(e, blocks=0.5 / e.sketches**0.5) for e in noisy]))[5] == (
        "in part"
    )


def test_verdicts_say_what_and_why() -> None:
    def text(verdict: CodecVerdict, **changes: object) -> str:
        diagnosis = made_up(verdicts={"x265": verdict}, **changes)
        return verdict_text("x265", verdict, diagnosis)

    gains = made_up().verdicts["x265"]
    assert "save bits. Predicted BD-rate −5.0 % (95 % interval −5.1 … −4.9 %)" in text(gains)
    equal = dataclasses.replace(gains, score=Score({}, interval(0.0), {}), moved=0.01, offsets=(0, 1))
    assert "changes almost no QP" in text(equal)
    bent = dataclasses.replace(made_up().terms["x265"], diagonal=[[1.0, 0.8, 0.7, 0.5, 0.4]] * 2)
    loses = dataclasses.replace(gains, score=Score({}, interval(3.0), {"c": "no overlap"}))
    words = text(loses, terms={"x265": bent})
    assert "cost bits" in words
    assert "40% at QP 42" in words
    assert "allow no BD-rate: c." in words
    unknown = dataclasses.replace(gains, score=Score({}, None, {"c": "the curve is not monotone"}))
    assert "cannot be predicted" in text(unknown)
    assert "noisy" in text(loses, sketch_errors=[SketchError(4, 1.0, 0.9, 0.7)])


def test_enough_is_where_noise_moves_offsets_as_much_as_rounding() -> None:
    """By simulation: −3 log₂ of weights with that relative error, half of them from the map (α = 1)."""
    rng = np.random.default_rng(0)
    h = 1 + enough_error(1.0) * rng.normal(size=100_000)
    moved = -3 * np.log2((h + 1.0) / 2.0)
    values = rng.uniform(-5, 5, 100_000)
    assert moved.std() == pytest.approx((np.round(values) - values).std(), rel=0.02)


def test_the_table_shows_findings_and_verdict() -> None:
    out = Console(width=160, record=True, file=io.StringIO())
    out.print(diagnosis_table(made_up()))
    text = out.export_text()
    assert text.count("holds") == 6
    assert "save bits" in text


def test_the_command_refuses_too_few_qps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxwrap", "diagnose", "-i", "x.png", "--qps", "22,32,42"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "at least 5 different QPs" in capsys.readouterr().err
