"""Weighted RDO inside real encoders: the published table, in parts that are swept, stored and resumed one by one.

Every part codes pictures or clips for some of the receivers (`jaxwrap.train.bench.rdo_receivers`) with some encoders,
by the series below, and compares them on receiver SNR (`jaxwrap.train.bench.rdo_table`):

==============  ========================================================================================================
part            what
==============  ========================================================================================================
``matched``     all series, a wrapper as it was trained, HM and JM, all intra
``mismatched``  the same, a wrapper badly scaled for the codec in two ways
``features``    the same, a network's features on pixels
``inter``       two clips in low delay and random access, HM
``generation``  VTM and VVenC by their SSE: what a codec generation is worth
``decisions``   which of an encoder's decisions the weights act on, one at a time; QP offsets with and without them
``rows``        IDSE by its number of rows ℓ, in a JM without 8×8 transform (FP-RDO section IV)
==============  ========================================================================================================

Series: ``sse`` with the encoder's λ × 1, 1/1.5 and 1/2 (uniform weights: what a mere change of λ does); ``wa`` (a
sketched map of each picture), ``iwa`` (of each I frame; all intra it is wa), ``fwa`` (frozen, the mean over training
pictures), ``calibrated`` (frozen, from a codec's errors, one weight per block, shrunk; at the three scales of λ),
``fold`` (samples times the root of the calibrated weights, coded by plain SSE; the decoder has these weights as it has
the wrapper, so that no bits are counted for them), ``wa+dqp`` (QP offsets),
``wa+shuffle`` (the map's blocks in random order: the control), ``idse``.

What an encoder refuses is left out and named; what fails is tried again by the same command. Two cores take about 45
minutes for all parts at their default sizes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxwrap.codec import DECISIONS, QP_RANGE, Codec, Config, EncodeRequest
from jaxwrap.codecs.files import write_atomically
from jaxwrap.importance.weights import DEFAULT_ALPHA
from jaxwrap.methods import Method, parse_method
from jaxwrap.train.bench.rdo_receivers import SCALED, TENSOR, Tuned, cropped, receiver_named, tune
from jaxwrap.train.bench.rdo_table import (
    Curves,
    Measured,
    Row,
    generation_table,
    own_table,
    row_cells,
    rows_of,
    verdict_lines,
    write_measured,
    write_rows,
)
from jaxwrap.train.evaluate.checks import ask_codecs
from jaxwrap.train.evaluate.modes import BIT_DEPTH, PixelMode, receiver_metric
from jaxwrap.train.evaluate.options import method_options
from jaxwrap.train.evaluate.points import canonical_json, read_points
from jaxwrap.train.evaluate.sources import Source
from jaxwrap.train.evaluate.sweep import run_sweep
from jaxwrap.train.media import Clip
from jaxwrap.train.runs import console, literal, progress_bar

CLIP_FRAMES = 17
"""Frames of each clip of the part ``inter``: two groups of 8 after the first."""
QPS = (22, 27, 32, 37, 42)
LAMBDA_SCALES = (1.0, 1 / 1.5, 1 / 2)
TRAIN_PICTURES = 16
MAIN = ("sse", "wa", "fwa", "calibrated", "fold", "wa+dqp", "wa+shuffle", "idse")
FROZEN = ("fwa", "calibrated", "fold")
"""Series that come from training pictures."""
AT_ALL_SCALES = ("sse", "calibrated")
"""Series that are measured at every one of `LAMBDA_SCALES`."""
ROWS = (1, 2, 4, 8, 16)
PLACE = "series.json"
"""Beside the results of each sweep: the receiver, and what its methods are called in the tables."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the table. ``size``: (height, width) to which pictures are cropped; ``clips``: whether clips are
    coded, and not pictures; ``count``: how many of them; ``scales``: whether at all scales of λ."""

    receivers: tuple[str, ...]
    codecs: tuple[str, ...]
    series: tuple[str, ...] = MAIN
    size: tuple[int, int] = (512, 768)
    count: int = 6
    configs: tuple[Config, ...] = ("intra",)
    preset: str | None = None
    clips: bool = False
    scales: bool = True

    @property
    def on_features(self) -> bool:
        """Whether the receiver is a network on pixels."""
        return "features" in self.receivers


_FEATURE_SIZE = (352, 480)
PARTS: dict[str, Part] = {
    "matched": Part(("matched",), ("hm", "jm")),
    "mismatched": Part(SCALED, ("hm", "jm")),
    "features": Part(("features",), ("hm", "jm"), size=_FEATURE_SIZE),
    "inter": Part(
        ("matched", "patches"), ("hm",), ("sse", "wa", "iwa", "calibrated", "wa+dqp"), size=(240, 352), count=2,
        configs=("lowdelay", "randomaccess"), clips=True,
    ),
    "generation": Part(("matched", "patches"), ("vtm", "vvenc"), ("sse",), scales=False),
    "decisions": Part(
        ("patches",), ("hm", "jm"),
        ("sse", "wa", *(f"wa+only:{decision}" for decision in DECISIONS), "wa+dqp", "wa+dqp+only:none"), count=4,
        scales=False,
    ),
    "rows": Part(
        ("features",), ("jm",), ("sse", "wa", *(f"idse, ℓ = {rows}" for rows in ROWS)), size=_FEATURE_SIZE, count=4,
        preset="no-8x8", scales=False,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is coded: ``pictures`` (single frames) of the parts with a wrapper, ``feature_pictures`` of those on
    features, ``clips`` of the part ``inter``; ``train``: other pictures, for frozen maps; ``network`` and ``tensor``:
    of the receiver ``features``."""

    pictures: Sequence[Clip]
    train: Sequence[Clip]
    feature_pictures: Sequence[Clip] = ()
    clips: Sequence[Clip] = ()
    network: Path | None = None
    tensor: str = TENSOR

    def of(self, part: Part) -> Sequence[Clip]:
        """Those that a part codes."""
        if part.clips:
            return self.clips
        return self.feature_pictures if part.on_features else self.pictures


