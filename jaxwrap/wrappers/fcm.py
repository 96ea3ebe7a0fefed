"""Wrappers of feature coding for machines (FCM): features of several scales ↔ one packed frame (WA-RDO, figure 1).

    features y, a map per scale ─► reduce ─► latents [N, h, w, C] at one stride ─► packed frame ─► codec
                                                       restored features ŷ ◄─ restore ◄─ unpack ◄──┘

Both sides are a linear map beside a small residual network, which starts at zero: so a wrapper starts where the best
linear one stands (the principal components of the features, `FcmWrapper.start_linear`), as switchable wrappers start at
the resampler they stand beside. Scales meet at the latents' stride: finer ones by space-to-depth, coarser ones
repeated.

Latents are normalised, [−1, 1] being the codec's full range; what lies outside is clipped by the codec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Array, Frame, Yuv400
from jaxwrap.importance.gram import ChannelTransform, channel_transform
from jaxwrap.packing import TileLayout, from_tiles, pack, spread, to_tiles, unpack
from jaxwrap.pipeline import Sandwich
from jaxwrap.samples import max_sample
from jaxwrap.wrappers.blocks import ACTIVATIONS, check_activation, depth_to_space, depthwise, space_to_depth

Features = Mapping[str, Any]
"""A network's features by the names of their layers: ``[N, H / stride, W / stride, channels]`` each, NHWC."""

