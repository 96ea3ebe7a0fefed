"""Map shards on a real Dask cluster of two processes, one of which is killed at work."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv420
from jaxwrap.codecs.reference.yuv import write_yuv
from jaxwrap.train.evaluate.modes import mode_of
from jaxwrap.train.fit.checkpoints import load_wrapper, save_wrapper
from jaxwrap.train.mapping import cluster as module
from jaxwrap.train.mapping import parts
from jaxwrap.train.mapping.cluster import Task, map_on_cluster, run_shard
from jaxwrap.train.mapping.merge import merge
from jaxwrap.train.mapping.networks import BottleneckMaps
from jaxwrap.train.mapping.plan import Shard
from jaxwrap.train.mapping.run import map_clips, prepare
from jaxwrap.train.media import ClipReader, open_readers
from jaxwrap.wrappers.resample import Kind
from jaxwrap.wrappers.switchable import linear_wrapper

# A worker that is killed leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("optimised_programs"),
]

FRAMES, SHARDS = 48, 4

# Workers cannot import a test: what they need of this one is sent.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class SlowReader(ClipReader):
    """Gives a frame every 20 ms, so that there is time to be killed."""

    def read(self, start: int = 0, *, step: int = 1) -> Iterator[Frame]:
        for frame in ClipReader.read(self, start, step=step):
            time.sleep(0.02)
            yield frame


def task_of(folder: Path, kind: Kind = "bilinear") -> Task:
    """A clip of small frames, one per batch."""
    rng = np.random.default_rng(0)
    shapes = (16, 24), (8, 12), (8, 12)
    frames = Yuv420(*(rng.integers(0, 256, (FRAMES, *shape), np.uint8) for shape in shapes))
    clip = write_yuv(folder, "clip", frames, bit_depth=8, fps=25)
    run = folder / "tiny.wrapper.npz"
    save_wrapper(run, linear_wrapper(kind, Fraction(1, 2)), notes={})
    (reader,), _ = open_readers([clip])
    clips = [SlowReader(**{field.name: getattr(reader, field.name) for field in dataclasses.fields(reader)})]
    work = prepare(mode_of(load_wrapper(run)[0]), clips, mode="wa", receiver="tiny", sketches=2)
    return Task(str(run), "float32", work.plan, tuple(clips), folder / "parts")


@pytest.fixture(autouse=True)
def batches_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BottleneckMaps, "frames_within", lambda self, size, memory, frames, padded=False: 1)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.1)


@pytest.fixture
def cluster(optimised_programs: None, programs_on_disk: None) -> Iterator[Any]:
    from distributed import LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ports that are taken, and of tornado at closing
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            yield cluster


def test_a_killed_worker_costs_its_own_shard_only(tmp_path: Path, cluster: Any) -> None:
    from distributed import Client

    task = task_of(tmp_path)
    map_clips(task.work(), tmp_path / "whole.dat", alpha=1.0, scope="frame")
    shards = [Shard(n, SHARDS) for n in range(1, SHARDS + 1)]
    shares = {shard: shard.share(task.plan.units()) for shard in shards}
    killed: dict[str, Any] = {}

    def kill_once(_: int) -> None:
        """The first worker that has a shard finished and another begun."""
        if killed:
            return
        counts = {shard: len(parts.journal(task.folder, shard, shares[shard])) for shard in shards}
        finished = [shard for shard in shards if counts[shard] == len(shares[shard])]
        begun = [shard for shard in shards if 0 < counts[shard] < len(shares[shard])]
        if not finished or not begun:
            return
        with Client(cluster.scheduler_address) as client:
            processing = client.processing()
        for address, keys in processing.items():
            shard = next((s for s in begun if any(f"maps-{s}-" in str(key) for key in keys)), None)
            if shard is None:
                continue
            pid = next(w.pid for w in cluster.workers.values() if w.worker_address == address)
            os.kill(pid, signal.SIGKILL)
            killed.update(pid=pid, shard=shard, kept=counts[shard])
            killed["times"] = {s: parts_of(task, s).stat().st_mtime_ns for s in finished}
            return

    with Client(cluster.scheduler_address) as client:
        map_on_cluster(task, shards, client, advance=kill_once)
    assert killed, "no worker was killed: the clip is too short for this machine"
    # Finished shards were not touched, the killed one went on from its journal, where nothing is written twice.
    assert {s: parts_of(task, s).stat().st_mtime_ns for s in killed["times"]} == killed["times"]
    for shard, share in shares.items():
        assert [entry.unit for entry in parts.journal(task.folder, shard, share)] == list(share)
    merge(task.folder, SHARDS, tmp_path / "divided.dat", alpha=1.0, scope="frame")

    for suffix in ("dat", "json"):
        assert (tmp_path / f"divided.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def parts_of(task: Task, shard: Shard) -> Path:
    return task.folder / f"{shard}.maps"


def test_a_worker_with_another_wrapper_or_clip_refuses(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    save_wrapper(Path(task.run), linear_wrapper("lanczos4", Fraction(1, 2)), notes={})
    with pytest.raises(ValueError, match=r"tiny\.wrapper\.npz is another wrapper on this machine"):
        run_shard(task, Shard(1, FRAMES))
    save_wrapper(Path(task.run), linear_wrapper("bilinear", Fraction(1, 2)), notes={})
    with task.clips[0].source.open("r+b") as file:  # type: ignore[attr-defined]
        file.write(b"other")
    with pytest.raises(ValueError, match=r"clip_.* is another file on this machine"):
        run_shard(task, Shard(1, FRAMES))
