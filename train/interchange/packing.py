"""Features as CompressAI-Vision packs them for a video encoder: a raw 4:0:0 file and a JSON file of sizes.

Matched to its repository at commit 31165daf62af4e7fff02b39ba23b39e8c24278b1 (``codecs/utils.py``, ``utils/dataio.py``,
``codecs/std_codecs.py``):

* Layers lie below each other, the largest first, all as wide as the first. A layer of C channels h × w is a raster of
  tiles without padding: with s the largest divisor of C that is ≤ √C, it is s tiles wide and C / s high (the other way
  round where h > w), and where that is r times narrower than the first layer, r times as many tiles wide.
* Samples are ⌊(2^d − 1) · clip((x − min) / (max − min), 0, 1)⌋ in float32, one range for all layers and frames;
  their inverse is x = s / (2^d − 1) · (max − min) + min. Rounding down costs half a step on average; samples that were
  made into features and back may be one lower. `PackedFeatures` therefore holds samples, which files keep exactly.
* On disk the frame has even sides, filled up at the bottom and right by the sample of 0; 10 bits lie in two
  little-endian bytes.
* The JSON file has ``fpn`` (layer → ``[1, C, h, w]``) and ``subframe_heights`` (layer → rows of the frame), in the
  order of packing.

What we do not do: guess the range from the name of the data set (`PUBLISHED_RANGES` are its own numbers, that of
mpeg-oiv6-detection included, whose lower end has lost its sign); tell the encoder the size without the filling; store
features as PyTorch pickles.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxwrap.codecs.files import write_atomically
from jaxwrap.codecs.reference.yuv import YuvFormat, read_yuv

PUBLISHED_RANGES = {
    "mpeg-oiv6-detection": (20.246625900268555, 28.397470474243164),
    "mpeg-oiv6-segmentation": (-26.426828384399414, 28.397470474243164),
    "mpeg-oiv6-sam": (-26.426828384399414, 28.397470474243164),
    "MPEGTVDTRACKING": (-4.722218990325928, 48.58344268798828),
    "MPEGHIEVE": (-1.0795, 11.8232),
    "SFUHW": (-17.8848, 16.69418),
    "PANDASET": (-30.0, 30.0),
}
"""(min, max) of the features of CompressAI-Vision's networks on its data sets."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A tensor of a feature pyramid: ``channels`` of ``height`` × ``width``."""

    name: str
    channels: int
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tiles in a frame of its own."""
        short = next(n for n in range(math.isqrt(self.channels), 0, -1) if self.channels % n == 0)
        long = self.channels // short
        return (short, long) if self.height > self.width else (long, short)


@dataclasses.dataclass(frozen=True, slots=True)
class PyramidLayout:
    """Where layers lie in a frame; ``layers`` in the order of packing. Made by `of`."""

    layers: tuple[Layer, ...]

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, int, int]]) -> PyramidLayout:
        """Layout of layers given as name → (C, h, w), in any order.

        Raises `ValueError` listing the layers that do not fill the width of the largest.
        """
        if not shapes:
            raise ValueError("no layer was given; wanted at least one, as (channels, height, width)")
        layers = [Layer(name, *shape) for name, shape in shapes.items()]
        layers.sort(key=lambda layer: layer.channels * layer.height * layer.width, reverse=True)
        layout = PyramidLayout(tuple(layers))
        if bad := [layer for layer in layers if not layout._fits(layer)]:
            raise ValueError(
                f"these layers cannot be tiled to the width {layout.width} of the largest: "
                + ", ".join(f"{b.name} ({b.channels} of {b.height}×{b.width})" for b in bad)
                + "; their widths have to be halves, quarters … of its own, with as many channels times 2, 4 …"
            )
        return layout

    @property
    def width(self) -> int:
        """Width of the frame."""
        return self.layers[0].grid[1] * self.layers[0].width

    @property
    def heights(self) -> tuple[int, ...]:
        """Rows of the frame that each layer takes."""
        return tuple(self._grid(layer)[0] * layer.height for layer in self.layers)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frame."""
        return sum(self.heights), self.width

    @property
    def size_on_disk(self) -> tuple[int, int]:
        """(height, width) with even sides."""
        return self.size[0] + self.size[0] % 2, self.size[1] + self.size[1] % 2

    def _repeat(self, layer: Layer) -> int:
        return self.width // (layer.grid[1] * layer.width)

    def _grid(self, layer: Layer) -> tuple[int, int]:
        rows, columns = layer.grid
        repeat = self._repeat(layer)
        return rows // repeat, columns * repeat

    def _fits(self, layer: Layer) -> bool:
        repeat = self._repeat(layer)
        return repeat > 0 and layer.grid[0] % repeat == 0 and self._grid(layer)[1] * layer.width == self.width

    def pack(self, features: Mapping[str, np.ndarray]) -> np.ndarray:
        """Features ``[N, h, w, C]`` by layer → frames ``[N, H, W]`` of the same type."""
        parts = []
        for layer in self.layers:
            array = np.asarray(features[layer.name])
            rows, columns = self._grid(layer)
            tiles = array.reshape(-1, layer.height, layer.width, rows, columns)
            parts.append(tiles.transpose(0, 3, 1, 4, 2).reshape(len(array), rows * layer.height, self.width))
        return np.concatenate(parts, axis=1)

    def unpack(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of `pack`."""
        features = {}
        top = 0
        for layer, height in zip(self.layers, self.heights, strict=True):
            rows, columns = self._grid(layer)
            part = frames[:, top : top + height]
            tiles = part.reshape(-1, rows, layer.height, columns, layer.width).transpose(0, 2, 4, 1, 3)
            features[layer.name] = tiles.reshape(len(frames), layer.height, layer.width, layer.channels)
            top += height
        return features


@dataclasses.dataclass(frozen=True, eq=False)
class PackedFeatures:
    """``samples`` uint16 ``[N, H, W]`` in ``[0, 2^bit_depth − 1]``, and what makes them features again.

    ``clipped``: how many features lay outside [minimum, maximum], where that is known.
    """

    samples: np.ndarray
    layout: PyramidLayout
    minimum: float
    maximum: float
    bit_depth: int = 10
    clipped: int = 0

    def features(self) -> dict[str, np.ndarray]:
        """Features float32 ``[N, h, w, C]`` by layer, in the order of packing."""
        scale = np.float32(self.maximum - self.minimum)
        real = self.samples.astype(np.float32) / np.float32(_peak(self.bit_depth))
        return self.layout.unpack(real * scale + np.float32(self.minimum))

    @property
    def filling(self) -> int:
        """The sample of 0, which fills frames up to even sides."""
        zero = int(-self.minimum / (self.maximum - self.minimum) * _peak(self.bit_depth) + 0.5)
        return min(max(zero, 0), _peak(self.bit_depth))


def pack_features(
    features: Mapping[str, np.ndarray], *, minimum: float, maximum: float, bit_depth: int = 10
) -> PackedFeatures:
    """Features ``[N, h, w, C]`` by layer as samples; what lies outside the range is clipped and counted.

    Raises `ValueError` for an empty range, features that are not finite, layers of different N, and as
    `PyramidLayout.of`.
    """
    if not minimum < maximum:
        raise ValueError(f"range {minimum} … {maximum} was given; wanted minimum < maximum")
    arrays = {name: np.asarray(array, np.float32) for name, array in features.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 4 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"features of shapes {shapes} were given; wanted [N, h, w, C] with one N")
    layout = PyramidLayout.of({name: (c, h, w) for name, (_, h, w, c) in shapes.items()})
    frames = layout.pack(arrays)
    if not np.isfinite(frames).all():
        raise ValueError("features that are not finite were given")
    scaled = (frames - np.float32(minimum)) / np.float32(maximum - minimum)
    clipped = int(((scaled < 0) | (scaled > 1)).sum())
    peak = np.float32(_peak(bit_depth))
    samples = np.floor(np.clip(scaled, np.float32(0), np.float32(1)) * peak).astype(np.uint16)
    return PackedFeatures(samples, layout, minimum, maximum, bit_depth, clipped)


def write_packed(folder: Path, name: str, packed: PackedFeatures, *, fps: float) -> tuple[Path, Path]:
    """Writes ``NAME_WIDTHxHEIGHT_FPSfps_BITSbit_p400_input.yuv`` and ``NAME.json``, and returns their paths."""
    n, h, w = packed.samples.shape
    high, wide = packed.layout.size_on_disk
    planes = np.full((n, high, wide), packed.filling, _format_of(packed.layout, packed.bit_depth).dtype)
    planes[:, :h, :w] = packed.samples
    yuv = folder / f"{name}_{w}x{h}_{fps:g}fps_{packed.bit_depth}bit_p400_input.yuv"
    write_atomically(yuv, planes.tobytes())
    write_sizes(folder / f"{name}.json", packed.layout)
    return yuv, folder / f"{name}.json"


def read_packed(yuv: Path, sizes: Path, *, minimum: float, maximum: float, bit_depth: int = 10) -> PackedFeatures:
    """A raw file, as it went into an encoder or came out of a decoder, with its file of sizes.

    The range is in neither: it is in the stream's header (`jaxwrap.train.interchange.stream`). Raises `ValueError`
    where the file's length or samples do not fit, and as `read_sizes`.
    """
    if not minimum < maximum:
        raise ValueError(f"range {minimum} … {maximum} was given; wanted minimum < maximum")
    layout = read_sizes(sizes)
    high, wide = layout.size
    planes = read_yuv(yuv, _format_of(layout, bit_depth)).y
    return PackedFeatures(planes[:, :high, :wide].astype(np.uint16), layout, minimum, maximum, bit_depth)


def write_sizes(path: Path, layout: PyramidLayout) -> None:
    """Writes the JSON file of sizes."""
    content = {
        "fpn": {layer.name: [1, layer.channels, layer.height, layer.width] for layer in layout.layers},
        "subframe_heights": {layer.name: h for layer, h in zip(layout.layers, layout.heights, strict=True)},
    }
    write_atomically(path, json.dumps(content, indent=4).encode())


def read_sizes(path: Path) -> PyramidLayout:
    """Reads a JSON file of sizes. Raises `ValueError` naming the file where it is none, or says other heights than its
    layers take."""
    try:
        content = json.loads(path.read_bytes())
        shapes = {str(name): _three(shape) for name, shape in content["fpn"].items()}
        heights = {str(name): int(height) for name, height in content["subframe_heights"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of feature sizes: wanted fpn (layer: [1, C, h, w]) and subframe_heights ({error})"
        ) from error
    layout = PyramidLayout.of(shapes)
    expected = {layer.name: h for layer, h in zip(layout.layers, layout.heights, strict=True)}
    if heights != expected:
        raise ValueError(f"{path}: its layers take {expected} rows of a frame, but it says {heights}")
    return layout


def _three(shape: list[int]) -> tuple[int, int, int]:
    _, channels, height, width = map(int, shape)
    if min(channels, height, width) < 1:
        raise ValueError(f"shape {shape}")
    return channels, height, width


def _format_of(layout: PyramidLayout, bit_depth: int) -> YuvFormat:
    height, width = layout.size_on_disk
    return YuvFormat(width, height, 1.0, bit_depth, "400")


def _peak(bit_depth: int) -> int:
    return (1 << bit_depth) - 1
