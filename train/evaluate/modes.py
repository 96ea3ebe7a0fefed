"""Modes of pixels: what an encoder may choose between for a video (SNW sections 4.1 and 4.2), as one kind of object.

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
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Frame
from jaxwrap.importance.maps import yuv_metric
from jaxwrap.importance.receiver import Receiver, as_partial
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.metrics.distortion import mean_psnr, ms_ssim
from jaxwrap.parameters import named_parameters
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import denormalise, normalise, to_integers
from jaxwrap.train.evaluate.mode import PIXELS_PER_CALL, Measured, Mode, Prepared, decibels, energies, in_chunks
from jaxwrap.train.evaluate.points import canonical_json
from jaxwrap.train.evaluate.sources import BIT_DEPTH, Source
from jaxwrap.train.evaluate.stopwatch import Stopwatch
from jaxwrap.wrappers.resample import Kind
from jaxwrap.wrappers.switchable import Wrapper, linear_wrapper

MODE_BITS = 4
"""Bits that tell a decoder the mode, once per video (SNW section 4.1); the codec alone, used by itself, needs none."""


@dataclasses.dataclass(frozen=True)
class _PostAt:
    """A wrapper's post-processor for originals of one (height, width)."""

    wrapper: Wrapper
    size: tuple[int, int]

    def __call__(self, frame: Frame) -> Frame:
        return self.wrapper.post(frame, size=self.size)


class Reference:
    """A clip's samples z before any method, and what a receiver makes of them: asked once, when first wanted."""

    def __init__(self, z: Frame) -> None:
        self.z = z
        self._output: Any = None

    def output(self, receive: Callable[[Frame], Any]) -> Any:
        """r(z) of the mode's receiver, as NumPy arrays."""
        if self._output is None:
            self._output = receive(self.z)
        return self._output


