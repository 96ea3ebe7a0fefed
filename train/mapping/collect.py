"""What becomes of the batches of one unit: the record that a part keeps.

Modes wa and iwa: per map its `Statistics` as float64 and the planes of h as float32, all little endian. Modes of one
map: the sums that merge with those of other units, as an ``.npz`` archive.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from jaxwrap.arrays import Frame, Yuv420, num_frames, size_of
from jaxwrap.codec import Codec, EncodeRequest
from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.blocks import frame_mean
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.maps import ImportanceMap, yuv_metric
from jaxwrap.samples import to_integers
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.mapping.networks import BottleneckMaps, Group
from jaxwrap.train.mapping.plan import PlannedClip


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """Of one map: the mean of h, the mean square of its samples' standard errors, the relative error of its 16×16 means
    (both NaN where a single sketch tells nothing), and the sketches that it took."""

    mean: float
    square_error: float
    block_error: float
    sketches: float


_HEAD = 8 * len(dataclasses.fields(Statistics))


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Frames that are computed together: groups of frames by their pieces in the unit; ``numbers`` are the places in
    the sequence of all their frames."""

    unit: int
    pieces: tuple[int, ...]
    groups: tuple[Group, ...]
    clip: PlannedClip
    numbers: tuple[int, ...]


class Collector(Protocol):
    """Takes the batches of a unit, then gives its record."""

    def add(self, batch: Batch) -> int:
        """Includes a batch; returns the most sketches that one of its maps took."""
        ...

    def take(self) -> bytes:
        """The record of what was added since the last one."""
        ...


class MapRecords:
    """For modes wa and iwa."""

    def __init__(self, networks: BottleneckMaps) -> None:
        self._networks, self._parts = networks, list[bytes]()

    def add(self, batch: Batch) -> int:
        """See `Collector`."""
        maps = self._networks.maps(batch.groups, batch.numbers, batch=batch.clip.batch, canvas=batch.clip.canvas)
        self._parts += [record for found in maps for record in _records(found)]
        return max(int(_sketches(found).max()) for found in maps)

    def take(self) -> bytes:
        """See `Collector`."""
        record, self._parts = b"".join(self._parts), []
        return record


class FrozenMean:
    """For mode fwa: the sums of a streaming mean."""

    def __init__(self, networks: BottleneckMaps) -> None:
        self._networks, self._mean = networks, MapMean()

    def add(self, batch: Batch) -> int:
        """See `Collector`."""
        maps = self._networks.maps(batch.groups, batch.numbers, batch=batch.clip.batch, canvas=batch.clip.canvas)
        for found in maps:
            self._mean.update(found.h)
        return max(int(_sketches(found).max()) for found in maps)

    def take(self) -> bytes:
        """See `Collector`."""
        record, self._mean = pack_arrays(self._mean.to_arrays()), MapMean()
        return record


class CalibratedSums:
    """For mode calibrated: encodes each batch as intra pictures, and weighs the encoder's own errors, plane by plane.

    Sizes may differ: the sums of a plane do not depend on them.
    """

    def __init__(self, networks: BottleneckMaps, codec: Codec, qp: float) -> None:
        self._networks, self._codec, self._qp = networks, codec, qp
        self._sums: dict[str, np.ndarray] | None = None

    def add(self, batch: Batch) -> int:
        """See `Collector`."""
        for group in batch.groups:
            z = jax.device_get(self._networks.bottleneck(group))
            size, coded = size_of(z), to_integers(z, BIT_DEPTH)
            result = self._codec.encode(coded, EncodeRequest(self._qp, "intra", BIT_DEPTH))
            error = jax.tree.map(lambda decoded, given: np.asarray(decoded, np.float32) - given, result.decoded, z)
            calibration = Calibration("plane", size, len(z.planes))
            receiver = self._networks.receiver(size_of(group.samples))
            calibration.update(receiver, z, error, metric=yuv_metric)
            self._sums = merged_sums(self._sums, calibration.to_arrays())
        return 0

    def take(self) -> bytes:
        """See `Collector`."""
        record, self._sums = pack_arrays(self._sums or {}), None
        return record


def merged_sums(sums: dict[str, np.ndarray] | None, more: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of two calibrations by plane, of frames of any sizes."""
    sizes = (2, 2), 3  # stands for all sizes
    merged = Calibration.from_arrays(more, "plane", *sizes)
    if sums is not None:
        merged = Calibration.from_arrays(sums, "plane", *sizes).merge(merged)
    return merged.to_arrays()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` archive."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def unpack_arrays(record: bytes) -> dict[str, np.ndarray]:
    """The inverse of `pack_arrays`."""
    with np.load(io.BytesIO(record)) as archive:
        return dict(archive)


def record_bytes(clip: PlannedClip) -> int:
    """Bytes of one map's record."""
    return _HEAD + 4 * clip.map_samples


def read_record(data: bytes, clip: PlannedClip) -> tuple[Statistics, Frame]:
    """One map's statistics and its h, ``[1, H, W]`` per plane."""
    statistics = Statistics(*np.frombuffer(data[:_HEAD], "<f8").tolist())
    samples = np.frombuffer(data, "<f4", offset=_HEAD).astype(np.float32)
    ends = np.cumsum([h * w for h, w in clip.map_shapes])
    planes: Sequence[np.ndarray] = np.split(samples, ends[:-1])
    return statistics, Yuv420(*(p.reshape(1, *shape) for p, shape in zip(planes, clip.map_shapes, strict=True)))


def _records(found: ImportanceMap) -> Iterator[bytes]:
    count = num_frames(found.h)
    square = block = np.full(count, np.nan)
    if found.standard_error is not None:
        squares = [np.square(np.asarray(p, np.float64)) for p in found.standard_error.planes]
        square = sum(s.sum((1, 2)) for s in squares) / sum(s[0].size for s in squares)
        block = np.asarray(found.relative_block_error(), np.float64)
    statistics = np.stack([np.asarray(frame_mean(found.h), np.float64), square, block, _sketches(found)], axis=1)
    for i in range(count):
        planes = (np.asarray(plane[i], "<f4").tobytes() for plane in found.h.planes)
        yield statistics[i].astype("<f8").tobytes() + b"".join(planes)


def _sketches(found: ImportanceMap) -> np.ndarray:
    """How many each map took, ``[N]``."""
    if found.frame_sketches is None:
        return np.full(num_frames(found.h), found.sketches)
    return np.asarray(found.frame_sketches)
