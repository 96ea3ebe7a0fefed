"""Training features: computed once for several views of each picture, then cropped; a batch is a pure function of
(seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxwrap.tasks.detector import Detector
from jaxwrap.train.media import rgb_frames
from jaxwrap.wrappers.fcm import FcmConfig, Scale

PICTURES_PER_CALL = 8
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def picture_files(text: str) -> list[Path]:
    """Files of the folders (or pictures) that ``text`` names, separated by commas, in the order of their names; a
    folder that holds ``train2017`` means that one. Raises `ValueError` where there are fewer than two."""
    files: list[Path] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        path = Path(word)
        if not path.exists():
            raise FileNotFoundError(f"no folder or picture {path} to train on")
        folder = path / "train2017" if (path / "train2017").is_dir() else path
        found = [folder] if folder.is_file() else sorted(folder.iterdir())
        files += [file for file in found if file.suffix.lower() in _SUFFIXES]
    if len(files) < 2:
        raise ValueError(
            f"data={text!r} names {len(files)} pictures ({', '.join(_SUFFIXES)}); give a folder of at least two"
        )
    return files


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of P views, float16 ``[P, h, w, C]`` by scale."""

    tensors: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def part(self, indices: Sequence[int] | np.ndarray | slice) -> dict[str, np.ndarray]:
        """Some views, as float32."""
        return {name: x[indices].astype(np.float32) for name, x in self.tensors.items()}


def features_of(
    detector: Detector,
    files: Sequence[Path],
    *,
    views: int = 1,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureSet:
    """Part 1's output for ``views`` views of each picture, view after view: the picture itself, then random crops of
    half to all of each side, every other one mirrored. Each is scaled to the network's input."""
    total = views * len(files)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, total, PICTURES_PER_CALL):
        numbers = range(start, min(start + PICTURES_PER_CALL, total))
        images = [detector.images(_view(files[n % len(files)], n // len(files), seed, n)[None]) for n in numbers]
        images += images[-1:] * (PICTURES_PER_CALL - len(images))  # one shape, compiled once
        found = jax.device_get(detector.features(np.concatenate(images)))
        for name, x in found.items():
            parts.setdefault(name, []).append(x[: len(numbers)].astype(np.float16))
        report(min(start + PICTURES_PER_CALL, total), total)
    return FeatureSet({name: np.concatenate(x) for name, x in parts.items()})


def _view(file: Path, view: int, seed: int, number: int) -> np.ndarray:
    rgb = next(rgb_frames(file))
    if view == 0:
        return rgb
    rng = np.random.Generator(np.random.Philox(key=[seed, number]))
    height, width = (max(32, int(side * rng.uniform(0.5, 1.0))) for side in rgb.shape[:2])
    height, width = min(height, rgb.shape[0]), min(width, rgb.shape[1])
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(rgb.shape[:2], (height, width), strict=True))
    part = rgb[top : top + height, left : left + width]
    return part[:, ::-1] if view % 2 else part


def scales_of(features: Mapping[str, np.ndarray], size: tuple[int, int]) -> tuple[Scale, ...]:
    """The scales of a network's features for an input of ``size``, finest first."""
    scales = [Scale(name, x.shape[-1], size[0] // x.shape[1]) for name, x in features.items()]
    return tuple(sorted(scales, key=lambda scale: scale.stride))


def feature_crops(
    features: FeatureSet, config: FcmConfig, *, seed: int, step: int, batch: int, crop: int
) -> dict[str, np.ndarray]:
    """``batch`` random crops of ``crop`` positions of the latents, aligned to every scale, as float32."""
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    coarsest = max(config.latent_stride, *(scale.stride for scale in config.scales))
    unit = coarsest // config.latent_stride
    first = config.scales[0]
    height, width = (side * first.stride // config.latent_stride for side in features.tensors[first.name].shape[1:3])
    if min(height, width) < crop:
        raise ValueError(f"crop={crop}: features have {width}×{height} positions of stride {config.latent_stride}")
    chosen = rng.integers(len(features), size=batch)
    corners = [
        (unit * int(rng.integers((height - crop) // unit + 1)), unit * int(rng.integers((width - crop) // unit + 1)))
        for _ in range(batch)
    ]
    found = {}
    for scale in config.scales:

        def at(position: int, stride: int = scale.stride) -> int:
            return position * config.latent_stride // stride

        tensor = features.tensors[scale.name]
        found[scale.name] = np.stack(
            [tensor[n, at(y) : at(y + crop), at(x) : at(x + crop)] for n, (y, x) in zip(chosen, corners, strict=True)]
        ).astype(np.float32)
    return found
