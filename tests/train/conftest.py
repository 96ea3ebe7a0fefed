"""A stand-in encoder for sweeps: quick, logs every call, and fails or dies where it is told to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Workers import the codec by name, so it lives in a module of its own on their path.
STAND_IN = '''
import dataclasses, os, subprocess, sys, time
from fractions import Fraction
from pathlib import Path
import numpy as np
from jaxwrap.arrays import Yuv420
from jaxwrap.codec import EncodeResult, RowWeights, refuse_patched_options

@dataclasses.dataclass(frozen=True)
class CoarseCodec:
    """Rounds samples to multiples of the step; bits grow with the differences of neighbours. Logs every call.

    A stock one takes neither weights nor a scale of λ. Where it hangs, it is a program that does."""
    log: str
    name: str = "coarse"
    version: str = "1"
    delay_s: float = 0.0
    fails_at: float = -1
    dies_at: float = -1
    hangs_at: float = -1
    stock: bool = False
    presets: tuple = ()

    def check(self, size, request):
        if request.preset is not None and request.preset not in self.presets:
            raise ValueError(f"{self.name} has no preset {request.preset!r}")
        if self.stock:
            refuse_patched_options(self.name, request)
            if request.weights is not None:
                raise ValueError(f"{self.name} takes no weights")

    def encode(self, frames, request):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {request.qp:g} {frames.y.shape[2]}\\n")
        time.sleep(self.delay_s)
        if request.qp == self.fails_at:
            error = RuntimeError(f"no stream at QP {request.qp:g}")
            error.log = f"$ coarse --qp {request.qp:g}\\nall that it said"
            raise error
        if request.qp == self.hangs_at:
            program = subprocess.Popen(["sleep", "600"], start_new_session=True)
            with open(self.log + ".programs", "a") as file:
                file.write(f"{program.pid}\\n")
            program.wait()
        if request.qp == self.dies_at:
            os._exit(3)
        step = 2 ** ((request.qp - 4) / 6) * 4 * request.lambda_scale ** 0.5
        if isinstance(request.weights, RowWeights):
            assert all(isinstance(p, np.ndarray) and p.ndim == 4 for p in request.weights.rows.planes)
        elif request.weights is not None:
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

def sweep(folder, delay_s, hangs_at=-1, **options):
    from jaxwrap.methods.sse import Sse
    from jaxwrap.train.evaluate.modes import codec_mode, linear_mode
    from jaxwrap.train.evaluate.sweep import run_sweep
    folder = Path(folder)
    modes = [codec_mode(), linear_mode("bilinear", Fraction(1, 2))]
    codec = CoarseCodec(str(folder / "log"), delay_s=delay_s, hangs_at=hangs_at)
    return run_sweep(clips(), modes, [codec], [22, 27, 32, 37, 42], [Sse()], folder / "out", processes=2, **options)

if __name__ == "__main__":
    sweep(sys.argv[1], 0.15, hangs_at=37)
'''


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "stand_in_codec.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("stand_in_codec", None)
    return importlib.import_module("stand_in_codec")
