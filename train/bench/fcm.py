"""What a feature wrapper costs a task before any codec: ``jaxwrap bench fcm``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxwrap.samples import max_sample, normalise, to_integers
from jaxwrap.train.datasets.open import open_task_data
from jaxwrap.train.evaluate.mode import decibels, energies
from jaxwrap.train.evaluate.scoring import Task, Truth
from jaxwrap.train.evaluate.sources import PictureSource
from jaxwrap.train.fit.checkpoints import wrapper_file
from jaxwrap.train.fit.fcm_checkpoints import load_fcm
from jaxwrap.train.networks import load_detector
from jaxwrap.wrappers.fcm import FcmTuning


def run(
    runs: Sequence[str], inputs: Sequence[Path], annotations: Path, *, network: Path | None = None
) -> dict[str, Any]:
    """Prints and returns, for each wrapper on one detection data set: parameters, sample ratio, feature SNR and AP
    without a codec (samples rounded and clipped to the bottleneck's depth, nothing else), the part of the samples that
    is clipped, the latents' eigenvalue spread and the spread of the channels' importances.

    Raises as `open_task_data`, `load_fcm` and `load_detector` do.
    """
    data = open_task_data(list(inputs), "detection", annotations)
    truth = Truth("detection", data.truth, pseudo=False)
    figures: dict[str, Any] = {}
    for name in runs:
        wrapper, tuning, notes = load_fcm(name)
        config = wrapper.config
        detector = dataclasses.replace(load_detector(config.network, network), split=config.split)
        task = Task("detection", detector, data.class_ids)
        sums, clipped, samples = np.zeros(2), 0, 0
        found: dict[str, list[Any]] = {}
        local: dict[str, list[Any]] = {}
        for sequence in data.sequences:
            source = PictureSource.of_sequence(sequence)
            features = task.features(source.rgb())
            sandwich = wrapper.sandwich(features)
            z: Any = _near(sandwich.pre, features)
            values = (np.asarray(z.y) + 1.0) * max_sample(config.bit_depth) / 2
            clipped += int(((values < -0.5) | (values > max_sample(config.bit_depth) + 0.5)).sum())
            samples += values.size
            coded = to_integers(dataclasses.replace(z, y=values), config.bit_depth)
            restored = _far(sandwich.post, normalise(coded, config.bit_depth))
            sums += energies(jax.device_get(features), jax.device_get(restored), wrapper.metric)
            found[source.name] = task.predictions(restored, source)
            local[source.name] = task.predictions(features, source)
        with_wrapper, without = truth.scores(found), truth.scores(local)
        row: dict[str, Any] = {
            "wrapper": wrapper_file(name).name,
            "network": config.network,
            "parameters": int(sum(np.size(x) for x in jax.tree.leaves((wrapper.reducer, wrapper.restorer)))),
            "sample_ratio": config.sample_ratio,
            "codec_free_snr": decibels(*sums),
            "ap": with_wrapper["ap"],
            "ap50": with_wrapper["ap50"],
            "local_ap": without["ap"],
            "local_ap50": without["ap50"],
            "clipped": clipped / samples,
            "step": notes.get("step"),
            **({} if tuning is None else _spreads(tuning)),
        }
        figures[name] = row
        print(
            f"{name}: {config.latent_channels} latents at stride {config.latent_stride}, ratio "
            f"{row['sample_ratio']:.3f}, {row['parameters']} parameters; without a codec: feature SNR "
            f"{row['codec_free_snr']:.2f} dB, AP {row['ap']:.4f} / {row['ap50']:.4f}, "
            f"uncompressed {row['local_ap']:.4f} / {row['local_ap50']:.4f} "
            f"({100 * (row['ap'] - row['local_ap']):+.2f} points); clipped {row['clipped']:.4%}"
        )
        if tuning is not None:
            print(
                f"  eigenvalues of the latents' covariance spread over {row['eigenvalue_spread']:.2e}, variances of "
                f"the channels over {row['variance_spread']:.2e}, importances over {row['importance_spread']:.2f}; "
                f"rms correlation {row['correlation']:.3f}"
            )
    return figures


@jax.jit
def _near(pre: jax.tree_util.Partial, features: Any) -> Any:
    return pre(features)


@jax.jit
def _far(post: jax.tree_util.Partial, frame: Any) -> Any:
    return post(frame)


def _spreads(tuning: FcmTuning) -> dict[str, float]:
    variances = np.diag(tuning.covariance)
    correlations = tuning.covariance / np.sqrt(np.outer(variances, variances)) - np.eye(len(variances))
    importances = np.diag(tuning.gram)
    return {
        "eigenvalue_spread": tuning.eigenvalue_spread,
        "variance_spread": float(variances.max() / variances.min()),
        "importance_spread": float(importances.max() / importances.min()),
        "correlation": float(np.sqrt(np.mean(np.square(correlations)))),
    }
