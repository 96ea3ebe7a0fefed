"""What a sweep refuses before anything runs: bad settings, missing encoders, and what no encoder would take."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxwrap.arrays import Frame, frame_of, num_frames, size_of
from jaxwrap.codec import CONFIGS, QP_RANGE, Codec, Config, EncodeRequest, RowWeights, Weights, intra_period
from jaxwrap.importance.weights import is_flat, raw_map
from jaxwrap.methods import Fwa, Idse, Iwa, Wa, stages_of
from jaxwrap.methods.plan import Method
from jaxwrap.train.evaluate.mode import Mode
from jaxwrap.train.evaluate.modes import combinations
from jaxwrap.train.evaluate.options import method_options
from jaxwrap.train.evaluate.points import canonical_json
from jaxwrap.train.evaluate.sources import ClipLike, Source

_NAMED = 3


def check_settings(
    clips: Sequence[ClipLike | Source],
    modes: Sequence[Mode],
    codecs: Sequence[Codec],
    qps: Sequence[float],
    methods: Sequence[Method],
    lambda_scales: Sequence[float],
    config: str,
    processes: int,
) -> list[tuple[Mode, Method]]:
    """Which method runs in which mode. Raises `ValueError` where something is missing, given twice or out of range."""
    given_things = {
        "clip": clips, "mode": modes, "codec": codecs, "QP": qps, "method": methods, "λ scale": lambda_scales,
    }  # fmt: skip
    for what, given in given_things.items():
        if not given:
            raise ValueError(f"no {what} was given; a sweep wants at least one {', '.join(given_things)}")
    for what, names in (
        ("clips", [clip.name for clip in clips]),
        ("codecs", [codec.name for codec in codecs]),
        ("methods", [canonical_json([m.name, method_options(m)]) for m in methods]),
        ("QPs", [str(float(qp)) for qp in qps]),
        ("λ scales", [str(float(scale)) for scale in lambda_scales]),
    ):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{what} were given more than once: {', '.join(repeated)}; results rows tell them by name")
    low, high = QP_RANGE
    if outside := [qp for qp in qps if not low <= qp <= high]:
        raise ValueError(f"QPs {outside} were given; wanted {low} to {high}, the specification's range")
    if bad := [scale for scale in lambda_scales if not (np.isfinite(scale) and scale > 0)]:
        raise ValueError(f"λ scales {bad} were given; wanted finite numbers above 0 (1: the encoder's own λ)")
    if config not in CONFIGS:
        raise ValueError(f"configuration {config!r} was given; known: {', '.join(CONFIGS)}")
    if processes < 1:
        raise ValueError(f"{processes} processes were asked for; wanted at least 1")
    return combinations(modes, methods)


def check_maps(sources: Sequence[Source], pairs: Sequence[tuple[Mode, Method]]) -> None:
    """Raises `ValueError` where the map that a method was given fits none of the clips as they are coded."""
    for mode, method in pairs:
        sizes = [mode.coded_size(source.size) for source in sources]
        for stage in stages_of(method):
            if not isinstance(stage, Wa | Fwa) or stage.map is None:
                continue
            planes = raw_map(stage.map)
            if size_of(planes) not in sizes and not is_flat(planes):
                (height, width), (coded_height, coded_width) = size_of(planes), sizes[0]
                raise ValueError(
                    f"{method.name}: the map is {width}×{height}; in mode {mode.name} {sources[0].name} is coded at "
                    f"{coded_width}×{coded_height}: make the map from clips of that size, with the same run"
                )


def check_numbers_of_maps(
    batches: Sequence[Sequence[Source]], pairs: Sequence[tuple[Mode, Method]], config: Config
) -> None:
    """Raises `ValueError` where a method was given another number of maps than any of the batches that are planned
    together has frames, or I frames."""
    for _, method in pairs:
        for stage in stages_of(method):
            if not isinstance(stage, Wa) or stage.map is None or (given := num_frames(raw_map(stage.map))) == 1:
                continue
            held = isinstance(stage, Iwa)
            wanted = [_num_maps(batch, config, held=held) for batch in batches]
            if given not in wanted:
                names = ", ".join(source.name for source in batches[0][:_NAMED]) + ", …" * (len(batches[0]) > _NAMED)
                number = "1" if wanted[0] == 1 else f"1, or {wanted[0]}"
                period = intra_period(config, batches[0][0].fps)
                each = f"I frame (--period {period})" if period else "clip, its first frame (no --period)"
                raise ValueError(
                    f"{method.name}: the file holds {given} maps; {names} in {config} want {number}, one per "
                    f"{each if held else 'frame'}: make the maps from the same inputs, with the same --max-frames"
                )


def _num_maps(batch: Sequence[Source], config: Config, *, held: bool) -> int:
    counts = [source.num_frames for source in batch]
    if not held:
        return sum(counts)
    return sum(-(-count // (intra_period(config, batch[0].fps) or count)) for count in counts)


@dataclasses.dataclass(frozen=True, eq=False)
class Combination:
    """What one row in each clip and QP is made for."""

    codec: Codec
    mode: Mode
    method: Method
    lambda_scale: float


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A combination that its codec cannot do; why, and of which clip."""

    combination: Combination
    reason: str
    where: str


def in_words(left_out: Sequence[LeftOut]) -> list[str]:
    """A line for each codec and reason."""
    lines: dict[tuple[str, str], dict[str, None]] = {}
    for item in left_out:
        c = item.combination
        scale = "" if c.lambda_scale == 1 else f", λ × {c.lambda_scale:.4g}"
        lines.setdefault((c.codec.name, item.reason), {})[c.method.name + scale] = None
    return [
        f"left out of {name}: {('; ' if any(',' in w for w in what) else ', ').join(what)} ({reason})"
        for (name, reason), what in lines.items()
    ]


