"""Importance maps of a wrapper's post-processor for pictures of any sizes, as map files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.codecs.weightmap import MapInfo, write_maps
from jaxwrap.importance.maps import ImportanceMap, batched_importance_maps, yuv_metric
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, denormalise, normalise
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.media import Clip
from jaxwrap.wrappers.switchable import Wrapper


def clip_maps(wrapper: Wrapper, clips: Sequence[Clip], *, sketches: int, seed: int) -> list[ImportanceMap]:
    """Maps of the post-processor at each clip's bottleneck, all clips in one batch (metric: YUV 6:1:1).

    ``[N, rH, rW]`` per luma plane, N the clip's frames; the post-processor's output is as large as the padded batch.
    """
    ratio = wrapper.config.ratio

    def receiver_of(height: int, width: int) -> Callable[[Frame], Frame]:
        post = functools.partial(wrapper.post, size=(int(height / ratio), int(width / ratio)))
        return Sandwich(wrapper.pre, post, BIT_DEPTH).receive

    @jax.jit
    def bottleneck(samples: Frame) -> Frame:
        return denormalise(wrapper.pre(normalise(samples, BIT_DEPTH)), BIT_DEPTH)

    zs = [bottleneck(change_bit_depth(clip.frames, clip.bit_depth, BIT_DEPTH)) for clip in clips]
    return batched_importance_maps(receiver_of, zs, key=jax.random.key(seed), sketches=sketches, metric=yuv_metric)


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
