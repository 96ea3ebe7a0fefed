"""Work ahead of its use: an iterator that runs in a thread, behind a bounded queue."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Step(Generic[T]):
    """An item, an error, or (neither) the end."""

    def __init__(self, items: list[T], error: BaseException | None = None) -> None:
        self.items, self.error = items, error


def prefetch(items: Iterable[T], *, depth: int = 2) -> Generator[T]:
    """Yields ``items`` in order, made up to ``depth`` ahead in a thread; an error in making one is raised in its turn.

    At most ``depth + 2`` items are alive: those that wait, the one being made, and the one yielded last. Closing the
    iterator ends the thread and closes ``items`` where it is a generator.
    """
    ready: queue.Queue[_Step[T]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(step: _Step[T]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(step, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        source = iter(items)
        try:
            while not stopped.is_set():
                made = list(itertools.islice(source, 1))
                put(_Step(made))
                if not made:
                    return
                del made  # not kept while the next one is made
        except BaseException as error:
            put(_Step([], error))
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            step = ready.get()
            if step.error is not None:
                raise step.error
            if not step.items:
                return
            yield step.items.pop()
    finally:
        stopped.set()
        thread.join()
