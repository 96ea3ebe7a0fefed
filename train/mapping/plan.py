"""What a map run computes, decided before it starts, so that shards and resumed runs do the same sums.

The frames of all clips, one after the other, are one *sequence*; a frame's place in it numbers the sketches of its map,
so that an I frame has the map in mode iwa that it has in mode wa. Their maps are cut into *chunks* of a few maps that
are computed together, and these are gathered into *units*: what is written at once, never computed twice, and never
divided between shards. Mode wa and iwa: a unit is a chunk. Mode fwa: at most `FROZEN_UNITS` units, whose sums are added
in order, so that the frozen map is the same to the last bit however the units were spread. Nothing here depends on the
number of shards.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, get_args

from jaxwrap.codecs.weightmap import Mode

FROZEN = ("fwa", "calibrated")
"""Modes that give one map."""

Sketches = int | Literal["auto"]

FROZEN_UNITS = 32
"""Units of the modes of one map: an interruption can cost one of them, a shard keeps the sums of each of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class PlannedClip:
    """One clip of a run.

    ``frames``: as many as its file says that it holds. ``size``: (height, width) of its frames; ``map_size``: of its
    maps, both of the luma. ``batch``: frames that are computed together. ``canvas``: (height, width) that they are
    padded to where pictures of different sizes share a batch; otherwise None.
    """

    name: str
    fingerprint: str
    frames: int
    size: tuple[int, int]
    map_size: tuple[int, int]
    canvas: tuple[int, int] | None
    batch: int

    def fits_with(self, other: PlannedClip) -> bool:
        """Whether frames of both can be in one batch."""
        return self.canvas == other.canvas and (self.canvas is not None or self.size == other.size)

    @property
    def map_shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the planes y, u, v of one map."""
        height, width = self.map_size
        return (height, width), (height // 2, width // 2), (height // 2, width // 2)

    @property
    def map_samples(self) -> int:
        """Samples of all planes of one map."""
        return sum(h * w for h, w in self.map_shapes)


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Maps ``start … stop − 1`` of a clip, counted among the maps of that clip; ``last``: all that follow, too."""

    clip: int
    start: int
    stop: int
    last: bool


MOST_SIZES = 4
"""Sizes of pictures for each of which the networks are compiled (seconds each); more are padded to common canvases."""


def choose_canvases(sizes: Collection[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int] | None]:
    """The canvas of each (height, width): None, its own size, for up to `MOST_SIZES`; otherwise shared.

    Upright and lying pictures are apart, and so are areas of which one is more than three times the other: what is
    computed in vain stays in proportion, whatever is mixed.
    """
    distinct = set(sizes)
    if len(distinct) <= MOST_SIZES:
        return dict.fromkeys(distinct)
    chosen: dict[tuple[int, int], tuple[int, int] | None] = {}
    for upright in (False, True):
        left = sorted((s for s in distinct if (s[0] > s[1]) == upright), key=lambda s: (s[0] * s[1], s))
        while left:
            height, width = left[-1]
            alike = [s for s in left if 3 * s[0] * s[1] >= height * width]
            chosen |= dict.fromkeys(alike, (max(h for h, _ in alike), max(w for _, w in alike)))
            left = left[: len(left) - len(alike)]
    return chosen


