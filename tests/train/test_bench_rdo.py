"""The bench of weighted RDO: its tables against closed forms, its receivers and frozen maps, and a run from end to end
with an encoder that weighs its quantiser."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv420, size_of
from jaxwrap.codec import EncodeRequest, EncodeResult, RowWeights
from jaxwrap.train.bench import rdo
from jaxwrap.train.bench.rdo_receivers import cropped, receiver_named, scaled_mode, tune
from jaxwrap.train.bench.rdo_table import (
    Comparison,
    Curves,
    Measured,
    Place,
    Series,
    best_sse,
    caption,
    compare,
    generation_table,
    own_table,
    read_measured,
    rows_of,
    time_ratio,
    verdict_lines,
    write_measured,
    write_rows,
)
from jaxwrap.train.evaluate import sweep
from jaxwrap.train.evaluate.modes import Mode, linear_mode, receiver_mode
from jaxwrap.train.media import Clip

QPS = (22, 27, 32, 37, 42)
PLACE = Place("eye", "intra", "", "hm")


def measured(
    series: str, factor: float, *, codec: str = "hm", scale: float = 1.0, seconds: float = 1.0, pictures: int = 4
) -> list[Measured]:
    """A curve that needs ``factor`` times the rate of 10⁸ · 2^(−QP/6) bits at every quality."""
    return [
        Measured(
            "eye", "intra", "", codec, series, scale, f"p{n}", float(qp),
            bits=round(1e8 * factor * (1 + n) * 2 ** (-qp / 6)), receiver_snr=70.0 - qp, psnr_yuv=60.0 - qp,
            encode_s=seconds,
        )
        for n in range(pictures)
        for qp in QPS
    ]  # fmt: skip


def of(rows: list[Any], series: str, against: str) -> Any:
    return next(row for row in rows if str(row.series) == series and row.against == against)


def test_a_curve_of_nine_tenths_of_the_rate_is_ten_percent_better_with_no_spread() -> None:
    curves = Curves([*measured("sse", 1.0), *measured("wa", 0.9, seconds=1.04)])
    anchor, test = (curves.curve(PLACE, Series(name)) for name in ("sse", "wa"))
    found = compare(anchor, test).interval
    assert found is not None
    # Bits are whole numbers, the smallest about 8 · 10⁵.
    assert found.mean == pytest.approx(-10, abs=1e-4)
    assert found.low == pytest.approx(-10, abs=1e-3)
    assert found.num_sequences == 4
    # Both span the same 20 dB; moved by 10 dB they share 10 of 30.
    assert compare(anchor, test).overlap == pytest.approx(1)
    lower = {
        name: [dataclasses.replace(p, receiver_snr=p.receiver_snr - 10) for p in curve] for name, curve in test.items()
    }
    assert compare(anchor, lower).overlap == pytest.approx(10 / 30)
    assert str(compare(anchor, lower)).endswith(" †")
    assert not str(compare(anchor, test)).endswith(" †")
    assert time_ratio(anchor, test) == pytest.approx(1.04)


def test_a_caption_says_what_figures_rest_on() -> None:
    two = rows_of(Curves([*measured("sse", 1.0, pictures=2), *measured("wa", 0.9, pictures=2)]))
    assert caption(two) == "2 pictures, 95 % bootstrap interval (of fewer than 4: no more than their range)"
    low = [dataclasses.replace(p, receiver_snr=p.receiver_snr - 12) for p in measured("wa", 0.9)]
    said = caption(rows_of(Curves([*measured("sse", 1.0), *low])))
    assert said == "4 pictures, 95 % bootstrap interval; † some curves share less than 50% of their qualities"


def test_every_series_is_held_against_sse_at_the_scale_of_lambda_that_suits_sse_best() -> None:
    curves = Curves(
        [
            *measured("sse", 1.0),
            *measured("sse", 0.96, scale=1 / 1.5),
            *measured("sse", 1.02, scale=0.5),
            *measured("wa", 0.98),
            *measured("fwa", 0.90),
        ]
    )
    assert best_sse(curves, PLACE) == Series("sse", 1 / 1.5)
    rows = rows_of(curves)
    assert of(rows, "wa", "own sse").snr.interval.mean == pytest.approx(-2, abs=1e-3)
    worse = of(rows, "wa", "own best sse")
    # 0.98 / 0.96: a gain over sse that a mere change of λ beats.
    assert worse.snr.interval.mean == pytest.approx(100 * (0.98 / 0.96 - 1), abs=1e-3)
    assert worse.snr.is_worse
    first, never, largest = verdict_lines(rows)[:3]
    assert "1 of 2 comparisons" in first
    assert "wa" in first
    assert never == "never worse: fwa"
    assert "fwa -6.2 %" in largest
    columns = [str(column.header) for column in own_table(rows, PLACE).columns]
    assert "against sse, λ × 0.667" in columns


def test_encoders_are_held_against_later_ones_only() -> None:
    curves = Curves(
        [
            *measured("sse", 1.0), *measured("sse", 1.3, codec="jm"), *measured("wa", 1.2, codec="jm"),
            *measured("sse", 0.9, codec="vtm"), *measured("sse", 1.1, codec="x265"), *measured("sse", 1.4, scale=0.5),
        ]
    )  # fmt: skip
    pairs = {
        (f"{row.place.codec} {row.series}", row.anchor_codec): row.snr.interval.mean
        for row in rows_of(curves)
        if row.against == "later codec" and row.snr.interval is not None
    }
    wanted = {("jm sse", "hm"): 30, ("jm wa", "hm"): 20, ("jm sse", "vtm"): 400 / 9, ("jm wa", "vtm"): 100 / 3,
              ("hm sse", "vtm"): 100 / 9}  # fmt: skip
    assert pairs == pytest.approx(wanted, abs=1e-3)
    table = generation_table(rows_of(curves))
    assert table is not None
    assert table.row_count == 5


def test_pictures_without_a_bd_rate_and_unlike_times_are_left_out_and_counted() -> None:
    test = measured("wa", 0.9)
    flat = dataclasses.replace(test[0], receiver_snr=1.0)
    curves = Curves([*measured("sse", 1.0), flat, *test[1:]])
    found = compare(curves.curve(PLACE, Series("sse")), curves.curve(PLACE, Series("wa")))
    assert found.left_out == 1
    assert found.interval is not None
    assert found.interval.num_sequences == 3
    shifted = [dataclasses.replace(m, qp=m.qp - 3) for m in test]
    others = Curves([*measured("sse", 1.0), *shifted])
    assert time_ratio(others.curve(PLACE, Series("sse")), others.curve(PLACE, Series("wa"))) is None
    assert str(Comparison(None, 4)) == "—"
    assert not Comparison(None, 4).is_worse


def test_points_are_read_as_they_were_written(tmp_path: Path) -> None:
    points = measured("idse, ℓ = 8", 0.97, scale=0.6667)
    write_measured(tmp_path / "points.csv", points)
    assert read_measured(tmp_path / "points.csv") == points
    write_rows(tmp_path / "table.csv", rows_of(Curves([*measured("sse", 1.0), *points])))
    header, first, *_ = (tmp_path / "table.csv").read_text().splitlines()
    cells = dict(zip(header.split(","), first.replace('"idse, ℓ = 8"', "idse").split(","), strict=True))
    assert float(cells["bd_rate"]) == pytest.approx(-3, abs=1e-2)
    assert cells["against"] == "own sse"
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        read_measured(tmp_path / "other.csv")
    text = (tmp_path / "points.csv").read_text()
    (tmp_path / "damaged.csv").write_text(text.replace("p1,22.0", "p1,x", 1))
    with pytest.raises(ValueError, match=r"damaged.csv, line 7: could not convert"):
        read_measured(tmp_path / "damaged.csv")


def picture(name: str, height: int, width: int, seed: int) -> Clip:
    rng = np.random.default_rng(seed)
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    planes = [np.cumsum(rng.normal(0, 12, (1, *s)), 2) + np.cumsum(rng.normal(0, 12, (1, *s)), 1) + 128 for s in shapes]
    return Clip(name, Yuv420(*(np.clip(p, 0, 255).astype(np.uint8) for p in planes)), 8, 25.0, Path(name))


def test_pictures_are_cropped_at_the_centre_and_mirrored_where_they_are_too_small() -> None:
    large, small = picture("large", 70, 100, 0), picture("small", 40, 64, 1)
    (kept,) = cropped([small, large], (64, 96), 5)
    assert kept.name == "large"
    np.testing.assert_array_equal(kept.frames.y, large.frames.y[:, 2:66, 2:98])
    np.testing.assert_array_equal(kept.frames.planes[2], large.frames.planes[2][:, 1:33, 1:49])
    completed, _ = cropped([small, large], (64, 96), 5, complete=True)
    assert size_of(completed.frames) == (64, 96)
    np.testing.assert_array_equal(completed.frames.y[:, 40:, :64], small.frames.y[:, :15:-1])
    np.testing.assert_array_equal(completed.frames.planes[1][:, :20, 32:], small.frames.planes[1][:, :, :15:-1])
    with pytest.raises(ValueError, match="no picture is 96×64 or larger"):
        cropped([small], (64, 96), 1)


def test_a_scaled_mode_is_the_mode_without_a_codec_and_has_an_identity_of_its_own() -> None:
    mode = linear_mode("bilinear", Fraction(1, 2))
    scaled = scaled_mode(mode, "patches")
    assert scaled.pre_hash != mode.pre_hash
    assert scaled.post_hash != mode.post_hash
    frames = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32) / 128 - 1, picture("p", 256, 256, 3).frames)
    plain, other = mode.sandwich(256, 256), scaled.sandwich(256, 256)
    assert other is scaled.sandwich(256, 256)
    z, scaled_z = plain.bottleneck(frames), other.bottleneck(frames)
    assert np.abs(np.asarray(z.y - scaled_z.y)).max() > 1
    # Three roundings of float32 between a division and a multiplication by 3, in samples up to 1023.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain.receive(z), other.receive(scaled_z))
    with pytest.raises(ValueError, match="'blur' was asked for"):
        scaled_mode(mode, "blur")
    with pytest.raises(ValueError, match="--network"):
        receiver_named("features", network=None, tensor="x")
    with pytest.raises(ValueError, match="known: matched"):
        receiver_named("ear", network=None, tensor="x")


GAIN = 4.0


def left_half(frame: Frame) -> dict[str, jax.Array]:
    """Sees the left half four times as strongly as the right one, in all planes."""
    seen = {}
    for name, plane in zip("yuv", frame.planes, strict=True):
        columns = np.arange(plane.shape[2]) < plane.shape[2] // 2
        seen[name] = plane * np.where(columns, GAIN, 1.0).astype(np.float32)[None, None]
    return seen


@pytest.fixture
def mode() -> Mode:
    return receiver_mode(left_half, "left")


def test_frozen_maps_find_what_the_receiver_sees(mode: Mode) -> None:
    tuned = tune(mode, [picture(f"t{i}", 64, 128, i) for i in range(3)])
    for found in (tuned.fwa, tuned.calibrated):
        for plane in found.planes:
            half = plane.shape[2] // 2
            # The receiver is pointwise, so both are exact: weights are squares of gains.
            np.testing.assert_allclose(plane[:, :, :half].mean() / plane[:, :, half:].mean(), GAIN**2, rtol=1e-3)
    scales = tuned.fold.scales.planes[0]
    assert scales[0, 0, 0] == 1
    # w = (16 / 8.5 + 0.1) / 1.1 and (1 / 8.5 + 0.1) / 1.1
    assert scales[0, 0, -1] == pytest.approx(np.sqrt((1 / 8.5 + 0.1) / (16 / 8.5 + 0.1)), rel=1e-3)


@dataclasses.dataclass(frozen=True)
class WeighingCodec:
    """A quantiser whose step is finer by √w, as an encoder that minimises Σ w q² + λ R would choose it at a high rate.

    Costs log₂(1 + |difference of neighbouring levels|) bits a sample.
    """

    name: str = "hm"
    version: str = "1"

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        if self.name == "vtm" and (request.weights is not None or request.lambda_scale != 1):
            raise ValueError("takes no weights")

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        step = 2 ** ((request.qp - 4) / 6) * request.lambda_scale**0.5
        weights = [np.ones((1, 1, 1)) for _ in frames.planes]
        if isinstance(request.weights, RowWeights):
            weights = [np.square(r).sum(1) + request.weights.tau for r in request.weights.rows.planes]
        elif request.weights is not None:
            weights = [np.asarray(w) for w in request.weights.planes.planes]
        steps = [step / np.sqrt(w) for w in weights]
        levels = [np.round(p / s) for p, s in zip(frames.planes, steps, strict=True)]
        decoded = [np.clip(np.round(n * s), 0, 1023).astype(np.uint16) for n, s in zip(levels, steps, strict=True)]
        bits = sum(np.log2(1 + abs(np.diff(n, axis=2, prepend=0))).sum((1, 2)) for n in levels) + 80
        return EncodeResult(Yuv420(*decoded), np.ceil(bits), seconds=0.1, command="weighing", verified=True)


class Here:
    """In place of worker processes, which have tests of their own and take seconds to start."""

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def encode(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, EncodeResult]]:
        for job in jobs:
            yield job, job.codec.encode(job.samples, job.request)


def test_weights_gain_from_end_to_end_while_the_controls_do_not(
    tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "Workers", Here)
    monkeypatch.setattr(rdo, "receiver_named", lambda name, **_: mode)
    parts = {
        "matched": rdo.Part(
            ("left",), ("hm",), ("sse", "wa", "calibrated", "fold", "wa+shuffle"), size=(64, 128), count=2
        ),
        "rows": rdo.Part(("left",), ("hm",), ("sse", "idse, ℓ = 2"), size=(64, 128), count=2, scales=False),
        "generation": rdo.Part(("left",), ("vtm",), ("sse", "wa"), size=(64, 128), count=2),
        "features": rdo.Part(("features",), ("hm",)),
    }
    monkeypatch.setattr(rdo, "PARTS", parts)
    inputs = rdo.Inputs(
        [picture(f"p{i}", 70, 130, 10 + i) for i in range(2)], [picture(f"t{i}", 64, 128, i) for i in range(2)]
    )
    codecs = [WeighingCodec(), WeighingCodec("vtm")]
    assert rdo.possible_parts(codecs, inputs) == ["matched", "rows", "generation"]

    def run() -> dict[str, Any]:
        return rdo.run(codecs=codecs, inputs=inputs, out=tmp_path / "out", train_pictures=2, processes=1)

    figures = run()
    found = {
        (row["codec"], row["series"], row["lambda_scale"]): row["bd_rate"]
        for row in figures["rows"]
        if row["against"] == "own sse"
    }
    # w is 1.44 on the left and 0.56 on the right at α = 1, 1.80 and 0.20 at α = 0.1: half of the samples at 1.3 bits
    # more, the others at fewer. The calibrated map is nearly the exact one, so it gains more than α = 1 lets wa gain.
    assert found["hm", "calibrated", 1.0] < found["hm", "wa", 1.0] < -5
    assert found["hm", "fold", 1.0] < -5
    assert found["hm", "wa+shuffle", 1.0] > found["hm", "wa", 1.0] + 3
    assert abs(found["hm", "sse", 0.5]) < 2  # another λ is another point of the same curve
    assert ("hm", "idse, ℓ = 2", 1.0) in found
    assert not [key for key in found if key[0] == "vtm"]
    printed = capsys.readouterr().out
    assert "left out: wa, λ × 1" in printed
    assert "largest gain, left" in printed
    points = read_measured(tmp_path / "out" / "points.csv")
    assert {m.series for m in points} == {"sse", "wa", "calibrated", "fold", "wa+shuffle", "idse, ℓ = 2"}
    again = run()
    assert json.dumps(again, sort_keys=True) == json.dumps(figures, sort_keys=True)
    manifests = [json.loads(p.read_text())["run"]["encodes"] for p in (tmp_path / "out").glob("*/*/manifest.json")]
    assert manifests
    assert not any(manifests)  # all of it came from the cache


def test_parts_without_encoder_or_of_other_names_are_refused(tmp_path: Path) -> None:
    inputs = rdo.Inputs([picture("p", 64, 128, 0)], [picture("t", 64, 128, 1)])
    codecs = [WeighingCodec("vtm")]
    with pytest.raises(ValueError, match="'all' was asked for; known: matched"):
        rdo.run(codecs=codecs, inputs=inputs, out=tmp_path, parts=["all"])
    with pytest.raises(ValueError, match="part matched is of hm and jm"):
        rdo.run(codecs=codecs, inputs=inputs, out=tmp_path, parts=["matched"])
    with pytest.raises(ValueError, match="no part was measured"):
        rdo.run(codecs=codecs, inputs=rdo.Inputs([], []), out=tmp_path)
