"""YOLOX detectors (Ge et al. 2021): what they are fed, the network, its boxes, and what a receiver takes from them.

The network is named after levels: level l has stride 2^l. Its layers, in the order in which they run: ``stem``,
``dark2.0`` … ``dark5.2`` (CSPDarknet); ``lateral5``, ``top_down4``, ``lateral4``, ``p3``, ``bottom_up4``, ``p4``,
``bottom_up5``, ``p5`` (the path-aggregating feature pyramid, whose outputs are p3, p4, p5); and for each level l of
these ``stem{l}``, ``cls_conv{l}.0``, ``cls_conv{l}.1``, ``cls{l}``, ``reg_conv{l}.0``, ``reg_conv{l}.1``, ``reg{l}``,
``obj{l}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import Receiver
from jaxwrap.tasks.blocks import Conv, Depthwise, max_pool, upsample
from jaxwrap.tasks.boxes import corners
from jaxwrap.tasks.detector import Candidates
from jaxwrap.tasks.network import IMAGES, Layer, Network
from jaxwrap.tasks.onnx_graph import Graph
from jaxwrap.tasks.pictures import PictureInput
from jaxwrap.tasks.weights import KeyMap, convolution, depthwise_convolution, load_state

INPUT = PictureInput(416, 416, order="bgr", fit="letterbox")
"""BGR in [0, 255], letterboxed: YOLOX-nano and -tiny as Megvii has exported them since 2021-08 (larger ones: 640)."""


LEVELS = (3, 4, 5)


@dataclasses.dataclass(frozen=True, slots=True)
class YoloxConfig:
    """Sizes of a YOLOX: ``width`` channels after the stem, ``depth`` bottlenecks in the smallest CSP layers;
    ``depthwise``: spatial convolutions are separable (nano)."""

    name: str = "yolox-nano"
    width: int = 16
    depth: int = 1
    depthwise: bool = True
    classes: int = 80


class Separable(nnx.Module):
    """Depthwise k×k, then 1×1, each with SiLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.depthwise = Depthwise(in_channels, kernel_size=3, stride=stride, activation="silu", rngs=rngs)
        self.pointwise = Conv(in_channels, out_channels, activation="silu", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → ``[N, H/stride, W/stride, O]``."""
        return self.pointwise(self.depthwise(x))


def _spatial(in_channels: int, out_channels: int, config: YoloxConfig, rngs: nnx.Rngs, stride: int = 1) -> nnx.Module:
    if config.depthwise:
        return Separable(in_channels, out_channels, stride=stride, rngs=rngs)
    return Conv(in_channels, out_channels, kernel_size=3, stride=stride, activation="silu", rngs=rngs)


class Focus(nnx.Module):
    """The four samples of each 2×2 cell as channels (top left, bottom left, top right, bottom right), then 3×3."""

    def __init__(self, out_channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(12, out_channels, kernel_size=3, activation="silu", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, 3]`` → ``[N, H/2, W/2, O]``."""
        return self.conv(jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], axis=-1))


