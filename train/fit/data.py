"""Training crops: a batch is a pure function of (seed, step), so the data position of a checkpoint is its step
number."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from jaxwrap.arrays import Yuv420, size_of

T = TypeVar("T")


def crop_batch(pictures: list[Yuv420], *, seed: int, step: int, batch: int, crop: int) -> Yuv420:
    """Random crops, half of them mirrored: uint8 samples, y ``[batch, crop, crop]``.

    ``pictures``: one-frame 8-bit batches, each at least ``crop`` wide and high. Offsets are even, so that chroma stays
    in place.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    chosen = rng.integers(len(pictures), size=batch)
    y = np.empty((batch, crop, crop), np.uint8)
    u, v = (np.empty((batch, crop // 2, crop // 2), np.uint8) for _ in range(2))
    for i, which in enumerate(chosen):
        source = pictures[which]
        height, width = size_of(source)
        top, left = (2 * int(rng.integers((side - crop) // 2 + 1)) for side in (height, width))
        flip = slice(None, None, -1 if rng.integers(2) else 1)
        y[i] = source.y[0, top : top + crop, left : left + crop][:, flip]
        for out, plane in ((u, source.u), (v, source.v)):
            out[i] = plane[0, top // 2 : (top + crop) // 2, left // 2 : (left + crop) // 2][:, flip]
    return Yuv420(y, u, v)


def prefetch(make: Callable[[int], T], start: int, stop: int, *, depth: int = 2) -> Iterator[T]:
    """Yields ``make(start) … make(stop − 1)``, made ``depth`` ahead in a thread. An error in ``make`` is raised
    here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if stopped.is_set():
                    return
                put((make(step), None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item, error = ready.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