Chunk = tuple[Piece, ...]
Unit = tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the bytes of a run depend on.

    ``receiver`` names what was mapped, ``network`` is the hash of its parameters, ``platform`` the versions and the
    kind of device. ``period``: 1 but in mode iwa, which maps the frames 0, period, 2 period, … of each clip. ``codec``
    and ``qp``: of mode calibrated, where ``sketches`` is 0.
    """

    mode: Mode
    sketches: Sketches
    seed: int
    period: int
    receiver: str
    network: str
    platform: str
    clips: tuple[PlannedClip, ...]
    codec: str | None = None
    qp: float | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"map mode {self.mode!r} was given; known: {', '.join(get_args(Mode))}")
        if self.period < 1:
            raise ValueError(f"a period of {self.period} frames was given; wanted 1 or more")

    def require_one_size(self, what: str, advice: str) -> None:
        """Raises `ValueError` listing the sizes where the clips' maps differ in size."""
        sizes = {clip.map_size: clip.name for clip in reversed(self.clips)}
        if len(sizes) > 1:
            some = [f"{w}×{h} ({name})" for (h, w), name in sorted(sizes.items())]
            listed = ", ".join(some[:4]) + (f" and {len(some) - 4} more" if len(some) > 4 else "")
            raise ValueError(f"{what} was asked for of clips whose maps are {listed}: {advice}")

    def maps_of(self, clip: int) -> int:
        """Number of maps of a clip, going by its planned number of frames."""
        return -(-self.clips[clip].frames // self.period)

    def offsets(self) -> list[int]:
        """Place in the sequence of each clip's first frame."""
        return list(itertools.accumulate((clip.frames for clip in self.clips[:-1]), initial=0))

    @property
    def num_maps(self) -> int:
        """Maps of the whole sequence."""
        return sum(map(self.maps_of, range(len(self.clips))))

    def units(self) -> list[Unit]:
        """All units in the order of the sequence."""
        chunks = list(self._chunks())
        count = min(FROZEN_UNITS, len(chunks)) if self.mode in FROZEN else len(chunks)
        return [tuple(chunks[len(chunks) * i // count : len(chunks) * (i + 1) // count]) for i in range(count)]

    def _chunks(self) -> Iterator[Chunk]:
        together: list[Piece] = []  # clips of one map each, which share a batch
        for i, clip in enumerate(self.clips):
            count = self.maps_of(i)
            if together and (count > 1 or len(together) == clip.batch or not clip.fits_with(self.clips[i - 1])):
                yield tuple(together)
                together = []
            if count == 1:
                together.append(Piece(i, 0, 1, True))
                continue
            for start in range(0, count, clip.batch):
                stop = min(count, start + clip.batch)
                yield (Piece(i, start, stop, stop == count),)
        if together:
            yield tuple(together)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`, also after JSON has made lists of tuples. Raises `ValueError` for anything else."""
        try:
            clips = []
            for clip in fields["clips"]:
                known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in clip.items()}
                clips.append(PlannedClip(**known))
            return Plan(**{**fields, "clips": tuple(clips)})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"that is no plan of a map run ({error})") from error

    def difference(self, other: Plan) -> str:
        """What differs from another plan, in words."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = [f"{k} ({theirs[k]} there, {mine[k]} now)" for k in mine if k != "clips" and mine[k] != theirs[k]]
        if self.clips != other.clips:
            if [c.fingerprint for c in self.clips] != [c.fingerprint for c in other.clips]:
                names.append("the clips themselves")
            elif [c.frames for c in self.clips] != [c.frames for c in other.clips]:
                names.append("the number of frames")
            else:
                names.append("the frames computed together (--memory)")
        return ", ".join(names)


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Part ``number`` (from 1) of ``of``: a contiguous range of the units."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ValueError(f"shard {self.number}/{self.of} was given; wanted I/N with 1 ≤ I ≤ N, such as 2/8")

    def __str__(self) -> str:
        return f"{self.number}of{self.of}"

    @staticmethod
    def parse(text: str) -> Shard:
        """``"2/8"``. Raises `ValueError` for anything else."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None:
            raise ValueError(f"shard {text!r} was given; wanted I/N with 1 ≤ I ≤ N, such as 2/8")
        return Shard(int(match[1]), int(match[2]))

    def share(self, units: Sequence[Unit]) -> range:
        """Numbers of its units."""
        return range(len(units) * (self.number - 1) // self.of, len(units) * self.number // self.of)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """``"2GiB"``, ``"500MB"``, ``"1.5 GB"``, ``"4096"`` → bytes. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2]])):
        raise ValueError(f"a memory of {text!r} was given; wanted a size such as 2GiB or 500MB")
    return size