Statistics = dict[str, Any]
"""Of each scale, ``[N, 2]``: mean and standard deviation over a picture's channels and positions, as a decoder reads
them (bfloat16). Empty where a wrapper sends none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """One tensor of features: the layer's name, its channels, and how many pixels of the network's input a position
    stands for."""

    name: str
    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class FcmConfig:
    """Shape of a wrapper.

    ``network`` and ``split`` name the detector and the layer behind which it is cut. ``statistics``: ``"picture"``
    sends mean and deviation of each scale of each picture, 32 bits a scale, and normalises by them (global statistics
    preservation); ``"none"`` normalises by constants of training. ``width`` and ``blocks``: hidden channels and
    residual blocks of each side.
    """

    network: str
    split: str
    scales: tuple[Scale, ...]
    latent_channels: int = 112
    latent_stride: int = 16
    width: int = 128
    blocks: int = 2
    activation: str = "leaky_relu"
    bit_depth: int = 10
    statistics: Literal["none", "picture"] = "none"

    def __post_init__(self) -> None:
        problems = []
        if not self.scales:
            problems.append("no scales: wanted at least one tensor of features")
        for scale in self.scales:
            if max(scale.stride, self.latent_stride) % min(scale.stride, self.latent_stride):
                problems.append(
                    f"scale {scale.name} has stride {scale.stride}, which does not divide, nor is divided by, "
                    f"latent_stride={self.latent_stride}"
                )
        for name in ("latent_channels", "latent_stride", "width", "blocks"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: wanted at least 1")
        if self.statistics not in ("none", "picture"):
            problems.append(f"statistics={self.statistics!r}: wanted none or picture")
        if problems:
            raise ValueError("this feature wrapper cannot be built:\n  " + "\n  ".join(problems))
        check_activation(self.activation)
        max_sample(self.bit_depth)

    @property
    def stacked_channels(self) -> int:
        """Channels of all scales at the latents' stride."""
        return sum(scale.channels * max(1, self.latent_stride // scale.stride) ** 2 for scale in self.scales)

    @property
    def sample_ratio(self) -> float:
        """Samples of latents over samples of features."""
        features = sum(scale.channels / scale.stride**2 for scale in self.scales)
        return self.latent_channels / self.latent_stride**2 / features

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; `from_dict` is the inverse."""
        return dataclasses.asdict(self) | {"scales": [dataclasses.asdict(scale) for scale in self.scales]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FcmConfig:
        """From what `to_dict` gave. Raises `ValueError` naming unknown fields and the known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown fields {', '.join(unknown)}; a feature wrapper has {', '.join(sorted(known))}")
        return cls(**{**values, "scales": tuple(Scale(**scale) for scale in values["scales"])})


class _Block(nnx.Module):
    """x + MLP(depthwise 3×3(x)), the identity at the start."""

    def __init__(self, width: int, activation: str, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[activation]
        init = nnx.initializers.he_uniform()
        self.spatial = nnx.Param(nnx.initializers.uniform(0.3)(rngs.params(), (3, 3, width)))
        self.expand = nnx.Param(init(rngs.params(), (width, width)))
        self.expand_bias = nnx.Param(jnp.zeros(width))
        self.project = nnx.Param(jnp.zeros((width, width)))
        self.project_bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = depthwise(x, self.spatial[...])
        hidden = self.activation(hidden @ self.expand[...] + _row(self.expand_bias))
        return x + hidden @ self.project[...] + _row(self.project_bias)


class _Side(nnx.Module):
    """Linear map and residual network, ``[N, h, w, in]`` → ``[N, h, w, out]``."""

    def __init__(self, config: FcmConfig, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.linear = nnx.Param(init(rngs.params(), (in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.first = nnx.Param(init(rngs.params(), (in_channels, config.width)))
        self.first_bias = nnx.Param(jnp.zeros(config.width))
        self.blocks = nnx.List([_Block(config.width, config.activation, rngs=rngs) for _ in range(config.blocks)])
        self.last = nnx.Param(jnp.zeros((config.width, out_channels)))

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x @ self.first[...] + _row(self.first_bias)
        for block in self.blocks:
            hidden = block(hidden)
        return x @ self.linear[...] + _row(self.bias) + hidden @ self.last[...]


def _row(parameter: Any) -> jax.Array:
    return parameter[...].reshape(1, 1, 1, -1)


class FcmWrapper(nnx.Module):
    """Reducing and restoring network of one detector's features.

    ``feature_mean`` ``[channels]`` and ``feature_rms`` ``[1]`` per scale are constants of the training features (mean
    per channel; root of the mean square of the scale), by which networks and metric are normalised. ``transform``
    ``[C, C]`` with inverse ``restoring_transform`` acts on the latents of every position, last before packing and first
    after unpacking: the identity, or a KLT that training estimates as it goes; `folded` moves it into the layers.
    """

    def __init__(self, config: FcmConfig, *, rngs: nnx.Rngs):
        self.config = config
        stacked, latent = config.stacked_channels, config.latent_channels
        self.feature_mean = nnx.Dict({scale.name: nnx.Param(jnp.zeros(scale.channels)) for scale in config.scales})
        self.feature_rms = nnx.Dict({scale.name: nnx.Param(jnp.ones(1)) for scale in config.scales})
        self.reducer = _Side(config, stacked, latent, rngs=rngs)
        self.restorer = _Side(config, latent, stacked, rngs=rngs)
        self.transform = nnx.Param(jnp.eye(latent))
        self.restoring_transform = nnx.Param(jnp.eye(latent))

    def layout(self, features: Features) -> TileLayout:
        """Where the latents of these features lie in a packed frame. Raises `ValueError` for features of other layers,
        channels or sizes."""
        height, width = self._latent_size(features)
        return TileLayout(self.config.latent_channels, height, width)

    def statistics(self, features: Features) -> Statistics:
        """Global statistics of each picture, rounded as they are coded; empty for ``statistics="none"``."""
        if self.config.statistics == "none":
            return {}
        found = {}
        for name, x in self._normalised(features).items():
            mean = jnp.mean(x, axis=(1, 2, 3))
            deviation = jnp.maximum(jnp.std(x, axis=(1, 2, 3)), 1e-3)
            both = jnp.stack([mean, deviation], axis=-1)
            found[name] = both.astype(jnp.bfloat16).astype(both.dtype)
        return found

    def statistics_bits(self) -> int:
        """Bits of a picture's statistics: two bfloat16 per scale, or 0."""
        return 0 if self.config.statistics == "none" else 32 * len(self.config.scales)

    def reduce(self, features: Features, statistics: Statistics) -> Yuv400:
        """Features → packed frame of normalised latents, not clipped."""
        return pack(self.latents(features, statistics), self.layout(features))

    def latents(self, features: Features, statistics: Statistics) -> jax.Array:
        """Features → latents ``[N, h, w, C]``, in [−1, 1] but for what the codec will clip."""
        return self.latents_before_transform(features, statistics) @ self.transform[...]

    def latents_before_transform(self, features: Features, statistics: Statistics) -> jax.Array:
        """What the reducing network itself gives, ``[N, h, w, C]``: of this, training estimates its KLT."""
        self._latent_size(features)
        x = self._normalised(features)
        for name, values in statistics.items():
            mean, deviation = (values[:, i].reshape(-1, 1, 1, 1) for i in range(2))
            x[name] = (x[name] - mean) / deviation
        return jnp.asarray(self.reducer(self._stack(x)))

    def restore(self, frame: Frame, statistics: Statistics, layout: TileLayout) -> dict[str, jax.Array]:
        """Packed frame of normalised latents → features of all scales."""
        return self.features(unpack(frame, layout), statistics)

    def features(self, latents: Array, statistics: Statistics) -> dict[str, jax.Array]:
        """Latents ``[N, h, w, C]`` → features of all scales, in the network's own units."""
        x = self._unstack(self.restorer(jnp.asarray(latents) @ self.restoring_transform[...]))
        for name, values in statistics.items():
            mean, deviation = (values[:, i].reshape(-1, 1, 1, 1) for i in range(2))
            x[name] = x[name] * deviation + mean
        return {name: value * _row(self.feature_rms[name]) + _row(self.feature_mean[name]) for name, value in x.items()}

    def metric(self, features: Features) -> dict[str, np.ndarray]:
        """The metric M of features: 1 / (mean square of the scale on training data), ``[1]`` per scale, so that scales
        of large values do not rule. For `importance_map` and `feature_snr`."""
        return {name: np.asarray(1.0 / np.square(np.asarray(self.feature_rms[name][...]))) for name in features}

    def sandwich(self, features: Features) -> Sandwich:
        """The sandwich for pictures with these features: ``pre`` takes features, ``post`` gives them.

        The statistics of these very pictures are inside both sides, as they are known to encoder and decoder alike.
        """
        statistics = self.statistics(features)
        graph, state = nnx.split(self)
        layout = self.layout(features)
        return Sandwich(
            jax.tree_util.Partial(_Reduce(graph), state, statistics),
            jax.tree_util.Partial(_Restore(graph, layout), state, statistics),
            self.config.bit_depth,
        )

    def start_linear(self, mean: Mapping[str, Any], rms: Mapping[str, float], covariance: Any, *, reach: float) -> None:
        """Sets the constants and the linear maps to the principal components: the best linear wrapper in the metric M.

        Args:
          mean, rms: of the training features, per scale: ``[channels]`` and a number.
          covariance: of the stacked, normalised features (`stacked`), ``[D, D]``.
          reach: standard deviation of the first component in latents; leave room, for they are clipped at 1.
        """
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        count = self.config.latent_channels
        basis = vectors[:, ::-1][:, :count]  # [D, C], largest variance first
        signs = np.sign(basis[np.abs(basis).argmax(0), np.arange(count)])
        gain = reach / np.sqrt(values[-1])
        self.reducer.linear[...] = jnp.asarray(basis * signs * gain, jnp.float32)
        self.restorer.linear[...] = jnp.asarray((basis * signs / gain).T, jnp.float32)
        self.set_constants(mean, rms)

    def set_constants(self, mean: Mapping[str, Any], rms: Mapping[str, float]) -> None:
        """Sets what features are normalised by."""
        for name in self.feature_mean:
            self.feature_mean[name][...] = jnp.asarray(mean[name], jnp.float32)
            self.feature_rms[name][...] = jnp.full(1, rms[name], jnp.float32)

    def stacked(self, features: Features) -> jax.Array:
        """Normalised features of all scales at the latents' stride, ``[N, h, w, D]``: their squares sum to the squares
        of all normalised features."""
        return self._stack(self._normalised(features))

    def folded(self, transform: ChannelTransform | None = None) -> FcmWrapper:
        """The same wrapper with its own transform, and then ``transform`` (of samples of the bit depth), inside the
        linear layers: neither side costs anything more for it."""
        graph, state = nnx.split(self)
        new = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))
        a = np.asarray(self.transform[...], np.float64)
        b = np.asarray(self.restoring_transform[...], np.float64)
        before, after = np.zeros(len(a)), np.zeros(len(a))
        if transform is not None:
            half = max_sample(self.config.bit_depth) / 2
            own = transform.conjugate(half, half)  # in normalised latents
            forward, backward = own.scale * own.matrix, own.inverse / own.scale
            a, b = a @ forward.T, backward.T @ b
            before = own.offset - forward @ own.mean
            after = own.mean - backward @ own.offset

        def times(left: Any, right: np.ndarray) -> jax.Array:
            return jnp.asarray(np.asarray(left, np.float64) @ right, jnp.float32)

        new.reducer.linear[...] = times(self.reducer.linear[...], a)
        new.reducer.last[...] = times(self.reducer.last[...], a)
        new.reducer.bias[...] = times(self.reducer.bias[...], a) + jnp.asarray(before, jnp.float32)
        unfolded = np.asarray(self.restoring_transform[...], np.float64)
        for kernel, bias in (("linear", "bias"), ("first", "first_bias")):
            k = np.asarray(getattr(self.restorer, kernel)[...], np.float64)
            getattr(new.restorer, kernel)[...] = jnp.asarray(b @ k, jnp.float32)
            getattr(new.restorer, bias)[...] = getattr(self.restorer, bias)[...] + times(after @ unfolded, k)
        identity = jnp.eye(len(a))
        new.transform[...], new.restoring_transform[...] = identity, identity
        return new

    def _latent_size(self, features: Features) -> tuple[int, int]:
        config = self.config
        faults, sizes = [], set()
        for scale in config.scales:
            shape = getattr(features.get(scale.name), "shape", None)
            if shape is None or len(shape) != 4 or shape[3] != scale.channels:
                faults.append(f"{scale.name} is {shape}, wanted [N, h, w, {scale.channels}]")
                continue
            pixels = shape[1] * scale.stride, shape[2] * scale.stride
            sizes.add(pixels)
            if pixels[0] % config.latent_stride or pixels[1] % config.latent_stride:
                faults.append(f"{scale.name} covers {pixels[1]}×{pixels[0]}, no multiple of {config.latent_stride}")
        if len(sizes) > 1:
            faults.append(f"scales cover {', '.join(f'{w}×{h}' for h, w in sorted(sizes))}: wanted one size for all")
        if faults:
            raise ValueError(f"features do not fit this wrapper of {config.network}:\n  " + "\n  ".join(faults))
        (height, width) = sizes.pop()
        return height // config.latent_stride, width // config.latent_stride

    def _normalised(self, features: Features) -> dict[str, jax.Array]:
        return {
            scale.name: (jnp.asarray(features[scale.name]) - _row(self.feature_mean[scale.name]))
            / _row(self.feature_rms[scale.name])
            for scale in self.config.scales
        }

    def _stack(self, x: Features) -> jax.Array:
        parts = []
        for scale in self.config.scales:
            part = x[scale.name]
            if scale.stride <= self.config.latent_stride:
                part = space_to_depth(part, self.config.latent_stride // scale.stride)
            else:
                times = scale.stride // self.config.latent_stride
                part = jnp.repeat(jnp.repeat(part, times, axis=1), times, axis=2) / times
            parts.append(part)
        return jnp.concatenate(parts, axis=-1)

    def _unstack(self, x: jax.Array) -> dict[str, jax.Array]:
        found, start = {}, 0
        for scale in self.config.scales:
            finer = max(1, self.config.latent_stride // scale.stride)
            part = x[..., start : start + scale.channels * finer**2]
            start += part.shape[-1]
            if scale.stride <= self.config.latent_stride:
                found[scale.name] = depth_to_space(part, finer)
            else:
                times = scale.stride // self.config.latent_stride
                n, h, w, c = part.shape
                cells = part.reshape(n, h // times, times, w // times, times, c)
                found[scale.name] = jnp.mean(cells, axis=(2, 4)) * times
        return found


POWERS = (0.0, 0.25, 0.5)
"""Powers p of the channels' Gram that `FcmTuning.fold` offers."""


@dataclasses.dataclass(frozen=True)
class FcmTuning:
    """What allocation methods freeze for one wrapper, from training pictures; float64, per latent channel, so that it
    serves pictures of any size.

    ``mean`` ``[C]`` and ``covariance`` ``[C, C]`` of the packed samples; ``gram`` ``[C, C]``, mean over positions of
    the channels' Gram of J, sketched (its diagonal is the frozen importance map, one weight per channel);
    ``calibrated_weights`` ``[C]``, from an encoder's own errors at a middle QP. ``matrices``, ``scales``, ``offsets``:
    A, s and the offsets of `ChannelTransform` for each power of `POWERS`, in this order, fitted to the codec's range.
    """

    mean: np.ndarray
    covariance: np.ndarray
    gram: np.ndarray
    calibrated_weights: np.ndarray
    matrices: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    def fwa(self, layout: TileLayout) -> Yuv400:
        """The frozen map h of FWA (WA-RDO section 3), constant on each tile and 0 in its padding, which no receiver
        sees: one raw map for frames of this layout."""
        return _on_tiles(np.diag(self.gram), layout)

    def calibrated(self, layout: TileLayout) -> Yuv400:
        """The calibrated weights, one per tile, likewise."""
        return _on_tiles(np.maximum(self.calibrated_weights, 0.0), layout)

    def fold(self, layout: TileLayout, power: float = 0.25) -> ChannelTransform:
        """KLT after G^power of the latents' channels. Raises `ValueError` for a power that was not prepared."""
        if power not in POWERS:
            raise ValueError(f"power {power:g} was given; this wrapper was tuned for {', '.join(map(str, POWERS))}")
        i = POWERS.index(power)
        transform = channel_transform(self.matrices[i], self.mean, layout)
        return dataclasses.replace(transform, scale=float(self.scales[i]), offset=self.offsets[i])

    @property
    def eigenvalue_spread(self) -> float:
        """Largest over smallest eigenvalue of the latents' covariance: what a codec cannot see between tiles."""
        values = np.linalg.eigvalsh(self.covariance)
        return float(values[-1] / max(values[0], values[-1] * 1e-12))


def _on_tiles(values: np.ndarray, layout: TileLayout) -> Yuv400:
    tiles = to_tiles(spread(values[None].astype(np.float32), layout), layout).copy()
    tiles[:, layout.height :] = 0.0
    tiles[:, :, layout.width :] = 0.0
    return from_tiles(tiles, layout)


@dataclasses.dataclass(frozen=True)
class _Reduce:
    graph: Any

    def __call__(self, state: Any, statistics: Statistics, features: Features) -> Yuv400:
        return nnx.merge(self.graph, state).reduce(features, statistics)


@dataclasses.dataclass(frozen=True)
class _Restore:
    graph: Any
    layout: TileLayout

    def __call__(self, state: Any, statistics: Statistics, frame: Frame) -> dict[str, jax.Array]:
        return nnx.merge(self.graph, state).restore(frame, statistics, self.layout)
