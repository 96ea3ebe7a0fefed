"""A stand-in encoder for sweeps: quick, logs every call, and fails or dies where it is told to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Workers import the codec by name, so it lives in a module of its own on their path.
STAND_IN = '''
import dataclasses, os, sys, time
from fractions import Fraction
from pathlib import Path
import numpy as np
from jaxwrap.arrays import Yuv420
from jaxwrap.codec import EncodeResult

@dataclasses.dataclass(frozen=True)
class CoarseCodec:
    """Rounds samples to multiples of the step; bits grow with the differences of neighbours. Logs every call."""
    log: str
    name: str = "coarse"
    version: str = "1"
    delay_s: float = 0.0
    fails_at: float = -1
    dies_at: float = -1

    def check(self, size, request):
        if request.preset is not None:
            raise ValueError(f"{self.name} has no presets")

    def encode(self, frames, request):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {request.qp:g} {frames.y.shape[2]}\\n")
        time.sleep(self.delay_s)
        if request.qp == self.fails_at:
            raise RuntimeError(f"no stream at QP {request.qp:g}")
        if request.qp == self.dies_at:
            os._exit(3)
        step = 2 ** ((request.qp - 4) / 6) * 4
        if request.weights is not None:
            assert all(isinstance(p, np.ndarray) for p in request.weights.planes.planes)
            step = step / np.sqrt(request.weights.planes.y.mean((1, 2)))[:, None, None]
        levels = [np.round(p / step) for p in frames.planes]
        bits = sum(np.ceil(np.log2(1 + abs(np.diff(l, axis=2, prepend=0)))).sum((1, 2)) for l in levels) + 80
        decoded = [np.clip(np.round(l * step), 0, 1023).astype(np.uint16) for l in levels]
        command = f"coarse --qp {request.qp:g}"
        return EncodeResult(Yuv420(*decoded), bits, header_bits=80, seconds=0.25, command=command)

@dataclasses.dataclass
class Clip:
    name: str
    frames: Yuv420
    bit_depth: int
    fps: float

def clips():
    made = []
    for i, name in enumerate(("lake", "hill", "tree")):
        rng = np.random.default_rng(i)
        y, u, v = (np.cumsum(rng.integers(-9, 10, (2, h, w)), 2) + 128 for h, w in ((16, 24), (8, 12), (8, 12)))
        made.append(Clip(name, Yuv420(*(np.clip(p, 0, 255).astype(np.uint8) for p in (y, u, v))), 8, 50.0))
    return made

def sweep(folder, delay_s):
    from jaxwrap.methods.sse import Sse
    from jaxwrap.train.evaluate.modes import codec_mode, linear_mode
    from jaxwrap.train.evaluate.sweep import run_sweep
    folder = Path(folder)
    modes = [codec_mode(), linear_mode("bilinear", Fraction(1, 2))]
    codec = CoarseCodec(str(folder / "log"), delay_s=delay_s)
    return run_sweep(clips(), modes, [codec], [22, 27, 32, 37, 42], [Sse()], folder / "out", processes=2)

if __name__ == "__main__":
    sweep(sys.argv[1], 0.15)
'''


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "stand_in_codec.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("stand_in_codec", None)
    return importlib.import_module("stand_in_codec")
