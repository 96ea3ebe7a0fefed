"""The third abstraction: a codec takes frames and an `EncodeRequest`, and gives an `EncodeResult`.

The proxy, x264 and a patched HM look the same from here. Rates count every bit that a decoder needs: all NAL units but
user-data SEI; `header_bits` (parameter sets) is the part of them that does not depend on the pictures. ``decoded``
holds what an *independent* decoder made of the stream, never the encoder's own word.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

import jax

from jaxwrap.arrays import Array, Frame

Config = Literal["intra", "lowdelay", "randomaccess"]
CONFIGS: tuple[Config, ...] = ("intra", "lowdelay", "randomaccess")

Decision = Literal["sse", "rdoq", "satd", "filters"]
DECISIONS: tuple[Decision, ...] = ("sse", "rdoq", "satd", "filters")
"""What an encoder decides with weights: ``sse``, the distortion by which partitions and modes are compared; ``rdoq``,
λ of its quantisation, divided by the mean weight of the block; ``satd``, the pre-selection of intra modes (and the
motion search, where that can be had), times the root of the mean weight; ``filters``, the parameters of SAO, and those
of deblocking where the encoder chooses them."""

QP_RANGE = (0, 51)
"""Range of the specification's QP at 8 bits; a 10-bit stream at QP q has the same step relative to the sample range."""


def intra_period(config: Config, fps: float) -> int | None:
    """Display distance of I pictures in a configuration: frames n with n % period == 0 are I pictures. None: only the
    first frame of a clip is one.

    1 in ``intra``, None in ``lowdelay``, and in ``randomaccess`` the multiple of 8 nearest to one second.
    """
    if config == "intra":
        return 1
    return None if config == "lowdelay" else max(8, 8 * round(fps / 8))


def quantiser_step(qp: Any, bit_depth: int) -> Any:
    """Step of the quantiser at a QP, 2^((QP − 4) / 6) · 2^(d − 8), in samples of d bits for an orthonormal transform.

    That of H.264 and HEVC: it doubles every 6 QPs and is 1 at QP 4 and 8 bits. Numbers and arrays, traced or not.
    """
    return 2.0 ** ((qp - 4.0) / 6.0) * 2.0 ** (bit_depth - 8)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """Per-sample weights w of the distortion Σ w q², mean 1 over the frame (`jaxwrap.importance.weights`).

    ``planes`` has the frame's plane sizes with N = 1 (one map for all frames) or N maps. ``applied_as`` says how an
    encoder is to use them: ``"distortion"`` inside its RDO (patched HM and JM), at the QP that was asked for; or
    ``"qp_offset"``: ΔQP = −3 log₂ w̄ per block, quantiser and λ together, as x264 and x265 have it. A patched encoder
    then weighs its distortion too, for that is what λ at the QP of a block comes to across blocks.

    ``decisions`` are those of a patched encoder that use the weights, in the order of `DECISIONS`; others take no
    notice. None at all, with ``"qp_offset"``: the QPs alone move.
    """

    planes: Frame
    applied_as: Literal["distortion", "qp_offset"] = dataclasses.field(default="distortion", metadata={"static": True})
    decisions: tuple[Decision, ...] = dataclasses.field(default=DECISIONS, metadata={"static": True})

    def __post_init__(self) -> None:
        _check_decisions(self.decisions)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class RowWeights:
    """Signed rows r_s of a sketched Jacobian, for an encoder that weighs whole blocks (IDSE; FP-RDO section III): its
    distortion is Σ_s (r_s · q)² + τ Σ q² on each block of a fixed 16×16 grid.

    ``rows`` are ``[N or 1, ℓ, H, W]`` per plane, N frames or one for all, already divided by √((1 + α) · mean h);
    ``tau`` is τ = α / (1 + α), so that the mean of Σ_s r_s² + τ over the samples is 1, as that of `Weights` is.
    ``decisions`` as in `Weights`.
    """

    rows: Frame
    tau: float = dataclasses.field(metadata={"static": True})
    decisions: tuple[Decision, ...] = dataclasses.field(default=DECISIONS, metadata={"static": True})

    def __post_init__(self) -> None:
        _check_decisions(self.decisions)
        if not 0.0 <= self.tau < 1.0:
            raise ValueError(f"tau = {self.tau} was given; wanted α / (1 + α), from 0 to below 1")


