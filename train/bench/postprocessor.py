"""Speed of the post-processor, alone and against the same network in PyTorch.

The peer is a process of a Python that has torch (`postprocessor_torch.py` beside this file) on the same kind of
device: same weights, same frame, same dtype. Its output, and with ``training`` its loss before and after an Adam step,
have to agree with ours before anything is timed. Both take turns (A, B, A, B, …), because the clock of a shared
machine drifts; medians are reported. Inputs lie on the device, and the clock stops when the device has finished.

In float32 neither side uses TF32: ours computes with ``jax.default_matmul_precision("highest")``, PyTorch with
``allow_tf32 = False``. In bfloat16 the network's activations and products are bfloat16 on both sides, parameters and
Adam float32. PyTorch runs eagerly with fused Adam, ours under `jax.jit`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxwrap.arrays import Frame, Yuv420
from jaxwrap.metrics.complexity import count_macs, count_parameters, resampling_macs
from jaxwrap.train.bench.peer import Peer
from jaxwrap.wrappers.blocks import IMPLEMENTATIONS, Implementation
from jaxwrap.wrappers.switchable import PostConfig, PostProcessor, WrapperConfig, wrapper_from_config

LEARNING_RATE = 1e-3

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of two outputs (samples in about [−1, 1]) and largest relative one of two losses: another order of
summation in float32; a mantissa of 8 bits through ten layers in bfloat16."""


