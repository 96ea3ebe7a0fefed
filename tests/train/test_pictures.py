"""What a sweep keeps for the report: maps and coding units of one picture, of the codecs that tell them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame
from jaxwrap.codec import RowWeights, Weights
from jaxwrap.methods.plan import Plan
from jaxwrap.methods.sse import Sse
from jaxwrap.train.evaluate.modes import Mode, mode_of
from jaxwrap.train.evaluate.sweep import run_sweep
from jaxwrap.wrappers.switchable import PostConfig, PreConfig, WrapperConfig, wrapper_from_config

# Workers import the codec by name, so it lives in a module of its own on their path.
TRACING = """
import dataclasses
import numpy as np
from stand_in_codec import CoarseCodec

@dataclasses.dataclass(frozen=True)
class Tracing(CoarseCodec):
    tells: bool = True

    def check(self, size, request):
        if request.trace and not self.tells:
            raise ValueError(f"{self.name} tells no coding units")

    def encode(self, frames, request):
        if request.trace:
            with open(self.log, "a") as file:
                file.write(f"{self.name} traced at {request.qp:g}\\n")
        result = super().encode(frames, dataclasses.replace(request, weights=None))
        if not request.trace:
            return result
        count, height, width = frames.y.shape
        bits = 10 if request.weights is None else 20
        units = [
            (frame, x, y, 8, 8, bits + frame)
            for frame in range(count) for y in range(0, height, 8) for x in range(0, width, 8)
        ]
        return dataclasses.replace(result, units=np.array(units, np.int32))
"""


@dataclasses.dataclass(frozen=True)
class Lines:
    """Weights that differ from line to line: as a map, or as two rows of a Jacobian."""

    draws: ClassVar[bool] = False
    weights_as: ClassVar[str] = "distortion"
    name: str
    tau: float | None = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        lines = jax.tree.map(lambda p: jnp.broadcast_to(jnp.arange(p.shape[1], dtype=jnp.float32)[:, None], p.shape), z)
        if self.tau is None:
            return Plan(z, Weights(lines))
        return Plan(z, RowWeights(jax.tree.map(lambda p: jnp.stack([p, 2 * p], 1), lines), self.tau))


def small_wrapper() -> Mode:
    post = PostConfig(widths=(4,), kernels=(3,), encoder_blocks=(0,), decoder_blocks=())
    return mode_of(wrapper_from_config(WrapperConfig(Fraction(1, 2), PreConfig(widths=(4,), mlp_width=4), post)))


@pytest.fixture
def tracing(tmp_path: Path, stand_in: ModuleType) -> ModuleType:
    (tmp_path / "tracing_codec.py").write_text(TRACING)
    sys.modules.pop("tracing_codec", None)
    return importlib.import_module("tracing_codec")


def test_coding_units_are_kept_of_one_picture_and_of_every_codec_that_tells_them(
    tmp_path: Path, stand_in: ModuleType, tracing: ModuleType
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    codecs = [
        tracing.Tracing(str(log), name=name, tells=tells)
        for name, tells in (("x265", False), ("hm", True), ("vtm", False))
    ]
    methods = [Sse(), Lines("map"), Lines("rows", tau=0.5)]

    def sweep() -> int:
        return run_sweep(stand_in.clips()[:1], [small_wrapper()], codecs, [22, 32], methods, out, processes=1).encodes

    assert sweep() > 0
    assert [line for line in log.read_text().splitlines() if "traced" in line] == ["hm traced at 32"] * 3
    arrays = dict(np.load(out / "pictures.npz"))
    about = json.loads(str(arrays["about"]))
    assert about["codecs"] == [["x265", "wrapper-1/2"], ["hm", "wrapper-1/2"]]
    assert (about["sequence"], about["qp"], len(about["keys"])) == ("lake", 32.0, 6)
    names = {name for name in arrays if "/" in name}
    assert names == {
        *(f"{codec}/{what}" for codec in ("x265", "hm") for what in ("coded", "weights/map", "weights/rows")),
        *(f"{codec}/bits/{method}" for codec in ("x265", "hm") for method in ("sse", "map", "rows")),
        *(f"x265/decoded/{method}" for method in ("sse", "map", "rows")),
        *(f"hm/units/{method}" for method in ("sse", "map", "rows")),
    }
    assert arrays["hm/units/sse"].tolist() == [[0, 0, 0, 8, 8, 10], [0, 8, 0, 8, 8, 10]]  # of 8×12 samples, frame 0
    assert arrays["hm/units/rows"][:, 5].tolist() == [20, 20]
    lines = np.broadcast_to(np.arange(8.0)[:, None], (8, 12))
    np.testing.assert_allclose(arrays["hm/weights/map"], lines)
    np.testing.assert_allclose(arrays["hm/weights/rows"], 5 * lines**2 + 0.5)
    assert sweep() == 0
