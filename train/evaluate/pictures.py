"""What a sweep keeps for the report's pictures: one picture of a clip as its codecs coded it, in ``pictures.npz``.

Arrays of the file::

    about                    JSON: sequence, qp, keys of the rows, codecs: [[codec, mode], …]
    source                   RGB uint8 [H, W, 3]
    CODEC/coded              luma [h, w] given to the encoder under the first method
    CODEC/bits/METHOD        bits of the picture, and of the whole clip
    CODEC/weights/METHOD     of luma [h, w]; with Jacobian rows Σ_s row_s² + τ
    CODEC/units/METHOD       int32 [K, 6], coding units of the picture (`jaxwrap.codec.EncodeResult.units`)
    CODEC/decoded/METHOD     luma [h, w]: of the first codec, where it tells no units
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxwrap.codec import Codec, EncodeRequest, EncodeResult, RowWeights, Weights
from jaxwrap.codecs.files import write_atomically
from jaxwrap.colour import yuv_to_rgb
from jaxwrap.train.evaluate.points import canonical_json
from jaxwrap.train.evaluate.sources import BIT_DEPTH

if TYPE_CHECKING:
    from jaxwrap.train.evaluate.networks import Planned
    from jaxwrap.train.evaluate.rows import Row


class Pictures:
    """The first picture of the first clip, at the middle QP and the encoder's own λ.

    Of the first codec, and of every other one that can tell its coding units: in the mode that most methods ran in. The
    file holds the keys of its rows, and is made again where these are others.
    """

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}
        self._added: set[str] = set()
        rows = [row for row in rows if row.mode.sends] or rows
        qps = sorted({row.qp for row in rows})
        first = rows[0]
        same = [
            row for row in rows if row.source is first.source and row.qp == qps[len(qps) // 2] and row.lambda_scale == 1
        ]
        self._modes: dict[str, str] = {}
        self._traced: set[str] = set()
        self._keys: set[str] = set()
        self._first: set[str] = set()
        for codec in {id(row.codec): row.codec for row in same}.values():
            modes = [row.mode.name for row in same if row.codec is codec]
            mode = max(modes, key=modes.count)
            tells = modes.count(mode) > 1 and _tells_units(codec, first.mode.coded_size(first.source.size))
            if modes.count(mode) > 1 and (codec is first.codec or tells):
                self._modes[codec.name] = mode
                keys = [row.key for row in same if row.codec is codec and row.mode.name == mode]
                self._keys |= {*keys}
                self._first.add(keys[0])
            if tells:
                self._traced.add(codec.name)
        if self._keys == _keys_of_pictures(path):
            self._keys = set()

    def wants(self, row: Row) -> bool:
        """Whether this row is one of those shown."""
        return row.key in self._keys

    def traces(self, row: Row) -> bool:
        """Whether this row's encode should tell its coding units: it is shown, and its codec can."""
        return self.wants(row) and row.codec.name in self._traced

    def add(self, row: Row, planned: Planned, result: EncodeResult, bits: int) -> None:
        """Keeps the first picture of a row; ``bits`` are those of the whole clip."""
        codec, method = row.codec.name, row.method.name
        self._added.add(row.key)
        about = {
            "sequence": row.source.name,
            "qp": row.qp,
            "keys": sorted(self._added),
            "codecs": list(self._modes.items()),
        }
        self._arrays["about"] = np.array(canonical_json(about))
        source = jax.tree.map(lambda plane: np.asarray(plane)[:1], row.source.samples)
        self._arrays["source"] = yuv_to_rgb(source, bit_depth=BIT_DEPTH)[0]
        if row.key in self._first or f"{codec}/coded" not in self._arrays:  # whichever method was encoded first
            self._arrays[f"{codec}/coded"] = np.asarray(planned.plan.z.y)[0]
        self._arrays[f"{codec}/bits/{method}"] = np.array([int(np.asarray(result.bits)[0]), bits])
        if planned.plan.weights is not None:
            self._arrays[f"{codec}/weights/{method}"] = _of_luma(planned.plan.weights)
        if result.units is not None:
            units = np.asarray(result.units)
            self._arrays[f"{codec}/units/{method}"] = units[units[:, 0] == 0]
        elif codec == next(iter(self._modes)):
            self._arrays[f"{codec}/decoded/{method}"] = np.asarray(result.decoded.y)[0]

    def write(self) -> None:
        """Writes what was added, if anything was."""
        if self._arrays:
            content = io.BytesIO()
            np.savez_compressed(content, **self._arrays)  # type: ignore[arg-type]
            write_atomically(self._path, content.getvalue())


def _of_luma(weights: Weights | RowWeights) -> np.ndarray:
    if isinstance(weights, Weights):
        return np.asarray(weights.planes.y)[0]
    return np.square(np.asarray(weights.rows.y)[0]).sum(0) + weights.tau


def _tells_units(codec: Codec, size: tuple[int, int]) -> bool:
    try:
        codec.check(size, EncodeRequest(30, trace=True))
    except (ValueError, RuntimeError):
        return False
    return True


def _keys_of_pictures(path: Path) -> set[str]:
    """Keys of the rows in a pictures file; none where it is absent or damaged, for it can be made again."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return set(json.loads(str(archive["about"]))["keys"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return set()
