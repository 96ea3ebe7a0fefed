"""The frozen map of FWA-RDO: the mean of raw maps over pictures, streaming, with a confidence interval.

One picture is one sample. What is kept is Σ h and Σ h² as unevaluated sums of two float64 (106 bits): sums of float32
maps are then exact wherever a sample's values span less than 2¹⁹, so that the order of pictures, shards that are merged
and a run that is resumed make no difference, and Σ h² − (Σ h)² / n loses nothing that matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, num_frames
from jaxwrap.importance.maps import ImportanceMap

Pair = tuple[np.ndarray, np.ndarray]
"""High and low part of a sum: the value is their exact sum, the high part that sum rounded."""

_PLANES = {1: ("y",), 3: ("y", "u", "v")}


def _two_sum(a: np.ndarray, b: np.ndarray) -> Pair:
    """a + b, and exactly what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _plus(total: Pair, more: Pair) -> Pair:
    high, lost = _two_sum(total[0], more[0])
    low, lost_low = _two_sum(total[1], more[1])
    high, low = _two_sum(high, lost + low)
    return _two_sum(high, low + lost_low)


def _times(a: Pair, b: Pair) -> Pair:
    product = a[0] * b[0]
    (ah, al), (bh, bl) = _halves(a[0]), _halves(b[0])
    lost = al * bl - ((product - ah * bh) - al * bh - ah * bl)  # exactly what rounding the product lost (Dekker)
    return _two_sum(product, lost + (a[0] * b[1] + a[1] * b[0]))


def _halves(a: np.ndarray) -> Pair:
    """Two halves of 26 bits (Veltkamp), whose products are exact."""
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


class MapMean:
    """Streaming mean of maps ``[N, H, W]`` per plane, all of one size and chroma format.

    ``count`` is the number of pictures so far. Raises `ValueError` for maps of another size or format than the first,
    for values that are not finite or negative, and for questions that need more pictures.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: list[Pair] = []
        self._squares: list[Pair] = []

    def update(self, maps: Frame | ImportanceMap) -> None:
        """Includes N maps, one sample each."""
        h = maps.h if isinstance(maps, ImportanceMap) else maps
        check_frame(h)
        planes = [np.asarray(p, np.float64) for p in h.planes]
        self._check_shapes([p.shape[1:] for p in planes])
        for p in planes:
            if not np.isfinite(p).all() or (p < 0).any():
                raise ValueError("a map with NaN, infinite or negative values was given to a mean of maps")
        self._start([p.shape[1:] for p in planes])
        for n in range(num_frames(h)):
            for i, p in enumerate(planes):
                sample = p[n], np.zeros_like(p[n])
                self._sums[i] = _plus(self._sums[i], sample)
                self._squares[i] = _plus(self._squares[i], _times(sample, sample))
        self.count += num_frames(h)

    def merge(self, other: MapMean) -> None:
        """Includes all maps of another mean."""
        if other.count == 0:
            return
        shapes = [high.shape for high, _ in other._sums]
        self._check_shapes(shapes)
        self._start(shapes)
        self._sums = [_plus(a, b) for a, b in zip(self._sums, other._sums, strict=True)]
        self._squares = [_plus(a, b) for a, b in zip(self._squares, other._squares, strict=True)]
        self.count += other.count

    def mean(self) -> Frame:
        """The frozen map, float64 ``[1, H, W]`` per plane; normalise it afterwards (`importance_weights`)."""
        self._need(1, "a mean")
        return frame_of([(high / self.count)[None] for high, _ in self._sums])

    def standard_error(self) -> Frame:
        """Standard error of each sample of the mean, from the spread between pictures; like `mean`."""
        self._need(2, "a standard error")
        n, planes = self.count, []
        for total, square in zip(self._sums, self._squares, strict=True):
            high, low = _times(total, total)
            deviations = _plus(_times(square, (np.asarray(float(n)), np.asarray(0.0))), (-high, -low))[0] / n
            planes.append(np.sqrt(np.maximum(deviations, 0) / (n * (n - 1)))[None])
        return frame_of(planes)

    def interval(self, level: float = 0.95) -> tuple[Frame, Frame]:
        """Lower and upper end of Student's confidence interval of each sample of the mean; the lower is at least 0."""
        from scipy.special import stdtrit  # type: ignore[import-untyped]

        if not 0 < level < 1:
            raise ValueError(f"a confidence level of {level} was given; wanted one between 0 and 1, such as 0.95")
        mean, error = self.mean(), self.standard_error()
        t = float(stdtrit(self.count - 1, (1 + level) / 2))
        pairs = list(zip(mean.planes, error.planes, strict=True))
        return frame_of([np.maximum(m - t * e, 0) for m, e in pairs]), frame_of([m + t * e for m, e in pairs])

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All that is known, for a file: ``count`` and per plane the sums ``[2, H, W]`` of h and of h²."""
        arrays = {"count": np.asarray(self.count, np.int64)}
        for name, total, square in zip(_PLANES.get(len(self._sums), ()), self._sums, self._squares, strict=True):
            arrays[f"{name}_sum"], arrays[f"{name}_square"] = np.stack(total), np.stack(square)
        return arrays

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> MapMean:
        """What `to_arrays` gave. Raises `ValueError` for anything else."""
        names = {plane for plane in "yuv" if f"{plane}_sum" in arrays}
        wanted = {"count", *(f"{plane}_{kind}" for plane in names for kind in ("sum", "square"))}
        if set(arrays) != wanted or names not in (set(), {"y"}, {"y", "u", "v"}):
            raise ValueError(f"a mean of maps was to be read from arrays {sorted(arrays)}; wanted count, and y_sum, …")
        result = MapMean()
        count = np.asarray(arrays["count"])
        if count.shape != () or not np.issubdtype(count.dtype, np.integer) or count < 0 or bool(names) != (count > 0):
            raise ValueError(f"a mean of maps was to be read with count {count} and {len(names)} planes")
        result.count = int(count)
        for plane in (p for p in "yuv" if p in names):
            total, square = (np.asarray(arrays[f"{plane}_{kind}"]) for kind in ("sum", "square"))
            fits = total.shape == square.shape and total.ndim == 3 and total.shape[0] == 2
            if not fits or total.dtype != np.float64 or square.dtype != np.float64:
                raise ValueError(
                    f"plane {plane} of a mean of maps has sums of {total.dtype} {total.shape} and {square.dtype} "
                    f"{square.shape}; wanted float64 [2, H, W] for both"
                )
            if not (np.isfinite(total).all() and np.isfinite(square).all()):
                raise ValueError(f"plane {plane} of a mean of maps holds NaN or infinity")
            result._sums.append((total[0].copy(), total[1].copy()))
            result._squares.append((square[0].copy(), square[1].copy()))
        if names:
            check_frame(result.mean())
        return result

    def _check_shapes(self, shapes: list[tuple[int, ...]]) -> None:
        known = [high.shape for high, _ in self._sums]
        if known and known != shapes:
            raise ValueError(
                f"maps with planes of {shapes} were given to a mean of maps with planes of {known}; only pictures of "
                "one size and chroma format have a mean"
            )

    def _start(self, shapes: list[tuple[int, ...]]) -> None:
        if not self._sums:
            self._sums = [(np.zeros(shape), np.zeros(shape)) for shape in shapes]
            self._squares = [(np.zeros(shape), np.zeros(shape)) for shape in shapes]

    def _need(self, count: int, what: str) -> None:
        if self.count < count:
            raise ValueError(
                f"{what} needs maps of at least {count} picture{'s'[: count - 1]}; {self.count} were given"
            )
