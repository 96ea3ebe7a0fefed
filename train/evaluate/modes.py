"""Modes: what an encoder may choose between for a video (SNW sections 4.1 and 4.2), all as one kind of object.

========================  =======================================================================
``codec``                 the codec alone, at full size: the anchor
``bilinear-r``            the same linear filter down and up, r = 2/3, 1/2, 1/4
``lanczos4-r``
``post-r``                linear filter down, neural post-processor
``wrapper-r``             neural pre- and post-processor
========================  =======================================================================

Each may have a *receiver* beside the viewer of its frames: a network that is given the decoded samples (of the codec
alone, say), and for whose output bits are then spent. Where there is none, a neural post-processor is the receiver.

Every mode codes at 10 bits, the anchor too, 8-bit sources being shifted up: so bit depth is no part of any
comparison. Reconstructions are rounded and clipped to 10 bits and compared at 10 bits (peak 1023) with the shifted
source, in every mode.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.importance.maps import yuv_metric
from jaxwrap.importance.receiver import Receiver
from jaxwrap.methods.plan import Method
from jaxwrap.parameters import named_parameters
from jaxwrap.pipeline import Sandwich
from jaxwrap.train.evaluate.points import canonical_json
from jaxwrap.wrappers.resample import Kind
from jaxwrap.wrappers.switchable import PostProcessor, PreProcessor, Wrapper, linear_wrapper

BIT_DEPTH = 10
"""Bits of the bottleneck's samples, and of the samples that are compared."""

MODE_BITS = 4
"""Bits that tell a decoder the mode, once per video (SNW section 4.1); the codec alone, used by itself, needs none."""


@dataclasses.dataclass(frozen=True)
class _PostAt:
    """A wrapper's post-processor for originals of one (height, width)."""

    wrapper: Wrapper
    size: tuple[int, int]

    def __call__(self, frame: Frame) -> Frame:
        return self.wrapper.post(frame, size=self.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Mode:
    """A wrapper by its name in results rows.

    ``bits``: what it costs to tell the mode. ``pre_hash`` and ``post_hash`` identify what the two sides compute, with
    their parameters: modes of equal ``pre_hash`` give the codec the same samples, so these are encoded once.
    ``receiver``: from the codec's samples at `BIT_DEPTH` bits to what must survive; None: the post-processor, where it
    is a network. ``receiver_hash`` identifies what a given one computes.
    """

    name: str
    wrapper: Wrapper
    bits: int
    pre_hash: str
    post_hash: str
    receiver: Receiver | None = None
    receiver_hash: str = ""

    def __post_init__(self) -> None:
        if (self.receiver is None) != (self.receiver_hash == ""):
            raise ValueError(f"mode {self.name}: a receiver and the hash of what it computes go together")

    @property
    def ratio(self) -> Fraction:
        """Side of the bottleneck over side of the original."""
        return self.wrapper.config.ratio

    @property
    def has_receiver(self) -> bool:
        """Whether a network looks at the decoded samples."""
        return self.receiver is not None or self.wrapper.post_network is not None

    @property
    def takes_methods(self) -> bool:
        """Whether allocation methods other than sse are tried on it: its receiver was given, or both sides are
        networks."""
        networks = self.wrapper.pre_network, self.wrapper.post_network
        return self.receiver is not None or None not in networks

    def sandwich(self, height: int, width: int) -> Sandwich:
        """The mode for pictures of this size; equal for the same wrapper and size, so that both are compiled once."""
        return Sandwich(self.wrapper.pre, _PostAt(self.wrapper, (height, width)), BIT_DEPTH)


def mode_of(wrapper: Wrapper) -> Mode:
    """The mode that a wrapper is, named by what its sides are (see the table above)."""
    config = wrapper.config
    sides = config.to_dict()
    linear = isinstance(config.pre, str) and isinstance(config.post, str)
    if linear and config.ratio == 1:
        name, bits = "codec", 0
    else:
        family = "wrapper" if wrapper.pre_network else "post" if wrapper.post_network else str(config.pre)
        if linear and config.pre != config.post:
            family = f"{config.pre}-{config.post}"
        name, bits = f"{family}-{config.ratio}", MODE_BITS
    hashes = [
        _hash({"ratio": sides["ratio"], "side": "identity" if name == "codec" else sides[side]}, network)
        for side, network in (("pre", wrapper.pre_network), ("post", wrapper.post_network))
    ]
    return Mode(name, wrapper, bits, hashes[0], hashes[1])


def codec_mode() -> Mode:
    """The codec alone."""
    return mode_of(linear_wrapper("bilinear", Fraction(1)))


def receiver_mode(receiver: Receiver, receiver_hash: str) -> Mode:
    """The codec alone, its pictures looked at by a network: ``receiver`` takes samples of `BIT_DEPTH` bits (FP-RDO)."""
    return dataclasses.replace(codec_mode(), receiver=receiver, receiver_hash=receiver_hash)


def receiver_metric(output: Any) -> Any:
    """The metric M of receivers' outputs: YUV 6:1:1 for frames (`yuv_metric`), 1 for all else."""
    return yuv_metric(output) if isinstance(output, Frame) else 1.0


def linear_mode(kind: Kind, ratio: Fraction) -> Mode:
    """Linear resampling down and up with one filter, the baselines of SNW section 4.2."""
    return mode_of(linear_wrapper(kind, ratio))


def combinations(modes: Sequence[Mode], methods: Iterable[Method]) -> list[tuple[Mode, Method]]:
    """Which method runs in which mode: ``sse`` in all, every other one in the modes that have a receiver given or
    networks on both sides.

    Raises `ValueError` where two modes have one name, or no mode is left for a method.
    """
    names = [mode.name for mode in modes]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"modes were given more than once: {', '.join(repeated)}; results rows tell them by name")
    pairs: list[tuple[Mode, Method]] = []
    for method in methods:
        chosen = [mode for mode in modes if method.name == "sse" or mode.takes_methods]
        if not chosen:
            raise ValueError(
                f"method {method.name} wants a mode whose two sides are networks, or one with a receiver; "
                f"given: {', '.join(names)}"
            )
        pairs += [(mode, method) for mode in chosen]
    return pairs


def _hash(description: object, network: PreProcessor | PostProcessor | None) -> str:
    digest = hashlib.sha256(canonical_json(description).encode())
    if network is not None:
        digest.update(np.dtype(network.dtype).name.encode())
        for name, array in sorted(named_parameters(network).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
