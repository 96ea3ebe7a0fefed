"""Switchable wrappers (SNW sections 3.1–3.2): a pre- and a post-processor for each of four resolutions.

Everything takes and gives normalised 4:2:0 frames (`jaxwrap.arrays`, range [−1, 1]). The pre-processor maps H×W of
luma to the bottleneck rH × rW, r ∈ {1/1, 2/3, 1/2, 1/4}; the post-processor maps it back. Networks see 4:2:0 as six
channels at H/2 × W/2: luma by space-to-depth, then U and V. Both start as the linear resampler they stand beside, and
learn a residual.

Figures 1b and 3 of the paper are lost, and with them the widths: those below are ours, the budget of the
post-processor is theirs (516 multiply–accumulates per output pixel, 8.2 K parameters; `PostConfig` says how
the widths were found).

A picture of any size is edge-padded only to what r and 4:2:0 need (`Wrapper.size_multiple`: 2, 6, 4, 8), so that the
codec sees little that is not picture; what a UNet needs beyond that is padded and cropped inside the networks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from jaxwrap.arrays import Frame, Yuv420, check_frame, crop_to, pad_to, size_of
from jaxwrap.wrappers.blocks import (
    ACTIVATIONS,
    Conv,
    Implementation,
    SeparableConv,
    check_activation,
    depth_to_space,
    space_to_depth,
)
from jaxwrap.wrappers.resample import RATIOS, Kind, check_kind, resample

CHANNELS = 6
"""Channels of a 4:2:0 frame at H/2 × W/2: four luma phases, U, V."""


@dataclasses.dataclass(frozen=True)
class PreConfig:
    """Shape of the pre-processor: UNet widths, finest level first; width of the MLP's two hidden layers; the linear
    shortcut's kernel.
    """

    widths: tuple[int, ...] = (16, 24, 32)
    mlp_width: int = 24
    shortcut: Kind = "lanczos4"
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        check_kind(self.shortcut)
        check_activation(self.activation)


@dataclasses.dataclass(frozen=True)
class PostConfig:
    """Shape of the post-processor's UNet.

    Per level, finest first: the width, the depthwise kernel and the number of blocks on the way down and on the way
    up (the coarsest level has only the former).

    The default is the best of three shapes that nearly exhaust both budgets, in one short run each: 400 Adam steps
    from the same seed on 128² crops of 96 COCO train2017 photographs, halved by Lanczos-4 and quantised by an 8×8
    DCT of flat step 10 (of 255); tested on 256² crops of the other 32. PSNR of Y, U, V in dB (bilinear upsampling
    27.60, 40.72, 41.30; Lanczos-4 28.36, 40.72, 41.31):

    | widths, kernels, encoder and decoder blocks | MAC/pixel | parameters | Y | U | V |
    |---|---|---|---|---|---|
    | (16, 28, 32), (3, 3, 3), (1, 0, 2), (1, 1) | 502 | 8002 | 28.48 | 40.76 | 41.27 |
    | (24, 28, 44), (3, 3, 3), (0, 0, 1), (1, 0) | 513 | 7958 | 28.47 | 40.74 | 41.25 |
    | (16, 28, 36), (5, 3, 3), (0, 0, 2), (1, 0) | 502 | 7982 | 28.45 | 40.72 | 41.28 |

    The differences are within what another seed may give: depth, width and kernel trade evenly here.
    """

    widths: tuple[int, ...] = (16, 28, 32)
    kernels: tuple[int, ...] = (3, 3, 3)
    encoder_blocks: tuple[int, ...] = (1, 0, 2)
    decoder_blocks: tuple[int, ...] = (1, 1)
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        levels = len(self.widths)
        if (len(self.kernels), len(self.encoder_blocks), len(self.decoder_blocks)) != (levels, levels, levels - 1):
            raise ValueError(
                f"{levels} widths were given with {len(self.kernels)} kernels, "
                f"{len(self.encoder_blocks)} encoder_blocks "
                f"and {len(self.decoder_blocks)} decoder_blocks; wanted {levels}, {levels} and {levels - 1}"
            )


@dataclasses.dataclass(frozen=True)
class WrapperConfig:
    """One mode: the ratio r, and for each side a network's configuration or the name of a linear resampler
    (`resample.KINDS`).

    ``WrapperConfig(r, "bilinear", "bilinear")`` is the linear baseline; r = 1 with linear sides is the codec alone;
    ``pre="lanczos4"`` with a `PostConfig` is the post-only wrapper.
    """

    ratio: Fraction = Fraction(1, 2)
    pre: PreConfig | Kind = PreConfig()
    post: PostConfig | Kind = PostConfig()

    def __post_init__(self) -> None:
        if self.ratio not in RATIOS:
            raise ValueError(
                f"ratio {self.ratio} was given; supported: {', '.join(map(str, RATIOS))} (as fractions.Fraction)"
            )
        for side in (self.pre, self.post):
            if isinstance(side, str):
                check_kind(side)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `from_dict` is the inverse."""
        return {"ratio": str(self.ratio), "pre": _side_to_json(self.pre), "post": _side_to_json(self.post)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WrapperConfig:
        """From what `to_dict` gave. Raises `ValueError` naming unknown fields and the known ones."""
        _check_fields(cls, values)
        sides: dict[str, Any] = {}
        for name, side_class in (("pre", PreConfig), ("post", PostConfig)):
            side = values.get(name, {})
            sides[name] = side if isinstance(side, str) else _side_from_json(side_class, side)
        return cls(Fraction(values.get("ratio", "1/2")), **sides)


def _side_to_json(side: PreConfig | PostConfig | Kind) -> Any:
    if isinstance(side, str):
        return side
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(side).items()}


