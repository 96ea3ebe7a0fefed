"""The ``jaxwrap`` command: arguments in, one call each into the packages, results and errors in words."""

from __future__ import annotations

import errno
import json as json_format
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from jaxwrap.train.runs import (
    console,
    encoders,
    literal,
    new_methods,
    progress_bar,
    run_evaluation,
    run_fit,
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
bench = typer.Typer(
    no_args_is_help=True, help="Benchmarks, each against its peer in the same run. Prints figures; --json keeps them."
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


def main() -> None:
    """Entry point. Status 0, 1 where some points of a sweep failed, or 2 with one message where nothing can be done.

    With ``JAXWRAP_DEBUG`` set, errors come with their traceback.
    """
    try:
        status = app(standalone_mode=False)  # the code of `typer.Exit`, or None
    except typer.Abort:
        sys.exit("stopped")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it was")
    except (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("JAXWRAP_DEBUG"):
            raise
        _refuse(_in_words(error))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _refuse(error.format_message())
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


def split_words(text: str) -> list[str]:
    """``"a, b"`` → ``["a", "b"]``."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in split_words(text)]
    except ValueError:
        raise ValueError(
            f"--qps {text!r} was given; wanted whole numbers separated by commas, such as 22,27,32,37,42"
        ) from None


@app.command(
    help="""Trains a wrapper through the proxy codec, and resumes where it stopped.

    PRESET is smoke (a minute, no data needed), pilot (the shipped checkpoints) or full (SNW's sizes, for a GPU).
    OVERRIDES are KEY=VALUE words: data=DIR,DIR (pictures, clips, folders), validation=…, mode=pair|post,
    ratio=1|2/3|1/2|1/4, steps, batch, crop, learning_rate, lmbda, bit_depth=8|10, step_jitter, rate_refresh,
    dtype=float32|bfloat16, init=FILE, seed, … . The folder keeps config.json, log.csv, states/ (to resume),
    best.wrapper.npz and last.wrapper.npz.
    """
)
def train(
    preset: Annotated[str, typer.Argument(help="smoke, pilot or full")],
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE …")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of this run. Default: runs/PRESET-MODE-RATIO.")] = None,
) -> None:
    """Trains a wrapper."""
    from jaxwrap.train.fit import config as configs
    from jaxwrap.train.pictures import training_pictures

    config = configs.override(configs.preset(preset), overrides or [])
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
    --run given (a pair also with every method beside sse). Writes results.csv, manifest.json and report.html.
    """
)
def evaluate(
    input: Annotated[
        list[Path], typer.Option("--input", "-i", help="Pictures, videos, raw YUV, or folders. Repeatable.")
    ],
    run: Annotated[list[str] | None, typer.Option("--run", "-r", help=f"{RUN} Repeatable.")] = None,
    codec: Annotated[str, typer.Option(help="Comma-separated: x264, x265.")] = "x264,x265",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: sse, dqp, iwa+dqp, fwa+dqp, fold, refine, refine:encoder, and "
            "chains such as fold+refine+dqp (changes of the samples first, then weights, then dqp)."
        ),
    ] = "sse",
    map: Annotated[
        list[Path] | None,
        typer.Option(help="Map file (.dat) for the method of its mode: fwa, calibrated, iwa, wa. Repeatable."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Share of plain SSE in weights made here. Default: see README.")
    ] = None,
    qps: Annotated[
        str, typer.Option(help="Comma-separated QPs of the specification, at least 5 for BD figures.")
    ] = "22,27,32,37,42,47",
    config: Annotated[str, typer.Option(help="intra, lowdelay or randomaccess.")] = "intra",
    encoder_preset: Annotated[
        str | None, typer.Option("--preset", help="The encoder's effort. Default: medium.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of this evaluation.")] = Path("runs/evaluate"),
    dataset: Annotated[str, typer.Option(help="Name written into the results.")] = "user",
    max_frames: Annotated[int | None, typer.Option(help="Frames of each clip, at most.")] = None,
    processes: Annotated[int, typer.Option(help="Encodes in parallel. Default: the number of cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
) -> None:
    """Runs a sweep and its report."""
    from jaxwrap.train.evaluate.modes import mode_of
    from jaxwrap.train.fit.checkpoints import load_wrapper
    from jaxwrap.train.media import open_clips

    # What costs nothing to check comes first: arguments, then inputs, then networks.
    numbers = _whole_numbers(qps)
    coders = encoders(split_words(codec))
    chosen = new_methods(split_words(methods), maps=map or [], alpha=alpha)
    clips, unreadable = open_clips(input, max_frames=max_frames)
    networks = [load_wrapper(name)[0] for name in run or ["post-1of2", "pair-1of2"]]
    modes = standard_modes(sorted({network.config.ratio for network in networks})) + [
        mode_of(network) for network in networks
    ]
    failures = run_evaluation(
        clips, modes, coders, chosen, numbers, out,
        dataset=dataset, config=config, preset=encoder_preset, processes=processes or os.cpu_count() or 1, seed=seed,
    )  # fmt: skip
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
    coders = encoders(split_words(codec))
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


def _keep(figures: dict[str, Any], path: Path | None) -> None:
    from jaxwrap.codecs.files import write_atomically

    if path is not None:
        write_atomically(path, (json_format.dumps(figures, indent=1) + "\n").encode())


def _with_folder(path: Path | None) -> Path | None:
    """Makes the file's folder before minutes are spent on its content."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.", callback=_with_folder)
]


@bench.command("proxy", help="Proxy codec, forward + gradient on 8 × 256² × 3, against Google's sandwiched TF proxy.")
def bench_proxy(
    peer: Annotated[
        Path | None, typer.Option(help="A sandwiched_compression checkout; without it, our own figures only.")
    ] = None,
    peer_python: Annotated[Path | None, typer.Option(help="An interpreter that has TensorFlow.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of 8 steps on each side, in turn.")] = 12,
    json: Json = None,
) -> None:
    """Measures the proxy."""
    from jaxwrap.train.bench import proxy

    if peer is None and peer_python is not None:
        raise ValueError("--peer-python was given without --peer, the sandwiched_compression checkout that it runs")
    _keep(proxy.run(peer=peer, peer_python=peer_python, rounds=rounds), json)


@bench.command(
    "jpeg-rate", help="Bytes by which the JPEG rate differs from libjpeg: pictures × 7 qualities × 8 flat steps."
)
def bench_jpeg_rate(
    images: Annotated[Path, typer.Argument(help="Folder of pictures, such as Kodak's 24.")], json: Json = None
) -> None:
    """Measures the JPEG rate."""
    from jaxwrap.train.bench import jpeg_rate

    _keep(jpeg_rate.run(images=images), json)


@bench.command(
    "postprocessor", help="Post-processor, ms per frame (and per training step), against the same in PyTorch."
)
def bench_postprocessor(
    height: Annotated[int, typer.Option(min=2, help="Of the output luma: 1080, or 2160 for 4K.")] = 1080,
    width: Annotated[int, typer.Option(min=2, help="1920, or 3840 for 4K.")] = 1920,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames at once.")] = 1,
    implementation: Annotated[str, typer.Option(help="shift, grouped, or auto: the faster of the two here.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    training: Annotated[bool, typer.Option(help="Also a training step: loss, gradients, Adam.")] = False,
    peer_python: Annotated[
        str | None, typer.Option(help="An interpreter that has PyTorch; without it, ours only.")
    ] = None,
    json: Json = None,
) -> None:
    """Measures the post-processor."""
    from jaxwrap.train.bench import postprocessor

    _keep(
        postprocessor.run(
            height=height,
            width=width,
            num_frames=num_frames,
            implementation=implementation,  # type: ignore[arg-type]
            dtype=dtype,
            training=training,
            torch=peer_python is not None,
            peer_python=peer_python,
        ),
        json,
    )


@bench.command("importance", help="Importance maps, ms per batch, against PyTorch's two ways of making them.")
def bench_importance(
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each case, both sides in turn.")] = 5,
    peer_python: Annotated[
        str | None, typer.Option(help="An interpreter that has PyTorch; without it, ours only.")
    ] = None,
    json: Json = None,
) -> None:
    """Measures importance maps."""
    from jaxwrap.train.bench import importance

    _keep(importance.run(dtype=dtype, rounds=rounds, peer_python=peer_python), json)


@bench.command(
    "verdict", help="The verdict of `jaxwrap diagnose`, scored: predicted against measured BD-rates of QP offsets."
)
def bench_verdict(
    input: Annotated[list[Path], typer.Option("--input", "-i", help="Pictures or folders. Repeatable.")],
    codec: Annotated[str, typer.Option(help="Comma-separated: x264, x265.")] = "x264,x265",
    alpha: Annotated[float | None, typer.Option(help="Share of plain SSE in the weights. Default: see README.")] = None,
    processes: Annotated[int, typer.Option(help="Encodes in parallel. Default: the number of cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
    json: Json = None,
) -> None:
    """Scores predictions."""
    from jaxwrap.importance.weights import DEFAULT_ALPHA
    from jaxwrap.train.bench import verdict
    from jaxwrap.train.media import open_clips

    coders = encoders(split_words(codec))
    clips, unreadable = open_clips(input, max_frames=1)
    warn_unreadable(unreadable)
    figures = verdict.run(
        clips=clips,
        codecs=coders,
        alpha=DEFAULT_ALPHA if alpha is None else alpha,
        seed=seed,
        processes=processes or os.cpu_count() or 1,
    )
    _keep(figures, json)


@bench.command(
    "fold",
    help="""A channel transform on the features of an ONNX detector, through a real encoder: BD-rate on receiver SNR.

    Cuts NETWORK at --tensor, tiles its channels into one 10-bit frame, and takes the rest of the network, up to
    --outputs, as the receiver. The defaults are YOLOX-nano's.
    """,
)
def bench_fold(
    network: Annotated[Path, typer.Argument(help="ONNX file.")],
    train: Annotated[Path, typer.Option(help="Pictures that covariance, Gram and ranges are taken from.")],
    input: Annotated[Path, typer.Option("--input", "-i", help="Pictures that are coded.")],
    codec: Annotated[str, typer.Option(help="x264 or x265.")] = "x265",
    tensor: Annotated[
        str | None, typer.Option(help="Where the network is cut. Default: YOLOX-nano's stride 8.")
    ] = None,
    outputs: Annotated[str | None, typer.Option(help="Comma-separated: what must survive.")] = None,
    train_pictures: Annotated[int, typer.Option(min=2)] = 32,
    pictures: Annotated[int, typer.Option(min=2)] = 16,
    json: Json = None,
) -> None:
    """Measures fold."""
    from jaxwrap.train.bench import fold

    (coder,) = encoders([codec])
    figures = fold.run(
        network=network,
        train=train,
        input=input,
        codec=coder,
        tensor=tensor or fold.TENSOR,
        outputs=split_words(outputs) if outputs else fold.OUTPUTS,
        train_pictures=train_pictures,
        pictures=pictures,
    )
    _keep(figures, json)