def run(
    *,
    height: int = 1080,
    width: int = 1920,
    num_frames: int = 1,
    ratio: Fraction = Fraction(1, 2),
    config: PostConfig | None = None,
    implementation: Implementation | Literal["auto"] = "auto",
    dtype: str = "float32",
    training: bool = False,
    rounds: int = 7,
    torch: bool = False,
    peer_python: str | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Times the post-processor from bottleneck to ``num_frames`` pictures of ``height × width``, compilation left out,
    and prints the outcome.

    ``training`` also times a training step: loss, gradients of all parameters, Adam update. ``implementation="auto"``
    takes the faster one for each of the two on this device. ``torch`` compares with PyTorch, run by ``peer_python``
    with ``threads`` threads (default: the faster of one and one per CPU, as on a busy machine several are slower than
    one), on CUDA where JAX runs on a GPU.

    Returns medians: ``forward_ms_per_frame``, ``train_ms`` and ``train_steps_per_s``, the same of PyTorch with
    ``torch_`` ahead, ``ratio_*`` = PyTorch's time over ours; the largest difference of outputs and losses;
    multiply–accumulates per pixel of the convolutions and, apart, of resampling; parameters; the environment, with the
    load average of the last minute at the end. Raises
    `ValueError` for an unknown option or a missing peer, `RuntimeError` where the peer fails, lacks CUDA, or disagrees.
    """
    if torch and peer_python is None:
        raise ValueError("the comparison needs peer_python: a Python that has torch (pip install torch there)")
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype {dtype!r} was given; known: {', '.join(TOLERANCES)}")
    if implementation not in (*IMPLEMENTATIONS, "auto"):
        raise ValueError(f"implementation {implementation!r} was given; known: {', '.join(IMPLEMENTATIONS)}, auto")
    backend = jax.default_backend()
    if torch and backend not in ("cpu", "gpu"):
        raise ValueError(f"JAX runs on {backend}; PyTorch is compared on cpu and gpu: choose with JAX_PLATFORMS")
    config = PostConfig() if config is None else config
    wrapper = wrapper_from_config(WrapperConfig(ratio, "bilinear", "bilinear"))
    size = wrapper.padded_size(height, width)
    bottleneck = _random_frame(num_frames, *wrapper.bottleneck_size(height, width))
    candidates = IMPLEMENTATIONS if implementation == "auto" else (implementation,)
    networks = {name: _Network(config, name, dtype, bottleneck, size) for name in candidates}
    tasks = ("forward", "train") if training else ("forward",)
    fastest = {task: min(networks, key=lambda name: networks[name].compiled_ms(task)) for task in tasks}
    ours = {task: networks[name] for task, name in fastest.items()}
    result = _complexity(config, bottleneck, size) | {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "ratio": str(ratio),
        "implementation": fastest,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "rounds": rounds,
    }
    thread_counts = sorted({1, os.cpu_count() or 1}) if threads is None else [threads]
    device = "cuda" if backend == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        start = ours["forward"].state
        peer = None
        try:
            if torch:
                peer = _Peer(
                    str(peer_python), Path(folder), config, start, bottleneck, size, device, dtype, thread_counts
                )
                result |= peer.about
                result |= _differences(ours, peer, TOLERANCES[dtype])
            for task, network in ours.items():
                times: dict[str, list[float]] = {"jax": [], "torch": []}
                for _ in range(rounds):
                    times["jax"].append(network.milliseconds(task))
                    if peer is not None:
                        times["torch"].append(peer.ask(task)["milliseconds"])
                medians = {side: float(np.median(values)) for side, values in times.items() if values}
                for side, prefix in (("jax", ""), ("torch", "torch_")):
                    if side in medians and task == "forward":
                        result[f"{prefix}forward_ms_per_frame"] = medians[side] / num_frames
                    elif side in medians:
                        result[f"{prefix}train_ms"] = medians[side]
                        result[f"{prefix}train_steps_per_s"] = 1e3 / medians[side]
                if peer is not None:
                    result[f"ratio_{task}"] = medians["torch"] / medians["jax"]
        finally:
            if peer is not None:
                peer.close()
    result["load_average"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    _print(result)
    return result


class _Network:
    """Our side: one implementation's compiled forward pass and training step, and the state that the latter moves."""

    def __init__(
        self,
        config: PostConfig,
        implementation: Implementation,
        dtype: str,
        frame: Yuv420,
        size: tuple[int, int],
    ):
        graph, self.state = nnx.split(_random_post_processor(config, implementation, dtype))
        optimiser = optax.adam(LEARNING_RATE)
        self._frame, self._precision = frame, "highest" if dtype == "float32" else None
        # A copy, as the training step overwrites its state.
        self._trained = jax.tree.map(jnp.copy, self.state)
        self._moments = optimiser.init(self._trained)

        def forward(state: nnx.State, frame: Frame) -> Frame:
            return nnx.merge(graph, state)(frame, *size)

        def loss(state: nnx.State, frame: Frame) -> jax.Array:
            return sum((jnp.mean(plane**2) for plane in forward(state, frame).planes), jnp.zeros(()))

        def train(state: nnx.State, moments: Any, frame: Frame) -> tuple[nnx.State, Any, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(state, frame)
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # what Optax is written for
                updates, moments = optimiser.update(gradient, moments, state)
                return optax.apply_updates(state, updates), moments, value

        self._forward = jax.jit(forward)
        self._train = jax.jit(train, donate_argnums=(0, 1))

    def forward(self) -> Yuv420:
        """The decoded frame."""
        with jax.default_matmul_precision(self._precision):
            return cast(Yuv420, jax.block_until_ready(self._forward(self.state, self._frame)))

    def train(self) -> jax.Array:
        """One Adam step; gives its loss."""
        with jax.default_matmul_precision(self._precision):
            self._trained, self._moments, loss = self._train(self._trained, self._moments, self._frame)
        return jax.block_until_ready((loss, self._trained, self._moments))[0]

    def milliseconds(self, task: str) -> float:
        """Time of one ``forward`` or ``train``."""
        call: Callable[[], Any] = {"forward": self.forward, "train": self.train}[task]
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def compiled_ms(self, task: str) -> float:
        """Compiles, then the shortest of three times; a training step starts anew afterwards."""
        trained, moments = (jax.tree.map(jnp.copy, x) for x in (self._trained, self._moments))
        self.milliseconds(task)
        shortest = min(self.milliseconds(task) for _ in range(3))
        self._trained, self._moments = trained, moments
        return shortest


def _differences(ours: dict[str, _Network], peer: _Peer, tolerance: float) -> dict[str, float]:
    """Compares outputs, and the losses of two training steps; raises `RuntimeError` beyond ``tolerance``."""
    decoded = ours["forward"].forward().planes
    found = {
        "max_abs_difference": max(
            float(np.abs(np.asarray(a) - b).max()) for a, b in zip(decoded, peer.decoded, strict=True)
        )
    }
    peer.ask("forward")  # warms the allocator
    if "train" in ours:
        losses = [(float(ours["train"].train()), peer.ask("train")["loss"]) for _ in range(2)]
        found["max_relative_loss_difference"] = max(abs(a / b - 1) for a, b in losses)
    for what, value in found.items():
        if not value <= tolerance:
            raise RuntimeError(f"PyTorch disagrees: {what} is {value:.2g}; at most {tolerance} was expected")
    return found


def _complexity(config: PostConfig, frame: Yuv420, size: tuple[int, int]) -> dict[str, Any]:
    """Multiply–accumulates per output luma sample, and parameters."""
    counted = PostProcessor(config, rngs=nnx.Rngs(0), implementation="grouped")
    num_frames = frame.y.shape[0]
    half = (size[0] // 2, size[1] // 2)
    resampling = 0
    for plane, target in zip(frame.planes, (size, half, half), strict=True):
        resampling += resampling_macs(plane.shape[1], plane.shape[2], *target, "bilinear")
    return {
        "mac_per_pixel": count_macs(lambda f: counted(f, *size), frame).per_pixel(*size, num_frames=num_frames),
        "resampling_mac_per_pixel": resampling / (size[0] * size[1]),
        "parameters": count_parameters(counted),
    }


def _print(result: dict[str, Any]) -> None:
    print(
        f"post-processor, {result['num_frames']} × {result['width']}×{result['height']} from ratio {result['ratio']}, "
        f"{result['dtype']}{', no TF32' if result['dtype'] == 'float32' else ''}; {result['device']}, "
        f"jax {result['jax']}, {result['cpus']} CPUs, "
        + ("load unknown" if result["load_average"] is None else f"load average {result['load_average']:.1f}")
    )
    print(
        f"{result['mac_per_pixel']:.1f} MAC/pixel in convolutions, {result['resampling_mac_per_pixel']:.2f} in "
        f"resampling; {result['parameters']} parameters"
    )
    if "torch" in result:
        agreement = f"outputs agree within {result['max_abs_difference']:.1e}"
        if "max_relative_loss_difference" in result:
            agreement += f", losses within {result['max_relative_loss_difference']:.1e} of their value"
        print(
            f"peer: PyTorch {result['torch']} (eager) on {result['torch_device']}, {result['torch_threads']} threads; "
            f"{agreement}"
        )
    rows = (("forward", "forward_ms_per_frame", "ms per frame"), ("train", "train_steps_per_s", "training steps/s"))
    for task, key, unit in rows:
        if key in result:
            line = f"{result[key]:9.2f} {unit} ({result['implementation'][task]})"
            if "torch" in result:
                line += f"; PyTorch {result['torch_' + key]:.2f}: {result['ratio_' + task]:.2f} × its speed"
            print(line)


class _Peer(Peer):
    """The PyTorch process, which gives its decoded frame at the start."""

    def __init__(
        self,
        python: str,
        folder: Path,
        config: PostConfig,
        state: nnx.State,
        frame: Yuv420,
        size: tuple[int, int],
        device: str,
        dtype: str,
        threads: Sequence[int],
    ):
        post = WrapperConfig(post=config).to_dict()["post"]
        arrays: dict[str, Any] = {
            "/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)
        }
        planes: dict[str, Any] = {name: np.asarray(getattr(frame, name)) for name in ("y", "u", "v")}
        np.savez(folder / "case.npz", config=json.dumps(post), size=np.array(size), **planes, **arrays)
        script = Path(__file__).with_name("postprocessor_torch.py")
        super().__init__(
            "PyTorch", [python, script, folder / "case.npz", folder / "output.npz", device, dtype, *threads]
        )
        with np.load(folder / "output.npz") as output:
            self.decoded = [output[f"arr_{i}"] for i in range(3)]


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