def _side_from_json(cls: type, values: Mapping[str, Any]) -> Any:
    _check_fields(cls, values)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check_fields(cls: type, values: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{cls.__name__} was given {', '.join(unknown)}; its fields are {', '.join(known)}")


def frame_to_channels(frame: Yuv420) -> jax.Array:
    """4:2:0 frame → ``[N, H/2, W/2, 6]``: luma samples (0, 0), (0, 1), (1, 0), (1, 1) of each 2×2 cell, then U, V."""
    y = space_to_depth(frame.y[..., None], 2)
    return jnp.concatenate([y, frame.u[..., None], frame.v[..., None]], axis=-1)


def channels_to_frame(x: jax.Array) -> Yuv420:
    """Inverse of `frame_to_channels`."""
    return Yuv420(depth_to_space(x[..., :4], 2)[..., 0], x[..., 4], x[..., 5])


class PreProcessor(nnx.Module):
    """Normalised 4:2:0 at H×W → the same at rH × rW (SNW figure 1b): linear resampling + UNet + three-layer MLP of
    1×1 convolutions.

    For r = a/b both networks work on cells of b×b positions of the six-channel map: the first layer has stride b
    (kernel b), the last one is transposed with stride a (kernel a). ``dtype`` is that of the computation; parameters
    are float32. The linear shortcut is our choice: with the last layers zero at the start, training begins at linear
    downsampling.
    """

    def __init__(self, config: PreConfig, *, ratio: Fraction, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config, self.ratio, self.dtype = config, ratio, dtype
        self.activation = ACTIVATIONS[config.activation]
        a, b = ratio.numerator, ratio.denominator
        w = config.widths
        into, out = CHANNELS * b * b, CHANNELS * a * a
        self.mlp = nnx.List(
            [
                Conv(into, config.mlp_width, rngs=rngs),
                Conv(config.mlp_width, config.mlp_width, rngs=rngs),
                Conv(config.mlp_width, out, zero=True, rngs=rngs),
            ]
        )
        self.entry = Conv(into, w[0], rngs=rngs)
        self.encoder = nnx.List([Conv(c, c, kernel_size=3, rngs=rngs) for c in w])
        self.down = nnx.List([Conv(c, d, kernel_size=2, stride=2, rngs=rngs) for c, d in itertools.pairwise(w)])
        self.up = nnx.List([Conv(d, c, rngs=rngs) for c, d in itertools.pairwise(w)])
        self.decoder = nnx.List([Conv(c, c, kernel_size=3, rngs=rngs) for c in w[:-1]])
        self.exit = Conv(w[0], out, zero=True, rngs=rngs)

    def __call__(self, frame: Frame) -> Yuv420:
        """H and W of luma must be multiples of 2b."""
        frame = _as_yuv420(frame, "the pre-processor")
        h, w = size_of(frame)
        a, b = self.ratio.numerator, self.ratio.denominator
        if h % (2 * b) or w % (2 * b):
            raise ValueError(
                f"a frame of {w}×{h} was given; ratio {self.ratio} wants multiples of {2 * b}: "
                "use Wrapper.pre, which pads"
            )
        linear = resample(frame, h * a // b, w * a // b, self.config.shortcut)
        cells = space_to_depth(frame_to_channels(frame).astype(self.dtype), b)  # [N, H/2b, W/2b, 6·b·b]
        residual = depth_to_space(self._mlp(cells) + self._unet(cells), a)  # [N, rH/2, rW/2, 6]
        return _add(linear, channels_to_frame(residual.astype(frame.y.dtype)))

    def _mlp(self, x: jax.Array) -> jax.Array:
        first, second, last = self.mlp
        return last(self.activation(second(self.activation(first(x)))))

    def _unet(self, x: jax.Array) -> jax.Array:
        act = self.activation
        x, size = _pad_map(x, 2 ** len(self.down))
        x = act(self.entry(x))
        skips = []
        for encoder, down in zip(self.encoder, self.down, strict=False):
            x = act(encoder(x))
            skips.append(x)
            x = act(down(x))
        x = act(self.encoder[-1](x))
        for up, decoder, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            x = act(decoder(skip + _double(up(x))))
        return self.exit(x)[:, : size[0], : size[1]]


class PostProcessor(nnx.Module):
    """Normalised 4:2:0 of any ratio's bottleneck → the same at H×W (SNW figure 3, section 3.2).

    Bilinear resampling to H×W; a UNet of depthwise k×k and 1×1 convolutions on six channels at H/2 × W/2; its output
    added to Y, and to U and V after a learned 3×3 (initially the identity). The UNet's last layer starts at zero, so
    the function begins as bilinear upsampling. Architecture and size are the same at every ratio. ``dtype`` is that
    of the computation; parameters are float32.
    """

    def __init__(
        self,
        config: PostConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        implementation: Implementation = "shift",
    ):
        self.config, self.dtype = config, dtype
        self.activation = ACTIVATIONS[config.activation]
        w, k = config.widths, config.kernels
        levels = range(len(w) - 1)

        def separable(c: int, d: int, kernel_size: int, **options: Any) -> SeparableConv:
            return SeparableConv(c, d, kernel_size=kernel_size, implementation=implementation, rngs=rngs, **options)

        def blocks(counts: tuple[int, ...]) -> nnx.List[Any]:
            return nnx.List([nnx.List([separable(w[i], w[i], k[i]) for _ in range(n)]) for i, n in enumerate(counts)])

        self.entry = separable(CHANNELS, w[0], k[0])
        self.encoder = blocks(config.encoder_blocks)
        self.down = nnx.List([separable(w[i], w[i + 1], 2, stride=2) for i in levels])
        self.up = nnx.List([Conv(w[i + 1], w[i], rngs=rngs) for i in levels])
        self.decoder = blocks(config.decoder_blocks)
        self.exit = separable(w[0], CHANNELS, k[0], zero=True)
        self.chroma = Conv(2, 2, kernel_size=3, zero=True, rngs=rngs)
        identity = np.zeros((3, 3, 2, 2), np.float32)
        identity[1, 1] = np.eye(2)
        self.chroma.kernel[...] = jnp.asarray(identity)

    def __call__(self, frame: Frame, height: int, width: int) -> Yuv420:
        """``height`` and ``width`` of the output luma are even, and a whole number of the ratio's cells."""
        return self.enhance(resample(frame, height, width, "bilinear"))

    def enhance(self, frame: Frame) -> Yuv420:
        """The network proper, after resampling: H×W → H×W."""
        frame = _as_yuv420(frame, "the post-processor")
        x = frame_to_channels(frame).astype(self.dtype)
        residual = channels_to_frame(self._unet(x).astype(frame.y.dtype))
        uv = self.chroma(x[..., 4:]).astype(frame.y.dtype)
        return _add(Yuv420(frame.y, uv[..., 0], uv[..., 1]), residual)

    def _unet(self, x: jax.Array) -> jax.Array:
        act = self.activation
        x, size = _pad_map(x, 2 ** len(self.down))
        x = act(self.entry(x))
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=False):
            for block in blocks:
                x = act(block(x))
            skips.append(x)
            x = act(down(x))
        for block in self.encoder[-1]:
            x = act(block(x))
        for up, blocks, skip in reversed(list(zip(self.up, self.decoder, skips, strict=True))):
            x = skip + _double(up(x))
            for block in blocks:
                x = act(block(x))
        return self.exit(x)[:, : size[0], : size[1]]


class Wrapper(nnx.Module):
    """A pre- and a post-processor of one ratio for pictures of any even size; either side may be linear
    (`WrapperConfig`).

    As the two callables of a sandwich::

        h, w = size_of(frames)
        Sandwich(wrapper.pre, functools.partial(wrapper.post, size=(h, w)))
    """

    def __init__(self, config: WrapperConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.config = config
        pre, post = config.pre, config.post
        self.pre_network = (
            PreProcessor(pre, ratio=config.ratio, rngs=rngs, dtype=dtype) if isinstance(pre, PreConfig) else None
        )
        self.post_network = PostProcessor(post, rngs=rngs, dtype=dtype) if isinstance(post, PostConfig) else None

    @property
    def size_multiple(self) -> int:
        """Pictures are padded to multiples of this: 2b for r = a/b, so that planes of both sizes are whole."""
        return 2 * self.config.ratio.denominator

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of luma after padding, before downsampling."""
        m = self.size_multiple
        return -(-height // m) * m, -(-width // m) * m

    def bottleneck_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of luma that the codec sees for a picture of ``height × width``."""
        h, w = self.padded_size(height, width)
        return int(h * self.config.ratio), int(w * self.config.ratio)

    def pre(self, frame: Frame) -> Frame:
        """Normalised frame → bottleneck. Raises `ValueError` for 4:0:0 where the pre-processor is a network."""
        padded = pad_to(frame, *self.padded_size(*size_of(frame)))
        if self.pre_network is not None:
            return self.pre_network(padded)
        assert isinstance(self.config.pre, str)
        return resample(padded, *self.bottleneck_size(*size_of(frame)), self.config.pre)

    def post(self, frame: Frame, *, size: tuple[int, int]) -> Frame:
        """Bottleneck → frame of ``size`` = (height, width), the size that `pre` was given. Raises `ValueError` where
        they do not fit.
        """
        expected = self.bottleneck_size(*size)
        if size_of(frame) != expected:
            raise ValueError(
                f"a bottleneck of {size_of(frame)} was given; ratio {self.config.ratio} and pictures of {tuple(size)} "
                f"want {expected} (height, width)"
            )
        padded = self.padded_size(*size)
        if self.post_network is not None:
            return crop_to(self.post_network(frame, *padded), *size)
        assert isinstance(self.config.post, str)
        return crop_to(resample(frame, *padded, self.config.post), *size)


def wrapper_from_config(
    config: WrapperConfig | Mapping[str, Any], *, rngs: nnx.Rngs | None = None, dtype: DTypeLike = jnp.float32
) -> Wrapper:
    """Builds a wrapper from its configuration or the dict of `WrapperConfig.to_dict`; ``rngs`` (default: seed 0)
    draws its parameters.
    """
    if not isinstance(config, WrapperConfig):
        config = WrapperConfig.from_dict(config)
    return Wrapper(config, rngs=nnx.Rngs(0) if rngs is None else rngs, dtype=dtype)


def linear_wrapper(kind: Kind, ratio: Fraction) -> Wrapper:
    """The linear baseline of SNW section 4: the same filter down and up; the identity at ratio 1."""
    return wrapper_from_config(WrapperConfig(ratio, kind, kind))


def _as_yuv420(frame: Frame, who: str) -> Yuv420:
    if not isinstance(frame, Yuv420):
        raise ValueError(
            f"a 4:0:0 frame was given to {who}, whose network takes 4:2:0: "
            "add neutral chroma planes, or use a linear wrapper"
        )
    check_frame(frame)
    return frame


def _add(a: Frame, b: Frame) -> Yuv420:
    total = jax.tree.map(jnp.add, a, b)
    assert isinstance(total, Yuv420)
    return total


def _double(x: jax.Array) -> jax.Array:
    """Repeats every position 2×2."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


def _pad_map(x: jax.Array, multiple: int) -> tuple[jax.Array, tuple[int, int]]:
    """Edge-replicates a map to multiples; also gives the size to crop back to."""
    _, h, w, _ = x.shape
    pad = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
    return jnp.pad(x, pad, mode="edge"), (h, w)
