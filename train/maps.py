"""Importance maps of a wrapper's post-processor for pictures of any sizes, as map files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames, size_of
from jaxwrap.codecs.weightmap import MapInfo, write_maps
from jaxwrap.importance.maps import ImportanceMap, batched_importance_maps, importance_map, yuv_metric
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, denormalise, normalise
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.media import Clip
from jaxwrap.wrappers.switchable import Wrapper

PIXELS_PER_BATCH = 8_000_000
"""Luma samples of originals whose maps are computed at once: about 3 GB of a post-processor's activations."""


def clip_maps(
    wrapper: Wrapper,
    clips: Sequence[Clip],
    *,
    sketches: int,
    seed: int,
    advance: Callable[[int], None] = lambda frames: None,
) -> list[ImportanceMap]:
    """Maps of the post-processor at each clip's bottleneck (metric: YUV 6:1:1), ``[N, rH, rW]`` per luma plane.

    All clips go through in one batch, padded to a common size, where `PIXELS_PER_BATCH` allows; otherwise clip by clip,
    in chunks of frames. ``advance`` is told how many frames are done. Frames are numbered for the sketches through all
    clips of a batch, or through the clip.
    """
    ratio = wrapper.config.ratio

    def receiver_of(height: int, width: int) -> Callable[[Frame], Frame]:
        post = functools.partial(wrapper.post, size=(int(height / ratio), int(width / ratio)))
        return Sandwich(wrapper.pre, post, BIT_DEPTH).receive

    @jax.jit
    def bottleneck(samples: Frame) -> Frame:
        return denormalise(wrapper.pre(normalise(samples, BIT_DEPTH)), BIT_DEPTH)

    def samples_of(clip: Clip, start: int, stop: int) -> Frame:
        part = jax.tree.map(lambda plane: plane[start:stop], clip.frames)
        return bottleneck(change_bit_depth(part, clip.bit_depth, BIT_DEPTH))

    key = jax.random.key(seed)
    heights, widths = zip(*(size_of(clip.frames) for clip in clips), strict=True)
    frames = [num_frames(clip.frames) for clip in clips]
    if sum(frames) * max(heights) * max(widths) <= PIXELS_PER_BATCH:
        zs = [samples_of(clip, 0, n) for clip, n in zip(clips, frames, strict=True)]
        maps = batched_importance_maps(receiver_of, zs, key=key, sketches=sketches, metric=yuv_metric)
        advance(sum(frames))
        return maps

    maps = []
    for clip, n in zip(clips, frames, strict=True):
        height, width = size_of(clip.frames)
        chunk = max(1, PIXELS_PER_BATCH // (height * width))
        receiver, parts = None, []
        for start in range(0, n, chunk):
            z = samples_of(clip, start, start + chunk)
            receiver = receiver or receiver_of(*size_of(z))
            part = importance_map(receiver, z, key=key, sketches=sketches, metric=yuv_metric, frame_offset=start)
            parts.append(jax.device_get(part))
            advance(num_frames(z))
        maps.append(jax.tree.map(lambda *p: np.concatenate(p), *parts))
    return maps


def write_clip_map(path: Path, maps: ImportanceMap, *, receiver: str, seed: int, details: dict[str, object]) -> MapInfo:
    """One clip's maps as ``.dat`` and ``.json``, mode ``wa``: raw h, which the exporter of an encoder normalises."""
    relative = None if maps.standard_error is None else float(np.mean(maps.relative_block_error()))
    return write_maps(
        path,
        maps.h,
        mode="wa",
        receiver=receiver,
        sketches=maps.sketches,
        seed=seed,
        details={**details, "relative_standard_error_16x16": relative},
    )
