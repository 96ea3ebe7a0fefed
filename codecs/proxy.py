"""The proxy codec: a differentiable JPEG-style codec for training wrappers (SNW section 3.3, equation 1).

Samples are real-valued in ``[0, 2^d − 1]``, d ∈ {8, 10}; steps are in units of d-bit samples for an orthonormal DCT,
so that a flat step here means what it means in a video codec. All is `jax.jit`-able, nothing leaves the device.

    clip ─► pad ─► − 2^(d−1) ─► L×L DCT ─► round(Y/q)·q ─► inverse ─► crop ─► clip
                                   └─► a Σ log(1 + |Y|/q) = bits,  a = SG(R / Σ …),  R = bits of a JPEG
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Array, Frame, check_frame, frame_of, num_frames, size_of
from jaxwrap.codec import EncodeRequest, EncodeResult, quantiser_step, refuse_patched_options
from jaxwrap.codecs.jpeg.dct import BLOCK_SIZES, LARGEST_BLOCK, block_dct_matrices
from jaxwrap.codecs.jpeg.rate import entropy_coded_bits
from jaxwrap.codecs.jpeg.tables import MAX_STEP
from jaxwrap.importance.jacobian import dct_matrix
from jaxwrap.samples import max_sample, round_half_away

_MIN_LOG_PER_SAMPLE = 0.01
"""Floor of Σ log(1 + |Y|/q) per sample when a is formed: a flat mid-grey picture has Σ = 0, and a must stay finite."""

_ZERO_COEFFICIENT = 0.02
"""Bound on the float32 rounding error of a coefficient, in samples: DC of a 10-bit 32×32 block goes up to 2^14."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class ProxyCodec:
    """Differentiable codec with respect to the frames and to its step.

    ``step_size``: scalar or ``[N]``, in d-bit samples, positive; ``None`` takes the specification's step
    2^((qp − 4)/6) · 2^(d − 8) from ``request.qp``. ``block_sizes``: one of 4, 8, 16, 32 for all, or int ``[N]`` drawn
    from them, mixed in a batch and traced: a new draw does not recompile. ``rate_scale``: the factor a of equation 1,
    scalar or ``[N]``; ``None`` counts a JPEG's bits in every call (`rate_scale` the function gives it for a trainer
    that renews it every few steps).

    What the published form leaves open is decided so:

    * the gradient of `round` is 1, that of the rest is exact, so that the step has a gradient through the distortion
      too;
    * the input and the reconstruction are clipped, and their gradients stop only where a descent step would lead
      further out;
    * R is the Huffman-coded data of one grayscale JPEG per plane of the clipped and rounded input, without headers and
      byte stuffing, which video streams do not have, with a flat table of round(q) in 1…255 (d = 10: the 8 top bits,
      and q/4). The paper's quality factor weights frequencies by the standard table, which no flat quantiser does;
    * samples are shifted by 2^(d − 1) before the DCT, as in JPEG, and are not rounded before coding;
    * planes are edge-replicated to a multiple of the block size; blocks wholly in the padding are not counted in the
      rate.
    """

    step_size: Any = None
    _: dataclasses.KW_ONLY
    block_sizes: Any = 8
    rate_scale: Any = None

    @property
    def name(self) -> str:
        """``proxy``."""
        return "proxy"

    @property
    def version(self) -> str:
        """Changes whenever the same input gives other bits or samples."""
        return "1"

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        """Codes real-valued samples and decodes them. ``bits [N]`` float32 are those of all planes of a picture.

        Raises `ValueError` when the step is named twice or not at all, and for requests that an intra codec without
        RDO cannot honour.
        """
        self.check(size_of(frames), request)
        step = self._step(frames, request)
        blocks = _block_sizes(self.block_sizes, num_frames(frames))
        scale = self.rate_scale
        if scale is None:
            jpeg_bits = _jpeg_bits(frames, step, request.bit_depth)
            # XLA must count first, and then use the same memory again: a dependence, because it drops barriers on CPU.
            step = jnp.where(jpeg_bits >= 0, step, jnp.nan)
        decoded, log_sum = _code(frames, step, blocks, request.bit_depth)
        if scale is None:
            scale = jpeg_bits / _floored(log_sum, frames)
        return EncodeResult(decoded, jax.lax.stop_gradient(jnp.asarray(scale, jnp.float32)) * log_sum)

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        """Raises `ValueError` for requests that `encode` would refuse; frames of any size are taken."""
        refuse_patched_options("the proxy codec", request)
        if request.weights is not None:
            raise ValueError(
                "weights were given; the proxy codec has no RDO that could follow them: use x264, x265 or HM"
            )
        if request.config != "intra":
            raise ValueError(f"configuration {request.config!r} was given; the proxy codec knows 'intra' only")
        if (self.step_size is None) == (request.qp is None):
            given = "neither" if request.qp is None else "both"
            raise ValueError(
                f"{given} of step_size and request.qp given; the proxy codec takes its step from exactly one"
            )

    def _step(self, frames: Frame, request: EncodeRequest) -> jax.Array:
        step = self.step_size
        if request.qp is not None:
            step = quantiser_step(request.qp, request.bit_depth)
        return jnp.broadcast_to(jnp.asarray(step, jnp.float32), (num_frames(frames),))


