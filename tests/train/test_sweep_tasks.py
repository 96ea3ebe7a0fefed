"""Sweeps of a task: a tiny detector of bright squares, its features through a wrapper and a real encoder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pycocotools import mask as mask_tools

from jaxwrap.arrays import Yuv400
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.x26x import X26x
from jaxwrap.methods import Sse, TaskWa
from jaxwrap.metrics.detection import average_precision
from jaxwrap.samples import normalise, to_integers
from jaxwrap.tasks.detector import Candidates, Detector
from jaxwrap.tasks.masks import MaskHead, MaskHeadConfig
from jaxwrap.tasks.network import IMAGES, Network, Tensors
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.train.datasets.data import TaskData
from jaxwrap.train.evaluate.features import FeatureMode, LocalMode, RemoteMode
from jaxwrap.train.evaluate.modes import codec_mode
from jaxwrap.train.evaluate.points import read_points
from jaxwrap.train.evaluate.pooled import ALL, TaskResult, run_task_sweep
from jaxwrap.train.evaluate.scoring import Task, Truth
from jaxwrap.train.evaluate.sources import PictureSource
from jaxwrap.train.evaluate.sweep import predictions_path, run_sweep
from jaxwrap.train.evaluate.terminal import TaskRun
from jaxwrap.train.runs import new_methods
from jaxwrap.wrappers.fcm import POWERS, FcmConfig, FcmTuning, FcmWrapper, Scale

INPUT, CELL = 32, 4


class Cells(nnx.Module):
    """Mean colour of each cell, in [0, 1]."""

    def __call__(self, images: jax.Array) -> jax.Array:
        n, h, w, _ = images.shape
        return images.reshape(n, h // CELL, CELL, w // CELL, CELL, 3).mean((2, 4)) / 255.0


class Gain(nnx.Module):
    def __init__(self) -> None:
        self.gain = nnx.Param(jnp.full(1, 0.9))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gain[...].reshape(1, 1, 1, 1)


def decode(raw: Tensors) -> Candidates:
    """A box per cell; its score is the brightness."""
    scores = jnp.clip(raw["head"].mean(-1), 0.0, 1.0)
    n, h, w = scores.shape
    y, x = (np.float32(a.ravel() * CELL) for a in np.mgrid[:h, :w])
    boxes = jnp.broadcast_to(np.stack([x, y, x + CELL, y + CELL], -1)[None], (n, h * w, 4))
    return boxes, scores.reshape(n, -1), jnp.zeros((n, h * w), jnp.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """Pictures with bright squares."""

    name: str
    size: tuple[int, int]
    fps: float
    image_ids: tuple[int, ...]
    squares: tuple[tuple[int, int, int], ...]  # of each frame, (x, y, side)

    @property
    def frames(self) -> int:
        return len(self.image_ids)

    def rgb(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        pictures = np.random.default_rng(self.image_ids[0]).integers(0, 20, (self.frames, *self.size, 3), np.uint8)
        for picture, (x, y, side) in zip(pictures, self.squares, strict=True):
            picture[y : y + side, x : x + side] = 240
        return pictures[start:stop]


def detector() -> Detector:
    network = Network(
        "tiny", [("stem", (IMAGES,), Cells()), ("head", ("stem",), Gain())], outputs=["head"], multiple=CELL
    )
    return Detector("tiny", network, PictureInput(INPUT, INPUT, fit="letterbox", padding=0.0), "stem", decode)


def wrapper(statistics: Any = "none") -> FcmWrapper:
    config = FcmConfig(
        "tiny", "stem", (Scale("stem", 3, CELL),), latent_channels=4, latent_stride=CELL, width=4, blocks=1,
        statistics=statistics,
    )  # fmt: skip
    made = FcmWrapper(config, rngs=nnx.Rngs(0))
    made.reducer.linear[...] = jnp.eye(3, 4) * (0.1 if statistics == "picture" else 0.8)
    # Not quite the inverse: so the features of z itself are not the network's own.
    made.restorer.linear[...] = jnp.eye(4, 3) * 0.9 / (0.1 if statistics == "picture" else 0.8)
    return made


def tuning() -> FcmTuning:
    """Some channels matter more; fold halves the samples' range."""
    weights, eye, each = np.array([4.0, 2.0, 1.0, 1.0]), np.eye(4), len(POWERS)
    return FcmTuning(
        np.full(4, 512.0), eye, np.diag(weights), weights, np.stack([eye] * each), np.full(each, 0.5),
        np.full((each, 4), 512.0),
    )  # fmt: skip


