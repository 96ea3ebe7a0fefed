"""Encodes in parallel processes.

Workers are spawned, live as long as the pool, and hold no device: they import jaxwrap for its types, and only NumPy
arrays cross over. A worker ends itself when its parent is gone, however that happened. An encoder that takes its
process down fails that encode and no other.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol, TypeVar

import jax

from jaxwrap.arrays import Frame
from jaxwrap.codec import Codec, EncodeRequest, EncodeResult


class EncodeJob(Protocol):
    """What a worker needs to know. Frames are NumPy integers."""

    @property
    def codec(self) -> Codec:
        """A picklable codec."""
        ...

    @property
    def samples(self) -> Frame:
        """The frames to code."""
        ...

    @property
    def request(self) -> EncodeRequest:
        """With weights as NumPy arrays, if any."""
        ...


Job = TypeVar("Job", bound=EncodeJob)


class Workers:
    """A pool of encoder processes; a context manager."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = _pool(processes)

    @property
    def processes(self) -> int:
        """Encodes that run at once."""
        return self._processes

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            # Nobody will look at what is being encoded: Ctrl-C does not wait for an hour's encode to end.
            for process in (self._pool._processes or {}).values():
                process.terminate()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def encode(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, EncodeResult | Exception]]:
        """Each job with its result or its error, as they finish.

        Jobs are taken from the iterable only as workers come free (two waiting per worker), which bounds memory and
        lets the caller make jobs while others are being encoded.
        """
        running: dict[concurrent.futures.Future[EncodeResult], Job] = {}
        source = iter(jobs)
        exhausted = False
        while running or not exhausted:
            while not exhausted and len(running) < 3 * self._processes:
                job = next(source, None)
                if job is None:
                    exhausted = True
                else:
                    running[self._submit(job)] = job
                    # A worker may have finished while that job was made; its rows should not wait for the queue to
                    # fill.
                    if any(future.done() for future in running):
                        break
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            broken: list[Job] = []
            for future in done:
                job, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken.append(job)
                elif error is None:
                    yield job, future.result()
                elif isinstance(error, Exception):
                    yield job, error
                else:
                    raise error
            if broken:
                # All that ran or waited is lost with the pool, and nothing tells which encode did it.
                broken += running.values()
                running.clear()
                self._pool.shutdown(wait=False, cancel_futures=True)
                yield from self._one_at_a_time(broken)
                self._pool = _pool(self._processes)

    def _submit(self, job: EncodeJob) -> concurrent.futures.Future[EncodeResult]:
        try:
            return self._pool.submit(_encode, job.codec, job.samples, job.request)
        except BrokenProcessPool as error:
            failed: concurrent.futures.Future[EncodeResult] = concurrent.futures.Future()
            failed.set_exception(error)
            return failed

    def _one_at_a_time(self, jobs: list[Job]) -> Iterator[tuple[Job, EncodeResult | Exception]]:
        self._pool = _pool(1)
        for job in jobs:
            try:
                yield job, self._submit(job).result()
            except BrokenProcessPool:
                self._pool = _pool(1)
                yield job, RuntimeError(f"{job.codec.name} took its process down (it crashed, or no memory was left)")
            except Exception as error:
                yield job, error
        self._pool.shutdown(wait=False)


def _pool(processes: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends
    signal.signal(signal.SIGTERM, lambda *_: _end())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    _end()


def _end() -> None:
    for pid in _children():
        with contextlib.suppress(OSError):  # it has just ended, or leads no group
            os.killpg(pid, signal.SIGKILL)
    os._exit(1)


def _children() -> list[int]:
    """Programs that this process has started, where the system tells (Linux): encoders in sessions of their own."""
    pids = []
    with contextlib.suppress(OSError):
        for path in Path("/proc/self/task").glob("*/children"):
            pids += [int(pid) for pid in path.read_text().split()]
    return pids


def _encode(codec: Codec, frames: Frame, request: EncodeRequest) -> EncodeResult:
    # The line of `jaxwrap.pipeline.Sandwich.__call__` on which the codec is exchanged.
    return codec.encode(frames, request)
