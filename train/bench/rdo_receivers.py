"""The receivers of `jaxwrap bench rdo`, as modes of a sweep, and the frozen maps that are tuned for them.

* ``matched``: the shipped ``pair-1of2`` as it is, trained through a transform codec; r is its post-processor.
* ``patches``, ``spectrum``: the same, badly scaled for the codec (`jaxwrap.train.bench.verdict`, where both are
  defined): a fixed invertible map follows the pre-processor and its inverse precedes the post-processor.
* ``features``: no wrapper; the codec is given the picture, and r is a network up to one of its tensors.

Frozen maps come from other pictures than those that are reported: completed by reflection where they are too small,
and cropped at the centre. Each is made once, with a stock x265's errors where a codec's errors are wanted, and serves
every encoder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, size_of
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.averages import MapMean
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.gram import MapScale
from jaxwrap.importance.maps import importance_map
from jaxwrap.importance.weights import DEFAULT_ALPHA, importance_weights
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import change_bit_depth, normalise
from jaxwrap.train.bench.verdict import SCALINGS, scaled
from jaxwrap.train.evaluate.modes import BIT_DEPTH, PixelMode, mode_of, receiver_metric
from jaxwrap.train.evaluate.receivers import network_mode
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.media import Clip
from jaxwrap.train.verdict import Subject

WRAPPER = "pair-1of2"
SCALED = ("patches", "spectrum")
RECEIVERS = ("matched", *SCALED, "features")
TENSOR = "729"
"""YOLOX-nano at stride 8, 64 channels: where `jaxwrap.train.bench.fold` cuts it."""

CALIBRATION_QP = 32
CALIBRATION_BLOCK = 32
"""Side of the blocks that have a calibrated weight each, in samples of their plane. Weights are shrunk towards their
plane's by what of their spread is noise (`Calibration.shrunk_weights`): where there is no structure, planes remain."""

CALIBRATED_ALPHA = 0.1
"""Shrunk weights need no α against noise; this one keeps every weight above 0, as `fold` wants."""


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledMode(PixelMode):
    """A wrapper's mode with one of `SCALINGS` between its networks and the codec."""

    scaling: str = ""

    def sandwich(self, height: int, width: int) -> Sandwich:
        """See `PixelMode.sandwich`."""
        return _scaled_sandwich(self.wrapper, self.scaling, height, width)


def scaled_mode(mode: PixelMode, scaling: str) -> ScaledMode:
    """``mode`` with a scaling by name. Raises `ValueError` for an unknown one."""
    if scaling not in SCALINGS:
        raise ValueError(f"scaling {scaling!r} was asked for; known: {', '.join(SCALINGS)}")
    fields = {field.name: getattr(mode, field.name) for field in dataclasses.fields(mode)}
    fields |= {
        "name": f"{mode.name}, {scaling}",
        "pre_hash": f"{mode.pre_hash}-{scaling}",
        "post_hash": f"{mode.post_hash}-{scaling}",
    }
    return ScaledMode(**fields, scaling=scaling)


@functools.cache
def _scaled_sandwich(wrapper: Any, scaling: str, height: int, width: int) -> Sandwich:
    # The same object every time, so that sweeps share what they compile.
    subject = Subject("", mode_of(wrapper).sandwich)
    return scaled(subject, scaling).sandwich(height, width)


def receiver_named(name: str, *, network: Path | None, tensor: str) -> PixelMode:
    """The mode of one of `RECEIVERS`. Raises `ValueError` for an unknown one, for ``features`` without a network, and
    as `network_mode`."""
    if name == "features":
        if network is None:
            raise ValueError("the receiver 'features' wants a network: give --network FILE.onnx, or other parts")
        return network_mode(network, [tensor])
    if name not in RECEIVERS:
        raise ValueError(f"receiver {name!r} was asked for; known: {', '.join(RECEIVERS)}")
    matched = mode_of(load_wrapper(WRAPPER)[0])
    return matched if name == "matched" else scaled_mode(matched, name)


