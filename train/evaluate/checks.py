"""What a sweep refuses before anything runs: bad settings, missing encoders, and what no encoder would take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxwrap.arrays import Frame, check_frame, frame_of, size_of
from jaxwrap.codec import CONFIGS, QP_RANGE, Codec, EncodeRequest, Weights
from jaxwrap.importance.weights import is_flat, raw_map
from jaxwrap.methods import Fwa, Wa, stages_of
from jaxwrap.methods.plan import Method
from jaxwrap.train.evaluate.modes import Mode, combinations
from jaxwrap.train.evaluate.options import method_options
from jaxwrap.train.evaluate.points import canonical_json


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


def check_settings(
    clips: Sequence[ClipLike],
    modes: Sequence[Mode],
    codecs: Sequence[Codec],
    qps: Sequence[float],
    methods: Sequence[Method],
    config: str,
    processes: int,
) -> list[tuple[Mode, Method]]:
    """Which method runs in which mode. Raises `ValueError` where something is missing, given twice or out of range."""
    for what, given in (("clip", clips), ("mode", modes), ("codec", codecs), ("QP", qps), ("method", methods)):
        if not given:
            raise ValueError(f"no {what} was given; a sweep wants at least one clip, mode, codec, QP and method")
    for what, names in (
        ("clips", [clip.name for clip in clips]),
        ("codecs", [codec.name for codec in codecs]),
        ("methods", [canonical_json([m.name, method_options(m)]) for m in methods]),
        ("QPs", [str(float(qp)) for qp in qps]),
    ):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{what} were given more than once: {', '.join(repeated)}; results rows tell them by name")
    low, high = QP_RANGE
    if outside := [qp for qp in qps if not low <= qp <= high]:
        raise ValueError(f"QPs {outside} were given; wanted {low} to {high}, the specification's range")
    if config not in CONFIGS:
        raise ValueError(f"configuration {config!r} was given; known: {', '.join(CONFIGS)}")
    if processes < 1:
        raise ValueError(f"{processes} processes were asked for; wanted at least 1")
    pairs = combinations(modes, methods)
    _check_maps(clips, pairs)
    return pairs


def _check_maps(clips: Sequence[ClipLike], pairs: Sequence[tuple[Mode, Method]]) -> None:
    """Raises `ValueError` where the map that a method was given fits none of the clips as they are coded."""
    for mode, method in pairs:
        sizes = [mode.wrapper.bottleneck_size(*size_of(clip.frames)) for clip in clips]
        for stage in stages_of(method):
            if not isinstance(stage, Wa | Fwa) or stage.map is None:
                continue
            planes = raw_map(stage.map)
            if size_of(planes) not in sizes and not is_flat(planes):
                (height, width), (coded_height, coded_width) = size_of(planes), sizes[0]
                raise ValueError(
                    f"{method.name}: the map is {width}×{height}; in mode {mode.name} {clips[0].name} is coded at "
                    f"{coded_width}×{coded_height}: make the map from clips of that size, with the same run"
                )


def ask_codecs(
    clips: Sequence[ClipLike],
    pairs: Sequence[tuple[Mode, Method]],
    codecs: Sequence[Codec],
    requests: Sequence[EncodeRequest],
) -> None:
    """Raises `ValueError` where an encoder is missing, or would refuse something of every clip, such as a preset or
    the kind of weights that a method makes.

    One clip that is too small must not keep the others from being measured: its points will fail by themselves.
    """
    for codec in codecs:
        try:
            _ = codec.version
        except RuntimeError as error:
            raise ValueError(f"codec {codec.name} cannot be used: {error}") from error
    refusals = [_refusal(clip, pairs, codecs, requests) for clip in clips]
    if all(refusals):
        raise ValueError(refusals[0])


def _refusal(
    clip: ClipLike,
    pairs: Sequence[tuple[Mode, Method]],
    codecs: Sequence[Codec],
    requests: Sequence[EncodeRequest],
) -> str | None:
    """The first thing that an encoder would refuse about a clip, or None."""
    check_frame(clip.frames)
    for (mode, method), codec, request in itertools.product(pairs, codecs, requests):
        size = mode.wrapper.bottleneck_size(*size_of(clip.frames))
        weights = None
        if method.weights_as is not None:
            weights = Weights(_flat(size, clip.frames), method.weights_as)
        try:
            codec.check(size, dataclasses.replace(request, fps=clip.fps, weights=weights))
        except ValueError as error:
            what = mode.name if method.name == "sse" else f"{mode.name} with method {method.name}"
            return f"{clip.name} in mode {what}: {error}"
    return None


def _flat(size: tuple[int, int], like: Frame) -> Frame:
    """Weights of 1 for frames of ``size`` in the chroma format of ``like``, without their memory."""
    chroma = (size[0] // 2, size[1] // 2)
    shapes = [size, *[chroma] * (len(like.planes) - 1)]
    return frame_of([np.broadcast_to(np.float32(1), (1, *shape)) for shape in shapes])
