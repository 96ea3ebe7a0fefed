"""Sweeps over several kinds of encoders: what each takes, scales of λ, receivers, cost, quarantine, a cluster."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from jaxwrap.arrays import Frame
from jaxwrap.codec import EncodeRequest, Weights
from jaxwrap.methods import Idse, Plan, Sse
from jaxwrap.samples import change_bit_depth, normalise, to_integers
from jaxwrap.train.cluster import connected
from jaxwrap.train.evaluate import cluster, cost
from jaxwrap.train.evaluate.modes import Mode, codec_mode, linear_mode, mode_of, receiver_mode
from jaxwrap.train.evaluate.points import TIMINGS
from jaxwrap.train.evaluate.sweep import SweepResult, run_sweep
from jaxwrap.wrappers.switchable import PostConfig, PreConfig, WrapperConfig, wrapper_from_config


@dataclasses.dataclass(frozen=True)
class Half:
    """Weighs every sample by ½, and adds 8 to it."""

    name: ClassVar[str] = "half"
    draws: ClassVar[bool] = False
    weights_as: ClassVar[str] = "distortion"

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        return Plan(jax.tree.map(lambda p: p + np.float32(8), z), Weights(jax.tree.map(lambda p: p * 0 + 0.5, z)))


def features(samples: Frame) -> dict[str, jax.Array]:
    """Stands for a network on 10-bit samples."""
    y, u = samples.y / 1023, samples.u / 1023
    return {"a": jnp.tanh(y[:, ::2, ::2] * u), "b": y[:, :4, 0]}


LOOKED_AT = receiver_mode(features, "features")


def wrapper() -> Mode:
    post = PostConfig(widths=(4,), kernels=(3,), encoder_blocks=(0,), decoder_blocks=())
    return mode_of(wrapper_from_config(WrapperConfig(Fraction(1, 2), PreConfig(widths=(4,), mlp_width=4), post)))


def without_timings(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(file)]


def told(run: Callable[[Progress], SweepResult]) -> tuple[SweepResult, str]:
    """What a sweep returns, and what it says."""
    text = io.StringIO()
    with Progress(console=Console(file=text, width=400)) as progress:
        return run(progress), text.getvalue()


def test_stock_encoders_are_anchors_and_patched_ones_take_weights_rows_and_scales(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    patched = stand_in.CoarseCodec(str(tmp_path / "patched"), name="patched")
    stock = stand_in.CoarseCodec(str(tmp_path / "stock"), name="stock", stock=True)
    clip, half, idse = stand_in.clips()[0], Half(), Idse(rows=2)
    result, text = told(
        lambda progress: run_sweep(
            [clip], [LOOKED_AT], [patched, stock], [22], [Sse(), half, idse], tmp_path / "out",
            lambda_scales=[1, 0.25], processes=2, progress=progress,
        )
    )  # fmt: skip
    assert not result.failures
    assert [(p.codec, p.method, p.lambda_scale) for p in result.points] == [
        *(("patched", method, scale) for method in ("sse", "half", "idse") for scale in (1.0, 0.25)),
        ("stock", "sse", 1.0),
    ]
    assert "left out of stock: half, idse (stock takes no weights)" in text
    assert "left out of stock: sse, λ × 0.25; half, λ × 0.25; idse, λ × 0.25 (λ scale 0.25 was given; stock" in text
    by = {(p.codec, p.method, p.lambda_scale): p for p in result.points}
    source = change_bit_depth(clip.frames, 8, 10)
    for scale in (1.0, 0.25):
        coded = patched.encode(source, EncodeRequest(22.0, lambda_scale=scale))
        assert by["patched", "sse", scale].bits == coded.bits.sum()
        moved = jax.tree.map(lambda p: p + 8, source)
        weights = Weights(jax.tree.map(lambda p: np.full(p.shape, 0.5), source))
        coded = patched.encode(moved, EncodeRequest(22.0, lambda_scale=scale, weights=weights))
        assert by["patched", "half", scale].bits == coded.bits.sum()
    assert by["patched", "sse", 1.0].bits == by["stock", "sse", 1.0].bits < by["patched", "sse", 0.25].bits
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["configuration"]["lambda_scales"] == [1.0, 0.25]


def test_what_no_encoder_takes_is_refused_with_the_words_of_all(tmp_path: Path, stand_in: ModuleType) -> None:
    codecs = [stand_in.CoarseCodec("log", name=name, stock=True) for name in ("one", "two")]
    given: Any = ([LOOKED_AT], codecs, [22])
    clips = stand_in.clips()[:1]
    with pytest.raises(ValueError, match=r"no codec takes method half: .*one takes no weights; .*two takes no weights"):
        run_sweep(clips, *given, [Sse(), Half()], tmp_path / "out")
    with pytest.raises(ValueError, match=r"no codec takes λ scale 0\.5: .*only a patched HM or JM"):
        run_sweep(clips, *given, [Sse()], tmp_path / "out", lambda_scales=[1, 0.5])
    with pytest.raises(ValueError, match=r"λ scales \[0\] were given; wanted finite numbers above 0"):
        run_sweep(clips, *given, [Sse()], tmp_path / "out", lambda_scales=[0])
    assert not (tmp_path / "out").exists()


def test_efforts_may_be_given_by_the_names_of_encoders(tmp_path: Path, stand_in: ModuleType) -> None:
    plain, slow = (
        stand_in.CoarseCodec(str(tmp_path / name), name=name, presets=presets)
        for name, presets in (("plain", ()), ("slow", ("slow",)))
    )
    given: Any = (stand_in.clips()[:1], [codec_mode()], [plain, slow], [22], [Sse()])
    result = run_sweep(*given, tmp_path / "out", preset={"slow": "slow"}, processes=1)
    assert [p.codec for p in result.points] == ["plain", "slow"]
    with pytest.raises(ValueError, match="plain has no preset 'slow'"):
        run_sweep(*given, tmp_path / "other", preset="slow")
    # The encoder without one was not asked anything else: its point comes from the cache, the other's does not.
    again = run_sweep(*given, tmp_path / "third", preset={}, processes=1)
    assert (again.from_cache, again.encodes) == (1, 1)


def test_receiver_snr_is_what_coding_alone_costs_the_receiver(tmp_path: Path, stand_in: ModuleType) -> None:
    """Recomputed in float64 from the definition: of a network on the pictures, and of a post-processor in YUV 6:1:1."""
    codec, clip, half = stand_in.CoarseCodec(str(tmp_path / "log")), stand_in.clips()[0], Half()
    modes = [LOOKED_AT, wrapper(), linear_mode("bilinear", Fraction(1, 2))]
    result = run_sweep([clip], modes, [codec], [32], [Sse(), half], tmp_path / "out", processes=1)
    assert not result.failures
    by = {(p.mode, p.method): p for p in result.points}
    assert by["bilinear-1/2", "sse"].receiver_snr is None  # no network looks at it
    source = change_bit_depth(clip.frames, 8, 10)

    def snr(wanted: Any, received: Any, weights: list[float]) -> float:
        signal = sum(w * np.square(np.float64(a)).sum() for w, a in zip(weights, jax.tree.leaves(wanted), strict=True))
        noise = sum(
            w * np.square(np.float64(a) - np.float64(b)).sum()
            for w, a, b in zip(weights, jax.tree.leaves(wanted), jax.tree.leaves(received), strict=True)
        )
        return 10 * np.log10(signal / noise)

    def float32(frame: Frame) -> Frame:
        return jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), frame)

    for mode in modes[:2]:
        sandwich = mode.sandwich(16, 24)
        z = sandwich.bottleneck(normalise(float32(source), 10))
        receiver = mode.receiver or sandwich.receive
        # Per sample of a plane: 6/8 of luma, 1/8 of each chroma plane, which has a quarter of the samples.
        weights = [1.0, 1.0] if mode.receiver else [6.0, 4.0, 4.0]
        for method in (Sse(), half):
            plan = method.plan(receiver, z, None)
            request = EncodeRequest(32.0, weights=jax.device_get(plan.weights))
            decoded = codec.encode(to_integers(plan.z, 10), request).decoded
            expected = snr(receiver(z), receiver(float32(decoded)), weights)
            # Samples between two integers may be rounded otherwise in another order of the networks' sums.
            assert by[mode.name, method.name].receiver_snr == pytest.approx(expected, abs=0.02), (mode.name, method)


def test_the_cost_is_told_before_a_long_sweep_from_one_encode_of_each_codec_or_from_the_cache(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    log = tmp_path / "log"
    codec, (clip, *_) = stand_in.CoarseCodec(str(log)), stand_in.clips()
    qps = list(range(20, 42, 2))

    def sweep(qps: list[int], out: str) -> tuple[SweepResult, str]:
        return told(
            lambda progress: run_sweep(
                [clip], [codec_mode()], [codec], qps, [Sse()], tmp_path / out, processes=2, progress=progress
            )
        )

    result, text = sweep(qps, "first")
    assert result.encodes == 11
    assert log.read_text().split("\n")[0].split()[1] == "30"  # a middle QP, before all others
    assert "10 × 0.25 s in coarse; on 2 processes about 0.021 min, networks and metrics apart" in text
    more, text = sweep([*qps, *range(21, 43, 2)], "second")
    assert (more.from_cache, more.encodes) == (11, 11)
    assert "11 × 0.25 s in coarse; on 2 processes about 0.023 min" in text
    # Nothing is tried out first, for the cache knew: not QP 31, the middle one. Two workers race for the first line.
    assert log.read_text().split("\n")[11].split()[1] in ("21", "23")


def test_estimates_scale_with_samples_and_wait_for_all_codecs() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str

    def row(name: str, samples: int, qp: float = 30, method: str = "sse") -> Any:
        return dataclasses.make_dataclass("R", ["codec", "coded_samples", "qp", "method"])(
            Named(name), samples, qp, Named(method)
        )

    point = dataclasses.make_dataclass("P", ["encode_s"])
    rates = cost.seconds_per_sample(
        [(row("a", 100), point(2.0)), (row("a", 300), point(4.0)), (row("b", 1), point(None))]
    )
    assert rates == {"a": 6.0 / 400}
    assert cost.estimate([row("a", 100), row("b", 5)], rates, 2) is None
    found = cost.estimate([row("a", 200), row("a", 600)], rates, 2)
    assert found is not None
    assert (found.seconds, found.minutes) == ({"a": pytest.approx(12.0)}, pytest.approx(0.1))
    streams = [row("b", 1, qp, method) for method in ("wa", "sse") for qp in (20, 30, 40)] + [row("a", 1)] * 3
    (probe,) = cost.probes(streams, rates, 2)
    assert (probe.codec.name, probe.qp, probe.method.name) == ("b", 30, "sse")
    assert cost.probes(streams[:8], rates, 2) == []


def test_what_failed_is_left_alone_with_its_log_until_it_is_asked_for(tmp_path: Path, stand_in: ModuleType) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    fails = stand_in.CoarseCodec(str(log), fails_at=27)

    def sweep(codec: Any, **options: Any) -> SweepResult:
        return run_sweep(
            stand_in.clips()[:1], [codec_mode()], [codec], [22, 27, 32], [Sse()], out, processes=1, **options
        )

    first = sweep(fails)
    (failure,) = first.failures
    assert (failure.qp, failure.lambda_scale, failure.error) == (27.0, 1.0, "RuntimeError: no stream at QP 27")
    kept = (out / failure.log).read_text()
    assert failure.log == f"failed/{failure.key}.log"
    assert kept.startswith("$ coarse --qp 27\nall that it said\n")
    assert "RuntimeError: no stream at QP 27" in kept
    calls = log.read_text()
    again, text = told(lambda progress: sweep(fails, progress=progress))
    assert (again.encodes, again.failures, len(again.points)) == (0, first.failures, 2)
    assert "1 left alone because they failed before" in text
    assert log.read_text() == calls
    # A worker's crash, say, is over: the same encoder is asked again. Its key is the same, its settings are no part.
    mended = dataclasses.replace(fails, fails_at=-1)
    assert sweep(mended).failures == first.failures
    done = sweep(mended, retry_failed=True)
    assert (done.encodes, done.failures, len(done.points)) == (1, [], 3)
    assert not (out / "failed.json").exists()
    assert not (out / "failed").exists()


def test_another_build_of_an_encoder_is_tried_at_once(tmp_path: Path, stand_in: ModuleType) -> None:
    fails = stand_in.CoarseCodec(str(tmp_path / "log"), fails_at=27)
    rebuilt = dataclasses.replace(fails, fails_at=-1, version="2")
    given: Any = {"qps": [27], "methods": [Sse()], "out": tmp_path / "out", "processes": 1}
    assert run_sweep(stand_in.clips()[:1], [codec_mode()], [fails], **given).failures
    done = run_sweep(stand_in.clips()[:1], [codec_mode()], [rebuilt], **given)
    assert (len(done.points), done.failures) == (1, [])
    assert not (tmp_path / "out" / "failed").exists()


# A worker that is killed leaves its sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_sweep_on_a_cluster_survives_a_killed_worker_and_ends_in_the_local_csv(
    tmp_path: Path, stand_in: ModuleType
) -> None:
    from distributed import LocalCluster

    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    stand_in.sweep(here, 0.0)
    killed: list[int] = []

    def kill_one(local: Any) -> None:
        """After a few encodes, the worker that logged the last one, in the middle of the next."""
        log = there / "log"
        while not log.exists() or len(log.read_text().splitlines()) < 8:
            time.sleep(0.02)
        pid = int(log.read_text().splitlines()[-1].split()[0])
        assert pid in {worker.pid for worker in local.workers.values()}
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ports that are taken, and of tornado at closing
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as local:
            watcher = threading.Thread(target=kill_one, args=(local,))
            watcher.start()
            result = stand_in.sweep(there, 0.1, scheduler=local.scheduler_address)
            watcher.join()
    assert killed
    assert (result.failures, len(result.points)) == ([], 30)
    encoders = {int(line.split()[0]) for line in (there / "log").read_text().splitlines()}
    assert os.getpid() not in encoders
    assert len(encoders) >= 2
    assert without_timings(there / "out" / "results.csv") == without_timings(here / "out" / "results.csv")


def test_a_worker_refuses_to_encode_with_another_build_than_the_one_that_was_planned(stand_in: ModuleType) -> None:
    codec, clip = stand_in.CoarseCodec("log", version="2"), stand_in.clips()[0]
    with pytest.raises(RuntimeError, match=r"this worker has coarse 2; the sweep was planned with 1: install one"):
        cluster._encode(codec, "1", clip.frames, EncodeRequest(22.0))


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    message = r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 .*dask scheduler"
    with pytest.raises(RuntimeError, match=message), connected("tcp://127.0.0.1:1", timeout_s=0.5):
        pass
