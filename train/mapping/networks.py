"""A sandwich's bottleneck as the place of maps: frames of clips in, maps out, always in batches of the planned size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import jax
import numpy as np

from jaxwrap.arrays import Frame, Yuv420, num_frames, size_of, stack_frames
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.maps import ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.memory import chunk_frames
from jaxwrap.importance.receiver import accumulator_dtype, as_partial, float_dtype, output_of, root_metric
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, normalise
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.mapping.plan import Sketches

MOST_FRAMES = 32
"""Frames of one batch at most on each device, whatever the memory: interruptions cost a batch, shards have whole ones.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Frames of one clip in a batch: integer samples of ``bit_depth``."""

    samples: Frame
    bit_depth: int

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return num_frames(self.samples)


class ModeLike(Protocol):
    """What is asked of a mode; `jaxwrap.train.evaluate.modes.Mode` is one."""

    @property
    def ratio(self) -> Fraction:
        """Side of the bottleneck over side of the original."""
        ...

    @property
    def pre_hash(self) -> str:
        """Identifies what the pre-processor computes."""
        ...

    @property
    def post_hash(self) -> str:
        """Identifies what the receiver computes."""
        ...

    def sandwich(self, height: int, width: int) -> Sandwich:
        """For pictures of this size; equal sandwiches share compiled code."""
        ...


class BottleneckMaps:
    """Maps of a mode's post-processor at the samples that its pre-processor makes; metric: YUV 6:1:1.

    Compiled once per size and batch. ``seed`` feeds the sketches.
    """

    def __init__(
        self,
        mode: ModeLike,
        *,
        sketches: Sketches,
        seed: int,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.mode, self.sketches, self.key, self.devices = mode, sketches, jax.random.key(seed), devices

    def _bottleneck(self, samples: Frame) -> Frame:
        return _bottleneck(self.mode.sandwich(*size_of(samples)), samples)

    @property
    def network(self) -> str:
        """Hash of what both sides compute."""
        return f"{self.mode.pre_hash}-{self.mode.post_hash}"

    def receiver(self, size: tuple[int, int]) -> Callable[[Frame], Any]:
        """The receiver of clips of this (height, width)."""
        return self.mode.sandwich(*size).receive

    def map_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the bottleneck's luma for clips of this one."""
        return size_of(jax.eval_shape(self._bottleneck, _one_frame(size)))

    def frames_within(self, size: tuple[int, int], memory: int, frames: int, *, padded: bool = False) -> int:
        """How many of ``frames`` frames of this (height, width) have their maps made at once, within ``memory`` bytes
        per device and `MOST_FRAMES`. ``padded``: frames padded to this size, each with a metric of its own.

        Raises `ValueError` where memory does not serve for one.
        """
        z = jax.eval_shape(self._bottleneck, _one_frame(size))
        function = as_partial(self.receiver(size))
        like = jax.tree.map(lambda p: jax.ShapeDtypeStruct((1, *p.shape[1:]), float_dtype(p.dtype)), z)
        output = output_of(function, like)
        # Weights that are not known before the frames: their shapes tell. Two frames, so that they are not shared.
        masked = jax.tree.map(lambda y: jax.ShapeDtypeStruct((2, *y.shape[1:]), accumulator_dtype(y.dtype)), output)
        most = MOST_FRAMES * len(self.devices or (None,))
        return chunk_frames(
            function,
            like,
            masked if padded else root_metric(yuv_metric, output),
            memory,
            2 if padded else 1,
            "rademacher",
            self.sketches == "auto",
            False,
            -(-frames // -(-frames // most)),
            self.devices,
        )

    def bottleneck(self, group: Group, batch: int | None = None) -> Frame:
        """Samples z that the codec will be given; with ``batch``, the last frame repeated up to that number."""
        samples = change_bit_depth(group.samples, group.bit_depth, BIT_DEPTH)
        return self._bottleneck(samples if batch is None else _filled(samples, batch))

    def maps(
        self, groups: Sequence[Group], numbers: Sequence[int], *, batch: int, canvas: tuple[int, int] | None
    ) -> list[ImportanceMap]:
        """One map per group, its planes as NumPy arrays. ``numbers`` are the places in the sequence of all frames.

        Without ``canvas`` all groups are of one size; with it, they are padded to it and the padding masked out.
        """
        counts = [group.num_frames for group in groups]
        filled = [*numbers] + [numbers[-1]] * (batch - len(numbers))
        if canvas is not None:
            return jax.device_get(self._padded_maps(groups, filled, batch, canvas))[: len(groups)]
        samples = stack_frames([change_bit_depth(g.samples, g.bit_depth, BIT_DEPTH) for g in groups])
        z = self.bottleneck(Group(samples, BIT_DEPTH), batch)
        maps = importance_map(
            self.receiver(size_of(samples)),
            z,
            key=self.key,
            sketches=self.sketches,
            metric=yuv_metric,
            frame_offset=filled,
            devices=self.devices,
        )
        found = jax.device_get(maps)
        ends = np.cumsum(counts)
        return [
            jax.tree.map(lambda plane, a=end - count, b=end: plane[a:b], found)
            for count, end in zip(counts, ends, strict=True)
        ]

    def _padded_maps(
        self, groups: Sequence[Group], numbers: Sequence[int], batch: int, canvas: tuple[int, int]
    ) -> list[ImportanceMap]:
        zs = [self.bottleneck(group) for group in groups]
        zs += zs[-1:] * (batch - len(zs))
        ratio = self.mode.ratio

        def receiver_of(height: int, width: int) -> Callable[[Frame], Any]:
            return self.receiver((int(height / ratio), int(width / ratio)))

        return batched_importance_maps(
            receiver_of,
            zs,
            key=self.key,
            sketches=self.sketches,
            metric=yuv_metric,
            size=self.map_size(canvas),
            frame_offset=numbers,
            devices=self.devices,
        )


@functools.partial(jax.jit, static_argnums=0)
def _bottleneck(sandwich: Sandwich, samples: Frame) -> Frame:
    return sandwich.bottleneck(normalise(samples, sandwich.bit_depth))


def _one_frame(size: tuple[int, int]) -> Frame:
    (height, width), dtype = size, np.uint16
    half = jax.ShapeDtypeStruct((1, height // 2, width // 2), dtype)
    return Yuv420(jax.ShapeDtypeStruct((1, height, width), dtype), half, half)


def _filled(samples: Frame, batch: int) -> Frame:
    indices = np.minimum(np.arange(batch), num_frames(samples) - 1)
    return jax.tree.map(lambda plane: plane[indices], samples)
