"""Shards of a map run on a Dask cluster: one task each, into a folder that all machines see.

A task that loses its worker is started again elsewhere (`jaxwrap.train.cluster`), and goes on where the journal of its
shard ends: other shards are not touched. The memory of a batch is counted once per process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxwrap.train.cluster import next_finished
from jaxwrap.train.mapping import parts
from jaxwrap.train.mapping.networks import BottleneckMaps
from jaxwrap.train.mapping.plan import Plan, Shard
from jaxwrap.train.mapping.run import Readable, Work, map_shard, platform

if TYPE_CHECKING:
    import distributed

WATCH_SECONDS = 1.0
"""Between two looks at the journals."""

PATIENCE = 300.0
"""Seconds that a task waits for its predecessor on another machine to end, which may not know yet that it is lost."""

RETRIES = 3
"""Times that a task which failed is tried again, before the run is given up."""

SHARDS = 32
"""Into which a run is divided where nothing was said. It does not follow the number of workers: parts of one division
are of no use to another, and workers come and go."""


def choose_shards(plan: Plan, folder: Path) -> int:
    """As many shards as the parts in ``folder`` are of; else `SHARDS`, or one per unit where there are fewer."""
    return next(iter(parts.divisions(folder)), min(SHARDS, len(plan.units())))


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is told: everything is decided, and wrapper and clips are found by their names.

    ``run`` and the clips' paths have to mean the same on every machine; the plan's hashes tell where they do not.
    """

    run: str
    dtype: str
    plan: Plan
    clips: tuple[Readable, ...]
    folder: Path

    def work(self) -> Work:
        """The plan with this machine's own copy of the wrapper. Raises `ValueError` where wrapper or clips differ."""
        from jaxwrap.codecs.x26x import X26x
        from jaxwrap.train.evaluate.modes import mode_of
        from jaxwrap.train.fit.checkpoints import load_wrapper

        mode = mode_of(load_wrapper(self.run, dtype=self.dtype)[0])
        networks = BottleneckMaps(mode, sketches=self.plan.sketches, seed=self.plan.seed)
        if networks.network != self.plan.network:
            raise ValueError(f"{self.run} is another wrapper on this machine than on that which planned the run")
        if (here := platform()) != self.plan.platform:
            raise ValueError(f"this machine has {here}; the run was planned on {self.plan.platform}: use one for all")
        for clip, planned in zip(self.clips, self.plan.clips, strict=True):
            if clip.fingerprint() != planned.fingerprint:
                raise ValueError(f"{clip.name} is another file on this machine than on that which planned the run")
        codec = X26x(self.plan.codec.split()[0]) if self.plan.codec else None  # type: ignore[arg-type]
        return Work(self.plan, self.clips, networks, codec)


def run_shard(task: Task, shard: Shard) -> int:
    """What a worker does; returns the shard's number. A shard that is finished costs nothing."""
    share = shard.share(task.plan.units())
    if len(parts.journal(task.folder, shard, share)) < len(share):
        map_shard(task.work(), task.folder, shard, patience=PATIENCE)
    return shard.number


def map_on_cluster(
    task: Task,
    shards: Sequence[Shard],
    client: distributed.Client,
    *,
    advance: Callable[[int], None] = lambda maps: None,
) -> None:
    """All shards of a run, each as a task. ``advance`` is told how many maps were added, as the journals grow.

    Raises what a task raised in all of its `RETRIES` (the others are given up, their journals stay), and `RuntimeError`
    where Dask gave a shard up because it lost too many workers over it.
    """
    from distributed import KilledWorker

    units = task.plan.units()
    shares = {shard: shard.share(units) for shard in shards}
    done = parts.maps_done(task.folder, shares)
    stamp = time.time_ns()  # a key that Dask has seen before would stand for that task's result
    futures = [
        client.submit(run_shard, task, shard, pure=False, key=f"maps-{shard}-{stamp}", retries=RETRIES)
        for shard in shards
    ]
    running = set(futures)
    try:
        while running:
            finished = next_finished(running, WATCH_SECONDS)
            for future in finished:
                future.result()
            running -= finished
            now = parts.maps_done(task.folder, shares)
            advance(now - done)
            done = now
    except KilledWorker as error:
        raise RuntimeError(
            f"a shard lost its worker again and again ({error}): does one batch fit into the workers' memory? Give "
            "less --memory, and run the same command again; it goes on where it was"
        ) from error
    finally:
        client.cancel(futures)
