"""Wall time of JAX work without tracing and compiling, which a first call has and later calls have not."""

from __future__ import annotations

import time

import jax

_COMPILATION = "/jax/core/compile/"

_open: list[Stopwatch] = []


class Stopwatch:
    """``with Stopwatch() as watch: …``, then ``watch.seconds``.

    Wait for the arrays inside (`jax.block_until_ready`): JAX returns before they are there.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._compiling: list[tuple[float, float]] = []

    def __enter__(self) -> Stopwatch:
        _open.append(self)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        elapsed = time.perf_counter() - self._start
        _open.remove(self)
        self.seconds = max(elapsed - _length(self._compiling), 0.0)

    def _compiled(self, begin: float, end: float) -> None:
        self._compiling.append((max(begin, self._start), end))


def _length(intervals: list[tuple[float, float]]) -> float:
    """Length of the union: tracing of an inner function lies within that of the outer one."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(_COMPILATION):
        now = time.perf_counter()
        for watch in _open:
            watch._compiled(now - duration_secs, now)


jax.monitoring.register_event_duration_secs_listener(_listen)
