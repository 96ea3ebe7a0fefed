"""What a sweep keeps for the report's pictures: one clip's maps, weights and decoded samples, in ``pictures.npz``."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.codec import EncodeResult
from jaxwrap.codecs.files import write_atomically
from jaxwrap.colour import yuv_to_rgb
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.evaluate.points import canonical_json

if TYPE_CHECKING:
    from jaxwrap.train.evaluate.sweep import Planned, Row


class Pictures:
    """One picture's maps and decoded samples for the report.

    Taken from the first clip and codec, at the middle QP, in the mode that most methods ran in. The file holds the keys
    of its rows, and is made again where these are others.
    """

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}
        qps = sorted({row.qp for row in rows})
        first = rows[0]
        same = [
            row
            for row in rows
            if row.source is first.source and row.codec is first.codec and row.qp == qps[len(qps) // 2]
        ]
        modes = [row.mode.name for row in same]
        mode = max(modes, key=modes.count)
        self._keys: set[str] = set()
        if modes.count(mode) > 1:
            keys = {row.key for row in same if row.mode.name == mode}
            self._keys = set() if keys == _keys_of_pictures(path) else keys
        self._added: set[str] = set()

    def wants(self, row: Row) -> bool:
        """Whether this row is one of those shown."""
        return row.key in self._keys

    def add(self, row: Row, planned: Planned, result: EncodeResult, frames: Frame, bits: int) -> None:
        """Keeps the first picture of a row: ``frames`` as received, ``bits`` of the whole clip."""
        first = jax.tree.map(lambda plane: np.asarray(plane)[:1], (row.source.samples, frames))
        name = row.method.name
        self._added.add(row.key)
        about = {
            "sequence": row.source.name, "codec": row.codec.name, "mode": row.mode.name, "qp": row.qp,
            "keys": sorted(self._added),
        }  # fmt: skip
        self._arrays["about"] = np.array(canonical_json(about))
        self._arrays["source"] = yuv_to_rgb(first[0], bit_depth=BIT_DEPTH)[0]
        self._arrays[f"received/{name}"] = yuv_to_rgb(first[1], bit_depth=BIT_DEPTH)[0]
        self._arrays[f"decoded/{name}"] = np.asarray(result.decoded.y)[0]
        self._arrays[f"bits/{name}"] = np.array([int(np.asarray(result.bits)[0]), bits])
        if planned.plan.weights is not None:
            self._arrays[f"weights/{name}"] = np.asarray(planned.plan.weights.planes.y)[0]

    def write(self) -> None:
        """Writes what was added, if anything was."""
        if self._arrays:
            content = io.BytesIO()
            np.savez_compressed(content, **self._arrays)  # type: ignore[arg-type]
            write_atomically(self._path, content.getvalue())


def _keys_of_pictures(path: Path) -> set[str]:
    """Keys of the rows in a pictures file; none where it is absent or damaged, for it can be made again."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return set(json.loads(str(archive["about"]))["keys"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return set()
