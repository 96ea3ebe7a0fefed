"""``jaxwrap train fcm-…`` as a terminal shows it: features, progress with an ETA, the files that result."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import jax
import numpy as np

from jaxwrap.tasks.detector import Detector
from jaxwrap.train.fit.fcm_config import FcmFitConfig
from jaxwrap.train.fit.fcm_data import FeatureSet, features_of, picture_files
from jaxwrap.train.fit.fcm_loop import fit_fcm
from jaxwrap.train.fit.loop import Progress
from jaxwrap.train.memory import keep_memory
from jaxwrap.train.networks import load_detector
from jaxwrap.train.runs import console, progress_bar

HELD_OUT = 16
"""Every so manieth picture is held out for validation."""


def run_fit_fcm(config: FcmFitConfig, out: Path) -> None:
    """Computes the features of the pictures, trains, and says what came of it. Errors as in `fit_fcm`."""
    if not config.data:
        raise ValueError("no pictures were named: give --data COCO_DIR, or folders of pictures, separated by commas")
    files = picture_files(config.data)
    detector = load_detector(config.network, config.weights or None)
    if config.split:
        if config.split not in detector.network.layers:
            raise ValueError(
                f"split={config.split!r}: {config.network} has the layers {', '.join(detector.network.layers)}"
            )
        detector = dataclasses.replace(detector, split=config.split)
    height, width = detector.expects.height, detector.expects.width
    if height is None or width is None:
        raise ValueError(
            f"network={config.network} takes pictures of any size; training wants features of one size, such as "
            "yolox-nano's or yolo-fastestv2's"
        )
    _check_memory(detector, (height, width), files, config.views)
    keep_memory()
    with progress_bar() as bar:
        features = [
            _features(detector, files[::HELD_OUT], 1, config, bar.add_task("held out", total=None, note=""), bar),
            _features(
                detector, [f for i, f in enumerate(files) if i % HELD_OUT], config.views, config,
                bar.add_task("features", total=None, note=""), bar,
            ),
        ]  # fmt: skip
        validation, training = features
        task = bar.add_task("train", total=config.steps, note="compiling")

        def report(progress: Progress) -> None:
            m = progress.metrics
            if "validation_cost" in m:
                bar.console.print(
                    f"step {progress.step}: validation cost {m['validation_cost']:.2f} dB, feature SNR "
                    f"{m['validation_snr']:.2f} dB at {m['validation_bits']:.0f} bits per position",
                    highlight=False,
                )
                return
            note = "cost {cost:.2f} dB  SNR {feature_snr:.2f} dB  {bits_per_position:.0f} bits".format(**m)
            bar.update(task, completed=progress.step, note=note)

        written = fit_fcm(config, detector, training, validation, out, size=(height, width), report=report)
    for file in written:
        console.print(f"wrapper: {file} (lowest validation cost)", highlight=False, soft_wrap=True)
    console.print(f"log: {out}/log.csv", highlight=False, soft_wrap=True)


def _check_memory(detector: Detector, size: tuple[int, int], files: list[Path], views: int) -> None:
    """Features of all views are held at once, and twice while they are put together."""
    shapes = jax.eval_shape(detector.part1, jax.ShapeDtypeStruct((1, *size, 3), np.float32))
    wanted = 2 * views * len(files) * sum(2 * math.prod(shape.shape) for shape in shapes.values())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        raise ValueError(
            f"the features of {views} views of {len(files)} pictures would take {wanted / 2**30:.0f} GiB of memory, "
            f"and there are {there / 2**30:.0f} GiB: give a folder of fewer pictures, or views=1"
        )


def _features(detector: Detector, files: list[Path], views: int, config: FcmFitConfig, task, bar) -> FeatureSet:  # type: ignore[no-untyped-def]
    def report(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return features_of(detector, files, views=views, seed=config.seed, report=report)
