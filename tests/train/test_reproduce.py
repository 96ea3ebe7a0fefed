"""WA-RDO's tables beside ours: what stands beside what, what is said of conditions, and the files for the notebook."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from jaxwrap.arrays import Yuv400
from jaxwrap.packing import TileLayout
from jaxwrap.samples import normalise
from jaxwrap.tasks.detector import Detector
from jaxwrap.tasks.network import Network
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.evaluate.points import Point, read_points, write_points
from jaxwrap.train.fit.fcm_checkpoints import save_fcm
from jaxwrap.train.report.curves import Series, Setting
from jaxwrap.train.report.resampling import Draws
from jaxwrap.train.report.task_bd import task_table
from jaxwrap.train.report.task_results import TaskResults
from jaxwrap.train.reproduce.published import WA_DATA, WA_REMOTE, WA_TABLE_1, WA_TABLE_2
from jaxwrap.train.reproduce.samples import PHOTOGRAPHS, write_samples
from jaxwrap.train.reproduce.tables import BD_COLUMNS, write_tables
from jaxwrap.train.reproduce.wa import Ours, differences, read_ours, shown_beside
from jaxwrap.wrappers.fcm import FcmConfig, FcmWrapper, Scale

QPS = (22, 27, 32, 37, 42)

FACTORS = {
    ("jm", "sse"): 1.3,
    ("jm", "wa"): 1.0,
    ("hm", "sse"): 1.0,
    ("hm", "wa"): 0.9,
    ("hm", "fold+refine"): 0.6,
    ("hm", "wa+shuffle"): 1.01,
    ("vtm", "sse"): 0.9,
}
"""(codec, method) → bits over those of HM's sse at equal score; a fifth of the bits is 10 points of mAP."""


def row(codec: str, mode: str, method: str, qp: int, factor: float, sketches: int = 4, frames: int = 1) -> Point:
    bits = round(1e6 * 2 ** ((22 - qp) / 5) * factor) * frames
    score = 0.5 - 0.1 * (qp - 22) / 5 / math.log2(5)
    options = {"wa": {"alpha": 1.0, "sketches": sketches}}.get(method, {})
    return Point(
        key=f"{codec}-{mode}-{method}-{sketches}-{qp}", dataset="pictures", sequence="(all)", codec=codec,
        codec_version="1.0", config="intra", mode=mode, method=method, method_options=json.dumps(options),
        lambda_scale=1.0, seed=0, qp=float(qp), frames=frames, bits=bits, header_bits=0, kbps=1.0,
        bpp=bits / frames / (416 * 240), feature_snr=40 * score, ap=score, ap50=1.2 * score,
        encode_s={"jm": 0.4, "hm": 1.0, "vtm": 4.0}[codec] * frames, method_s=0.5 if method == "wa" else 0.0,
        map_s=0.5 if method == "wa" else None, wrapper_s=0.1, verified=True, network="made-up net",
    )  # fmt: skip


def rows() -> list[Point]:
    found = [row(*place[:1], "fcm-x", place[1], qp, factor) for place, factor in FACTORS.items() for qp in QPS]
    found += [row("hm", "remote", "sse", qp, 4.0) for qp in QPS]
    found += [row("jm", "fcm-x", "wa", qp, 1.1, sketches=2) for qp in QPS]
    return found


def ours_of(scores: list[Point], **changes: object) -> Ours:
    points = tuple(dataclasses.replace(s, sequence="one", key=f"{s.key}-one") for s in scores)
    results = TaskResults("pictures", tuple(scores), points, None, False, {})
    results = dataclasses.replace(results, **changes)  # type: ignore[arg-type]
    draws = Draws((), {}, {})
    return Ours(results, draws, tuple(task_table(results, draws)), "fcm-x", Setting("jm", "intra"))


def printed(shown: object) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    console.print(shown)
    return console.export_text()


def line_of(text: str, start: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip(" │").startswith(start)]
    return [cell.strip() for cell in lines[0].strip("│ ").split("│")]


