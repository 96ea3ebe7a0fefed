"""Speed of the post-processor, alone and against the same network in PyTorch.

The peer is a process of a Python that has torch (`postprocessor_torch.py` beside this file): same weights, same
frame; its output has to agree before anything is timed. Both take turns (A, B, A, B, …), because the clock of a
shared machine drifts; medians are reported.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxwrap.arrays import Frame, Yuv420
from jaxwrap.metrics.complexity import count_macs, count_parameters
from jaxwrap.wrappers.blocks import Implementation
from jaxwrap.wrappers.switchable import PostConfig, PostProcessor, WrapperConfig, wrapper_from_config

_TOLERANCE = 1e-4  # float32, other order of summation; samples are in [−1, 1]


def run(
    *,
    height: int = 1080,
    width: int = 1920,
    num_frames: int = 1,
    ratio: Fraction = Fraction(1, 2),
    config: PostConfig | None = None,
    implementation: Implementation = "shift",
    dtype: str = "float32",
    training: bool = False,
    rounds: int = 7,
    torch: bool = False,
    peer_python: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Times the post-processor from bottleneck to ``num_frames`` pictures of ``height × width``, compilation left out.

    ``training`` also times loss and gradients of all parameters. ``torch`` compares with PyTorch, run by
    ``peer_python`` with ``threads`` threads (default: one per CPU). Returns milliseconds (medians), ``ratio_*`` =
    PyTorch's time over ours, the largest difference of outputs, complexity and the environment. Raises `ValueError`
    for a missing peer, `RuntimeError` where it fails or disagrees.
    """
    if torch and peer_python is None:
        raise ValueError("the comparison needs peer_python: a Python that has torch (pip install torch there)")
    config = PostConfig() if config is None else config
    wrapper = wrapper_from_config(WrapperConfig(ratio, "bilinear", "bilinear"))
    size = wrapper.padded_size(height, width)
    post = _random_post_processor(config, implementation, dtype)
    bottleneck = _random_frame(num_frames, *wrapper.bottleneck_size(height, width))
    graph, state = nnx.split(post)

    def forward(state: nnx.State, frame: Frame) -> Frame:
        return nnx.merge(graph, state)(frame, *size)

    def loss(state: nnx.State, frame: Frame) -> jax.Array:
        return sum((jnp.mean(plane**2) for plane in forward(state, frame).planes), jnp.zeros(()))

    ours: dict[str, Callable[[], Any]] = {"forward": functools.partial(jax.jit(forward), state, bottleneck)}
    if training:
        ours["train"] = functools.partial(jax.jit(jax.value_and_grad(loss)), state, bottleneck)
    decoded = [np.asarray(plane) for plane in ours["forward"]().planes]
    for call in ours.values():
        jax.block_until_ready(call())  # compiles

    counted = PostProcessor(config, rngs=nnx.Rngs(0), implementation="grouped")
    result: dict[str, Any] = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "ratio": str(ratio),
        "implementation": implementation,
        "dtype": dtype,
        "mac_per_pixel": count_macs(lambda f: counted(f, *size), bottleneck).per_pixel(*size, num_frames=num_frames),
        "parameters": count_parameters(counted),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "rounds": rounds,
    }
    threads = threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        peer = _Peer(str(peer_python), Path(folder), config, state, bottleneck, size, threads) if torch else None
        try:
            if peer is not None:
                error = max(float(np.abs(a - b).max()) for a, b in zip(decoded, peer.decoded, strict=True))
                if dtype == "float32" and error > _TOLERANCE:
                    raise RuntimeError(f"PyTorch's output differs by {error:.2g}; at most {_TOLERANCE} was expected")
                result |= {"torch": peer.version, "torch_threads": threads, "max_abs_difference": error}
            for task, call in ours.items():
                times: dict[str, list[float]] = {"jax": [], "torch": []}
                for _ in range(rounds):
                    start = time.perf_counter()
                    jax.block_until_ready(call())
                    times["jax"].append((time.perf_counter() - start) * 1e3)
                    if peer is not None:
                        times["torch"].append(peer.milliseconds(task))
                result[f"{task}_ms"] = float(np.median(times["jax"]))
                if peer is not None:
                    result[f"torch_{task}_ms"] = float(np.median(times["torch"]))
                    result[f"ratio_{task}"] = result[f"torch_{task}_ms"] / result[f"{task}_ms"]
        finally:
            if peer is not None:
                peer.close()
    return result


class _Peer:
    """The PyTorch process: gives its decoded frame at the start, then times one call per request."""

    def __init__(
        self,
        python: str,
        folder: Path,
        config: PostConfig,
        state: nnx.State,
        frame: Yuv420,
        size: tuple[int, int],
        threads: int,
    ):
        post = WrapperConfig(post=config).to_dict()["post"]
        arrays: dict[str, Any] = {
            "/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)
        }
        planes: dict[str, Any] = {name: np.asarray(getattr(frame, name)) for name in ("y", "u", "v")}
        np.savez(folder / "case.npz", config=json.dumps(post), size=np.array(size), **planes, **arrays)
        script = Path(__file__).with_name("postprocessor_torch.py")
        command = [python, str(script), str(folder / "case.npz"), str(folder / "output.npz"), str(threads)]
        self._errors = (folder / "errors.txt").open("w+")
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            raise RuntimeError(
                f"{python} cannot be started ({error}); give the path of a Python that has torch"
            ) from None
        if self._read() != "ready":
            self._fail()
        with np.load(folder / "output.npz") as output:
            self.decoded = [output[f"arr_{i}"] for i in range(3)]
            self.version = str(output["version"])
        self.milliseconds("forward")  # warms the allocator

    def milliseconds(self, task: str) -> float:
        """Time of one call of ``forward`` or ``train``."""
        assert self._process.stdin is not None
        self._process.stdin.write(task + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if not answer:
            self._fail()
        return float(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _fail(self) -> None:
        self._process.communicate()
        self._errors.seek(0)
        text = self._errors.read()
        self._errors.close()
        raise RuntimeError(f"the PyTorch peer failed with exit code {self._process.returncode}:\n{text}")


def _random_post_processor(config: PostConfig, implementation: Implementation, dtype: str) -> PostProcessor:
    """Every parameter away from its start: the zero last layer would hide differences."""
    post = PostProcessor(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype), implementation=implementation)
    graph, state = nnx.split(post)
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32), state))


def _random_frame(num_frames: int, height: int, width: int) -> Yuv420:
    rng = np.random.default_rng(1)
    y, u, v = (
        jnp.asarray(rng.uniform(-1, 1, (num_frames, height // s, width // s)).astype(np.float32)) for s in (1, 2, 2)
    )
    return Yuv420(y, u, v)