def cropped(clips: Sequence[Clip], size: tuple[int, int], count: int, *, complete: bool = False) -> list[Clip]:
    """The first ``count`` clips that have ``size`` = (height, width) or more, cropped to it at the centre.

    ``complete``: smaller ones too, after they were mirrored at their right and lower edges. Raises `ValueError` where
    none is left.
    """
    height, width = size
    kept = [clip for clip in clips if complete or (clip.size[0] >= height and clip.size[1] >= width)][:count]
    if not kept:
        sizes = sorted({f"{w}×{h}" for h, w in (clip.size for clip in clips)})
        raise ValueError(f"no picture is {width}×{height} or larger (given: {', '.join(sizes) or 'none'})")
    return [dataclasses.replace(clip, frames=_crop(clip.frames, height, width)) for clip in kept]


def _crop(frames: Frame, height: int, width: int) -> Frame:
    h, w = size_of(frames)
    top, left = max(h - height, 0) // 4 * 2, max(w - width, 0) // 4 * 2  # even, so that chroma stays aligned

    def one(plane: Any) -> np.ndarray:
        part = plane.shape[1] * 2 // h  # 2 for luma, 1 for chroma
        rows, columns = height * part // 2, width * part // 2
        missing = [max(n - m, 0) for n, m in zip((rows, columns), plane.shape[1:], strict=True)]
        whole = np.pad(np.asarray(plane), ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")
        y, x = top * part // 2, left * part // 2
        return whole[:, y : y + rows, x : x + columns]

    return jax.tree.map(one, frames)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What is frozen for a receiver and a size: arguments of the methods ``fwa``, ``calibrated`` and ``fold``."""

    fwa: Frame
    calibrated: Frame
    fold: MapScale

    @property
    def options(self) -> dict[str, dict[str, Any]]:
        """For `jaxwrap.methods.parse_method`."""
        return {
            "fwa": {"map": self.fwa, "alpha": DEFAULT_ALPHA},
            "calibrated": {"map": self.calibrated, "alpha": CALIBRATED_ALPHA},
            "fold": {"transform": self.fold},
        }


def tune(mode: PixelMode, clips: Sequence[Clip], *, sketches: int = 4, seed: int = 0) -> Tuned:
    """Frozen maps from the first frames of training clips of one size, two at least.

    ``fwa`` is the mean of sketched maps (WA-RDO section 3), ``calibrated`` has one weight per block from x265's errors
    at `CALIBRATION_QP`, and ``fold`` codes samples times the root of these weights.
    """
    size = clips[0].size
    sandwich = mode.sandwich(*size)
    receiver = mode.receiver or sandwich.receive
    bottleneck = jax.jit(lambda samples: sandwich.bottleneck(normalise(samples, BIT_DEPTH)))
    mean, codec = MapMean(), X26x("x265")
    calibration: Calibration | None = None
    for n, clip in enumerate(clips):
        first = jax.tree.map(lambda plane: plane[:1], clip.frames)
        z = bottleneck(jax.tree.map(jnp.asarray, change_bit_depth(first, clip.bit_depth, BIT_DEPTH)))
        key = jax.random.fold_in(jax.random.key(seed), n)
        mean.update(importance_map(receiver, z, key=key, sketches=sketches, metric=receiver_metric))
        decoded = codec.encode(jax.device_get(z), EncodeRequest(CALIBRATION_QP, bit_depth=BIT_DEPTH)).decoded
        q = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - b, decoded, z)
        calibration = calibration or Calibration(CALIBRATION_BLOCK, size_of(z), len(z.planes))
        calibration.update(receiver, z, q, metric=receiver_metric)
    assert calibration is not None
    weights = calibration.map(shrunk=True)
    scale = MapScale.from_weights(importance_weights(weights, alpha=CALIBRATED_ALPHA).planes, BIT_DEPTH)
    return Tuned(jax.tree.map(lambda p: p.astype(np.float32), mean.mean()), weights, scale)
