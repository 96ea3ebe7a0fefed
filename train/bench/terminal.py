"""The commands ``jaxwrap bench …``: each measures this package against its peer, or a claim of a paper."""

from __future__ import annotations

import json as json_format
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxwrap.train.runs import encoders, library_encoders, split_words, warn_unreadable

bench = typer.Typer(
    no_args_is_help=True, help="Benchmarks, each against its peer in the same run. Prints figures; --json keeps them."
)


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

    coders = library_encoders(split_words(codec))
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

    (coder,) = library_encoders([codec])
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


@bench.command(
    "rdo",
    help="""Weighted RDO inside patched HM and JM: BD-rate on receiver SNR by method, with controls and encoder time.

    Parts: matched, mismatched, features, inter, generation, decisions, rows (default: all that have an encoder among
    --codec, and the inputs they want). Each is swept, stored in --out and resumed; the tables are of all parts there.
    """,
)
def bench_rdo(
    input: Annotated[list[Path], typer.Option("--input", "-i", help="Pictures that are coded. Repeatable.")],
    train: Annotated[list[Path], typer.Option(help="Other pictures, for frozen maps. Repeatable.")],
    clip: Annotated[list[Path] | None, typer.Option(help="Clips of part inter; 17 frames are taken.")] = None,
    feature_input: Annotated[
        list[Path] | None, typer.Option(help="Pictures of the parts on features. Default: those of --input.")
    ] = None,
    network: Annotated[Path | None, typer.Option(help="ONNX file, for the parts on features.")] = None,
    tensor: Annotated[str | None, typer.Option(help="What survives there. Default: YOLOX-nano's stride 8.")] = None,
    codec: Annotated[str, typer.Option(help="Comma-separated.")] = "hm,jm,vtm,vvenc",
    part: Annotated[str, typer.Option(help="Comma-separated.")] = "",
    pictures: Annotated[int | None, typer.Option(min=1, help="Of each part. Default: the parts' own.")] = None,
    train_pictures: Annotated[int, typer.Option(min=2, help="For frozen maps.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of all parts.")] = Path("runs/rdo"),
    processes: Annotated[int, typer.Option(help="Encodes in parallel. Default: the number of cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sketches.")] = 0,
    json: Json = None,
) -> None:
    """Measures weighted RDO."""
    from jaxwrap.train.bench import rdo
    from jaxwrap.train.media import open_clips

    coders = encoders(split_words(codec))
    pictures_of = {name: open_clips(paths, max_frames=1) for name, paths in (
        ("pictures", input), ("train", train), ("feature_pictures", feature_input or input)
    )}  # fmt: skip
    clips, unreadable = open_clips(clip, max_frames=rdo.CLIP_FRAMES) if clip else ([], [])
    warn_unreadable([*unreadable, *(item for _, missed in pictures_of.values() for item in missed)])
    inputs = rdo.Inputs(
        **{name: found for name, (found, _) in pictures_of.items()},
        clips=clips,
        network=network,
        tensor=tensor or rdo.TENSOR,
    )
    figures = rdo.run(
        codecs=coders,
        inputs=inputs,
        out=out,
        parts=split_words(part),
        count=pictures,
        train_pictures=train_pictures,
        processes=processes or os.cpu_count() or 1,
        seed=seed,
    )
    _keep(figures, json)


@bench.command(
    "fcm", help="Feature wrappers without a codec: sample ratio, feature SNR, AP lost, spread of the latents."
)
def bench_fcm(
    run: Annotated[list[str], typer.Option("--run", "-r", help="Folders, files or shipped names. Repeatable.")],
    input: Annotated[list[Path], typer.Option("--input", "-i", help="Folder of pictures.")],
    annotations: Annotated[Path, typer.Option(help="Their COCO file.")],
    network: Annotated[Path | None, typer.Option(help="Weights. Default: found in JAXWRAP_NETWORKS.")] = None,
    json: Json = None,
) -> None:
    """Measures feature wrappers."""
    from jaxwrap.train.bench import fcm

    _keep(fcm.run(run, input, annotations, network=network), json)
