"""What a sweep will take, told before it starts: seconds per coded sample of each codec, times what is to be coded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.evaluate.rows import Row

PROBED_ABOVE = 4
"""A sweep of more streams than this per process has one of each codec encoded first, where nothing tells its time."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """By codec: number of streams, and seconds of the encoder in all. ``minutes``: of the encodes together."""

    streams: dict[str, int]
    seconds: dict[str, float]
    processes: int

    @property
    def minutes(self) -> float:
        """Wall time, with the processes always at work; networks and metrics come on top where they are slower."""
        return sum(self.seconds.values()) / self.processes / 60

    def __str__(self) -> str:
        each = ", ".join(
            f"{self.streams[name]} × {self.seconds[name] / self.streams[name]:.2g} s in {name}" for name in self.streams
        )
        return f"{each}; on {self.processes} processes about {self.minutes:.2g} min, networks and metrics apart"


def seconds_per_sample(measured: Iterable[tuple[Row, Point]]) -> dict[str, float]:
    """By codec, from points that have been measured."""
    seconds: dict[str, float] = {}
    samples: dict[str, int] = {}
    for row, point in measured:
        if point.encode_s is not None:
            seconds[row.codec.name] = seconds.get(row.codec.name, 0.0) + point.encode_s
            samples[row.codec.name] = samples.get(row.codec.name, 0) + row.coded_samples
    return {name: seconds[name] / max(samples[name], 1) for name in seconds}


def estimate(streams: Sequence[Row], rates: dict[str, float], processes: int) -> Estimate | None:
    """For one row of each stream that is to be encoded; None where a codec's rate is not known."""
    if not {row.codec.name for row in streams} <= {*rates}:
        return None
    counts: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for row in streams:
        counts[row.codec.name] = counts.get(row.codec.name, 0) + 1
        seconds[row.codec.name] = seconds.get(row.codec.name, 0.0) + rates[row.codec.name] * row.coded_samples
    return Estimate(counts, seconds, processes)


def probes(streams: Sequence[Row], rates: dict[str, float], processes: int) -> list[Row]:
    """Rows whose streams are to be encoded first: of each codec that is not in ``rates`` one at a middle QP, of plain
    sse where there is one. None in a short sweep."""
    if len(streams) <= PROBED_ABOVE * processes:
        return []
    chosen = []
    for name in {row.codec.name: None for row in streams}:
        if name not in rates:
            own = [row for row in streams if row.codec.name == name]
            plain = [row for row in own if row.method.name == "sse"] or own
            chosen.append(sorted(plain, key=lambda row: row.qp)[len(plain) // 2])
    return chosen