class Bottleneck(nnx.Module):
    """1×1, then 3×3; added to its input where ``shortcut``."""

    def __init__(self, channels: int, shortcut: bool, *, config: YoloxConfig, rngs: nnx.Rngs):
        self.shortcut = shortcut
        self.conv1 = Conv(channels, channels, activation="silu", rngs=rngs)
        self.conv2 = _spatial(channels, channels, config, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → the same."""
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class Csp(nnx.Module):
    """Cross-stage partial layer: ``depth`` bottlenecks on one half of the channels, beside the other half.

    Takes one tensor, or two that are concatenated, the first being upsampled 2× before where ``top_down``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        shortcut: bool = False,
        top_down: bool = False,
        config: YoloxConfig,
        rngs: nnx.Rngs,
    ):
        hidden = out_channels // 2
        self.top_down = top_down
        self.conv1 = Conv(in_channels, hidden, activation="silu", rngs=rngs)
        self.conv2 = Conv(in_channels, hidden, activation="silu", rngs=rngs)
        self.m = nnx.List([Bottleneck(hidden, shortcut, config=config, rngs=rngs) for _ in range(depth)])
        self.conv3 = Conv(2 * hidden, out_channels, activation="silu", rngs=rngs)

    def __call__(self, x: jax.Array, *others: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` (in all) → ``[N, H, W, O]``."""
        x = jnp.concatenate([upsample(x) if self.top_down else x, *others], axis=-1)
        y = self.conv1(x)
        for bottleneck in self.m:
            y = bottleneck(y)
        return self.conv3(jnp.concatenate([y, self.conv2(x)], axis=-1))


class Spp(nnx.Module):
    """Spatial pyramid pooling: maxima of 5×5, 9×9 and 13×13 windows beside the samples themselves."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(channels, channels // 2, activation="silu", rngs=rngs)
        self.conv2 = Conv(2 * channels, channels, activation="silu", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[N, H, W, C]`` → the same."""
        x = self.conv1(x)
        pools = [x]
        for _ in range(3):  # a 5×5 maximum of a 5×5 maximum is a 9×9 one
            pools.append(max_pool(pools[-1], 5))
        return self.conv2(jnp.concatenate(pools, axis=-1))


class Yolox(Network):
    """YOLOX on images in the range of `INPUT`, sides multiples of 32.

    Raw outputs of each level l: ``reg{l}`` ``[N, H, W, 4]`` (tx, ty, tw, th), ``obj{l}`` ``[N, H, W, 1]`` and
    ``cls{l}`` ``[N, H, W, classes]``, both logits.
    """

    def __init__(self, config: YoloxConfig, *, rngs: nnx.Rngs):
        w, d = config.width, config.depth
        c3, c4, c5 = 4 * w, 8 * w, 16 * w

        def csp(
            in_channels: int, out_channels: int, depth: int, *, shortcut: bool = False, top_down: bool = False
        ) -> Csp:
            return Csp(in_channels, out_channels, depth, shortcut=shortcut, top_down=top_down, config=config, rngs=rngs)

        def conv(in_channels: int, out_channels: int) -> Conv:
            return Conv(in_channels, out_channels, activation="silu", rngs=rngs)

        layers: list[Layer] = [
            ("stem", (IMAGES,), Focus(w, rngs=rngs)),
            ("dark2.0", ("stem",), _spatial(w, 2 * w, config, rngs, 2)),
            ("dark2.1", ("dark2.0",), csp(2 * w, 2 * w, d, shortcut=True)),
            ("dark3.0", ("dark2.1",), _spatial(2 * w, c3, config, rngs, 2)),
            ("dark3.1", ("dark3.0",), csp(c3, c3, 3 * d, shortcut=True)),
            ("dark4.0", ("dark3.1",), _spatial(c3, c4, config, rngs, 2)),
            ("dark4.1", ("dark4.0",), csp(c4, c4, 3 * d, shortcut=True)),
            ("dark5.0", ("dark4.1",), _spatial(c4, c5, config, rngs, 2)),
            ("dark5.1", ("dark5.0",), Spp(c5, rngs=rngs)),
            ("dark5.2", ("dark5.1",), csp(c5, c5, d)),
            ("lateral5", ("dark5.2",), conv(c5, c4)),
            ("top_down4", ("lateral5", "dark4.1"), csp(2 * c4, c4, d, top_down=True)),
            ("lateral4", ("top_down4",), conv(c4, c3)),
            ("p3", ("lateral4", "dark3.1"), csp(2 * c3, c3, d, top_down=True)),
            ("bottom_up4", ("p3",), _spatial(c3, c3, config, rngs, 2)),
            ("p4", ("bottom_up4", "lateral4"), csp(2 * c3, c4, d)),
            ("bottom_up5", ("p4",), _spatial(c4, c4, config, rngs, 2)),
            ("p5", ("bottom_up5", "lateral5"), csp(2 * c4, c5, d)),
        ]
        for level, channels in zip(LEVELS, (c3, c4, c5), strict=True):
            layers.append((f"stem{level}", (f"p{level}",), conv(channels, c3)))
            for branch, made in (("cls", {"cls": config.classes}), ("reg", {"reg": 4, "obj": 1})):
                layers += [
                    (f"{branch}_conv{level}.0", (f"stem{level}",), _spatial(c3, c3, config, rngs)),
                    (f"{branch}_conv{level}.1", (f"{branch}_conv{level}.0",), _spatial(c3, c3, config, rngs)),
                ]
                for name, channels_out in made.items():
                    layers.append((f"{name}{level}", (f"{branch}_conv{level}.1",), Conv(c3, channels_out, rngs=rngs)))
        outputs = [f"{name}{level}" for level in LEVELS for name in ("reg", "obj", "cls")]
        super().__init__(config.name, layers, outputs=outputs, multiple=32)


def yolox_from_onnx(graph: Graph, config: YoloxConfig | None = None) -> Yolox:
    """The network with the weights of an export of Megvii's (`jaxwrap.train.onnx_models.read_onnx`), normalisation
    folded in by the exporter.

    Exporters number folded kernels; so these take the names that Megvii's own code gives to convolutions in the order
    in which they run. Those that kept their names must have the same. Raises `ValueError` as `load_state` does.
    """
    config = config or YoloxConfig()
    network = nnx.eval_shape(lambda: Yolox(config, rngs=nnx.Rngs(0)))
    sources = _convolutions(network)
    names = list(sources)
    arrays: dict[str, np.ndarray] = {}
    convolutions = [node for node in graph.nodes if node.op == "Conv"]
    for i, node in enumerate(convolutions):
        expected = names[i] if i < len(names) else f"convolution {i + 1}"
        for kind, tensor in zip(("weight", "bias"), node.inputs[1:], strict=False):
            if tensor in graph.constants:
                key = tensor if tensor.endswith(f".{kind}") else f"{expected}.{kind}"
                arrays[key] = graph.constants[tensor]
    key_map: KeyMap = {}
    for key, (path, separable) in sources.items():
        key_map |= (depthwise_convolution if separable else convolution)(path, key)
    load_state(network, arrays, key_map, source=f"the graph's {len(convolutions)} convolutions")
    return network


def decode(raw: Mapping[str, jax.Array]) -> Candidates:
    """Raw outputs of `Yolox` → boxes, scores (objectness × best class) and classes of all anchors: levels 3, 4, 5, each
    row by row. In cells of a level's grid: centre = cell + t_xy, size = exp(t_wh) (Ge et al., section 2.1)."""
    rows = raw_rows(raw)
    grids, strides = [], []
    for level in LEVELS:
        height, width = raw[f"reg{level}"].shape[1:3]
        y, x = np.mgrid[:height, :width]
        grids.append(np.stack([x, y], axis=-1).reshape(1, -1, 2))
        strides.append(np.full((1, height * width, 1), 2**level))
    grid, stride = (np.concatenate(v, axis=1).astype(rows.dtype) for v in (grids, strides))
    boxes = corners((rows[..., :2] + grid) * stride, jnp.exp(rows[..., 2:4]) * stride)
    scores = rows[..., 4:5] * rows[..., 5:]
    return boxes, scores.max(-1), jnp.argmax(scores, axis=-1).astype(jnp.int32)


def raw_rows(raw: Mapping[str, jax.Array]) -> jax.Array:
    """Raw outputs as the ``[N, anchors, 5 + classes]`` of Megvii's exports: tx, ty, tw, th, objectness and class
    probabilities."""

    def rows(level: int) -> jax.Array:
        parts = [raw[f"reg{level}"], jax.nn.sigmoid(raw[f"obj{level}"]), jax.nn.sigmoid(raw[f"cls{level}"])]
        joined = jnp.concatenate(parts, axis=-1)
        return joined.reshape(joined.shape[0], -1, joined.shape[-1])  # [N, H·W, 5 + classes]

    return jnp.concatenate([rows(level) for level in LEVELS], axis=1)


def _convolutions(network: Yolox) -> dict[str, tuple[str, bool]]:
    """Megvii's name of each convolution, in the order in which they run → (path of ours, whether it is depthwise)."""
    neck = {
        "lateral5": "lateral_conv0",
        "top_down4": "C3_p4",
        "lateral4": "reduce_conv1",
        "p3": "C3_p3",
        "bottom_up4": "bu_conv2",
        "p4": "C3_n3",
        "bottom_up5": "bu_conv1",
        "p5": "C3_n4",
    }
    found: dict[str, tuple[str, bool]] = {}

    def add(block: nnx.Module, path: str, name: str) -> None:
        if isinstance(block, Conv | Depthwise):
            found[name if "_preds." in name else f"{name}.conv"] = (path, isinstance(block, Depthwise))
            return
        parts: list[tuple[str, str, nnx.Module]]
        if isinstance(block, Separable):
            parts = [("depthwise", "dconv", block.depthwise), ("pointwise", "pconv", block.pointwise)]
        elif isinstance(block, Csp):
            parts = [("conv1", "conv1", block.conv1), ("conv2", "conv2", block.conv2)]
            parts += [(f"m.{i}", f"m.{i}", bottleneck) for i, bottleneck in enumerate(block.m)]
            parts += [("conv3", "conv3", block.conv3)]
        else:
            parts = [(part, part, getattr(block, part)) for part in ("conv", "conv1", "conv2") if hasattr(block, part)]
        for ours, theirs, part in parts:
            add(part, f"{path}.{ours}", f"{name}.{theirs}")

    for layer in network.layers:
        if layer in neck:
            name = f"backbone.{neck[layer]}"
        elif layer == "stem" or layer.startswith("dark"):
            name = f"backbone.backbone.{layer}"
        else:
            kind, _, index = layer.partition(".")
            kind, level = kind[:-1], int(kind[-1]) - LEVELS[0]
            theirs = {"stem": "stems", "cls_conv": "cls_convs", "reg_conv": "reg_convs"}.get(kind, f"{kind}_preds")
            name = f"head.{theirs}.{level}" + (f".{index}" if index else "")
        add(network.blocks[layer], f"blocks.{layer}", name)
    return found


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