def test_the_published_tables_are_those_of_the_paper() -> None:
    # Figure 5 (a) and the text: any weighted method beats its own sse; the means over the data sets that are left.
    means = {place: np.mean([v for v in values if v is not None]) for place, values in WA_TABLE_1.items()}
    assert means["wa", "hevc"] > means["sse", "vvc"] > means["sse", "hevc"]
    assert all(mean > 0 for mean in means.values())
    assert all(len(values) == len(WA_DATA) == len(WA_REMOTE) for values in WA_TABLE_1.values())
    assert [values[-1] for values in WA_TABLE_1.values()] == [None] * len(WA_TABLE_1)
    assert all(values[:2] == (None, None) for (method, _), values in WA_TABLE_1.items() if method == "iwa")
    assert sorted(WA_TABLE_2, key=lambda column: column.cpu_s) == list(WA_TABLE_2)


def test_a_column_stands_beside_the_papers_data_of_the_same_task() -> None:
    pictures = ours_of(rows())
    assert pictures.counterpart == WA_DATA[0]
    video = [dataclasses.replace(s, frames=10, bits=10 * s.bits) for s in rows()]
    assert getattr(ours_of(video).counterpart, "name", "") == "SFU, class D"
    large = [dataclasses.replace(s, bpp=s.bpp / 8) for s in video]
    assert getattr(ours_of(large).counterpart, "name", "") == "SFU, class A/B"
    masks = [dataclasses.replace(s, mask_ap=s.ap) for s in rows()]
    assert getattr(ours_of(masks).counterpart, "name", "") == "OIv6, segmentation"
    tracks = [dataclasses.replace(s, ap=None, ap50=None, mota=s.ap) for s in video]
    assert getattr(ours_of(tracks).counterpart, "name", "") == "TVD"


def test_figures_are_those_against_avc_under_sse() -> None:
    # The score is a straight line over log rate: a factor f is 10 log5(1 / f) points at every rate.
    text = printed(shown_beside([ours_of(rows())]))
    for start, factor in (
        ("sse, HEVC", 1.3),
        ("wa, AVC", 1.3),
        ("wa, HEVC", 1.3 / 0.9),
        ("fold+refine, hm", 1.3 / 0.6),
    ):
        assert line_of(text, start)[2].startswith(f"{10 * np.log(factor) / np.log(5):+.2f} (—)")
    assert line_of(text, "sse, VVC")[1:2] == ["0.62"]
    assert line_of(text, "fwa, HEVC")[1:] == ["0.51", "—"]
    assert "wa+shuffle, hm" not in text
    assert "sse, jm" not in text
    remote = line_of(text, "AVC sse, against remote inference")
    assert remote[1] == "7.96"
    assert remote[2].endswith(", hm")
    two, four = (line_of(text, f"{n} ") for n in (2, 4))
    assert two[1:4] == ["0.26", "5.92", "1.36"]
    assert two[4].startswith(f"{10 * np.log(1.3 / 1.1) / np.log(5):+.2f}")
    assert (four[4].split()[0], four[5]) == (f"{10 * np.log(1.3) / np.log(5):+.2f}", "0.90")
    assert line_of(text, "8 ")[4:] == ["—", "—"]
    claim = next(line for line in text.splitlines() if "hm, wa " in line and "vtm, sse" in line)
    assert "0.0 (—)" in claim
    assert "-72 %" in text


def test_every_difference_in_conditions_is_listed() -> None:
    text = printed(differences([ours_of(rows(), is_pseudo=True)]))
    for name in ("data", "truth", "network", "wrapper, split", "anchor", "codecs", "configuration", "QPs",
                 "remote inference", "sketches, α", "map of fwa", "decisions", "intervals", "machine"):  # fmt: skip
        assert f"  {name}: paper: " in text
    for words in ("JM 19.1", "jm 1.0", "the network on the originals", "made-up net", "22, 27, 32, 37, 42",
                  "2 sketches, α = 1.0, 4 sketches", "pictures, pseudo truth (1 pictures)"):  # fmt: skip
        assert words in " ".join(text.split())


def test_without_avc_there_is_no_anchor_and_nothing_is_made_up(tmp_path: Path) -> None:
    scores = [s for s in rows() if s.codec == "hm"]
    write_points(tmp_path / "scores.csv", scores)
    write_points(tmp_path / "results.csv", [dataclasses.replace(s, sequence="one", key=s.key + "1") for s in scores])
    (ours,) = read_ours([tmp_path])
    assert ours.anchor is None
    text = printed(shown_beside([ours]))
    assert line_of(text, "wa, HEVC")[2] == "—"
    assert "none (AVC not measured)" in text
    with pytest.raises(FileNotFoundError, match=r"no results at .*nowhere.*neither"):
        read_ours([tmp_path / "nowhere", tmp_path, tmp_path / "neither"])
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(ValueError, match="no scores of a feature wrapper"):
        read_ours([tmp_path])


