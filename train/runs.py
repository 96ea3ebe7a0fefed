"""One training run and one evaluation as a terminal shows them: progress with an ETA, warnings, tables, failures.

What `jaxwrap.train.cli` and `jaxwrap.train.demo` have in common. Heavy imports wait until they are needed, so that
``--help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from jaxwrap.arrays import Yuv420
    from jaxwrap.codec import Codec
    from jaxwrap.codecs.x26x import X26x
    from jaxwrap.methods.plan import Method
    from jaxwrap.train.evaluate.modes import Mode
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


def standard_modes(ratios: Sequence[Fraction]) -> list[Mode]:
    """The codec alone and the linear resamplers at these ratios (1 is the codec alone)."""
    from jaxwrap.train.evaluate.modes import codec_mode, linear_mode
    from jaxwrap.wrappers.resample import KINDS

    return [codec_mode()] + [linear_mode(kind, ratio) for ratio in ratios if ratio != 1 for kind in KINDS]


def encoders(names: Sequence[str]) -> list[X26x]:
    """x264, x265 by name. Raises `ValueError` listing the valid ones."""
    from jaxwrap.codecs.x26x import X26x

    return [X26x(name) for name in names]  # type: ignore[arg-type]  # X26x itself names the valid ones


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
    preset: str | None,
    processes: int,
    seed: int,
) -> int:
    """Sweep, BD table and report; returns the number of points that failed, after naming them."""
    from jaxwrap.train.evaluate.sweep import run_sweep
    from jaxwrap.train.report.html import write_report
    from jaxwrap.train.report.terminal import bd_rich_table

    with progress_bar() as bar:
        result = run_sweep(
            clips,
            modes,
            codecs,
            qps,
            methods,
            out,
            dataset=dataset,
            processes=processes,
            config=config,  # type: ignore[arg-type]
            preset=preset,
            seed=seed,
            progress=bar,
        )
    for failure in result.failures:
        console.print(
            f"[red]failed:[/] {failure.sequence}, {failure.codec}, {failure.mode}, {failure.method}, "
            f"QP {failure.qp:g}: {literal(failure.error)}",
            soft_wrap=True,
        )
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


def new_method(name: str, *, map: Path | None = None, alpha: float | None = None) -> Method:
    """A method by name, with the settings that evaluations use: YUV 6:1:1 as the metric, the proxy for refine.

    ``map``: weights that dqp takes as they are; ``alpha``: of the weights that it makes itself.
    """
    from jaxwrap.codecs.proxy import ProxyCodec
    from jaxwrap.codecs.weightmap import read_maps
    from jaxwrap.importance.maps import yuv_metric
    from jaxwrap.importance.weights import DEFAULT_ALPHA
    from jaxwrap.methods import Dqp, Refine, method_class

    kind = method_class(name)
    if kind is Dqp and map is not None:
        return Dqp(map=read_maps(map)[0], alpha=0.0)
    if kind is Dqp:
        return Dqp(metric=yuv_metric, alpha=DEFAULT_ALPHA if alpha is None else alpha)
    if kind is Refine:
        return Refine(codec=ProxyCodec(), qp=32.0, metric=yuv_metric)
    return kind()  # type: ignore[call-arg]
