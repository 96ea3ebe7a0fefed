"""The ``jaxwrap`` command: arguments in, one call each into the packages, results and errors in words."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from jaxwrap.train.bench.terminal import bench
from jaxwrap.train.runs import (
    console,
    encoders,
    library_encoders,
    literal,
    new_methods,
    parse_presets,
    parse_scales,
    progress_bar,
    run_evaluation,
    run_fit,
    split_words,
    standard_modes,
    warn_unreadable,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Neural wrappers around standard video codecs: train them, map what the receiver needs, encode with real "
    "codecs, compare.",
)
app.add_typer(bench, name="bench")

RUN = "Folder of a training run, wrapper file, or shipped name."

_ADVICE = {
    errno.EEXIST: "a file is where a folder was wanted: choose another name for the output",
    errno.ENOTDIR: "a file is where a folder was wanted: choose another name for the output",
    errno.EISDIR: "a folder is where a file was wanted: choose another name for the output",
    errno.ENOSPC: "what was written before is kept: free some space and run the same command again",
    errno.EDQUOT: "what was written before is kept: free some space and run the same command again",
}

_INTERRUPTED = 130


def main() -> None:
    """Entry point. Status 0, 1 where some points of a sweep failed, 2 with one message where nothing can be done, or
    130 after Ctrl-C.

    With ``JAXWRAP_DEBUG`` set, errors come with their traceback.
    """
    try:
        status = app(standalone_mode=False)  # the code of `typer.Exit`, or None
    except typer.Abort:
        sys.exit("stopped")
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("JAXWRAP_DEBUG"):
            raise
        _refuse(_in_words(error))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _refuse(error.format_message())
    if status == _INTERRUPTED:  # typer's own answer to Ctrl-C, which it gives without a word
        print("stopped; the same command goes on where it was", file=sys.stderr)
    sys.exit(status)


def _refuse(message: str) -> NoReturn:
    if message:  # none after the help of a command without arguments
        Console(stderr=True).print(f"[bold red]error:[/] {literal(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _in_words(error: Exception) -> str:
    """An error's message; for those of the operating system, with the file and with what to do about it."""
    if isinstance(error, MemoryError):
        return "no memory was left; give fewer or smaller inputs at once, or --max-frames"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    text = error.strerror or str(error)
    if text != os.strerror(error.errno):  # a message of our own, such as `write_atomically`'s
        return text
    where = "" if error.filename is None else f"{error.filename}: "
    return where + "; ".join(filter(None, [text, _ADVICE.get(error.errno)]))


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in split_words(text)]
    except ValueError:
        raise ValueError(
            f"--qps {text!r} was given; wanted whole numbers separated by commas, such as 22,27,32,37,42"
        ) from None


def _check_fitting(what: str, **given: object) -> None:
    """Raises `ValueError` naming the options that were given although they are not for ``what``."""
    if names := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(names)} cannot be used in {what}")


