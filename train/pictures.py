"""Training pictures from what the user names: every frame of every picture and clip, as 8-bit one-frame batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from jaxwrap.arrays import Yuv420, num_frames
from jaxwrap.samples import change_bit_depth
from jaxwrap.train.fit.config import FitConfig
from jaxwrap.train.media import Clip, Unreadable, open_clips
from jaxwrap.train.photographs import FINE_TUNING, photograph_paths


def training_pictures(config: FitConfig) -> tuple[list[Yuv420], list[Yuv420], list[Unreadable]]:
    """(pictures to train on, pictures to validate on, files left out) as ``config.data`` and ``.validation`` name them.

    Without ``validation``, every sixteenth picture, and at least one, is held out. Errors as in `open_clips`.
    """
    paths = _paths(config.data) if config.data else photograph_paths(FINE_TUNING)
    clips, unreadable = open_clips(paths)
    pictures = _pictures(clips)
    if config.validation:
        held_clips, more = open_clips(_paths(config.validation))
        return pictures, _pictures(held_clips), unreadable + more
    if len(pictures) < 2:
        raise ValueError("one picture was given as data=; give more, or name others with validation=")
    return [p for i, p in enumerate(pictures) if i % 16], pictures[::16], unreadable


def _paths(text: str) -> list[str | Path]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pictures(clips: Sequence[Clip]) -> list[Yuv420]:
    result = []
    for clip in clips:
        frames = change_bit_depth(clip.frames, clip.bit_depth, 8)
        result += [jax.tree.map(lambda plane, n=n: plane[n : n + 1], frames) for n in range(num_frames(frames))]
    return result
