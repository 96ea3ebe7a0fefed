"""What a channel transform is worth: features of a detector through a real encoder, with and without it.

The features are those of one tensor inside an ONNX detector (by default YOLOX-nano's at stride 8, 64 channels), tiled
into one 10-bit 4:0:0 frame per picture; the receiver is the rest of the network, up to the features that its heads
take. No wrapper is trained: the codec gets what the network makes. Every row codes the same features with the same
encoder, its SSE and its QPs; rows differ in the transform of the channels alone, or in the weights:

* ``identity``: the anchor; like every transform, scaled and centred so that 99.99 % of the training samples fit;
* ``√diag G``: channels times the root of their importance;  ``G^½``: the Gram's own root;
* ``KLT``, ``KLT·G^¼``, ``KLT·G^½``: decorrelated, after a root of the Gram;
* ``+ dqp``: QP offsets from a map of each picture (4 sketches);  ``+ calibrated dqp``: from calibrated channel weights.

Covariance, Gram, calibration and ranges come from the training pictures, figures from the others. Quality is the
receiver's SNR, 10 log₁₀(‖y‖² / ‖y − ŷ‖²); QPs of a transform are shifted by its `ChannelTransform.qp_shift`, so that
its curve covers the anchor's. BD-rates are per picture, their mean with a bootstrap interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, Yuv400, num_frames
from jaxwrap.codec import QP_RANGE, Codec, EncodeRequest
from jaxwrap.importance.calibration import Calibration
from jaxwrap.importance.gram import (
    ChannelGram,
    ChannelMoments,
    ChannelTransform,
    channel_transform,
    gram_power,
    klt,
    klt_gram,
    root_weights,
)
from jaxwrap.importance.jacobian import Jacobian, sketched_rows
from jaxwrap.methods import Calibrated, Chain, Dqp, Fold, Method, Wa
from jaxwrap.metrics.bjontegaard import Interval, bd_rate, bootstrap_mean
from jaxwrap.metrics.distortion import receiver_snr
from jaxwrap.packing import TileLayout, pack, unpack
from jaxwrap.tasks.onnx import onnx_network, tensor_shapes
from jaxwrap.tasks.onnx_graph import cut
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.tasks.yolox import INPUT
from jaxwrap.train.media import open_clips
from jaxwrap.train.onnx_models import read_onnx

TENSOR = "729"
OUTPUTS = ("956", "990", "1024")
BIT_DEPTH = 10
ANCHOR = "identity"
CALIBRATION_QP = 32
CALIBRATION_PICTURES = 8
BATCH = 8
"""Pictures whose derivatives are held at once."""


@dataclasses.dataclass(frozen=True)
class _Split:
    """A detector cut at one tensor: pictures → packed features → what the heads take."""

    features: jax.tree_util.Partial
    receiver: jax.tree_util.Partial
    layout: TileLayout
    tensor: str
    expects: PictureInput

    def frames(self, folder: Path, count: int) -> Yuv400:
        """Packed features of the first ``count`` pictures, ``[count, H, W]``."""
        clips, _ = open_clips([folder], max_frames=1)
        packed = []
        for clip in clips[:count]:
            image = self.expects.images(clip.frames, clip.bit_depth)
            packed.append(pack(self.features(image)[self.tensor].transpose(0, 2, 3, 1), self.layout))
        return jax.tree.map(lambda *planes: jnp.concatenate(planes), *packed)


def run(
    *,
    network: Path,
    train: Path,
    input: Path,
    codec: Codec,
    tensor: str = TENSOR,
    outputs: Sequence[str] = OUTPUTS,
    qps: Sequence[int] = (12, 17, 22, 27, 32, 37, 42),
    train_pictures: int = 32,
    pictures: int = 16,
    expects: PictureInput = INPUT,
) -> dict[str, Any]:
    """Measures and prints; see the module.

    ``network``: an ONNX file; ``train`` and ``input``: folders of pictures, of which the first so many are taken.
    Returns ``{"rows": {name: {"bd_rate", "low", "high", "qp_shift"}}, "curves": {name: {"qps", "bits" [QP][picture],
    "snr"}}, "eigenvalue_spread", …}``. Raises `ValueError` as the parts do.
    """
    split = _split(network, tensor, tuple(outputs), expects)
    fitted, frames = split.frames(train, train_pictures), split.frames(input, pictures)
    target = _outputs(split, frames)
    moments = ChannelMoments(split.layout).update(fitted)
    gram = _gram(split, fitted)
    mean = moments.mean
    spectrum = np.linalg.eigvalsh(moments.covariance())
    transforms = {
        ANCHOR: channel_transform(np.eye(split.layout.channels), mean, split.layout),
        "√diag G": root_weights(np.diag(gram), split.layout, mean),
        "G^½": channel_transform(gram_power(gram, 0.5), mean, split.layout),
        "KLT": klt(moments),
        "KLT·G^¼": klt_gram(moments, gram, 0.25),
        "KLT·G^½": klt_gram(moments, gram, 0.5),
    }
    transforms = {name: transform.fitted(fitted, BIT_DEPTH) for name, transform in transforms.items()}
    identity = Fold(transforms[ANCHOR])
    part = jax.tree.map(lambda p: p[:CALIBRATION_PICTURES], fitted)
    calibrated = Calibrated(_calibrated(split, identity, part, codec))
    methods: dict[str, tuple[ChannelTransform, Method]] = {
        name: (transform, Fold(transform)) for name, transform in transforms.items()
    }
    methods["identity + dqp"] = transforms[ANCHOR], Chain((identity, Wa(), Dqp()))
    methods["identity + calibrated dqp"] = transforms[ANCHOR], Chain((identity, calibrated, Dqp()))
    methods["KLT·G^½ + dqp"] = transforms["KLT·G^½"], Chain((Fold(transforms["KLT·G^½"]), Wa(), Dqp()))
    figures: dict[str, Any] = {
        "network": network.name,
        "tensor": tensor,
        "layout": dataclasses.asdict(split.layout),
        "codec": f"{codec.name} {codec.version}",
        "pictures": num_frames(frames),
        "train_pictures": num_frames(fitted),
        "eigenvalue_spread": float(spectrum[-1] / max(spectrum[0], spectrum[-1] * 1e-12)),
        "curves": {},
        "rows": {},
    }
    print(
        f"{tensor} of {network.name}: {split.layout.channels} channels of {split.layout.height} × "
        f"{split.layout.width}, eigenvalues spread over {figures['eigenvalue_spread']:.1e}; {figures['codec']}; "
        f"{figures['pictures']} pictures, fitted on {figures['train_pictures']} others"
    )
    base = transforms[ANCHOR].qp_shift()
    for name, (transform, method) in methods.items():
        shift = round(transform.qp_shift() - base)
        shifted = [qp + shift for qp in qps if QP_RANGE[0] <= qp + shift <= QP_RANGE[1]]
        figures["curves"][name] = curve = _curve(split, frames, target, method, codec, shifted)
        figures["rows"][name] = {"qp_shift": shift}
        if name != ANCHOR:
            found = _bd(figures["curves"][ANCHOR], curve)
            figures["rows"][name] |= {"bd_rate": found.mean, "low": found.low, "high": found.high}
            print(f"{name:>26}: {found.mean:+6.1f} % ({found.low:+.1f} … {found.high:+.1f}), QP {shift:+d}")
    return figures


def _split(path: Path, tensor: str, outputs: tuple[str, ...], expects: PictureInput) -> _Split:
    graph = read_onnx(path)
    shape = tensor_shapes(graph).get(tensor)
    if shape is None or len(shape) != 4:
        raise ValueError(f"{path} has no tensor {tensor!r} of [1, channels, height, width]; it is {shape}")
    first, second = cut(graph, tensor, shape)
    layout = TileLayout(*shape[1:])
    head = onnx_network(second, outputs=outputs)
    receiver = jax.tree_util.Partial(partial(_receive, layout), head)
    return _Split(onnx_network(first), receiver, layout, tensor, expects)


def _receive(layout: TileLayout, head: jax.tree_util.Partial, frame: Frame) -> dict[str, jax.Array]:
    """Packed features → the outputs of the network's second part."""
    found: dict[str, jax.Array] = head(unpack(frame, layout).transpose(0, 3, 1, 2))
    return found