@app.command(
    help="""Trains a wrapper through the proxy codec, and resumes where it stopped.

    PRESET of wrappers of pictures: smoke (a minute, no data needed), pilot (the shipped checkpoints) or full (SNW's
    sizes, for a GPU). OVERRIDES are KEY=VALUE words: data=DIR,DIR (pictures, clips, folders), validation=…,
    mode=pair|post, ratio=1|2/3|1/2|1/4, steps, batch, crop, learning_rate, lmbda, bit_depth=8|10, step_jitter,
    rate_refresh, dtype=float32|bfloat16, init=FILE, seed, … .

    PRESET of wrappers of features: fcm-yolox-nano or fcm-yolo-fastestv2, with --data COCO_DIR (its train2017) and the
    detector's weights in the folder that JAXWRAP_NETWORKS names, or weights=FILE. OVERRIDES: latent_channels,
    latent_stride, width, blocks, split=LAYER, statistics=none|picture, transform=none|klt, start=principal|random,
    task, idempotence, decorrelation, lmbda, qp_low, qp_high, members='lmbda=0.5:1;width=64:128;seed=0:1' (all in one
    vmapped job), steps, batch, … .

    PRESET mask-yolox-nano: a mask head on the frozen features, for --task segmentation, with --data COCO_DIR.

    The folder keeps config.json, log.csv, states/ (to resume) and best.wrapper.npz (best.head.npz of a mask head).
    """
)
def train(
    preset: Annotated[
        str, typer.Argument(help="smoke, pilot, full, fcm-yolox-nano, fcm-yolo-fastestv2 or mask-yolox-nano")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE …")] = None,
    data: Annotated[str | None, typer.Option(help="Pictures to train on; the same as data=.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of this run. Default: runs/PRESET….")] = None,
) -> None:
    """Trains a wrapper."""
    from jaxwrap.train.fit import config as configs
    from jaxwrap.train.fit import fcm_config, masks
    from jaxwrap.train.pictures import training_pictures

    words = [*(overrides or []), *([] if data is None else [f"data={data}"])]
    if preset in fcm_config.PRESETS:
        from jaxwrap.train.fit.fcm_terminal import run_fit_fcm

        run_fit_fcm(configs.override(fcm_config.PRESETS[preset], words), out or Path("runs") / preset)
        return
    if preset in masks.PRESETS:
        from jaxwrap.train.fit.masks_terminal import run_fit_masks

        run_fit_masks(configs.override(masks.PRESETS[preset], words), out or Path("runs") / preset)
        return
    config = configs.override(configs.preset(preset, more=(*fcm_config.PRESETS, *masks.PRESETS)), words)
    out = out or Path("runs") / f"{preset}-{config.mode}-{config.ratio.replace('/', 'of')}"
    pictures, validation, unreadable = training_pictures(config)
    warn_unreadable(unreadable)
    console.print(f"{len(pictures)} pictures to train on, {len(validation)} to validate on → {out}")
    run_fit(config, pictures, validation, out)
    console.print(
        f"wrapper: {out}/best.wrapper.npz (lowest validation loss), {out}/last.wrapper.npz; log: {out}/log.csv"
    )


@app.command(
    help="""Maps what the receiver needs: weights for an encoder's distortion, from importance maps of a post-processor.

    The map is diag(JᵀMJ) at the bottleneck's samples, by random sketches; M is YUV 6:1:1. Files hold
    w = (h / mean(h) + α) / (1 + α), mean 1: .dat and .json. Clips of any length are streamed; the same command, run
    again after an interruption, goes on where it was. --out NAME.dat makes one file, --out FOLDER one per clip.

    wa: a map per frame. iwa: a map per I frame, frames 0, P, 2P, …. fwa: one map, the mean over all frames, with
    its 95 % interval, which takes frames for independent: too narrow for those of one clip. calibrated: one weight per
    plane, so that Σ w q² is the receiver's error for the codec's own q.

    Past one machine: --shard I/N on each and --merge N after, with the same --out in a folder that all see; or
    --scheduler ADDRESS of a Dask cluster. The files are the same to the last byte on machines of one kind.
    """
)
def importance(
    input: Annotated[
        list[Path] | None, typer.Option("--input", "-i", help="Pictures, videos, raw YUV, folders. Repeatable.")
    ] = None,
    run: Annotated[str, typer.Option("--run", "-r", help=RUN)] = "pair-1of2",
    mode: Annotated[str, typer.Option(help="wa, iwa, fwa or calibrated.")] = "wa",
    out: Annotated[Path, typer.Option(help="A .dat file, or a folder.")] = Path("runs/importance"),
    sketches: Annotated[
        str | None, typer.Option(help="Random sketches; the error falls with their root. auto: until it is 5 %.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of plain SSE in the weights. Default: see README.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="frame: each map has mean 1 (default). sequence: all maps of a clip together.")
    ] = None,
    period: Annotated[int | None, typer.Option(help="Of mode iwa: distance of the encoder's I frames.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Frames of each clip, at most.")] = None,
    memory: Annotated[str, typer.Option(help="That the maps of one batch may take: 2GiB, 500MB, ….")] = "2GiB",
    dtype: Annotated[str, typer.Option(help="Of the networks' activations: float32 or bfloat16.")] = "float32",
    codec: Annotated[str | None, typer.Option(help="Of mode calibrated: x264 or x265 (default).")] = None,
    qp: Annotated[int | None, typer.Option(help="Of mode calibrated. Default: 32.")] = None,
    size: Annotated[
        str | None,
        typer.Option(help="WIDTHxHEIGHT of a calibrated map, where the inputs' sizes differ. Not for --shard."),
    ] = None,
    shard: Annotated[str | None, typer.Option(help="I/N: only the I-th of N parts.")] = None,
    merge: Annotated[int | None, typer.Option(help="Of N parts that are done, make the files of --out.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786.")] = None,
    shards: Annotated[int | None, typer.Option(help="Parts for the cluster. Default: as before, or 32.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
) -> None:
    """Writes weights."""
    from jaxwrap.train.mapping.terminal import MapRun, run_maps

    run_maps(
        MapRun(
            run=run, out=out, inputs=input or [], sketches=sketches, alpha=alpha,
            mode=mode,  # type: ignore[arg-type]
            scope=scope,  # type: ignore[arg-type]
            period=period, max_frames=max_frames, seed=seed, memory=memory, dtype=dtype, shard=shard, merge=merge,
            scheduler=scheduler, shards=shards, codec=codec, qp=qp, size=size,
        )
    )  # fmt: skip


@app.command(
    help="""Encodes with real codecs, decodes, verifies and measures; resumes where it stopped.

    Modes compared: the codec alone, bilinear and Lanczos-4 down/up-sampling at each wrapper's ratio, and every
    --run given (a pair also with every method beside sse). With --receiver the codec alone is looked at by a network,
    and every method is tried there; wrappers only where --run names them. Writes results.csv, manifest.json and
    report.html.

    hm and jm are found by JAXWRAP_HM and JAXWRAP_JM or on PATH, vtm and vvenc likewise (jaxwrap doctor). Weights inside
    RDO and scales of λ are for patched ones (jaxwrap patch); an encoder that does not take them runs sse only.

    With --task the runs are wrappers of a network's features (jaxwrap train fcm-…), the input is a data set, and
    quality is what the network finds: scores.csv, predictions/ and truth beside the rest. Compared with remote (the
    pictures coded, the network behind) and local inference; fwa, calibrated and fold take the run's own constants, and
    wa:task, iwa:task map what its task ranks by.

    What fails is set aside, its log in OUT/failed, and left alone until --retry-failed. Past one machine: --scheduler
    ADDRESS of a Dask cluster (on Slurm: dask_jobqueue.SLURMCluster, or srun dask worker --nthreads 1) encodes there,
    each worker with encoders of the same build; results are the same.
    """
)
def evaluate(
    input: Annotated[
        list[Path], typer.Option("--input", "-i", help="Pictures, videos, raw YUV, or folders. Repeatable.")
    ],
    run: Annotated[list[str] | None, typer.Option("--run", "-r", help=f"{RUN} Repeatable.")] = None,
    receiver: Annotated[
        str | None, typer.Option(help="FILE.onnx or FILE.onnx:tensor,tensor: what has to survive of the pictures.")
    ] = None,
    receiver_input: Annotated[str, typer.Option(help="What that network is fed: yolox or imagenet.")] = "yolox",
    codec: Annotated[str, typer.Option(help="Comma-separated: x264, x265, hm, jm, vtm, vvenc.")] = "x264,x265",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: sse, wa, iwa, fwa, calibrated, idse, fold, refine, refine:encoder, with --task also "
            "wa:task, iwa:task, and chains: "
            "changes of the samples first, then weights, then dqp (QP offsets), shuffle (a control) or only:sse:rdoq "
            "(decisions); fold+refine+wa+dqp. Stock x264 and x265 take weights as wa+dqp (dqp for short)."
        ),
    ] = "sse",
    map: Annotated[
        list[Path] | None,
        typer.Option(help="Map file (.dat) for the method of its mode: fwa, calibrated, iwa, wa. Repeatable."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of plain SSE in weights made here. Default: see README.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Jacobian rows of idse. Default: 8.")] = None,
    decisions: Annotated[
        str | None, typer.Option(help="That use the weights: some of sse,rdoq,satd,filters. Default: all.")
    ] = None,
    qps: Annotated[
        str, typer.Option(help="Comma-separated QPs of the specification, at least 5 for BD figures.")
    ] = "22,27,32,37,42,47",
    lambda_scales: Annotated[str, typer.Option(help="Of the encoder's own λ, for every method: 1,1/1.5,1/2.")] = "1",
    config: Annotated[str, typer.Option(help="intra, lowdelay or randomaccess.")] = "intra",
    encoder_preset: Annotated[
        str | None, typer.Option(help="Effort of all encoders, or x265=slow,jm=no-8x8. Default: their own.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds of a reference encode, at most.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of this evaluation.")] = Path("runs/evaluate"),
    dataset: Annotated[str, typer.Option(help="Name written into the results.")] = "user",
    max_frames: Annotated[int | None, typer.Option(help="Frames of each clip, at most.")] = None,
    processes: Annotated[int, typer.Option(help="Encodes in parallel. Default: the number of cores.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
    task: Annotated[str | None, typer.Option(help="detection, segmentation or tracking.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Of the input: COCO JSON, or a MOTChallenge sequence. Default: its own.")
    ] = None,
    crowd: Annotated[Path | None, typer.Option(help="COCO JSON of regions that are neither right nor wrong.")] = None,
    truth: Annotated[str, typer.Option(help="true: annotations. pseudo: what is found on the originals.")] = "true",
    baselines: Annotated[str, typer.Option(help="Comma-separated, may be empty: remote, local.")] = "remote,local",
    network: Annotated[Path | None, typer.Option(help="Weights. Default: found in JAXWRAP_NETWORKS.")] = None,
    network_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of its input. Default: its own.")] = None,
    mask_head: Annotated[str | None, typer.Option(help="Of segmentation: file, folder or shipped name.")] = None,
) -> None:
    """Runs a sweep and its report."""
    from jaxwrap.train.evaluate.modes import codec_mode, mode_of
    from jaxwrap.train.evaluate.receivers import parse_receiver
    from jaxwrap.train.fit.checkpoints import load_wrapper
    from jaxwrap.train.media import open_clips

    # What costs nothing to check comes first: arguments, then inputs, then networks.
    numbers, scales, presets = _whole_numbers(qps), parse_scales(lambda_scales), parse_presets(encoder_preset)
    coders = encoders(split_words(codec), timeout_s=timeout)
    chosen = new_methods(
        split_words(methods), maps=map or [], alpha=alpha, rows=rows,
        decisions=None if decisions is None else split_words(decisions), of_task=task is not None,
    )  # fmt: skip
    options: dict[str, Any] = {
        "dataset": dataset, "config": config, "preset": presets, "processes": processes or os.cpu_count() or 1,
        "seed": seed, "lambda_scales": scales, "scheduler": scheduler, "retry_failed": retry_failed,
    }  # fmt: skip
    if task is not None:
        from jaxwrap.train.evaluate.terminal import TaskRun, run_task

        _check_fitting("--task, which looks at all of its pictures", receiver=receiver, max_frames=max_frames)
        asked = TaskRun(
            task, input, run or [], annotations, crowd, truth, split_words(baselines), network, network_size, mask_head
        )
        if run_task(asked, coders, chosen, numbers, out, **options):
            raise typer.Exit(1)
        return
    _check_fitting(
        "evaluations without --task", annotations=annotations, crowd=crowd, network=network, network_size=network_size,
        mask_head=mask_head, truth=None if truth == "true" else truth,
    )  # fmt: skip
    clips, unreadable = open_clips(input, max_frames=max_frames)
    names = run or ([] if receiver else ["post-1of2", "pair-1of2"])
    networks = [load_wrapper(name)[0] for name in names]
    alone = codec_mode() if receiver is None else parse_receiver(receiver, receiver_input)
    modes = [
        alone,
        *standard_modes(sorted({network.config.ratio for network in networks}))[1:],
        *(mode_of(network) for network in networks),
    ]
    failures = run_evaluation(clips, modes, coders, chosen, numbers, out, **options)
    warn_unreadable(unreadable)
    if failures:
        raise typer.Exit(1)


@app.command(
    help="""Will weighted RDO help this wrapper? Measures the assumptions behind importance maps on it.

    The wrapper's own error against coding, linearisation, diagonal, maps over time and between inputs, sketches, and
    the predicted BD-rate of QP offsets, from encodes without any. Writes diagnosis.html and diagnosis.json.
    """
)
def diagnose(
    input: Annotated[list[Path], typer.Option("--input", "-i", help="Pictures, videos, raw YUV, folders. Repeatable.")],
    run: Annotated[str, typer.Option(help="Wrapper file, training folder, or shipped name.")] = "pair-1of2",
    codec: Annotated[str, typer.Option(help="Comma-separated: x264, x265.")] = "x265",
    qps: Annotated[str, typer.Option(help="Comma-separated QPs of the specification, at least 5.")] = "22,27,32,37,42",
    sketches: Annotated[int, typer.Option(min=2, help="Random sketches of each map.")] = 4,
    alpha: Annotated[float | None, typer.Option(help="Share of plain SSE in the weights. Default: see README.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Frames that are encoded, spread over the inputs.")] = 8,
    max_frames: Annotated[int, typer.Option(min=1, help="Frames of each clip, at most: all are mapped.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the diagnosis.")] = Path("runs/diagnose"),
    processes: Annotated[int, typer.Option(help="Encodes in parallel. Default: the number of cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
) -> None:
    """Runs a diagnosis."""
    from jaxwrap.importance.weights import DEFAULT_ALPHA
    from jaxwrap.metrics.bjontegaard import MIN_POINTS
    from jaxwrap.train.diagnose import diagnose as measure
    from jaxwrap.train.fit.checkpoints import load_wrapper
    from jaxwrap.train.media import open_clips
    from jaxwrap.train.report.diagnosis import diagnosis_table, write_diagnosis
    from jaxwrap.train.verdict import subject_of

    numbers = sorted(set(_whole_numbers(qps)))
    if len(numbers) < MIN_POINTS:
        raise ValueError(f"--qps {qps!r} was given; a BD-rate wants at least {MIN_POINTS} different QPs")
    coders = library_encoders(split_words(codec))
    clips, unreadable = open_clips(input, max_frames=max_frames)
    subject = subject_of(load_wrapper(run)[0], run)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, note="")
            bar.update(tasks[what], completed=done, total=total)

        diagnosis, shown = measure(
            subject, clips, coders, qps=numbers, sketches=sketches,
            alpha=DEFAULT_ALPHA if alpha is None else alpha, num_pictures=pictures, seed=seed,
            processes=processes or os.cpu_count() or 1, advance=advance,
        )  # fmt: skip
    write_diagnosis(diagnosis, shown, out)
    console.print(diagnosis_table(diagnosis))
    console.print(f"page: {out}/diagnosis.html   figures: {out}/diagnosis.json", soft_wrap=True)
    warn_unreadable(unreadable)


@app.command(help="Makes one report.html of one or more results (results.csv files, or folders that evaluate wrote).")
def report(
    results: Annotated[list[Path], typer.Argument(help="results.csv files or their folders.")],
    out: Annotated[Path | None, typer.Option(help="The page. Default: report.html beside the first results.")] = None,
) -> None:
    """Writes a report and prints its BD table."""
    from jaxwrap.train.report.html import write_report
    from jaxwrap.train.report.terminal import bd_rich_table

    first = results[0]
    out = out or (first if first.is_dir() else first.parent) / "report.html"
    console.print(bd_rich_table(write_report(results, out)))
    console.print(f"report: {out}", soft_wrap=True)


@app.command(
    help="""Prints a paper's published tables beside ours, with every difference in conditions.

    PAPER is wa (WA-RDO); RESULTS are folders that `jaxwrap evaluate --task …` wrote. --tables writes the small files
    that notebook 04 reads, and with --run what that wrapper sends of scikit-image's photographs.
    """
)
def reproduce(
    paper: Annotated[str, typer.Argument(help="wa")],
    results: Annotated[list[Path], typer.Argument(help="Folders with scores.csv.")],
    tables: Annotated[Path | None, typer.Option(help="Folder of the condensed tables, such as notebooks/data.")] = None,
    run: Annotated[str | None, typer.Option("--run", "-r", help="Feature wrapper, for --tables.")] = None,
) -> None:
    """Prints tables, and writes condensed ones."""
    from jaxwrap.train.reproduce.samples import write_samples
    from jaxwrap.train.reproduce.tables import write_tables
    from jaxwrap.train.reproduce.wa import read_ours, shown_beside

    if paper != "wa":
        raise ValueError(f"paper {paper!r} was given; known: wa")
    if run is not None and tables is None:
        raise ValueError("--run goes with --tables: name the folder that its file is written to")
    ours = read_ours(results)
    console.print(shown_beside(ours))
    if tables is not None:
        written = write_tables(ours, results, tables) + ([] if run is None else [write_samples(run, tables)])
        for path in written:
            console.print(literal(path), highlight=False, soft_wrap=True)


@app.command(
    help="""Puts weighted RDO into the source tree of HM 18.0 or JM 19.0, or with --reverse takes it out again.

    Looks at every file first, and changes nothing in any other version. The tree, its binary and its licence stay
    yours; jaxwrap ships insertions and headers of its own only.
    """
)
def patch(
    encoder: Annotated[str, typer.Argument(help="hm or jm.")],
    tree: Annotated[Path, typer.Option(help="Source tree of the encoder.")],
    reverse: Annotated[bool, typer.Option("--reverse", help="Restore the original, byte for byte.")] = False,
) -> None:
    """Patches a tree and says what to do next."""
    from jaxwrap.codecs.reference.patching import next_step, patch_tree

    changed = patch_tree(encoder, tree, reverse=reverse)
    for path in changed:
        console.print(literal(path), highlight=False, soft_wrap=True)
    console.print(literal(next_step(encoder, changed, reverse=reverse)), highlight=False, soft_wrap=True)


@app.command(help="Lists devices, versions, and which encoders were found where.")
def doctor() -> None:
    """Prints what this machine has."""
    from jaxwrap.train.doctor import examine

    table = Table("topic", "item", "finding")
    previous = ""
    for topic, item, finding in examine():
        if previous not in ("", topic):
            table.add_section()
        table.add_row(topic if topic != previous else "", item, literal(finding))
        previous = topic
    console.print(table)


@app.command(
    help="""The main job on scikit-image's bundled photographs: fine-tune, map, encode with x264 and x265, compare,
    report.

    Takes a few minutes on two cores. Run again, it resumes.
    """
)
def demo(out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo")) -> None:
    """Runs the demo."""
    from jaxwrap.train.demo import run_demo

    if run_demo(out):
        raise typer.Exit(1)
