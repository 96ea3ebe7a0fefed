"""Frames: batches of planes, without a channel axis.

A plane is ``[N, H, W]`` (N pictures of one clip or batch). Three value ranges occur, and every function says which it
takes:

* *samples*: ``[0, 2^d − 1]``, what a codec sees; float while gradients flow, unsigned integers at an encoder's door;
* *normalised*: ``[−1, 1]``, what networks see (`jaxwrap.samples` maps between the two);
* errors and weights: any real.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Yuv420:
    """4:2:0 frames: luma ``y [N, H, W]`` with H and W even, chroma ``u``, ``v`` ``[N, H/2, W/2]``."""

    y: Any
    u: Any
    v: Any

    @property
    def planes(self) -> tuple[Any, ...]:
        """The planes in the order y, u, v."""
        return self.y, self.u, self.v


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Yuv400:
    """4:0:0 (luma only) frames: ``y [N, H, W]``."""

    y: Any

    @property
    def planes(self) -> tuple[Any, ...]:
        """The one plane, as a tuple."""
        return (self.y,)


Frame = Yuv420 | Yuv400
"""A batch of frames in one of the two chroma formats. Both are pytrees: `jax.tree.map` acts plane by plane."""


def frame_of(planes: tuple[Any, ...] | list[Any]) -> Frame:
    """Builds the frame type that has this many planes (1 or 3)."""
    if len(planes) == 1:
        return Yuv400(planes[0])
    if len(planes) == 3:
        return Yuv420(*planes)
    raise ValueError(f"{len(planes)} planes given; a frame has 1 (4:0:0) or 3 (4:2:0)")


def check_frame(frame: Frame) -> None:
    """Raises `ValueError` unless the planes have the axes and sizes that the frame's chroma format wants."""
    if not isinstance(frame, Yuv420 | Yuv400):
        raise ValueError(f"a {type(frame).__name__} was given; wanted a Yuv420 or Yuv400 (planes [N, H, W])")
    n, h, w = _shape3(frame.y, "y")
    if isinstance(frame, Yuv400):
        return
    if h % 2 or w % 2:
        raise ValueError(
            f"a 4:2:0 luma plane of {w}×{h} was given; width and height must be even: pad or crop it first"
        )
    for name, plane in (("u", frame.u), ("v", frame.v)):
        if _shape3(plane, name) != (n, h // 2, w // 2):
            raise ValueError(
                f"plane {name} has shape {tuple(plane.shape)}; 4:2:0 with y {tuple(frame.y.shape)} wants "
                f"{(n, h // 2, w // 2)}"
            )


def _shape3(plane: Any, name: str) -> tuple[int, int, int]:
    if len(plane.shape) != 3:
        raise ValueError(f"plane {name} has shape {tuple(plane.shape)}; planes are [N, H, W] (add a leading axis of 1)")
    n, h, w = plane.shape
    return n, h, w


def num_frames(frame: Frame) -> int:
    """Number N of pictures in the batch."""
    return int(frame.y.shape[0])


def size_of(frame: Frame) -> tuple[int, int]:
    """(height, width) of the luma plane."""
    return int(frame.y.shape[-2]), int(frame.y.shape[-1])


def pad_to_multiple(frame: Frame, multiple: int) -> Frame:
    """Edge-replicates at the bottom and right until luma height and width are multiples of ``multiple`` (even in
    4:2:0)."""
    h, w = size_of(frame)
    return pad_to(frame, -(-h // multiple) * multiple, -(-w // multiple) * multiple)


def pad_to(frame: Frame, height: int, width: int) -> Frame:
    """Edge-replicates at the bottom and right up to ``height × width`` of luma. NumPy in, NumPy out."""
    h, w = size_of(frame)
    if height < h or width < w:
        raise ValueError(f"cannot pad {w}×{h} down to {width}×{height}: use crop_to")

    def pad(plane: Any) -> Any:
        scale = h // plane.shape[-2]
        ph, pw = height // scale - plane.shape[-2], width // scale - plane.shape[-1]
        xp = np if isinstance(plane, np.ndarray) else jax.numpy
        return xp.pad(plane, ((0, 0), (0, ph), (0, pw)), mode="edge")

    return jax.tree.map(pad, frame)


def crop_to(frame: Frame, height: int, width: int) -> Frame:
    """Keeps the top-left ``height × width`` of luma (even in 4:2:0) and the matching chroma."""
    h, _ = size_of(frame)
    return jax.tree.map(lambda p: p[..., : height // (h // p.shape[-2]), : width // (h // p.shape[-2])], frame)


def stack_frames(frames: list[Frame]) -> Frame:
    """Concatenates batches of equal size and format along N."""
    return jax.tree.map(lambda *planes: np.concatenate([np.asarray(p) for p in planes]), *frames)