def rate_scale(
    frames: Frame, step_size: Array | float, *, bit_depth: int = 10, block_sizes: Array | int = 8
) -> jax.Array:
    """The factor a of equation 1 for a whole batch: JPEG bits of all pictures over their Σ log(1 + |Y|/q).

    Scalar float32, without a gradient. It moves by a few per cent between batches, so that a trainer may pass it to
    `ProxyCodec` and renew it every few steps.
    """
    step = jnp.broadcast_to(jnp.asarray(step_size, jnp.float32), (num_frames(frames),))
    _, log_sum = _code(frames, step, _block_sizes(block_sizes, num_frames(frames)), bit_depth)
    scale = jnp.sum(_jpeg_bits(frames, step, bit_depth)) / jnp.sum(_floored(log_sum, frames))
    return jax.lax.stop_gradient(scale)


def step_from_parameter(theta: Array, *, bit_depth: int = 10, floor: float = 1.0) -> jax.Array:
    """Quantiser step q = 2^(d − 8) · max(e^θ, floor) of a learnt parameter θ, in d-bit samples.

    θ is the logarithm of the step in 8-bit samples: its updates are relative, and QP = 4 + 6 θ / ln 2. ``floor`` is
    in 8-bit samples; real encoders go no lower than about 1. At the floor the gradient that would raise the step
    still passes, so that θ cannot get stuck there, and the one that would lower it does not, so that θ does not drift
    away below.
    """
    return 2.0 ** (bit_depth - 8) * clip_to_range(jnp.exp(theta), floor, np.inf)


@jax.custom_vjp
def clip_to_range(x: jax.Array, low: float, high: float) -> jax.Array:
    """Clips to ``[low, high]``; the gradient stops only where x is outside and a descent step would lead further out.

    Replaces the derivative of clip, which is 0 outside and so never brings a sample back.
    """
    return jnp.clip(x, low, high)


def _clip_forward(x: jax.Array, low: float, high: float) -> tuple[jax.Array, tuple]:
    return clip_to_range(x, low, high), (x, low, high)


def _clip_backward(saved: tuple, g: jax.Array) -> tuple:
    x, low, high = saved
    return jnp.where(((x < low) & (g > 0)) | ((x > high) & (g < 0)), 0, g), None, None


clip_to_range.defvjp(_clip_forward, _clip_backward)


