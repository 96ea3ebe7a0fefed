"""Importance maps of a wrapper's post-processor for pictures of any sizes, and their export as weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxwrap.arrays import Frame, num_frames, size_of
from jaxwrap.codecs.weightmap import MapInfo, write_maps
from jaxwrap.importance.batches import batched_importance_maps
from jaxwrap.importance.blocks import frame_mean
from jaxwrap.importance.maps import ImportanceMap, importance_map, yuv_metric
from jaxwrap.importance.weights import DEFAULT_ALPHA, average_map, importance_weights
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


def write_weights(
    path: Path,
    maps: Sequence[ImportanceMap],
    *,
    mode: Literal["wa", "fwa"],
    receiver: str,
    seed: int,
    alpha: float = DEFAULT_ALPHA,
) -> MapInfo:
    """Weights of the distortion, normalised to mean 1, as ``.dat`` and ``.json`` for an encoder.

    ``wa``: one map per frame, in order. ``fwa``: the mean of the raw maps of all frames, normalised once. Raises
    `ValueError` where maps of different sizes should become one file.
    """
    sizes = {size_of(m.h) for m in maps}
    if len(sizes) > 1:
        listed = ", ".join(f"{w}×{h}" for h, w in sorted(sizes))
        raise ValueError(f"maps of {listed} cannot be one file: give pictures of one size, or use mode wa")
    h = jax.tree.map(lambda *planes: np.concatenate([np.asarray(p) for p in planes]), *(m.h for m in maps))
    known = maps[0].standard_error is not None
    errors = [np.asarray(m.relative_block_error()) for m in maps] if known else []
    weights = importance_weights(average_map(h) if mode == "fwa" else h, alpha=alpha).planes
    return write_maps(
        path,
        weights,
        mode=mode,
        receiver=receiver,
        sketches=maps[0].sketches,
        standard_error=float(np.mean([_relative_error(m) for m in maps])) if known else None,
        seed=seed,
        details={
            "alpha": alpha,
            "frames": num_frames(h),
            "relative_standard_error_of_16x16_means": float(np.mean(np.concatenate(errors))) if known else None,
        },
    )


def _relative_error(maps: ImportanceMap) -> float:
    """Root mean square of the samples' standard errors over the mean of h."""
    assert maps.standard_error is not None
    square = sum(float(np.sum(np.square(p))) for p in maps.standard_error.planes)
    count = sum(p.size for p in maps.standard_error.planes)
    return float(np.sqrt(square / count) / np.mean(frame_mean(maps.h)))