def preset_of(presets: Mapping[str, str] | str | None, codec: Codec) -> str | None:
    """A codec's effort, where ``presets`` is one for all codecs, or one by name for some of them."""
    return presets.get(codec.name) if isinstance(presets, Mapping) else presets


def combine(
    sources: Sequence[Source],
    pairs: Sequence[tuple[Mode, Method]],
    codecs: Sequence[Codec],
    requests: Mapping[str, Sequence[EncodeRequest]],
    lambda_scales: Sequence[float],
) -> tuple[list[Combination], list[LeftOut]]:
    """What each codec does: stock encoders are anchors beside patched ones, and take neither their weights nor a scale
    of λ. In the order codec, mode and method, scale. ``requests`` are by the codecs' names.

    Raises `ValueError` where an encoder is missing, would refuse something of every clip even without weights (such as
    a preset), and where no codec takes a method, or a scale, at all.
    """
    modes = {mode.name: mode for mode, _ in pairs}
    for codec in codecs:
        ask_codecs(sources, [(mode, None) for mode in modes.values()], [codec], requests[codec.name])
    taken: list[Combination] = []
    left_out: list[LeftOut] = []
    for codec, (mode, method), scale in itertools.product(codecs, pairs, lambda_scales):
        combination = Combination(codec, mode, method, float(scale))
        plain = method.weights_as is None and scale == 1.0
        asked = [dataclasses.replace(requests[codec.name][0], lambda_scale=float(scale))]
        refused = None if plain else _refused_by_all(sources, [(mode, method)], [codec], asked)
        if refused is None:
            taken.append(combination)
        else:
            left_out.append(LeftOut(combination, refused.reason, refused.where))
    for what, of in (
        ("method", [(c.method.name, c) for c in _all_of(taken, left_out)]),
        ("λ scale", [(f"{c.lambda_scale:.4g}", c) for c in _all_of(taken, left_out)]),
    ):
        done = {name for name, combination in of if combination in taken}
        if missing := next((name for name, _ in of if name not in done), None):
            reasons = {f"{item.where}: {item.reason}" for item in left_out if (missing, item.combination) in of}
            raise ValueError(f"no codec takes {what} {missing}: {'; '.join(sorted(reasons))}")
    return taken, left_out


def _all_of(taken: Sequence[Combination], left_out: Sequence[LeftOut]) -> Iterator[Combination]:
    yield from taken
    yield from (item.combination for item in left_out)


def ask_codecs(
    sources: Sequence[Source],
    pairs: Sequence[tuple[Mode, Method | None]],
    codecs: Sequence[Codec],
    requests: Sequence[EncodeRequest],
) -> None:
    """Raises `ValueError` where an encoder is missing, or would refuse something of every clip, such as a preset or
    the kind of weights that a method makes (None: without any).

    One clip that is too small must not keep the others from being measured: its points will fail by themselves.
    """
    for codec in codecs:
        try:
            _ = codec.version
        except RuntimeError as error:
            raise ValueError(f"codec {codec.name} cannot be used: {error}") from error
    if (refused := _refused_by_all(sources, pairs, codecs, requests)) is not None:
        raise ValueError(f"{refused.where}: {refused.reason}")


class _Refusal(NamedTuple):
    where: str
    reason: str


def _refused_by_all(
    sources: Sequence[Source],
    pairs: Sequence[tuple[Mode, Method | None]],
    codecs: Sequence[Codec],
    requests: Sequence[EncodeRequest],
) -> _Refusal | None:
    """What would be refused of the first clip, where something would of every clip; else None."""
    first = None
    for source in sources:
        refused = _refusal(source, pairs, codecs, requests)
        if refused is None:
            return None
        first = first or refused
    return first


def _refusal(
    source: Source,
    pairs: Sequence[tuple[Mode, Method | None]],
    codecs: Sequence[Codec],
    requests: Sequence[EncodeRequest],
) -> _Refusal | None:
    """The first thing that an encoder would refuse about a clip, or None."""
    for (mode, method), codec, request in itertools.product(pairs, codecs, requests):
        size = mode.coded_size(source.size)
        weights = None if method is None else _weights_like(method, size, mode.coded_planes(source.num_planes))
        try:
            codec.check(size, dataclasses.replace(request, fps=source.fps, weights=weights))
        except (ValueError, RuntimeError) as error:
            what = mode.name if method is None or method.name == "sse" else f"{mode.name} with method {method.name}"
            return _Refusal(f"{source.name} in mode {what}", str(error))
    return None


def _weights_like(method: Method, size: tuple[int, int], num_planes: int) -> Weights | RowWeights | None:
    """Weights of the kind that a method makes, without their memory."""
    if method.weights_as is None:
        return None
    flat = _flat(size, num_planes)
    if method.weights_as != "rows":
        return Weights(flat, method.weights_as)
    rows = max((stage.rows for stage in stages_of(method) if isinstance(stage, Idse)), default=1)
    return RowWeights(frame_of([np.broadcast_to(p[:, None], (1, rows, *p.shape[1:])) for p in flat.planes]), 0.5)


def _flat(size: tuple[int, int], num_planes: int) -> Frame:
    """Weights of 1 for frames of ``size`` with this many planes, without their memory."""
    chroma = (size[0] // 2, size[1] // 2)
    shapes = [size, *[chroma] * (num_planes - 1)]
    return frame_of([np.broadcast_to(np.float32(1), (1, *shape)) for shape in shapes])
