"""What a sweep codes: clips of samples, or pictures that keep their RGB for a network."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol

import jax
import numpy as np

from jaxwrap.arrays import Frame, check_frame, num_frames, size_of
from jaxwrap.colour import rgb_to_yuv420
from jaxwrap.samples import change_bit_depth
from jaxwrap.train.evaluate.options import digest_of

BIT_DEPTH = 10
"""Bits of the bottleneck's samples, and of the samples that are compared."""


class ClipLike(Protocol):
    """What the sweep asks of a clip; `jaxwrap.train.media.Clip` is one."""

    @property
    def name(self) -> str:
        """Unique among the clips of a sweep."""
        ...

    @property
    def frames(self) -> Frame:
        """Integer samples ``[0, 2^d − 1]``."""
        ...

    @property
    def bit_depth(self) -> int:
        """Bits d of a sample, 8 or 10."""
        ...

    @property
    def fps(self) -> float:
        """Frames per second, for kbps."""
        ...


class Pictures(Protocol):
    """What a task's sweep asks of a sequence; `jaxwrap.train.datasets.Sequence` is one."""

    @property
    def name(self) -> str:
        """Unique among the sequences of a sweep."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of all its pictures."""
        ...

    @property
    def frames(self) -> int:
        """Number of pictures."""
        ...

    @property
    def fps(self) -> float:
        """Pictures per second, for kbps."""
        ...

    @property
    def image_ids(self) -> Sequence[int]:
        """What the truth calls each picture."""
        ...

    def rgb(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 ``[N, H, W, 3]``."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """Pictures of one size under a name: (height, width) of the originals, their number, and the hash of their
    content. ``num_planes``: of `samples`. ``alone``: no method sees it together with others."""

    alone: ClassVar[bool] = False

    name: str
    fps: float
    digest: str
    size: tuple[int, int]
    num_frames: int
    num_planes: int

    @property
    @abc.abstractmethod
    def samples(self) -> Frame:
        """Integers of `BIT_DEPTH` bits, the depth that is coded and compared."""

    @staticmethod
    def of(clip: ClipLike | Source) -> Source:
        """Raises `ValueError` for planes that are no frames."""
        return clip if isinstance(clip, Source) else ClipSource.of_clip(clip)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipSource(Source):
    """A clip that came as samples."""

    held: Frame

    @property
    def samples(self) -> Frame:
        """See `Source.samples`."""
        return self.held

    @staticmethod
    def of_clip(clip: ClipLike) -> ClipSource:
        """Raises `ValueError` for planes that are no frames."""
        check_frame(clip.frames)
        samples = change_bit_depth(jax.tree.map(np.asarray, clip.frames), clip.bit_depth, BIT_DEPTH)
        digest = digest_of(*samples.planes)
        planes = len(samples.planes)
        return ClipSource(clip.name, float(clip.fps), digest, size_of(samples), num_frames(samples), planes, samples)


@dataclasses.dataclass(frozen=True, eq=False)
class PictureSource(Source):
    """A sequence that keeps its RGB; decoded when it is asked for, and not held."""

    alone: ClassVar[bool] = True

    sequence: Pictures

    @property
    def samples(self) -> Frame:
        """4:2:0 of `BIT_DEPTH` bits; odd sizes are padded to even ones."""
        return rgb_to_yuv420(self.rgb(), bit_depth=BIT_DEPTH)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """What the truth calls each picture."""
        return tuple(self.sequence.image_ids)

    def rgb(self) -> np.ndarray:
        """uint8 ``[N, H, W, 3]``."""
        return self.sequence.rgb()

    @staticmethod
    def of_sequence(sequence: Pictures) -> PictureSource:
        """Reads the sequence once, for its hash. Raises `ValueError` where its size is not the one that it states."""
        rgb = sequence.rgb()
        if rgb.shape != (sequence.frames, *sequence.size, 3):
            (height, width), (n, h, w) = sequence.size, rgb.shape[:3]
            raise ValueError(
                f"{sequence.name}: {n} pictures of {w}×{h} were read where {sequence.frames} of {width}×{height} were "
                "announced: the pictures of a sequence have one size"
            )
        return PictureSource(
            sequence.name, float(sequence.fps), digest_of(rgb), sequence.size, sequence.frames, 3, sequence
        )