@dataclasses.dataclass(frozen=True, eq=False)
class PixelMode(Mode):
    """A wrapper by its name in results rows.

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

    def coded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """See `Mode.coded_size`."""
        return self.wrapper.bottleneck_size(*size)

    def sandwich(self, height: int, width: int) -> Sandwich:
        """The mode for pictures of this size; equal for the same wrapper and size, so that both are compiled once."""
        return Sandwich(self.wrapper.pre, _PostAt(self.wrapper, (height, width)), BIT_DEPTH)

    def prepare(self, batch: Sequence[Source]) -> Prepared:
        """See `Mode.prepare`."""
        height, width = batch[0].size
        sandwich, per_call = self.sandwich(height, width), PIXELS_PER_CALL // (height * width)
        samples = jax.tree.map(lambda *planes: np.concatenate(planes), *[source.samples for source in batch])
        with Stopwatch() as watch:
            z = in_chunks(partial(_bottleneck, sandwich), samples, per_call)
        own = jax.device_get(z)
        ends = np.cumsum([source.num_frames for source in batch]).tolist()
        references = [
            Reference(jax.tree.map(lambda plane, s=source, end=end: plane[end - s.num_frames : end], own))
            for source, end in zip(batch, ends, strict=True)
        ]

        def target() -> Any:
            # What the receiver should give: the original frames, or what a network makes of the original samples.
            if self.receiver is None:
                return normalise(jax.tree.map(jnp.asarray, samples), BIT_DEPTH)
            return in_chunks(partial(_receive, as_partial(self.receiver), None), z, per_call)

        return Prepared(sandwich, z, self.receiver, target, references, watch.seconds)

    def measure(self, source: Source, reference: Reference, undo: Any, decoded: Frame) -> Measured:
        """See `Mode.measure`."""
        height, width = source.size
        back = partial(_frames, self.sandwich(height, width))
        per_call = PIXELS_PER_CALL // (height * width)
        with Stopwatch() as watch:
            normalised = in_chunks(partial(back, undo), decoded, per_call)
        received = to_integers(denormalise(normalised, BIT_DEPTH), BIT_DEPTH)
        receiver_snr = None
        if self.receiver is not None:
            judge = partial(_receive, as_partial(self.receiver))
            judged = jax.device_get(in_chunks(partial(judge, undo), decoded, per_call))
            wanted = reference.output(lambda z: jax.device_get(in_chunks(partial(judge, None), z, per_call)))
            receiver_snr = decibels(*energies(wanted, judged, receiver_metric))
        elif self.has_receiver:
            wanted = reference.output(lambda z: jax.device_get(in_chunks(partial(back, None), z, per_call)))
            receiver_snr = decibels(*energies(wanted, jax.device_get(normalised), receiver_metric))
        samples = source.samples
        psnr_y, psnr_yuv = mean_psnr(samples, received, BIT_DEPTH)
        figures = {
            "psnr_y": psnr_y,
            "psnr_yuv": psnr_yuv,
            "ms_ssim": ms_ssim(samples, received, BIT_DEPTH),
            "receiver_snr": receiver_snr,
        }
        return Measured(figures, watch.seconds)


def mode_of(wrapper: Wrapper) -> PixelMode:
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
        network_hash({"ratio": sides["ratio"], "side": "identity" if name == "codec" else sides[side]}, network)
        for side, network in (("pre", wrapper.pre_network), ("post", wrapper.post_network))
    ]
    return PixelMode(name, wrapper, bits, hashes[0], hashes[1])


def codec_mode() -> PixelMode:
    """The codec alone."""
    return mode_of(linear_wrapper("bilinear", Fraction(1)))


def receiver_mode(receiver: Receiver, receiver_hash: str) -> PixelMode:
    """The codec alone, its pictures looked at by a network: ``receiver`` takes samples of `BIT_DEPTH` bits (FP-RDO)."""
    return dataclasses.replace(codec_mode(), receiver=receiver, receiver_hash=receiver_hash)


def receiver_metric(output: Any) -> Any:
    """The metric M of receivers' outputs: YUV 6:1:1 for frames (`yuv_metric`), 1 for all else."""
    return yuv_metric(output) if isinstance(output, Frame) else 1.0


def linear_mode(kind: Kind, ratio: Fraction) -> PixelMode:
    """Linear resampling down and up with one filter, the baselines of SNW section 4.2."""
    return mode_of(linear_wrapper(kind, ratio))


def combinations(modes: Sequence[Mode], methods: Iterable[Method]) -> list[tuple[Mode, Method]]:
    """Which method runs in which mode: ``sse`` in all, every other one in the modes that have a receiver given or
    networks on both sides.

    Raises `ValueError` where two modes have one name, no mode is left for a method, or a mode cannot give a method what
    it wants.
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
        for mode in chosen:
            mode.check_method(method)
        pairs += [(mode, method) for mode in chosen]
    return pairs


def network_hash(description: object, network: nnx.Module | None) -> str:
    """Identifies what a network computes: its description, the type of its activations and its parameters."""
    digest = hashlib.sha256(canonical_json(description).encode())
    if network is not None:
        digest.update(np.dtype(getattr(network, "dtype", np.float32)).name.encode())
        for name, array in sorted(named_parameters(network).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


@partial(jax.jit, static_argnums=0)
def _bottleneck(sandwich: Sandwich, samples: Frame) -> Frame:
    return sandwich.bottleneck(normalise(samples, BIT_DEPTH))


@partial(jax.jit, static_argnums=0)
def _frames(sandwich: Sandwich, undo: Any, samples: Frame) -> Frame:
    """Normalised frames at the far end."""
    return sandwich.receive(Plan(samples, undo=undo).undone(samples))


@jax.jit
def _receive(receiver: jax.tree_util.Partial, undo: Any, samples: Frame) -> Any:
    return receiver(Plan(samples, undo=undo).undone(jax.tree.map(lambda p: p.astype(jnp.float32), samples)))
