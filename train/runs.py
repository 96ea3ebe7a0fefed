"""One training run and one evaluation as a terminal shows them: progress with an ETA, warnings, tables, failures.

What `jaxwrap.train.cli` and `jaxwrap.train.demo` have in common. Heavy imports wait until they are needed, so that
``--help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from jaxwrap.arrays import Frame, Yuv420
    from jaxwrap.codec import Codec
    from jaxwrap.codecs.x26x import X26x
    from jaxwrap.importance.gram import PlaneScale
    from jaxwrap.methods.plan import Method
    from jaxwrap.train.evaluate.mode import Mode
    from jaxwrap.train.evaluate.modes import PixelMode
    from jaxwrap.train.evaluate.sweep import SweepResult
    from jaxwrap.train.fit.config import FitConfig
    from jaxwrap.train.media import Clip

console = Console(width=None if sys.stdout.isatty() else 140)


def literal(text: object) -> str:
    """Text that the console shows as it is, brackets included."""
    return str(text).replace("[", r"\[")


def progress_bar() -> Progress:
    """The one progress bar of all commands, with an ETA."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
    )  # fmt: skip


def warn_unreadable(unreadable: Sequence[object]) -> None:
    """Names the files that gave no clip."""
    if unreadable:
        console.print(f"[yellow]{len(unreadable)} file(s) could not be read and were left out:[/]")
        for item in unreadable:
            console.print(f"  {literal(item)}", highlight=False, soft_wrap=True)


def run_fit(config: FitConfig, pictures: list[Yuv420], validation: list[Yuv420], out: Path) -> None:
    """`jaxwrap.train.fit.loop.fit` under a progress bar."""
    from jaxwrap.train.fit.loop import Progress as FitProgress
    from jaxwrap.train.fit.loop import fit
    from jaxwrap.train.memory import keep_memory

    keep_memory()
    with progress_bar() as bar:
        task = bar.add_task("train", total=config.steps, note="compiling")

        def report(progress: FitProgress) -> None:
            m = progress.metrics
            if "validation_loss" in m:
                bar.console.print(
                    f"step {progress.step}: validation loss {m['validation_loss']:.2f}, "
                    f"PSNR-YUV {m['validation_psnr_yuv']:.2f} dB",
                    highlight=False,
                )
                return
            note = "loss {loss:.1f}  {bits_per_pixel:.3f} bpp  {psnr_yuv:.2f} dB  step {step_size:.1f}".format(**m)
            bar.update(task, completed=progress.step, note=note)

        fit(config, pictures, validation, out, report=report)


def standard_modes(ratios: Sequence[Fraction]) -> list[PixelMode]:
    """The codec alone and the linear resamplers at these ratios (1 is the codec alone)."""
    from jaxwrap.train.evaluate.modes import codec_mode, linear_mode
    from jaxwrap.wrappers.resample import KINDS

    return [codec_mode()] + [linear_mode(kind, ratio) for ratio in ratios if ratio != 1 for kind in KINDS]