def possible_parts(codecs: Sequence[Codec], inputs: Inputs) -> list[str]:
    """The parts that have an encoder, something to code, and the network that they want."""
    return [
        name
        for name, part in PARTS.items()
        if _codecs_of(part, codecs) and inputs.of(part) and not (part.on_features and inputs.network is None)
    ]


def run(
    *,
    codecs: Sequence[Codec],
    inputs: Inputs,
    out: Path,
    parts: Sequence[str] = (),
    count: int | None = None,
    size: tuple[int, int] | None = None,
    qps: Sequence[int] = QPS,
    train_pictures: int = TRAIN_PICTURES,
    processes: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures the parts, and prints the tables of all parts that ``out`` holds.

    Args:
      codecs: those of a part's encoders that are given are used; an encoder that no part names (x264, x265) takes part
        in all. out: ``PART/…/`` (sweeps), ``points.csv``, ``table.csv`` and the ``cache``.
      parts: of `PARTS`; none: `possible_parts`. count, size: number of pictures, and (height, width), in place of the
        parts' own. train_pictures: for frozen maps, at least 2.

    Returns ``{"settings", "rows": […], "verdict": […]}``; rows have the columns of ``table.csv``. Raises `ValueError`
    as sweeps do, for unknown parts, and where a part has no encoder, network or picture of its size.
    """
    if unknown := [name for name in parts if name not in PARTS]:
        raise ValueError(f"part {unknown[0]!r} was asked for; known: {', '.join(PARTS)}")
    for name in parts or possible_parts(codecs, inputs):
        part = PARTS[name]
        part = dataclasses.replace(part, count=count or part.count, size=size or part.size)
        settings = _Settings(out, qps, train_pictures, processes, seed)
        _Part(name, part, _codecs_of(part, codecs), settings).measure(inputs)
    measured = [m for name in PARTS for m in _read_part(out / name)]
    if not measured:
        raise ValueError("no part was measured: each wants one of its encoders (--codec) and something to code")
    curves = Curves(measured)
    rows = rows_of(curves)
    write_measured(out / "points.csv", measured)
    write_rows(out / "table.csv", rows)
    print_tables(curves, rows)
    return {
        "settings": {
            "codecs": {codec.name: codec.version for codec in codecs}, "qps": list(qps), "seed": seed,
            "train_pictures": train_pictures, "alpha": DEFAULT_ALPHA, "bit_depth": BIT_DEPTH,
        },
        "rows": [row_cells(row) for row in rows],
        "verdict": verdict_lines(rows),
    }  # fmt: skip


def print_tables(curves: Curves, rows: Sequence[Row]) -> None:
    """All tables, and what they say about the aim."""
    for place in curves.places:
        if any(row.place == place and row.against == "own sse" for row in rows):
            console.print(own_table(rows, place))
    table = generation_table(rows)
    if table is not None:
        console.print(table)
    for line in verdict_lines(rows):
        console.print(literal(line), highlight=False, soft_wrap=True)


def _codecs_of(part: Part, codecs: Sequence[Codec]) -> list[Codec]:
    named = {name for each in PARTS.values() for name in each.codecs}
    return [codec for codec in codecs if codec.name in part.codecs or codec.name not in named]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all parts have in common."""

    out: Path
    qps: Sequence[int]
    train_pictures: int
    processes: int
    seed: int


@dataclasses.dataclass(frozen=True)
class _Part:
    """One part that is being measured."""

    name: str
    part: Part
    codecs: Sequence[Codec]
    settings: _Settings

    def measure(self, inputs: Inputs) -> None:
        """Sweeps it, into folders of its own; `_read_part` reads them."""
        part, settings = self.part, self.settings
        if not self.codecs:
            raise ValueError(f"part {self.name} is of {' and '.join(part.codecs)}; none of them was given")
        clips = cropped(inputs.of(part), part.size, part.count)
        for receiver in part.receivers:
            mode = receiver_named(receiver, network=inputs.network, tensor=inputs.tensor)
            tuned = None
            if {*part.series} & {*FROZEN}:
                train = cropped(inputs.train, part.size, settings.train_pictures, complete=True)
                tuned = tune(mode, train, seed=settings.seed)
            methods = {series: _method(series, tuned) for series in part.series}
            for config in part.configs:
                sweeps = self._sweeps(mode, tuned, methods, clips, config)
                for number, ((qps, scales), names) in enumerate(sweeps.items()):
                    folder = f"{receiver}-{config}-{'-'.join(codec.name for codec in self.codecs)}-{number}"
                    chosen = {name: methods[name] for name in names}
                    self._sweep(receiver, mode, chosen, clips, config, qps, scales, folder)

    def _sweeps(
        self, mode: PixelMode, tuned: Tuned | None, methods: dict[str, Method], clips: Sequence[Clip], config: Config
    ) -> dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]]:
        """Series by the QPs and scales of λ that they have in common, without those that no encoder takes."""
        found: dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]] = {}
        for series, method in methods.items():
            wanted = LAMBDA_SCALES if self.part.scales and series in AT_ALL_SCALES else (1.0,)
            scales = tuple(scale for scale in wanted if self._is_taken(mode, series, method, clips, config, scale))
            shift = round(tuned.fold.qp_shift()) if tuned is not None and series == "fold" else 0
            qps = tuple(qp + shift for qp in self.settings.qps if QP_RANGE[0] <= qp + shift <= QP_RANGE[1])
            if scales:
                found.setdefault((qps, scales), []).append(series)
        return found

    def _is_taken(
        self, mode: PixelMode, series: str, method: Method, clips: Sequence[Clip], config: Config, scale: float
    ) -> bool:
        """Whether any encoder does this; says so where none does."""
        request = EncodeRequest(self.settings.qps[0], config, BIT_DEPTH, preset=self.part.preset)
        sources = [Source.of(clip) for clip in clips]
        ask_codecs(sources, [(mode, None)], self.codecs, [request])  # a missing encoder, or a bad preset, is an error
        refusals = []
        for codec in self.codecs:
            try:
                ask_codecs(sources, [(mode, method)], [codec], [dataclasses.replace(request, lambda_scale=scale)])
            except ValueError as error:
                refusals.append(str(error))
            else:
                return True
        console.print(f"[yellow]left out:[/] {series}, λ × {scale:.3g}: {literal('; '.join(refusals))}", soft_wrap=True)
        return False

    def _sweep(
        self,
        receiver: str,
        mode: PixelMode,
        methods: dict[str, Method],
        clips: Sequence[Clip],
        config: Config,
        qps: Sequence[int],
        scales: Sequence[float],
        folder: str,
    ) -> None:
        settings = self.settings
        out = settings.out / self.name / folder
        console.print(
            f"{self.name}: {receiver}, {config}, {', '.join(codec.name for codec in self.codecs)}: "
            f"{'; '.join(methods)}; QPs {', '.join(map(str, qps))}; λ × {', '.join(f'{s:.3g}' for s in scales)}",
            highlight=False,
        )
        with progress_bar() as bar:
            result = run_sweep(
                clips, [mode], self.codecs, qps, list(methods.values()), out, dataset=self.name,
                processes=settings.processes, config=config, preset=self.part.preset, seed=settings.seed,
                lambda_scales=scales, cache=settings.out / "cache", retry_failed=True,
                progress=bar,
            )  # fmt: skip
        for failure in result.failures:
            console.print(
                f"[red]failed:[/] {failure.sequence}, {failure.codec}, {failure.method}, QP {failure.qp:g}: "
                f"{literal(failure.error.splitlines()[0])} (log: {out / failure.log})",
                soft_wrap=True,
            )
        names = [[method.name, canonical_json(method_options(method)), series] for series, method in methods.items()]
        place = {"receiver": receiver, "preset": self.part.preset or "", "series": names}
        write_atomically(out / PLACE, json.dumps(place, indent=1, ensure_ascii=False).encode())


def _read_part(folder: Path) -> list[Measured]:
    """The points of all sweeps that a part has in its folder."""
    measured = []
    for path in sorted(folder.glob(f"*/{PLACE}")):
        place = json.loads(path.read_bytes())
        names = {(method, options): series for method, options, series in place["series"]}
        measured += [
            Measured.of(point, place["receiver"], place["preset"], names[point.method, point.method_options])
            for point in read_points(path.with_name("results.csv"))
        ]
    return measured


def _method(series: str, tuned: Tuned | None) -> Method:
    """The method of a series: its name, and perhaps ``ℓ`` and ``α``, as in ``idse, ℓ = 8, α = 4``."""
    name, *settings = series.split(", ")
    values = dict(setting.split(" = ") for setting in settings)
    share = {"metric": receiver_metric, "alpha": float(values.get("α", DEFAULT_ALPHA))}
    idse = share | ({"rows": int(values["ℓ"])} if "ℓ" in values else {})
    frozen = {} if tuned is None else tuned.options
    return parse_method(name, {"wa": share, "iwa": share, "idse": idse, **frozen})