def stills() -> TaskData:
    sequences = (
        Made("a", (32, 32), 1.0, (1,), ((8, 12, 4),)),
        Made("b", (48, 64), 1.0, (2,), ((16, 8, 8),)),  # the network sees it at half its size
        Made("c", (32, 32), 1.0, (3,), ((0, 20, 4),)),
    )
    truth = {
        "images": [{"id": s.image_ids[0], "height": s.size[0], "width": s.size[1]} for s in sequences],
        "categories": [{"id": 7, "name": "square"}],
        "annotations": [
            {"id": s.image_ids[0], "image_id": s.image_ids[0], "category_id": 7, "iscrowd": 0,
             "area": side**2, "bbox": [x, y, side, side]}
            for s in sequences for x, y, side in s.squares
        ],
    }  # fmt: skip
    return TaskData("squares", "detection", sequences, truth, {0: 7}, False)  # type: ignore[arg-type]


def tracked() -> TaskData:
    squares = tuple((4 * n, 8, 8) for n in range(6))
    sequences = (Made("walk", (32, 32), 5.0, tuple(range(1, 7)), squares),)
    rows = [[n + 1, 1, x, y, side, side, 1, 1, 1] for n, (x, y, side) in enumerate(squares)]
    return TaskData("walks", "tracking", sequences, {"walk": np.float64(rows)}, {0: 1}, True)  # type: ignore[arg-type]


def feature_mode(data: TaskData, statistics: Any = "none", constants: FcmTuning | None = None) -> FeatureMode:
    return FeatureMode("fcm-tiny", Task(data.task, detector(), data.class_ids), wrapper(statistics), constants)


