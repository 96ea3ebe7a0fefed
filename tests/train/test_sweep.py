"""The sweep with a stand-in encoder: resumed after SIGKILL, sharing streams, setting failures aside."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame
from jaxwrap.codec import EncodeRequest, Weights
from jaxwrap.codecs.x26x import X26x
from jaxwrap.methods import Plan, Sse
from jaxwrap.metrics.distortion import mean_psnr
from jaxwrap.samples import change_bit_depth
from jaxwrap.train.evaluate import rows as rows_module
from jaxwrap.train.evaluate.cache import Cache
from jaxwrap.train.evaluate.modes import MODE_BITS, Mode, codec_mode, combinations, linear_mode, mode_of
from jaxwrap.train.evaluate.options import method_options
from jaxwrap.train.evaluate.points import TIMINGS, read_points
from jaxwrap.train.evaluate.stopwatch import Stopwatch
from jaxwrap.train.evaluate.sweep import SweepResult, run_sweep
from jaxwrap.wrappers.switchable import PostConfig, PreConfig, WrapperConfig, wrapper_from_config


@dataclasses.dataclass(frozen=True)
class Tilt:
    """Draws one weight per frame, shifts z, and announces side information."""

    name: ClassVar[str] = "tilt"
    draws: ClassVar[bool] = True
    weights_as: ClassVar[str] = "distortion"
    amount: float = 0.5
    qp: float = 0.0
    target: Any = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        assert key is not None
        if self.amount < 0:
            raise ValueError("a negative amount was given")
        assert self.target.y.shape == jax.eval_shape(receiver, z).y.shape
        draws = 1.0 + self.amount * jax.random.uniform(key, (z.y.shape[0], 1, 1))
        planes = jax.tree.map(lambda p: jnp.broadcast_to(draws, p.shape), z)
        moved = jax.tree.map(lambda p: p + np.float32(self.qp / 10), z)
        return Plan(moved, Weights(planes), side_information_bits=jnp.full(z.y.shape[0], 7))


def small_wrapper(*, pre: Any = PreConfig(widths=(4,), mlp_width=4)) -> Mode:  # noqa: B008
    post = PostConfig(widths=(4,), kernels=(3,), encoder_blocks=(0,), decoder_blocks=())
    return mode_of(wrapper_from_config(WrapperConfig(Fraction(1, 2), pre, post)))


def without_timings(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_a_sweep_killed_in_the_middle_resumes_to_the_same_csv_and_leaves_no_worker(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, str(tmp_path / "stand_in_codec.py"), str(killed)], env=environment)
    log, cache = killed / "log", killed / "cache"
    deadline = time.monotonic() + 120
    while len(list(cache.rglob("*.json"))) < 5 or not (killed / "log.programs").exists():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Encoders that are programs, in sessions of their own, end with the workers that started them.
    programs = {int(line) for line in (killed / "log.programs").read_text().splitlines()}
    assert programs
    workers = {int(line.split()[0]) for line in log.read_text().splitlines()}
    deadline = time.monotonic() + 20
    while any(map(is_running, workers | programs)):
        assert time.monotonic() < deadline, "workers outlive the sweep"
        time.sleep(0.05)
    measured_before = {path.stem: path.read_bytes() for path in cache.rglob("*.json")}
    assert 5 <= len(measured_before) < 30
    assert not (killed / "out" / "results.csv").exists()

    resumed = stand_in.sweep(killed, 0.0)
    assert resumed.from_cache == len(measured_before)
    assert resumed.encodes == 30 - len(measured_before)
    stand_in.sweep(whole, 0.0)
    results = killed / "out" / "results.csv"
    assert without_timings(results) == without_timings(whole / "out" / "results.csv")
    for key, content in measured_before.items():  # seconds measured before the kill are kept
        assert (cache / key[:2] / f"{key}.json").read_bytes() == content
    before = results.read_bytes()
    again = stand_in.sweep(killed, 0.0)
    assert (again.encodes, again.from_cache) == (0, 30)
    assert results.read_bytes() == before


def test_rows_state_what_was_coded_and_modes_with_the_same_samples_share_a_stream(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    codec = stand_in.CoarseCodec(str(tmp_path / "log"))
    clips = stand_in.clips()
    modes = [codec_mode(), linear_mode("bilinear", Fraction(1, 2)), small_wrapper(pre="bilinear"), small_wrapper()]
    tilt = Tilt()
    result = run_sweep(
        clips, modes, [codec], [22, 37], [Sse(), tilt], tmp_path / "out", dataset="test", processes=1, seed=3
    )
    assert not result.failures
    # 3 clips × 2 QPs × (codec, bilinear = post, wrapper, wrapper + tilt): the two bilinear fronts are one stream.
    assert len((tmp_path / "log").read_text().splitlines()) == result.encodes == 3 * 2 * 4
    points = read_points(tmp_path / "out" / "results.csv")
    assert points == result.points
    assert [(p.sequence, p.mode, p.method, p.qp) for p in points] == [
        (clip.name, mode.name, method, qp)
        for clip in clips
        for mode, method in [*((m, "sse") for m in modes), (modes[3], "tilt")]
        for qp in (22.0, 37.0)
    ]
    assert [mode.name for mode in modes] == ["codec", "bilinear-1/2", "post-1/2", "wrapper-1/2"]
    by = {(p.sequence, p.mode, p.method, p.qp): p for p in points}

    # The codec alone, recomputed from the outside: shift to 10 bits, code, compare.
    source = change_bit_depth(clips[0].frames, 8, 10)
    coded = codec.encode(source, EncodeRequest(22.0))
    alone = by["lake", "codec", "sse", 22.0]
    assert alone.bits == int(coded.bits.sum())
    assert (alone.psnr_y, alone.psnr_yuv) == mean_psnr(source, coded.decoded, 10)
    assert alone.kbps == pytest.approx(alone.bits * 50.0 / 2 / 1000)
    assert alone.bpp == pytest.approx(alone.bits / (2 * 16 * 24))
    assert (alone.header_bits, alone.frames, alone.dataset, alone.seed) == (80, 2, "test", 3)
    assert (alone.mode_bits, by["lake", "bilinear-1/2", "sse", 22.0].mode_bits) == (0, MODE_BITS)
    assert alone.encode_s == 0.25
    assert not alone.verified  # the stand-in decodes itself
    assert alone.ms_ssim is None  # smaller than MS-SSIM takes
    assert alone.map_s is None

    post, bilinear = by["hill", "post-1/2", "sse", 37.0], by["hill", "bilinear-1/2", "sse", 37.0]
    assert post.bits == bilinear.bits
    # An untrained post-processor is bilinear resampling, its network's last layer being zero.
    assert post.psnr_yuv == pytest.approx(bilinear.psnr_yuv, abs=0.02)
    tilted = by["tree", "wrapper-1/2", "tilt", 22.0]
    assert json.loads(tilted.method_options) == {"amount": 0.5}
    assert tilted.map_s == tilted.method_s is not None

    pictures = dict(np.load(tmp_path / "out" / "pictures.npz"))
    assert json.loads(str(pictures["about"])) == {
        "sequence": "lake",
        "qp": 37.0,
        "codecs": [["coarse", "wrapper-1/2"]],
        "keys": sorted(by["lake", "wrapper-1/2", method, 37.0].key for method in ("sse", "tilt")),
    }
    assert pictures["coarse/decoded/tilt"].shape == pictures["coarse/weights/tilt"].shape == (8, 12)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["run"]["encodes"] == result.encodes
    assert list(manifest["commands"]) == ["coarse"]
    assert manifest["commands"]["coarse"].startswith("coarse --qp ")
    assert manifest["configuration"]["qps"] == [22.0, 37.0]
    assert manifest["versions"]["jax"] == jax.__version__

    # Another sweep with the same cache encodes nothing that was measured, here only one more QP of the anchor.
    more = run_sweep(
        clips, modes[:1], [codec], [22, 30, 37], [Sse()], tmp_path / "more", dataset="test", processes=1, seed=3
    )
    assert (more.encodes, more.from_cache) == (3, 6)
    unchanged = run_sweep(
        clips, modes[:1], [codec], [22, 30, 37], [Sse()], tmp_path / "more", dataset="test", processes=1, seed=3
    )
    assert unchanged.encodes == 0
    kept = json.loads((tmp_path / "more" / "manifest.json").read_text())["commands"]
    assert kept["coarse"].startswith("coarse --qp ")


def test_names_and_unused_seeds_measure_nothing_again_while_content_and_the_measurement_version_do(
    tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, (clip, other, _) = stand_in.CoarseCodec(str(tmp_path / "log")), stand_in.clips()
    modes, cache = [codec_mode(), small_wrapper()], tmp_path / "cache"

    def sweep(clips: list[Any], out: str, **options: Any) -> SweepResult:
        methods = [Sse(), Tilt()]
        return run_sweep(clips, modes, [codec], [32], methods, tmp_path / out, cache=cache, processes=1, **options)

    first = sweep([clip], "first", dataset="one")
    assert first.encodes == 3
    renamed = sweep([dataclasses.replace(clip, name="new")], "second", dataset="two")
    # The picture for the report is of another name, so its two streams are made again; no row is measured again.
    assert (renamed.from_cache, renamed.encodes) == (3, 2)
    assert [(p.dataset, p.sequence) for p in renamed.points] == [("two", "new")] * 3
    assert not {p.key for p in first.points} & {p.key for p in renamed.points}
    names = {"dataset": "one", "sequence": clip.name}
    assert first.points == [
        dataclasses.replace(p, key=q.key, **names) for p, q in zip(renamed.points, first.points, strict=True)
    ]
    seeded = sweep([clip], "third", seed=1)
    assert [p.seed for p in seeded.points] == [1, 1, 1]
    assert seeded.from_cache == 2  # tilt alone draws
    assert sweep([dataclasses.replace(other, name=clip.name)], "fourth").from_cache == 0
    assert sweep([dataclasses.replace(clip, fps=25.0)], "fifth").from_cache == 0
    monkeypatch.setattr(rows_module, "MEASUREMENT_VERSION", 10**6)
    assert sweep([clip], "sixth").from_cache == 0


def test_clips_of_equal_content_share_their_streams_and_have_a_row_each(tmp_path: Path, stand_in: ModuleType) -> None:
    codec, clip = stand_in.CoarseCodec(str(tmp_path / "log")), stand_in.clips()[0]
    twin = dataclasses.replace(clip, name="twin")
    result = run_sweep([clip, twin], [codec_mode()], [codec], [22, 37], [Sse()], tmp_path / "out", processes=1)
    assert result.encodes == 2
    assert [(p.sequence, p.qp) for p in result.points] == [("lake", 22), ("lake", 37), ("twin", 22), ("twin", 37)]
    assert len({p.key for p in result.points}) == 4
    assert [p.bits for p in result.points[:2]] == [p.bits for p in result.points[2:]]


def test_pictures_are_made_again_where_they_are_of_other_rows_or_damaged(tmp_path: Path, stand_in: ModuleType) -> None:
    codec, clips = stand_in.CoarseCodec(str(tmp_path / "log")), stand_in.clips()[:1]
    modes, path = [small_wrapper()], tmp_path / "out" / "pictures.npz"

    def sweep() -> SweepResult:
        return run_sweep(clips, modes, [codec], [22], [Sse(), Tilt()], tmp_path / "out", processes=1)

    sweep()
    made = dict(np.load(path))
    assert sweep().encodes == 0
    outdated = {**made, "about": np.array(json.dumps({**json.loads(str(made["about"])), "keys": ["00"]}))}
    np.savez(path, **outdated)  # type: ignore[arg-type]
    assert (sweep().encodes, sweep().encodes) == (2, 0)
    path.write_bytes(b"PK\x03\x04")
    assert sweep().encodes == 2
    again = dict(np.load(path))
    assert made.keys() == again.keys()
    assert all((made[name] == again[name]).all() for name in made)


def test_a_real_encoder_runs_in_the_worker_processes(tmp_path: Path, stand_in: ModuleType) -> None:
    (first, *_), codec = stand_in.clips(), X26x("x264")
    result = run_sweep(
        [first], [codec_mode()], [codec], [22, 37], [Sse()], tmp_path / "out", processes=1, preset="fast"
    )
    assert result.failures == []
    fine, coarse = result.points
    assert fine.verified
    assert fine.codec_version == codec.version
    assert fine.bits > coarse.bits > fine.header_bits > 0
    assert fine.psnr_yuv > coarse.psnr_yuv + 3


def test_what_fails_is_set_aside_and_the_rest_completes(tmp_path: Path, stand_in: ModuleType) -> None:
    codec = stand_in.CoarseCodec(str(tmp_path / "log"), fails_at=27, dies_at=32)
    clips, out = stand_in.clips()[:1], tmp_path / "out"
    modes = [codec_mode(), small_wrapper()]
    result = run_sweep(clips, modes, [codec], [22, 27, 32, 37], [Sse(), Tilt(amount=-1.0)], out)
    assert [(p.mode, p.qp) for p in result.points] == [
        (mode, qp) for mode in ("codec", "wrapper-1/2") for qp in (22, 37)
    ]
    failed = json.loads((out / "failed.json").read_text())
    assert failed == [dataclasses.asdict(f) for f in result.failures]
    errors = {(f["method"], f["qp"]): f["error"] for f in failed}
    assert errors["sse", 27.0] == "RuntimeError: no stream at QP 27"
    assert "coarse took its process down" in errors["sse", 32.0]
    assert errors["tilt", 22.0] == "ValueError: a negative amount was given"
    assert len(failed) == 2 * 2 + 4
    assert read_points(out / "results.csv") == result.points

    # What failed is tried again; when it works, the list of failures goes.
    mended = stand_in.CoarseCodec(str(tmp_path / "log"))
    again = run_sweep(clips, modes[:1], [mended], [22, 27], [Sse()], tmp_path / "again", processes=1)
    assert (again.from_cache, again.encodes, again.failures) == (1, 1, [])
    assert not (tmp_path / "again" / "failed.json").exists()


def test_a_full_disk_ends_the_sweep_with_its_name_and_keeps_what_was_measured(
    tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, calls = Cache.put, []

    def full_after_two(self: Cache, key: str, record: dict[str, Any]) -> None:
        calls.append(key)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "the disk is full: results")
        put(self, key, record)

    monkeypatch.setattr(Cache, "put", full_after_two)
    with pytest.raises(OSError, match="disk is full"):
        stand_in.sweep(tmp_path, 0.0)
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_an_output_folder_of_another_configuration_is_refused_naming_what_differs(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    codec = stand_in.CoarseCodec(str(tmp_path / "log"))
    clips, out = stand_in.clips()[:1], tmp_path / "out"
    run_sweep(clips, [codec_mode()], [codec], [22], [Sse()], out, processes=1)
    with pytest.raises(ValueError, match="another configuration") as caught:
        run_sweep(clips, [codec_mode(), linear_mode("bilinear", Fraction(1, 2))], [codec], [22, 27], [Sse()], out)
    message = str(caught.value)
    assert "qps: [22.0] there, [22.0,27.0] now" in message
    assert "modes.bilinear-1/2: absent there" in message
    assert "clips" not in message
    (out / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="no manifest of a sweep"):
        run_sweep(clips, [codec_mode()], [codec], [22], [Sse()], out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": []}, "no clip was given"),
        ({"qps": [22, 60]}, r"QPs \[60\] were given; wanted 0 to 51"),
        ({"qps": [22, 22.0]}, "QPs were given more than once: 22.0"),
        ({"config": "still"}, "known: intra, lowdelay, randomaccess"),
        ({"processes": 0}, "at least 1"),
        ({"modes": [codec_mode(), codec_mode()]}, "modes were given more than once: codec"),
        (
            {"methods": [Sse(), Tilt()]},
            "method tilt wants a mode whose two sides are networks, or .* receiver; given: codec",
        ),
        ({"twice": True}, "clips were given more than once: lake"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(
    tmp_path: Path, stand_in: ModuleType, change: dict[str, Any], message: str
) -> None:
    clips = stand_in.clips()[:1] * (2 if change.pop("twice", False) else 1)
    codecs = [stand_in.CoarseCodec("log")]
    given: dict[str, Any] = {"clips": clips, "modes": [codec_mode()], "codecs": codecs, "qps": [22], "methods": [Sse()]}
    with pytest.raises(ValueError, match=message):
        run_sweep(**{**given, **change}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "medum"}, "lake in mode codec: preset 'medum' was given; x264 knows: ultrafast, .*placebo"),
        ({"qps": [22, 27.5]}, "lake in mode codec: QP 27.5 was given; x264 at 10 bits takes whole numbers 0 … 51"),
        (
            {"modes": [codec_mode(), linear_mode("bilinear", Fraction(1, 2))]},
            "lake in mode bilinear-1/2: x264 was given 12×8 frames; it takes 16×16 or more",
        ),
    ],
)
def test_what_an_encoder_cannot_take_is_refused_before_anything_runs(
    tmp_path: Path, stand_in: ModuleType, change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"clips": stand_in.clips()[:1], "modes": [codec_mode()], "qps": [22], "methods": [Sse()]}
    with pytest.raises(ValueError, match=message):
        run_sweep(**{**given, **change}, codecs=[X26x("x264")], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_encoder_is_named_before_anything_runs(
    tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxwrap.codecs.x26x.encoder_version", lambda encoder: None)
    with pytest.raises(
        ValueError, match=r"codec x265 cannot be used: x265 is missing: PyAV .* Install PyAV's own wheel"
    ):
        run_sweep(stand_in.clips(), [codec_mode()], [X26x("x265")], [22], [Sse()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mode_is_known_by_its_parameters() -> None:
    wrapper, same = small_wrapper(), small_wrapper()
    assert (wrapper.pre_hash, wrapper.post_hash) == (same.pre_hash, same.post_hash)
    network = same.wrapper.post_network
    assert network is not None
    network.chroma.kernel[...] = network.chroma.kernel[...] * 2
    changed = mode_of(same.wrapper)
    assert changed.pre_hash == wrapper.pre_hash
    assert changed.post_hash != wrapper.post_hash
    assert len(combinations([codec_mode(), wrapper], [Sse(), Tilt()])) == 3


def test_method_options_are_json_whatever_they_hold() -> None:
    @dataclasses.dataclass
    class Odd:
        name: ClassVar[str] = "odd"
        metric: Any = mean_psnr
        inner: Any = dataclasses.field(default_factory=Tilt)
        map: Any = dataclasses.field(default_factory=lambda: np.ones(3))
        pair: tuple[int, int] = (1, 2)
        qp: float = 3.0

        def plan(self, receiver: Any, z: Frame, key: Any) -> Plan:
            return Plan(z)

    options = json.loads(json.dumps(method_options(Odd())))
    assert options["metric"] == "jaxwrap.metrics.distortion.mean_psnr"
    assert options["inner"]["type"] == "Tilt"
    assert options["pair"] == [1, 2]
    assert "qp" not in options
    assert options["map"] != method_options(Odd(map=np.zeros(3)))["map"]
    with pytest.raises(ValueError, match="cannot be written into a results row"):
        method_options(Odd(metric=object()))


def test_the_stopwatch_leaves_compilation_out() -> None:
    def work(x: jax.Array) -> jax.Array:
        for i in range(60):  # many small operations: long to compile, short to run
            x = jnp.sin(x) + np.float32(i)
        return x

    compiled = jax.jit(work)
    start = time.perf_counter()
    with Stopwatch() as first:
        compiled(jnp.ones(8)).block_until_ready()
    elapsed = time.perf_counter() - start
    assert first.seconds < 0.3 * elapsed
    with Stopwatch() as sleeping:
        time.sleep(0.05)
    assert 0.05 <= sleeping.seconds < 0.5


def test_a_clip_that_is_too_small_fails_by_itself(tmp_path: Path, stand_in: ModuleType) -> None:
    (clip,) = stand_in.clips()[:1]
    small = dataclasses.replace(
        clip, name="stamp", frames=jax.tree.map(lambda p: p[:, : p.shape[1] // 2, : p.shape[2] // 2], clip.frames)
    )
    result = run_sweep([clip, small], [codec_mode()], [X26x("x264")], [22], [Sse()], tmp_path / "out", processes=1)
    assert [point.sequence for point in result.points] == [clip.name]
    assert [failure.sequence for failure in result.failures] == ["stamp"]
    assert "takes 16×16 or more" in result.failures[0].error


def test_results_of_something_else_in_the_folder_are_not_overwritten(tmp_path: Path, stand_in: ModuleType) -> None:
    (tmp_path / "results.csv").write_text("precious")
    with pytest.raises(ValueError, match=r"holds results\.csv without the manifest\.json of a sweep"):
        run_sweep(stand_in.clips()[:1], [codec_mode()], [X26x("x264")], [22], [Sse()], tmp_path)
    assert (tmp_path / "results.csv").read_text() == "precious"