def _check_decisions(decisions: tuple[Decision, ...]) -> None:
    if decisions != tuple(known for known in DECISIONS if known in decisions):
        raise ValueError(
            f"decisions {decisions!r} were given; wanted a tuple of some of {', '.join(DECISIONS)}, once each and in "
            "this order"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class EncodeRequest:
    """What is asked of a codec.

    ``qp`` is on the specification's scale (`QP_RANGE`, fractions allowed where the codec allows them); the proxy also
    takes one per picture ``[N]``, or ``None`` for its learnt step. ``preset`` is the encoder's own name for its effort;
    ``None`` is the codec's default. ``lambda_scale`` multiplies the encoder's own λ everywhere, with weights and
    without (patched HM and JM; others refuse all but 1). ``trace`` asks for the coding units that the encoder wrote
    (patched HM and JM only).
    """

    qp: float | Array | None
    config: Config = "intra"
    bit_depth: int = 10
    fps: float = 25.0
    preset: str | None = None
    weights: Weights | RowWeights | None = None
    lambda_scale: float = 1.0
    trace: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class EncodeResult:
    """What a codec gives back.

    ``decoded``: samples in ``[0, 2^d − 1]`` at the input's size. ``bits``: ``[N]`` per picture, in the order of the
    input, everything counted. ``header_bits``: the part of the sum that is parameter sets. ``seconds``: of encoding,
    wall time in process, processor time where the encoder is a program (0 under `jax.jit`). ``command``: what was run,
    enough to repeat it. ``verified``: a decoder that shares no code with the encoder gave ``decoded``, and it equals
    the encoder's own reconstruction (for JPEG, whose inverse DCT is not normative, within ± 1); False where that is not
    known (the proxy). ``units``: where a trace was asked for, int32 ``[K, 6]``, one row per coding unit as finally
    written (HM: leaf coding unit; JM: macroblock): frame in display order, x, y, width, height in luma samples, bits.
    """

    decoded: Frame
    bits: Array
    header_bits: Any = 0
    seconds: float = dataclasses.field(default=0.0, metadata={"static": True})
    command: str = dataclasses.field(default="", metadata={"static": True})
    verified: bool = dataclasses.field(default=False, metadata={"static": True})
    units: Array | None = None


def refuse_patched_options(name: str, request: EncodeRequest) -> None:
    """Raises `ValueError` where a request wants what only a patched encoder has, beside weights: a scale of λ, or a
    trace. For codecs that have neither; ``name`` is theirs."""
    if request.lambda_scale != 1.0:
        raise ValueError(
            f"λ scale {request.lambda_scale:g} was given; {name} keeps its own λ (1): only a patched HM or JM scales it"
        )
    if request.trace:
        raise ValueError(f"a trace of coding units was asked for; {name} writes none: only a patched HM or JM does")


class Codec(Protocol):
    """Frames → bits → frames."""

    @property
    def name(self) -> str:
        """Short name used in results rows: ``proxy``, ``x264``, ``x265``, ``hm``, …"""
        ...

    @property
    def version(self) -> str:
        """Version of the encoder, part of every cache key. Raises `RuntimeError` where the encoder is missing."""
        ...

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """Raises `ValueError` where `encode` would refuse this request for frames of ``size`` = (height, width)."""
        ...

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """Codes samples ``[0, 2^d − 1]`` (real-valued ones are clipped and rounded first) and decodes them again."""
        ...
