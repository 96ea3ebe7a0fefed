"""Methods ``wa`` and ``iwa``: weights of the encoder's distortion from a map of every frame, or of every I frame
(WA-RDO section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames
from jaxwrap.codec import Weights
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map
from jaxwrap.importance.receiver import Metric, Receiver, as_partial, float_dtype, frames_of, map_prefix, output_of
from jaxwrap.importance.sketch import SketchKind, TopDct, check_sketch
from jaxwrap.importance.weights import (
    DEFAULT_ALPHA,
    MapError,
    Scope,
    check_map,
    check_weighting,
    clip_ends,
    importance_weights,
    raw_map,
)
from jaxwrap.methods.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Wa:
    """Sketched importance map of each frame → weights w of the distortion Σ w q².

    ``sketches``, ``metric``, ``sketch``, ``target_error``, ``max_sketches``, ``control``, ``memory_budget``,
    ``devices``: as in `importance_map`. ``alpha``, ``scope``: as in `importance_weights`. ``clips``: number of frames
    of each clip in the batch; None: all are one clip. ``map``: maps made before (`ImportanceMap` or its h, one per
    frame or 1 for all), used instead of new ones: neither receiver nor key is then looked at. `Weights` are taken as
    they are: alpha and scope are then not looked at either.
    """

    name: ClassVar[str] = "wa"
    weights_as: ClassVar[Literal["distortion"]] = "distortion"

    sketches: int | Literal["auto"] = 4
    metric: Metric = None
    sketch: SketchKind | TopDct = "rademacher"
    target_error: float = 0.05
    max_sketches: int = 64
    control: ControlVariate | None = None
    memory_budget: int | None = None
    devices: Sequence[jax.Device] | None = None
    alpha: float = DEFAULT_ALPHA
    scope: Scope = "frame"
    clips: tuple[int, ...] | None = None
    map: ImportanceMap | Frame | Weights | None = None

    def __post_init__(self) -> None:
        check_sketch(self.sketch, self.max_sketches if self.sketches == "auto" else self.sketches)
        check_weighting(self.alpha, self.scope)

    @property
    def draws(self) -> bool:
        """Unless maps are given."""
        return self.map is None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """z as it is, with weights for the encoder's distortion.

        Raises `ValueError` as `importance_map` and `importance_weights` do (a key is needed unless ``map`` is given),
        and `MapError` if ``map`` does not fit z.
        """
        if self.map is not None:
            h = self._given(raw_map(self.map), z)
            if isinstance(self.map, Weights):
                return Plan(z, Weights(h))
        elif key is None:
            raise ValueError(
                f"{self.name} draws random sketches: give plan a key (jax.random.key(0)), or maps made before"
            )
        else:
            h = self._mapped(receiver, z, key)
        clips = None if num_frames(h) == 1 else self.clips
        return Plan(z, importance_weights(h, alpha=self.alpha, scope=self.scope, clips=clips))

    def _given(self, h: Frame, z: Frame) -> Frame:
        check_map(h, z)
        return h

    def _mapped(self, receiver: Receiver, z: Frame, key: jax.Array) -> Frame:
        """h of each frame of z."""
        return self._map(receiver, z, key, 0)

    def _map(self, receiver: Receiver, z: Frame, key: jax.Array, frame_offset: int | Sequence[int]) -> Frame:
        return importance_map(
            receiver,
            z,
            key=key,
            sketches=self.sketches,
            metric=self.metric,
            sketch=self.sketch,
            frame_offset=frame_offset,
            target_error=self.target_error,
            max_sketches=self.max_sketches,
            control=self.control,
            memory_budget=self.memory_budget,
            devices=self.devices,
        ).h


@dataclasses.dataclass(frozen=True, eq=False)
class Iwa(Wa):
    """The map of an I frame is held for the frames after it: frames 0, ``period``, 2 ``period`` … of each clip.

    ``period``: display distance of the encoder's I pictures, `jaxwrap.codec.intra_period` of its configuration (a sweep
    sets it so); None: the first frame of a clip only. The map of an I frame is the one that `Wa` gives that frame.
    ``map``: one per I frame, or 1 for all.

    Held in display order: a weight belongs to a frame, whenever it is coded. In an open GOP the B pictures displayed
    just before an I picture are coded after it; they keep the map before it here, while an encoder that reads a map
    file and moves on at each I picture (WA-RDO: "until the next I frame in coding order") gives them the new one.
    """

    name: ClassVar[str] = "iwa"

    period: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period is not None and self.period < 1:
            raise ValueError(
                f"a period of {self.period} frames was given; wanted 1 or more, or None: the first frame only"
            )

    def _intra_frames(self, num: int) -> tuple[list[int], np.ndarray]:
        """Numbers of the I frames in the batch, and for each frame the place of its own I frame among them."""
        frames: list[int] = []
        start = 0
        for end in clip_ends(self.clips, num):
            frames += range(start, end, self.period or end - start)
            start = end
        return frames, np.searchsorted(frames, np.arange(num), side="right") - 1

    def _hold(self, h: Frame, places: np.ndarray) -> Frame:
        return jax.tree.map(lambda p: p[places], h)

    def _given(self, h: Frame, z: Frame) -> Frame:
        frames, places = self._intra_frames(num_frames(z))
        if num_frames(h) not in (1, len(frames)):
            raise MapError(
                f"importance map: {num_frames(h)} maps given for {len(frames)} I frames (period {self.period}, "
                f"{num_frames(z)} frames); wanted one per I frame, or 1 for all"
            )
        return super()._given(h if num_frames(h) == 1 else self._hold(h, places), z)

    def _mapped(self, receiver: Receiver, z: Frame, key: jax.Array) -> Frame:
        num = num_frames(z)
        frames, places = self._intra_frames(num)
        if len(frames) == num:
            return super()._mapped(receiver, z, key)
        own = take_frames(z, frames)
        part = dataclasses.replace(
            self, metric=metric_part(self.metric, receiver, own, frames, num), control=_control_of(self.control, frames)
        )
        return self._hold(part._map(frames_of(as_partial(receiver), frames), own, key, frames), places)


def take_frames(frame: Frame, numbers: Sequence[int]) -> Frame:
    """The frames of these numbers; 1 frame that serves all stays."""
    return frame if num_frames(frame) == 1 else jax.tree.map(lambda p: p[np.asarray(numbers)], frame)


def _control_of(control: ControlVariate | None, frames: Sequence[int]) -> ControlVariate | None:
    if control is None:
        return None
    return dataclasses.replace(
        control, reference=take_frames(control.reference, frames), h=take_frames(control.h, frames)
    )


def metric_part(metric: Metric, receiver: Receiver, z: Frame, frames: Sequence[int], num: int) -> Metric:
    """The part for z, the frames of these numbers, of a metric that may have an axis of all ``num`` frames; a function
    is given its part by itself."""
    if metric is None or callable(metric):
        return metric

    def part(weight: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        own = np.ndim(weight) == leaf.ndim and np.shape(weight)[0] == num
        return weight[np.asarray(frames)] if own else weight

    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, float_dtype(p.dtype)), z)
    return map_prefix(part, metric, output_of(as_partial(receiver), shapes))