@jax.custom_vjp
def transform_code(x: jax.Array, step: jax.Array, basis: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Transform, quantise, inverse: (x̂, Σ log(1 + |Y|/q)) with Y = T X Tᵀ per block and x̂ from round(Y/q) q.

    ``x [N, H, W]``; ``step [N]``; ``basis`` T, orthonormal ``[N, S, S]`` or ``[S, S]``, S dividing H and W;
    ``counted`` ``[N, H, W]`` weights of the coefficients in the sum (or broadcastable with that rank). Returns
    ``[N, H, W]`` and ``[N]``.

    The derivative is written by hand. With the gradient of `round` set to 1 and T orthonormal, ∂x̂/∂x = I and
    ∂x̂/∂q = (x̂ − x)/q: the distortion needs no transform. The rate's is the inverse transform of sign(Y)/(q + |Y|),
    and −Σ |Y|/(q (q + |Y|)) for q; the sign is 0 where |Y| may be a rounding error, or flat areas, whose
    coefficients are such errors, would be given a gradient of random signs.
    """
    return _transform_code_forward(x, step, basis, counted)[0]


def _transform_code_forward(
    x: jax.Array, step: jax.Array, basis: jax.Array, counted: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    # In units of the step, which is applied on the side of the samples: 3 planes of memory less than dividing Y.
    q = step[:, None, None]
    u = _transform(x / q, basis)  # Y/q
    decoded = _transform(jnp.asarray(round_half_away(u)), jnp.swapaxes(basis, -1, -2)) * q
    log_sum = jnp.sum(jnp.log1p(jnp.abs(u)) * counted, axis=(1, 2))
    return (decoded, log_sum), (u, decoded - x, q, basis, counted)


def _transform_code_backward(saved: tuple, gradients: tuple[jax.Array, jax.Array]) -> tuple:
    u, error, q, basis, counted = saved
    g_decoded, g_log_sum = gradients
    magnitude = jnp.abs(u)
    sign = jnp.where(magnitude * q > _ZERO_COEFFICIENT, jnp.sign(u), 0.0)
    g_rate = _transform(sign / (1.0 + magnitude) * counted, jnp.swapaxes(basis, -1, -2)) * (
        g_log_sum[:, None, None] / q
    )
    g_step = jnp.sum(g_decoded * error, axis=(1, 2)) - g_log_sum * jnp.sum(
        magnitude / (1.0 + magnitude) * counted, axis=(1, 2)
    )
    return g_decoded + g_rate, g_step / q[:, 0, 0], None, None


transform_code.defvjp(_transform_code_forward, _transform_code_backward)


def _transform(x: jax.Array, basis: jax.Array) -> jax.Array:
    """T X Tᵀ for every S×S block X of planes ``[N, H, W]``.

    Full float32: on NVIDIA GPUs the default is tf32, whose 10 bits of mantissa are off by several steps on a 10-bit
    DC of 2^14.
    """
    n, h, w = x.shape
    size = basis.shape[-1]
    basis = jnp.broadcast_to(basis, (n, size, size))
    rows = x.reshape(n, h * w // size, size)
    rows = jnp.einsum("nbj,nvj->nbv", rows, basis, precision=jax.lax.Precision.HIGHEST)
    # The basis is repeated over block rows so that XLA sees plain batched products; without, it transposes the planes
    # (2× on CPU).
    columns = rows.reshape(n, h // size, size, w)
    repeated = jnp.broadcast_to(basis[:, None], (n, h // size, size, size))
    columns = jnp.einsum("nbui,nbiw->nbuw", repeated, columns, precision=jax.lax.Precision.HIGHEST)
    return columns.reshape(n, h, w)


def _block_sizes(block_sizes: Array | int, n: int) -> Array | int:
    """A Python int stays one and has its own, smaller transform compiled; anything else becomes int32 ``[N]``."""
    if not isinstance(block_sizes, jax.core.Tracer):
        wrong = sorted(set(np.ravel(block_sizes).tolist()) - set(BLOCK_SIZES))
        if wrong:
            raise ValueError(
                f"block sizes {wrong} were given; the proxy codec knows {', '.join(map(str, BLOCK_SIZES))}"
            )
        if isinstance(block_sizes, (int, np.integer)):
            return int(block_sizes)
    return jnp.broadcast_to(jnp.asarray(block_sizes, jnp.int32), (n,))


def _code(frames: Frame, step: jax.Array, blocks: Array | int, bit_depth: int) -> tuple[Frame, jax.Array]:
    """(decoded frames, Σ log(1 + |Y|/q) ``[N]`` over all planes)."""
    n = num_frames(frames)
    decoded: list[jax.Array] = []
    log_sums = jnp.zeros(n, jnp.float32)
    for planes in _planes_by_size(frames):
        count = planes.shape[0] // n
        sizes = blocks if isinstance(blocks, int) else jnp.repeat(blocks, count)
        coded, log_sum = _code_planes(planes, jnp.repeat(step, count), sizes, bit_depth)
        coded = coded.reshape(n, count, *coded.shape[1:])
        decoded += [coded[:, i] for i in range(count)]
        log_sums = log_sums + jnp.sum(log_sum.reshape(n, count), axis=1)
    return frame_of(decoded), log_sums


def _planes_by_size(frames: Frame) -> list[jax.Array]:
    """Luma, and where there is chroma, u and v as one batch ``[2N, H/2, W/2]``: half the program to compile.

    u and v of a picture are neighbours there, so that a batch that is sharded over N stays so.
    """
    check_frame(frames)
    y, *chroma = (jnp.asarray(plane, jnp.float32) for plane in frames.planes)
    if not chroma:
        return [y]
    both = jnp.stack(chroma, axis=1)  # [N, 2, H/2, W/2]
    return [y, both.reshape(-1, *both.shape[2:])]


def _code_planes(
    planes: jax.Array, step: jax.Array, blocks: Array | int, bit_depth: int
) -> tuple[jax.Array, jax.Array]:
    h, w = planes.shape[1:]
    top, middle = float(max_sample(bit_depth)), float(1 << (bit_depth - 1))
    if isinstance(blocks, int):
        size, basis = blocks, jnp.asarray(dct_matrix(blocks).T, jnp.float32)
    else:
        size, basis = LARGEST_BLOCK, jnp.asarray(block_dct_matrices())[jnp.searchsorted(jnp.array(BLOCK_SIZES), blocks)]
    pad_h, pad_w = -h % size, -w % size
    x = jnp.pad(clip_to_range(planes, 0.0, top), ((0, 0), (0, pad_h), (0, pad_w)), mode="edge")
    counted = jnp.ones((1, 1, 1), jnp.float32)
    if pad_h or pad_w:
        length = jnp.reshape(jnp.asarray(blocks, jnp.int32), (-1, 1))  # [N, 1] or [1, 1]
        rows = (jnp.arange(h + pad_h, dtype=jnp.int32)[None, :] // length) * length < h
        columns = (jnp.arange(w + pad_w, dtype=jnp.int32)[None, :] // length) * length < w
        counted = (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)
    decoded, log_sum = transform_code(x - middle, step, basis, counted)
    return clip_to_range(decoded[:, :h, :w] + middle, 0.0, top), log_sum


def _jpeg_bits(frames: Frame, step: jax.Array, bit_depth: int) -> jax.Array:
    """Entropy-coded bits ``[N]`` of one grayscale JPEG per plane, with the flat table nearest to the step."""
    frames, step = jax.lax.stop_gradient((frames, step))
    to_8_bits = 2.0 ** (8 - bit_depth)
    table = jnp.clip(round_half_away(step * to_8_bits), 1, MAX_STEP)
    n = step.shape[0]
    bits = jnp.zeros(n, jnp.int32)
    for planes in _planes_by_size(frames):
        count = planes.shape[0] // n
        samples = round_half_away(jnp.clip(planes, 0.0, float(max_sample(bit_depth))))
        tables = jnp.broadcast_to(jnp.repeat(table, count)[:, None], (n * count, 64))
        plane_bits = entropy_coded_bits(jnp.floor(samples * to_8_bits), tables)
        bits = bits + jnp.sum(plane_bits.reshape(n, count), axis=1)
    return bits.astype(jnp.float32)


def _floored(log_sum: jax.Array, frames: Frame) -> jax.Array:
    samples = sum(plane.shape[1] * plane.shape[2] for plane in frames.planes)
    return jnp.maximum(jax.lax.stop_gradient(log_sum), _MIN_LOG_PER_SAMPLE * samples)
