"""What a feature wrapper sends of scikit-image's photographs, in a small file: for a notebook without the network.

Arrays of ``NAME_samples.npz``::

    about               JSON: run, network, split, photographs
    samples             uint16 [P, H, W], packed frames as they are coded
    features/LAYER      float16 [1, h, w, C], the network's own features of the first photograph
    statistics/LAYER    float32 [P, 2], where the wrapper sends any
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import jax
import numpy as np

from jaxwrap.codecs.files import write_atomically
from jaxwrap.samples import denormalise, to_integers
from jaxwrap.tasks.detector import Detector
from jaxwrap.train.fit.fcm_checkpoints import load_fcm
from jaxwrap.train.media import rgb_frames
from jaxwrap.train.networks import load_detector
from jaxwrap.train.photographs import EVALUATION, photograph_paths

PHOTOGRAPHS = (*EVALUATION, "chelsea.png", "retina.jpg")


def write_samples(run: str, out: Path, name: str = "fcm", *, detector: Detector | None = None) -> Path:
    """Writes the file into ``out``. ``detector``: default the wrapper's own, from the file that `load_detector` finds.

    Raises as `load_fcm` and `load_detector`.
    """
    wrapper, _, _ = load_fcm(run)
    config = wrapper.config
    detector = detector or load_detector(config.network)
    arrays: dict[str, np.ndarray] = {}
    frames: list[np.ndarray] = []
    statistics: list[dict[str, np.ndarray]] = []
    for path in photograph_paths(PHOTOGRAPHS):
        features = detector.features(detector.images(next(rgb_frames(path))[None]))
        if not frames:
            arrays |= {
                f"features/{scale.name}": np.asarray(features[scale.name], np.float16) for scale in config.scales
            }
        statistics.append(jax.device_get(wrapper.statistics(features)))
        packed = denormalise(wrapper.reduce(features, statistics[-1]), config.bit_depth)
        frames.append(np.asarray(to_integers(packed, config.bit_depth).y[0], np.uint16))
    about = {"run": run, "network": config.network, "split": config.split, "photographs": PHOTOGRAPHS}
    arrays |= {"about": np.array(json.dumps(about)), "samples": np.stack(frames)}
    for layer in statistics[0]:
        arrays[f"statistics/{layer}"] = np.concatenate([one[layer] for one in statistics])
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_samples.npz"
    write_atomically(path, content.getvalue())
    return path
