"""Encodes on a Dask cluster, for a sweep whose networks stay where they are.

Each encode is a task with its own frames, so that it is started again elsewhere when its worker is lost. A worker finds
its own copy of an encoder (``JAXWRAP_HM`` and its kind are set where workers start), and refuses the task where that is
of another version.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from jaxwrap.arrays import Frame
from jaxwrap.codec import Codec, EncodeRequest, EncodeResult
from jaxwrap.train.cluster import connected, next_finished
from jaxwrap.train.evaluate.workers import Job

if TYPE_CHECKING:
    import distributed


class ClusterWorkers:
    """The workers of a cluster in the place of `jaxwrap.train.evaluate.workers.Workers`; a context manager."""

    def __init__(self, scheduler: str) -> None:
        self._scheduler = scheduler
        self._stack = ExitStack()
        self._client: distributed.Client

    def __enter__(self) -> ClusterWorkers:
        self._client = self._stack.enter_context(connected(self._scheduler))
        self._client.wait_for_workers(1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def processes(self) -> int:
        """Encodes that run at once, now: workers come and go."""
        return max(1, sum(self._client.nthreads().values()))

    def encode(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, EncodeResult | Exception]]:
        """Each job with its result or its error, as they finish; taken from the iterable as workers come free.

        Raises `RuntimeError` where the scheduler is lost.
        """
        from distributed import KilledWorker

        running: dict[distributed.Future, Job] = {}
        source, exhausted, number = iter(jobs), False, 0
        stamp = time.time_ns()  # a key that Dask has seen before would stand for that task's result
        try:
            while running or not exhausted:
                while not exhausted and len(running) < 3 * self.processes:
                    job = next(source, None)
                    if job is None:
                        exhausted = True
                        break
                    future = self._client.submit(
                        _encode, job.codec, job.codec.version, job.samples, job.request,
                        pure=False, key=f"encode-{stamp}-{number}",
                    )  # fmt: skip
                    number += 1
                    running[future] = job
                    if any(future.done() for future in running):
                        break
                if not running:
                    break
                for future in next_finished({*running}):
                    job = running.pop(future)
                    if future.status == "cancelled":
                        raise RuntimeError(
                            f"the scheduler {self._scheduler} gave tasks up: is it running? Points measured before are "
                            "kept; run the same command again"
                        )
                    error = future.exception()
                    if isinstance(error, KilledWorker):
                        yield job, RuntimeError(f"{job.codec.name} took its worker down again and again ({error})")
                    elif isinstance(error, Exception):
                        yield job, error
                    else:
                        yield job, future.result()
        finally:
            self._client.cancel(list(running))


def _encode(codec: Codec, version: str, frames: Frame, request: EncodeRequest) -> EncodeResult:
    if codec.version != version:
        raise RuntimeError(
            f"this worker has {codec.name} {codec.version}; the sweep was planned with {version}: install one for all"
        )
    return codec.encode(frames, request)