def test_condensed_tables_hold_what_the_notebook_reads(tmp_path: Path) -> None:
    ours = ours_of(rows(), is_pseudo=True)
    folder = tmp_path / "sweep"
    folder.mkdir()
    arrays = {"source": np.zeros((4, 4, 3), np.uint8), "hm/units/sse": np.arange(6)[None], "about": np.array("{}")}
    arrays |= {"hm/weights/wa": np.ones((4, 4), np.float32), "hm/decoded/wa": np.zeros((4, 4), np.uint16)}
    np.savez(folder / "pictures.npz", **arrays)  # type: ignore[arg-type]
    scores, table, pictures = write_tables([ours], [tmp_path, folder], tmp_path / "data")
    assert [p.name for p in (scores, table, pictures)] == ["fcm_scores.csv", "fcm_bd.csv", "fcm_pictures.npz"]
    again = read_points(scores)
    assert {p.dataset for p in again} == {"pictures, pseudo truth"}
    assert [p.ap for p in again] == [p.ap for p in ours.results.scores]
    with np.load(pictures) as archive:
        assert sorted(archive.files) == [
            "about",
            "hm/units/sse",
            "hm/weights/wa",
        ]  # photographs are not ours to pass on
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == BD_COLUMNS
    assert len(lines) == len(ours.rows)
    wanted = ours.row("feature_snr", "reference", "hm", Series("fcm-x", "fold+refine"), "vtm")
    (line,) = (
        one
        for one in lines
        if (one["measure"], one["comparison"], one["method"], one["anchor_codec"])
        == ("feature_snr", "reference", "fold+refine", "vtm")
    )
    assert wanted is not None
    assert wanted.rate is not None
    assert float(line["rate"]) == pytest.approx(wanted.rate.interval.mean, abs=1e-4)
    assert float(line["rate"]) == pytest.approx(100 * (0.6 / 0.9 - 1), abs=0.01)
    assert line["rate_low"] == ""


class Means(nnx.Module):
    """Means of squares of pictures."""

    def __init__(self, side: int):
        self.side = side

    def __call__(self, images: jax.Array) -> jax.Array:
        n, height, width, channels = images.shape
        return images.reshape(n, height // self.side, self.side, width // self.side, self.side, channels).mean((2, 4))


def test_samples_of_photographs_are_what_the_wrapper_sends_and_restores(tmp_path: Path) -> None:
    scales = (Scale("fine", 3, 8), Scale("coarse", 3, 16))
    config = FcmConfig("made-up", "coarse", scales, latent_channels=4, width=8, blocks=1, statistics="picture")
    wrapper = FcmWrapper(config, rngs=nnx.Rngs(0))
    save_fcm(tmp_path / "x.wrapper.npz", wrapper, None, notes={})
    layers = [("fine", ("images",), Means(8)), ("coarse", ("images",), Means(16))]
    network = Network("made-up", layers, outputs=("fine", "coarse"), multiple=16)
    expects = PictureInput(64, 96, mean=(128.0,) * 3, deviation=(60.0,) * 3)
    detector = Detector("made-up", network, expects, "coarse", lambda raw: raw)  # type: ignore[arg-type, return-value]
    path = write_samples(str(tmp_path / "x.wrapper.npz"), tmp_path / "data", detector=detector)
    assert path.name == "fcm_samples.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    assert json.loads(str(arrays["about"]))["photographs"] == list(PHOTOGRAPHS)
    layout = TileLayout(4, 4, 6)
    assert (arrays["samples"].shape, arrays["samples"].dtype) == ((len(PHOTOGRAPHS), *layout.size), np.uint16)
    assert arrays["features/fine"].shape == (1, 8, 12, 3)
    features = {name: arrays[f"features/{name}"].astype(np.float32) for name in ("fine", "coarse")}
    statistics = {name: arrays[f"statistics/{name}"][:1] for name in ("fine", "coarse")}
    frame = normalise(Yuv400(arrays["samples"][:1]), config.bit_depth)
    sent = wrapper.reduce(features, statistics)
    np.testing.assert_allclose(np.clip(sent.y, -1, 1), frame.y, atol=3e-3)  # half floats, then 10 bits