def _batches(frames: Frame) -> list[Frame]:
    count = num_frames(frames)
    return [jax.tree.map(lambda p, i=i: p[i : i + BATCH], frames) for i in range(0, count, BATCH)]


@jax.jit
def _apply(receiver: jax.tree_util.Partial, frame: Frame) -> dict[str, jax.Array]:
    outputs: dict[str, jax.Array] = receiver(frame)
    return outputs


def _outputs(split: _Split, frames: Frame) -> dict[str, np.ndarray]:
    """What the heads take, of all pictures."""
    found = [jax.device_get(_apply(split.receiver, batch)) for batch in _batches(frames)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)


def _gram(split: _Split, frames: Frame) -> np.ndarray:
    gram = ChannelGram(split.layout)
    for i, batch in enumerate(_batches(frames)):
        rows = sketched_rows(Jacobian(split.receiver, batch), jax.random.key(0), 4, frame_offset=i * BATCH)
        gram.update(rows)
    return gram.gram()


def _calibrated(split: _Split, fold: Fold, frames: Frame, codec: Codec) -> Frame:
    """Weights of the channels from the codec's own errors at a middle QP, in the domain that it codes."""
    plan = fold.plan(split.receiver, frames)
    assert plan.undo is not None
    decoded = codec.encode(plan.z, EncodeRequest(qp=CALIBRATION_QP, bit_depth=BIT_DEPTH)).decoded
    error = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.float32) - b, decoded, plan.z)
    receiver = jax.tree_util.Partial(_behind, split.receiver, plan.undo)
    return Calibration(split.layout, split.layout.size, 1).update(receiver, plan.z, error).map()


def _behind(receiver: jax.tree_util.Partial, undo: jax.tree_util.Partial, frame: Frame) -> Any:
    return receiver(undo(frame))


def _curve(
    split: _Split,
    frames: Frame,
    target: dict[str, np.ndarray],
    method: Method,
    codec: Codec,
    qps: Sequence[int],
) -> dict[str, list[Any]]:
    """Bits and receiver SNR of each picture at each QP."""
    plan = method.plan(split.receiver, frames, jax.random.key(0))
    assert plan.undo is not None
    curve: dict[str, list[Any]] = {"qps": list(qps), "bits": [], "snr": []}
    for qp in qps:
        result = codec.encode(plan.z, EncodeRequest(qp=qp, bit_depth=BIT_DEPTH, weights=plan.weights))
        found = _outputs(split, plan.undo(result.decoded))
        curve["bits"].append([int(bits) for bits in np.asarray(result.bits)])
        curve["snr"].append([receiver_snr(_picture(target, i), _picture(found, i)) for i in range(num_frames(frames))])
    return curve


def _picture(outputs: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in outputs.items()}


def _bd(anchor: dict[str, list[Any]], test: dict[str, list[Any]]) -> Interval:
    a, b = ({k: np.asarray(curve[k], np.float64) for k in ("bits", "snr")} for curve in (anchor, test))
    return bootstrap_mean(
        [
            bd_rate(a["bits"][:, i], a["snr"][:, i], b["bits"][:, i], b["snr"][:, i]).value
            for i in range(a["bits"].shape[1])
        ]
    )
