"""Importance maps of a wrapper's post-processor for pictures of any sizes, as map files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from jaxwrap.codecs.weightmap import MapInfo, write_maps
from jaxwrap.importance.maps import ImportanceMap, batched_importance_maps, yuv_metric
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, normalise
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.media import Clip
from jaxwrap.wrappers.switchable import Wrapper


def clip_maps(wrapper: Wrapper, clips: Sequence[Clip], *, sketches: int, seed: int) -> list[ImportanceMap]:
    """Maps of the post-processor at each clip's bottleneck, all clips in one batch (metric: YUV 6:1:1).

    ``[N, rH, rW]`` per luma plane, N the clip's frames; the post-processor's output is as large as the padded batch.
    """
    ratio = wrapper.config.ratio

    def receiver_of(height: int, width: int):  # type: ignore[no-untyped-def]
        size = (height / ratio, width / ratio)
        return Sandwich(wrapper.pre, functools.partial(wrapper.post, size=tuple(map(int, size))), BIT_DEPTH).receive

    zs = []
    for clip in clips:
        frames = normalise(change_bit_depth(clip.frames, clip.bit_depth, BIT_DEPTH), BIT_DEPTH)
        zs.append(jax.jit(Sandwich(wrapper.pre, wrapper.post, BIT_DEPTH).bottleneck)(frames))
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
