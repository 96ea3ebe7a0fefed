"""YOLOX detectors (Ge et al. 2021): what they are fed, and what a receiver takes from them."""

from __future__ import annotations

import dataclasses

import jax

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import Receiver
from jaxwrap.tasks.pictures import PictureInput

INPUT = PictureInput(416, 416, order="bgr", fit="letterbox")
"""BGR in [0, 255], letterboxed: YOLOX-nano and -tiny as Megvii has exported them since 2021-08 (larger ones: 640)."""


def yolox_receiver(network: jax.tree_util.Partial, *, expects: PictureInput = INPUT, bit_depth: int = 8) -> Receiver:
    """Decoded samples → the scores ``[N, anchors, classes]`` in (0, 1) that detection ranks boxes by.

    ``network``: images → ``{name: raw output [N, anchors, 5 + classes]}`` (`jaxwrap.tasks.onnx.onnx_network`): four
    numbers of the box, objectness, class probabilities. Scores are objectness × class. Boxes are left out: those of
    the thousands of anchors that find nothing are arbitrary, yet would rule the map.
    """
    return jax.tree_util.Partial(_Scores(expects, bit_depth), network)


@dataclasses.dataclass(frozen=True, slots=True)
class _Scores:
    expects: PictureInput
    bit_depth: int

    def __call__(self, network: jax.tree_util.Partial, samples: Frame) -> jax.Array:
        (raw,) = network(self.expects.images(samples, self.bit_depth)).values()
        if raw.ndim != 3 or raw.shape[-1] < 6:
            raise ValueError(f"the network's output is {raw.shape}; a YOLOX head gives [N, anchors, 5 + classes]")
        return raw[..., 4:5] * raw[..., 5:]