def test_rows_are_what_codec_and_network_make_of_each_picture_and_scores_pool_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, codec = stills(), X26x("x264")
    mode = feature_mode(data, "picture", tuning())
    modes = [mode, RemoteMode(mode.task, mode.wrapper), LocalMode(mode.task)]
    methods = new_methods(["sse", "fold", "calibrated+dqp", "wa:task+dqp"], of_task=True)

    def sweep(out: str) -> TaskResult:
        return run_task_sweep(data, modes, [codec], [22, 47], methods, tmp_path / out, processes=1, dataset="squares")

    result, out = sweep("out"), tmp_path / "out"
    points = read_points(out / "results.csv")
    assert result.sweep.failures == []
    assert len(points) == 3 * (4 * 2 + 2 + 1)
    found = {(p.mode, p.method, p.qp, p.sequence): p for p in points}

    # One row from the outside: part 1, wrapper, encoder, wrapper, part 2.
    b = data.sequences[1]
    features = mode.task.detector.features(mode.task.detector.images(b.rgb()))
    side = mode.wrapper.statistics(features)
    frame = mode.wrapper.reduce(features, side)
    z = Yuv400((frame.y + 1.0) * 511.5)
    coded = codec.encode(to_integers(z, 10), EncodeRequest(47.0, fps=1.0))
    restored = mode.wrapper.restore(normalise(coded.decoded, 10), side, mode.layout)
    point = found["fcm-tiny", "sse", 47.0, "b"]
    assert point.bits == int(np.sum(coded.bits)) + 32  # mean and deviation of the one scale
    y, seen, of_z = (
        np.asarray(x["stem"]) for x in (features, restored, mode.wrapper.restore(frame, side, mode.layout))
    )
    for snr, wanted in ((point.feature_snr, y), (point.receiver_snr, of_z)):
        assert snr == pytest.approx(10 * np.log10((wanted**2).sum() / ((seen - wanted) ** 2).sum()), abs=1e-3)
    assert abs(y - of_z).max() > 0.01
    assert (point.network, point.psnr_yuv, point.bpp) == ("tiny", None, point.bits / (48 * 64))
    assert point.verified
    raw = mode.task.detector.outputs(restored)
    best = int(np.argmax(np.asarray(raw["head"]).mean(-1)))
    predictions = json.loads(predictions_path(out, point.key).read_bytes())
    assert predictions[0]["bbox"] == [best % 8 * 8, best // 8 * 8, 8, 8]  # in the picture's own pixels
    assert {p["image_id"] for p in predictions} == {2}
    assert {p["category_id"] for p in predictions} == {7}

    # fold halves the samples' range, and is undone.
    folded = found["fcm-tiny", "fold", 22.0, "b"]
    assert folded.bits < found["fcm-tiny", "sse", 22.0, "b"].bits
    assert folded.feature_snr == pytest.approx(found["fcm-tiny", "sse", 22.0, "b"].feature_snr, abs=8)
    assert found["fcm-tiny", "wa:task+dqp", 22.0, "b"].map_s is not None

    remote, local = found["remote", "sse", 22.0, "b"], found["local", "sse", 0.0, "b"]
    assert remote.psnr_yuv is not None
    assert remote.psnr_yuv > 30
    assert remote.feature_snr is not None
    assert (local.codec, local.bits, local.feature_snr) == ("none", 0, None)

    scores = read_points(out / "scores.csv")
    assert [s.sequence for s in scores] == [ALL] * len(scores)
    assert len(scores) == 4 * 2 + 2 + 1
    pooled = next(s for s in scores if (s.mode, s.method, s.qp) == ("fcm-tiny", "sse", 47.0))
    rows = [found["fcm-tiny", "sse", 47.0, name] for name in "abc"]
    assert pooled.bits == sum(row.bits for row in rows)
    assert (pooled.frames, pooled.bpp) == (3, pooled.bits / (2 * 32 * 32 + 48 * 64))
    results = [p for row in rows for p in json.loads(predictions_path(out, row.key).read_bytes())]
    assert pooled.ap == average_precision(json.loads((out / "truth.json").read_bytes()), results).ap
    energies = [result.sweep.sums[row.key].energies["feature_snr"] for row in rows]
    signal, noise = np.sum(energies, axis=0)
    assert pooled.feature_snr == pytest.approx(10 * np.log10(signal / noise))
    assert next(s.ap for s in scores if s.mode == "local") == pytest.approx(1.0)

    # Nothing is done twice, neither encoded nor scored; predictions come back from the cache.
    monkeypatch.setattr("jaxwrap.metrics.detection.average_precision", None)
    before = {path.name: path.read_bytes() for path in (out / "predictions").iterdir()}
    shutil.rmtree(out / "predictions")
    table = (out / "scores.csv").read_bytes()
    assert sweep("out").sweep.encodes == 0
    assert (out / "scores.csv").read_bytes() == table
    assert {path.name: path.read_bytes() for path in (out / "predictions").iterdir()} == before
    assert json.loads((out / "manifest.json").read_text())["run"]["clipped"]["fcm-tiny, sse"] == 0.0


def test_tracks_of_a_video_are_scored_against_what_is_found_without_coding(tmp_path: Path) -> None:
    data = tracked()
    mode = feature_mode(data, "picture")
    out = tmp_path / "out"
    result = run_task_sweep(
        data, [mode], [X26x("x264")], [12], new_methods(["iwa:task+dqp"], of_task=True), out, truth="pseudo",
        processes=1, config="lowdelay",
    )  # fmt: skip
    assert result.sweep.failures == []
    assert [(p.mode, p.method) for p in result.scores] == [
        ("fcm-tiny", "sse"), ("fcm-tiny", "iwa:task+dqp"), ("local", "sse"),
    ]  # fmt: skip
    for point in result.scores:
        assert (point.mota, point.idf1, point.ap) == (1.0, 1.0, None)
    assert len((out / "truth" / "walk.txt").read_text().splitlines()) >= 5
    texts = list((out / "predictions").glob("*.txt"))
    assert len(texts) == 3
    assert texts[0].read_text().startswith("2,1,")  # a track is given out when it was seen twice


def test_samples_beyond_the_codecs_range_are_counted(tmp_path: Path) -> None:
    data = stills()
    mode = feature_mode(data)
    mode.wrapper.reducer.linear[...] = mode.wrapper.reducer.linear[...] * 4
    result = run_task_sweep(data, [mode], [X26x("x264")], [22], [Sse()], tmp_path / "out", processes=1)
    (share,) = result.clipped.values()
    # One cell of 64 in three of four channels, in every picture, is 240 / 255 · 3.2; no other reaches 1.
    assert share == pytest.approx(3 / 256)


def test_what_cannot_be_scored_or_coded_is_refused_before_anything_runs(tmp_path: Path) -> None:
    data, out = stills(), tmp_path / "out"
    given: Any = ([X26x("x264")], [22], [Sse()], out)
    mode = feature_mode(data)
    empty = dataclasses.replace(data, truth={**data.truth, "annotations": []})
    with pytest.raises(ValueError, match=r"annotations of squares hold no object: .* or --truth pseudo"):
        run_task_sweep(empty, [mode], *given)
    fold = new_methods(["fold"], of_task=True)
    with pytest.raises(ValueError, match="method fold wants constants from training, and fcm-tiny has none"):
        run_task_sweep(data, [mode], [X26x("x264")], [22], fold, out)
    with pytest.raises(ValueError, match="task segmentation wants a mask head"):
        Task("segmentation", detector(), {0: 7})
    other = dataclasses.replace(wrapper().config, split="head")
    with pytest.raises(ValueError, match="fcm-x codes the features of tiny behind head; the task's network is tiny"):
        FeatureMode("fcm-x", mode.task, FcmWrapper(other, rngs=nnx.Rngs(0)), None)
    small = dataclasses.replace(mode.task.detector, expects=PictureInput(8, 8, fit="letterbox"))
    tiny = FeatureMode("fcm-tiny", dataclasses.replace(mode.task, detector=small), wrapper(), None)
    assert tiny.coded_size((32, 32)) == (16, 16)
    with pytest.raises(ValueError, match="several --run are named fcm-a"):
        TaskRun("detection", [], ["one/fcm-a", "other/fcm-a.wrapper.npz", "fcm-b"]).modes(data)
    assert not out.exists()


def test_a_task_aware_method_wants_a_mode_of_a_task(tmp_path: Path) -> None:
    class Clip:
        name, fps, bit_depth = "clip", 25.0, 8
        frames = Yuv400(np.zeros((1, 16, 16), np.uint8))

    mode = dataclasses.replace(codec_mode(), receiver=lambda frame: frame.y, receiver_hash="y")
    with pytest.raises(ValueError, match="method wa:task weighs by a task, and mode codec has none: give --task"):
        run_sweep([Clip()], [mode], [X26x("x264")], [22], [Sse(), TaskWa()], tmp_path / "out")


def test_masks_of_a_picture_are_at_its_own_size_and_scored() -> None:
    data = dataclasses.replace(stills(), task="segmentation")
    source = PictureSource.of_sequence(data.sequences[1])
    head = MaskHead(MaskHeadConfig((("stem", CELL, 3),), width=4, blocks=1, fine_width=2, size=4), rngs=nnx.Rngs(0))
    head.logits.bias[...] = jnp.full(1, 5.0)  # every mask is its whole box
    task = Task("segmentation", detector(), data.class_ids, head)
    found = task.predictions(task.features(source.rgb()), source)
    assert mask_tools.area(found[0]["segmentation"]) == 64
    polygon = [[16, 8, 24, 8, 24, 16, 16, 16]]
    annotation = {**data.truth["annotations"][1], "segmentation": polygon}
    truth = {**data.truth, "images": data.truth["images"][1:2], "annotations": [annotation]}
    scores = Truth("segmentation", truth, False).scores({"b": found})
    assert scores == pytest.approx({"ap": 1.0, "ap50": 1.0, "mask_ap": 1.0})
    assert task.digest != Task("detection", detector(), data.class_ids).digest