def split_words(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``."""
    return [word.strip() for word in text.split(",") if word.strip()]


def library_encoders(names: Sequence[str]) -> list[X26x]:
    """x264, x265 by name. Raises `ValueError` listing the valid ones."""
    from jaxwrap.codecs.x26x import X26x

    return [X26x(name) for name in names]  # type: ignore[arg-type]  # X26x itself names the valid ones


def encoders(names: Sequence[str], *, timeout_s: float | None = None) -> list[Codec]:
    """x264, x265, hm, jm, vtm, vvenc by name.

    ``timeout_s``: wall time that one encode of a reference encoder may take; None is its own limit. Raises `ValueError`
    listing the valid names; whether an encoder is there is found out when it is asked.
    """
    from jaxwrap.codecs.reference.hm import Hm
    from jaxwrap.codecs.reference.jm import Jm
    from jaxwrap.codecs.reference.vtm import Vtm
    from jaxwrap.codecs.reference.vvenc import Vvenc
    from jaxwrap.codecs.x26x import ENCODERS

    reference = {kind.name: kind for kind in (Hm, Jm, Vtm, Vvenc)}
    if unknown := [name for name in names if name not in (*ENCODERS, *reference)]:
        raise ValueError(f"encoder {unknown[0]!r} was given; known: {', '.join((*ENCODERS, *reference))}")
    limit: dict[str, Any] = {} if timeout_s is None else {"timeout_s": timeout_s}
    return [reference[name](**limit) if name in reference else library_encoders([name])[0] for name in names]


def parse_presets(text: str | None) -> str | dict[str, str] | None:
    """``slow``, for all encoders, or ``x265=slow,jm=no-8x8``, by their names. Raises `ValueError` for a mixture."""
    if text is None or "=" not in text:
        return text
    words = [word.partition("=") for word in text.split(",")]
    if bad := [name for name, sign, preset in words if not (name.strip() and sign and preset.strip())]:
        raise ValueError(f"preset {bad[0]!r} was given; wanted one for all encoders, or ENCODER=PRESET,ENCODER=PRESET")
    return {name.strip(): preset.strip() for name, _, preset in words}


def parse_scales(text: str) -> list[float]:
    """``1,1/1.5,0.5`` → numbers. Raises `ValueError` for anything else."""
    try:
        pairs = [word.partition("/") for word in text.split(",")]
        return [float(above) / (float(below) if sign else 1.0) for above, sign, below in pairs]
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--lambda-scales {text!r} was given; wanted numbers such as 1,1/1.5,1/2") from None


def run_evaluation(
    clips: Sequence[Clip],
    modes: Sequence[Mode],
    codecs: Sequence[Codec],
    methods: Sequence[Method],
    qps: Sequence[float],
    out: Path,
    *,
    dataset: str,
    config: str,
    preset: str | Mapping[str, str] | None,
    processes: int,
    seed: int,
    lambda_scales: Sequence[float] = (1.0,),
    scheduler: str | None = None,
    retry_failed: bool = False,
) -> int:
    """Sweep, BD table and report; returns the number of points that failed, after naming them."""
    from jaxwrap.train.evaluate.sweep import run_sweep

    with progress_bar() as bar:
        result = run_sweep(
            clips,
            modes,
            codecs,
            qps,
            methods,
            out,
            lambda_scales=lambda_scales,
            dataset=dataset,
            processes=processes,
            scheduler=scheduler,
            config=config,  # type: ignore[arg-type]
            preset=preset,
            seed=seed,
            retry_failed=retry_failed,
            progress=bar,
        )
    return conclude(result, out)


def conclude(result: SweepResult, out: Path) -> int:
    """BD table and report of a sweep; returns the number of points that failed, after naming them."""
    from jaxwrap.train.report.html import write_report
    from jaxwrap.train.report.terminal import bd_rich_table

    for failure in result.failures:
        scale = "" if failure.lambda_scale == 1 else f", λ × {failure.lambda_scale:.4g}"
        console.print(
            f"[red]failed:[/] {failure.sequence}, {failure.codec}, {failure.mode}, {failure.method}{scale}, "
            f"QP {failure.qp:g}: {literal(failure.error.splitlines()[0])} (log: {out / failure.log})",
            soft_wrap=True,
        )
    if result.failures:
        console.print("what failed is left alone by the same command; --retry-failed tries it again", highlight=False)
    if not result.points:
        raise ValueError(f"none of the {len(result.failures)} points could be measured; the reasons are above")
    console.print(bd_rich_table(write_report([out], out / "report.html")))
    verified = sum(point.verified for point in result.points)
    console.print(
        f"{len(result.points)} points ({result.from_cache} measured before), {verified} verified by an independent "
        "decoder\n"
        f"results: {out}/results.csv   report: {out}/report.html   settings and versions: {out}/manifest.json",
        soft_wrap=True,
    )
    return len(result.failures)


def new_methods(
    names: Sequence[str],
    *,
    maps: Sequence[Path] = (),
    alpha: float | None = None,
    rows: int | None = None,
    decisions: Sequence[str] | None = None,
    of_task: bool = False,
) -> list[Method]:
    """Methods by name (`jaxwrap.methods.parse_method`), with the settings that evaluations use: YUV 6:1:1 as the
    metric of frames (`receiver_metric`), the proxy for refine. ``of_task``: metric, maps and transforms that are not
    given are the mode's to set (`jaxwrap.train.evaluate.features`).

    ``maps``: map files (.dat), at most one of each mode (wa, iwa, fwa, calibrated), for the stages of that name; fold
    takes the plane means of a calibrated one, or of an fwa one. Weights are taken as they are, raw maps with ``alpha``.
    ``alpha``: of the weights that are made here; default `DEFAULT_ALPHA`. ``rows``: ℓ of idse. ``decisions``: those
    that use the weights (`jaxwrap.codec.DECISIONS`), in methods that do not say it themselves.

    Raises `ValueError` for unknown names, a map file that is missing or damaged, two of one mode, one that no method
    uses, and a stage that lacks one.
    """
    from jaxwrap.codec import Weights
    from jaxwrap.codecs.proxy import ProxyCodec
    from jaxwrap.codecs.weightmap import read_maps
    from jaxwrap.importance.weights import DEFAULT_ALPHA, is_flat, raw_map
    from jaxwrap.methods import Fwa, Only, Shuffle, parse_method, stages_of
    from jaxwrap.train.evaluate.modes import receiver_metric

    metric = None if of_task else receiver_metric
    share = {"alpha": DEFAULT_ALPHA if alpha is None else alpha}
    refine = {"codec": ProxyCodec(), "qp": 32.0, "metric": metric}
    options: dict[str, dict[str, Any]] = {
        "wa": {"metric": metric, **share},
        "iwa": {"metric": metric, **share},
        "wa:task": share,
        "iwa:task": share,
        "idse": {"metric": metric, **share, **({} if rows is None else {"rows": rows})},
        "refine": refine,
        "refine:encoder": refine,
    }
    if of_task:
        options |= {"fwa": {"map": None, **share}, "calibrated": {"map": None, **share}, "fold": {"transform": None}}
    files: dict[str, Path] = {}
    read: dict[str, Frame] = {}
    for path in maps:
        planes, info = read_maps(path)
        if info.mode in files:
            raise ValueError(f"{files[info.mode]} and {path} are both maps of mode {info.mode}; give one of each mode")
        files[info.mode], read[info.mode] = path, planes
        # Files of ours hold weights, those of others may hold raw maps.
        options[info.mode] = {"map": Weights(planes)} if "alpha" in info.details else {"map": planes, **share}
    stages = {stage.strip() for name in names for stage in name.split("+")}
    frozen = next((mode for mode in ("calibrated", "fwa") if mode in files), None)
    if "fold" in stages and frozen is not None:
        options["fold"] = {"transform": _plane_scale(read[frozen], files[frozen])}
    for stage in ("fwa", "calibrated", "fold"):
        if stage in stages and stage not in options:
            mode = "fwa" if stage == "fwa" else "calibrated"
            raise ValueError(
                f"method {stage} needs a map that was made on training pictures: jaxwrap importance --mode {mode} "
                f"--input PICTURES --out {mode}.dat, and then --map {mode}.dat here"
            )
    methods = [parse_method(name, options) for name in names]
    if decisions is not None:
        if all(method.weights_as is None for method in methods):
            raise ValueError(f"decisions {', '.join(decisions)} were given, and no method makes weights that they use")
        only = f"only:{':'.join(decisions) or 'none'}"
        said = [m.weights_as is None or any(isinstance(s, Only) for s in stages_of(m)) for m in methods]
        methods = [
            method if is_said else parse_method(f"{method.name}+{only}", options)
            for method, is_said in zip(methods, said, strict=True)
        ]
    for method in methods:
        frozen_stage = next((stage for stage in stages_of(method) if isinstance(stage, Fwa)), None)
        if frozen_stage is None or frozen_stage.map is None or not is_flat(raw_map(frozen_stage.map)):
            continue
        if any(isinstance(stage, Shuffle) for stage in stages_of(method)):
            raise ValueError(
                f"{method.name}: {files[frozen_stage.name]} has one weight per plane, and shuffling its blocks would "
                "change nothing: shuffle a map of mode wa, iwa or fwa"
            )
        if method.weights_as == "qp_offset":
            raise ValueError(
                f"{method.name}: {files[frozen_stage.name]} has one weight per plane, and a block has one QP for all "
                "its planes, so nothing would change: use fold with this map, or fwa+dqp with a map of mode fwa"
            )
    used = {stage.name for method in methods for stage in stages_of(method)}
    if rows is not None and "idse" not in used:
        raise ValueError(f"{rows} rows were asked for, and no method is idse")
    for mode, path in files.items():
        if mode not in used and not ("fold" in used and mode == frozen):
            raise ValueError(
                f"--map {path} is of mode {mode}, and no method uses it: add {mode} to the methods (patched hm, jm) or "
                f"{mode}+dqp (QP offsets, also x264, x265), or leave it out"
            )
    return methods


def _plane_scale(maps: Frame, path: Path) -> PlaneScale:
    """√ of the plane means of a map: what fold does to 4:2:0 frames."""
    from jaxwrap.importance.gram import PlaneScale

    if len(maps.planes) != 3:
        raise ValueError(f"--map {path} is of 4:0:0 frames; method fold weighs the planes of 4:2:0 against each other")
    y, u, v = (float(plane.mean()) for plane in maps.planes)
    return PlaneScale.from_weights((y, u, v))
