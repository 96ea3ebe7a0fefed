"""Seconds of a picture at the sender, split into what takes them (WA-RDO figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jaxwrap.train.evaluate.points import Point
from jaxwrap.train.report.curves import LOCAL_MODE, Series, Setting, series_of, with_notes


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """Mean seconds per picture over sequences and QPs at the encoder's own λ; None where nothing was timed.

    ``map_s``: of the importance map; ``method_s``: of a method without one; ``wrapper_s``: of both sides of the
    wrapper; ``encode_s``: of the encoder. ``ratio``: map, method and encoder together over those of sse in the same
    codec and mode.
    """

    setting: Setting
    series: Series
    map_s: float | None
    method_s: float | None
    wrapper_s: float | None
    encode_s: float | None
    ratio: float | None

    @property
    def spent(self) -> float | None:
        """Map, method and encoder together."""
        return None if self.encode_s is None else self.encode_s + (self.map_s or 0.0) + (self.method_s or 0.0)


def runtimes_of(points: Iterable[Point]) -> list[Runtime]:
    """One line per codec, mode and method, in the order of the rows."""
    chosen = [point for point in points if point.lambda_scale == 1 and point.mode != LOCAL_MODE]
    names = with_notes(map(series_of, chosen))
    groups: dict[tuple[Setting, Series], list[Point]] = {}
    for point in chosen:
        groups.setdefault((Setting(point.codec, point.config), names[series_of(point)]), []).append(point)
    lines = [_mean(*place, members) for place, members in groups.items()]
    spent = {(line.setting, line.series): line.spent for line in lines}
    plain = [spent.get((line.setting, Series(line.series.mode))) for line in lines]
    return [dataclasses.replace(line, ratio=_ratio(line.spent, sse)) for line, sse in zip(lines, plain, strict=True)]


def _mean(setting: Setting, series: Series, members: list[Point]) -> Runtime:
    def of(column: str) -> float | None:
        timed = [point for point in members if getattr(point, column) is not None]
        return sum(getattr(p, column) for p in timed) / sum(p.frames for p in timed) if timed else None

    # A row's seconds of the method contain those of its map.
    in_map, in_method = of("map_s"), of("method_s")
    without_map = None if in_method is None else max(0.0, in_method - (in_map or 0.0))
    return Runtime(setting, series, in_map, without_map, of("wrapper_s"), of("encode_s"), None)


def _ratio(spent: float | None, plain: float | None) -> float | None:
    return spent / plain if spent is not None and plain else None
