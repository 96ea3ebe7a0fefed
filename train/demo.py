"""The demo: every stage with real parts, on photographs that scikit-image bundles."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import jax

from jaxwrap.arrays import crop_to, size_of
from jaxwrap.importance.weights import DEFAULT_ALPHA
from jaxwrap.train.evaluate.modes import mode_of
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.fit.config import FitConfig, override
from jaxwrap.train.mapping.run import map_clips, prepare
from jaxwrap.train.media import Clip, open_clips
from jaxwrap.train.photographs import EVALUATION, FINE_TUNING, photograph_paths
from jaxwrap.train.pictures import training_pictures
from jaxwrap.train.runs import console, encoders, new_methods, run_evaluation, run_fit, standard_modes
from jaxwrap.wrappers.switchable import Wrapper

PAIR, POST = "pair-1of2", "post-1of2"

FINE_TUNE = FitConfig(
    steps=40, batch=4, crop=128, learning_rate=2e-4, log_every=10, checkpoint_every=20, validate_every=20
)
"""Short and gentle: the loss is seen to fall, and the shipped wrapper stays good on other pictures."""

QPS = (12.0, 17.0, 22.0, 27.0, 32.0, 37.0, 42.0, 47.0)
"""Down to 12, because half-size pictures reach the qualities of full-size ones only at low QPs."""

HEIGHT, WIDTH = 384, 512
"""The photographs' centres, of one size, so that networks compile once."""


def run_demo(out: Path) -> int:
    """Runs or resumes the demo in ``out``; returns the number of points that failed."""
    say = console.print
    trained_on = ", ".join(name.split(".")[0] for name in FINE_TUNING[1:])
    say(f"[bold]1 Fine-tune[/] the shipped wrappers through the proxy on {trained_on}")
    pair, post = (_fine_tuned(out, name, mode) for name, mode in ((PAIR, "pair"), (POST, "post")))
    clips = [_centre(clip) for clip in open_clips(photograph_paths(EVALUATION))[0]]

    say(
        "[bold]2 Importance maps[/] of its post-processor for "
        + ", ".join(clip.name for clip in clips)
        + ", in one batch"
    )
    work = prepare(mode_of(pair), clips, mode="wa", receiver=f"post-processor of {PAIR}, fine-tuned")
    for item in map_clips(work, out / "maps", alpha=DEFAULT_ALPHA, scope="frame"):
        error = item.info.details["relative_standard_error_of_16x16_means"]
        say(f"  {item.path}: {item.info.width}×{item.info.height}, relative standard error of 16×16 means {error:.2f}")

    say("[bold]3 Encode[/] with x264 and x265, decode, verify, compare")
    modes = [*standard_modes([pair.config.ratio]), mode_of(post), mode_of(pair)]
    methods = new_methods(["sse", "dqp", "refine"])
    return run_evaluation(
        clips, modes, encoders(["x264", "x265"]), methods, QPS, out,
        dataset="scikit-image", config="intra", preset=None, processes=2, seed=0,
    )  # fmt: skip


def _centre(clip: Clip) -> Clip:
    height, width = size_of(clip.frames)
    top, left = (height - HEIGHT) // 4 * 2, (width - WIDTH) // 4 * 2
    shifted = jax.tree.map(
        lambda plane: plane[:, top * plane.shape[1] // height :, left * plane.shape[2] // width :], clip.frames
    )
    return dataclasses.replace(clip, frames=crop_to(shifted, HEIGHT, WIDTH))


def _fine_tuned(out: Path, name: str, mode: str) -> Wrapper:
    """The best wrapper of a short run that starts from a shipped one."""
    config = override(FINE_TUNE, [f"init={name}", f"mode={mode}"])
    pictures, validation, _ = training_pictures(config)
    folder = out / "fine-tuned" / name
    run_fit(config, pictures, validation, folder)
    with (folder / "log.csv").open(newline="") as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file) if row["validation_loss"]]
    console.print(
        f"  {name}: loss on a picture held out ({FINE_TUNING[0].split('.')[0]}) {losses[0]:.2f} → {min(losses):.2f}"
    )
    return load_wrapper(folder)[0]
