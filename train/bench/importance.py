"""Speed of importance maps: against PyTorch's two ways of making them, against the work, and on a GPU.

The receiver is a restoration network of feature coding (5 convolutions 3×3 × 64 channels with ReLU, one 2×
nearest-neighbour upsampling after the second) on 64 latent channels of 40 × 64, tiled into one frame. A map is
`jaxwrap.importance.importance_map` with all that it gives, standard errors included. The peer does less: the mean of
squared gradients of the latents, by a loop of backward passes (in the faster of its two memory layouts, and in the
default one) or by `torch.func.vmap` of the pullback. Its map of our own sketches has to agree with ours before anything
is timed.

Both take turns (A, B, A, B, …), because the clock of a shared machine drifts; figures are medians, ratios medians of
the rounds' ratios. Compilation is left out; the clock stops when the device has finished. No side uses TF32 in float32.
On a GPU the frames are those of 832×480 and 1080p video at stride 8, and the speed is also given as a fraction of the
measured peak of a large matrix product in the same dtype.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Yuv400
from jaxwrap.importance.maps import importance_map
from jaxwrap.importance.memory import frames_within
from jaxwrap.importance.sketch import sketch_row
from jaxwrap.packing import TileLayout, pack, unpack
from jaxwrap.train.bench.peer import Peer
from jaxwrap.train.memory import keep_memory

CHANNELS, HEIGHT, WIDTH = 64, 40, 64
CONVOLUTIONS, UPSAMPLE_BEFORE = 5, 2
SKETCHES = (2, 4, 8, 16, 32)
BATCHES = (1, 4, 16)
TOLERANCES = {"float32": 0.01, "bfloat16": 0.15}
"""Largest relative root-mean-square difference of the two sides' maps of the same sketches. In float32 a few ReLUs
that stand on the edge fall to different sides, which moves 0.6 % of the samples (our own map is 7·10⁻⁷ from float64's,
PyTorch's 10⁻³); in bfloat16 many do."""

VIDEO_LATENTS = {"832×480": (60, 104), "1080p": (135, 240)}
"""Height and width of a channel at stride 8."""

MEMORY_BUDGET = 1 << 29
"""Bytes, for the figure of memory under a budget."""

Parameters = list[tuple[jax.Array, jax.Array]]


def run(
    *,
    sketches: Sequence[int] = SKETCHES,
    batches: Sequence[int] = BATCHES,
    video_batches: Sequence[int] = (1, 4, 16, 64),
    dtype: str = "float32",
    rounds: int = 5,
    seconds_per_case: float = 40.0,
    peer_python: str | None = None,
    work: bool = True,
) -> dict[str, Any]:
    """Measures and prints; see the module.

    ``rounds``: of each case, fewer (at least 2) where they would take longer than ``seconds_per_case``. ``work``: also
    how the cost grows with frames, pixels and sketches, what a sketch costs in forward passes, memory under a budget,
    and the error of bfloat16. ``video_batches``: on a GPU only. Returns all figures; ``cases`` is a list of dicts with
    milliseconds of each side, and PyTorch's time over ours as ``ratio_loop``, ``ratio_default`` and ``ratio_vmap``.
    Raises `ValueError` for an unknown dtype, `RuntimeError` where the peer fails or disagrees.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype {dtype!r} was given; known: {', '.join(TOLERANCES)}")
    keep_memory()
    backend = jax.default_backend()
    device = "cuda" if backend == "gpu" else "cpu"
    network = _parameters()
    figures: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "dtype": dtype,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(_precision(dtype)):
        ours = _Ours(network, dtype)
        peer = None
        try:
            if peer_python is not None:
                peer = _TorchPeer(peer_python, Path(folder), network, device, dtype)
                figures |= peer.about | {"relative_difference": _difference(ours, peer, TOLERANCES[dtype])}
            print(_headline(figures))
            if work:
                figures["memory"] = _memory(ours)  # first: a process's peak only grows
            for batch in batches:
                for count in sketches:
                    case = _case(ours, peer, batch, count, (HEIGHT, WIDTH), rounds, seconds_per_case)
                    figures["cases"].append(case)
                    print(_line(case))
            if work:
                figures["work"] = _work(ours, rounds)
                figures["bfloat16"] = _half_precision(network)
                _print_work(figures)
            if backend == "gpu":
                figures["peak_tflops"] = _peak_tflops(dtype)
                figures["video"] = []
                for name, size in VIDEO_LATENTS.items():
                    for batch in video_batches:
                        case = _case(ours, peer, batch, 4, size, rounds, seconds_per_case) | {"video": name}
                        case["maps_per_second"] = 1e3 * batch / case["ms"]
                        case["fraction_of_peak"] = (
                            _flops(size, 4) * case["maps_per_second"] / (1e12 * figures["peak_tflops"])
                        )
                        figures["video"].append(case)
                        print(
                            f"{name:>8} {_line(case)}; {case['maps_per_second']:.1f} maps/s, "
                            f"{100 * case['fraction_of_peak']:.0f} % of a peak of {figures['peak_tflops']:.0f} TFLOP/s"
                        )
        finally:
            if peer is not None:
                peer.close()
    figures["load_average"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    if figures["load_average"] is not None:
        print(f"load average of the last minute: {figures['load_average']:.1f}")
    return figures


def _precision(dtype: str) -> str | None:
    return "highest" if dtype == "float32" else None


def _parameters() -> Parameters:
    """He-initialised, so that activations keep their size through the layers."""
    rng = np.random.default_rng(0)
    scale = np.sqrt(2 / (9 * CHANNELS))
    return [
        (
            jnp.asarray(scale * rng.standard_normal((3, 3, CHANNELS, CHANNELS)), jnp.float32),
            jnp.asarray(0.1 * rng.standard_normal(CHANNELS), jnp.float32),
        )
        for _ in range(CONVOLUTIONS)
    ]


def _restore(parameters: Parameters, latents: jax.Array) -> jax.Array:
    """``[N, h, w, 64]`` → ``[N, 2h, 2w, 64]``."""
    x = latents
    for i, (kernel, bias) in enumerate(parameters):
        if i == UPSAMPLE_BEFORE:
            x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x + bias.reshape(1, 1, 1, -1)
        if i < len(parameters) - 1:
            x = jax.nn.relu(x)
    return x


def _flops(size: tuple[int, int], sketches: int) -> float:
    """Of one map: a forward pass and, per sketch, the input gradient, which costs as much."""
    positions = size[0] * size[1] * (UPSAMPLE_BEFORE + 4 * (CONVOLUTIONS - UPSAMPLE_BEFORE))
    return 2.0 * (1 + sketches) * positions * 9 * CHANNELS**2


def _latents(batch: int, size: tuple[int, int]) -> jax.Array:
    """The same in every frame, as the peer has them."""
    rng = np.random.default_rng(1)
    one = rng.standard_normal((1, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
    tiled = np.tile(one, (batch, -(-size[0] // HEIGHT), -(-size[1] // WIDTH), 1))
    return jnp.asarray(tiled[:, : size[0], : size[1]])


class _Ours:
    """Our side: a receiver per size of latents."""

    def __init__(self, parameters: Parameters, dtype: str):
        cast = jnp.dtype(dtype)
        self._parameters = [(kernel.astype(cast), bias.astype(cast)) for kernel, bias in parameters]
        self._dtype = cast
        self._receivers: dict[tuple[int, int], jax.tree_util.Partial] = {}

    def layout(self, size: tuple[int, int]) -> TileLayout:
        """Of the frame that carries the latents."""
        return TileLayout(CHANNELS, *size)

    def receiver(self, size: tuple[int, int]) -> jax.tree_util.Partial:
        """Tiled frame → restored features."""
        if size not in self._receivers:
            layout, dtype = self.layout(size), self._dtype

            def restore(parameters: Parameters, frame: Yuv400) -> jax.Array:
                return _restore(parameters, unpack(frame, layout).astype(dtype))

            self._receivers[size] = jax.tree_util.Partial(restore, self._parameters)
        return self._receivers[size]

    def frame(self, batch: int, size: tuple[int, int]) -> Yuv400:
        """Latents as the codec would be given them."""
        return pack(_latents(batch, size), self.layout(size))

    def milliseconds(self, frame: Yuv400, size: tuple[int, int], sketches: int) -> float:
        """One batch of maps."""
        return _milliseconds(
            lambda: importance_map(self.receiver(size), frame, key=jax.random.key(0), sketches=sketches)
        )

    def forward_ms(self, frame: Yuv400, size: tuple[int, int]) -> float:
        """One forward pass, compiled."""
        return _milliseconds(lambda: _forward(self.receiver(size), frame))


@jax.jit
def _forward(receiver: jax.tree_util.Partial, frame: Yuv400) -> jax.Array:
    return receiver(frame)


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1e3


class _TorchPeer(Peer):
    """The PyTorch process, which gives its map of our sketches at the start."""

    def __init__(self, python: str, folder: Path, parameters: Parameters, device: str, dtype: str):
        arrays: dict[str, Any] = {}
        for i, (kernel, bias) in enumerate(parameters):
            arrays |= {f"kernel_{i}": np.asarray(kernel), f"bias_{i}": np.asarray(bias)}
        latents = _latents(1, (HEIGHT, WIDTH))
        like = jax.eval_shape(_restore, parameters, latents)
        signs = np.stack([np.asarray(sketch_row(jax.random.key(0), i, like)) for i in range(2)])
        np.savez(
            folder / "case.npz",
            latents=np.asarray(latents),
            sketches=signs,
            upsample_before=UPSAMPLE_BEFORE,
            **arrays,
        )
        script = Path(__file__).with_name("importance_torch.py")
        threads = sorted({1, os.cpu_count() or 1})
        super().__init__(
            "PyTorch", [python, script, folder / "case.npz", folder / "output.npz", device, dtype, *threads]
        )
        with np.load(folder / "output.npz") as output:
            self.h = output["h"]

    def milliseconds(self, method: str, batch: int, sketches: int, size: tuple[int, int]) -> float:
        """``forward``, ``loop`` or ``vmap`` once."""
        answer = self.ask(f"{method} {batch} {sketches} {size[0]} {size[1]}")
        return float(answer["milliseconds"])


def _difference(ours: _Ours, peer: _TorchPeer, tolerance: float) -> float:
    """Relative root mean square difference of the maps of two sketches; raises `RuntimeError` beyond ``tolerance``."""
    size = (HEIGHT, WIDTH)
    h = importance_map(ours.receiver(size), ours.frame(1, size), key=jax.random.key(0), sketches=2).h
    mine = np.asarray(unpack(h, ours.layout(size)))
    difference = float(np.sqrt(np.mean((mine - peer.h) ** 2) / np.mean(peer.h**2)))
    if not difference <= tolerance:
        raise RuntimeError(f"PyTorch's map of the same sketches differs by {difference:.2g}; expected {tolerance}")
    return difference


def _case(
    ours: _Ours,
    peer: _TorchPeer | None,
    batch: int,
    sketches: int,
    size: tuple[int, int],
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Milliseconds of each side for one batch of maps."""
    frame = ours.frame(batch, size)
    sides: dict[str, Callable[[], float]] = {"jaxwrap": lambda: ours.milliseconds(frame, size, sketches)}
    if peer is not None:
        sides |= {m: lambda m=m: peer.milliseconds(m, batch, sketches, size) for m in ("loop", "vmap", "default")}  # type: ignore[misc]
    start = time.perf_counter()
    for call in sides.values():
        call()  # compiles, warms the allocator
    once = time.perf_counter() - start
    times = {side: np.empty(max(2, min(rounds, int(seconds / once)))) for side in sides}
    for i in range(len(times["jaxwrap"])):
        for side, call in sides.items():
            times[side][i] = call()
    case: dict[str, Any] = {"batch": batch, "sketches": sketches, "ms": float(np.median(times["jaxwrap"]))}
    for side in ("loop", "vmap", "default"):
        if side in times:
            case[f"{side}_ms"] = float(np.median(times[side]))
            case[f"ratio_{side}"] = float(np.median(times[side] / times["jaxwrap"]))
    return case


def _medians(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Of calls that take turns, after one of each to compile."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            value = call()
            if i:
                times[name].append(value)
    return {name: float(np.median(values)) for name, values in times.items()}


def _work(ours: _Ours, rounds: int) -> dict[str, float]:
    """Doubled frames, doubled pixels, doubled sketches; a sketch in forward passes."""
    small, tall = (HEIGHT, WIDTH), (2 * HEIGHT, WIDTH)
    frames = {n: ours.frame(n, small) for n in (4, 8)}
    large = ours.frame(4, tall)
    ms = _medians(
        {
            "forward": lambda: ours.forward_ms(frames[4], small),
            "4": lambda: ours.milliseconds(frames[4], small, 4),
            "8": lambda: ours.milliseconds(frames[4], small, 8),
            "16": lambda: ours.milliseconds(frames[4], small, 16),
            "frames": lambda: ours.milliseconds(frames[8], small, 4),
            "pixels": lambda: ours.milliseconds(large, tall, 4),
        },
        rounds,
    )
    return {
        "frames_doubled": ms["frames"] / ms["4"],
        "pixels_doubled": ms["pixels"] / ms["4"],
        "sketches_doubled": (ms["16"] - ms["8"]) / (ms["8"] - ms["4"]),
        "sketch_in_forward_passes": (ms["16"] - ms["4"]) / 12 / ms["forward"],
    }


def _memory(ours: _Ours) -> dict[str, int]:
    """Peak memory of maps of 2 and of 8 times as many frames as a budget holds, without what they return.

    On CPU it is the growth of the process's peak, from a batch that has run before; on a GPU the device's own figure.
    """
    size = (HEIGHT, WIDTH)
    receiver = ours.receiver(size)
    at_once = frames_within(receiver, ours.frame(1, size), MEMORY_BUDGET)
    figures = {"budget": MEMORY_BUDGET, "frames_at_once": at_once}
    for times in (2, 8):
        frames = jax.device_get(ours.frame(times * at_once, size))
        before = _peak_bytes()
        maps = importance_map(receiver, frames, key=jax.random.key(0), sketches=4, memory_budget=MEMORY_BUDGET)
        returned = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(maps)))
        figures[f"{times}_times"] = max(0, _peak_bytes() - before - returned)
        del maps, frames
    return figures


def _peak_bytes() -> int:
    stats = jax.devices()[0].memory_stats()
    if stats is not None:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _half_precision(parameters: Parameters) -> dict[str, float]:
    """bfloat16 against float32 with the same sketches: relative errors of samples and of 16×16 means of h."""
    size = (HEIGHT, WIDTH)
    maps = {}
    for dtype in ("float32", "bfloat16"):
        ours = _Ours(parameters, dtype)
        frame = ours.frame(1, size)
        maps[dtype] = np.asarray(importance_map(ours.receiver(size), frame, key=jax.random.key(0), sketches=4).h.y[0])
    exact, rounded = maps["float32"], maps["bfloat16"]

    def blocks(h: np.ndarray) -> np.ndarray:
        return h.reshape(h.shape[0] // 16, 16, h.shape[1] // 16, 16).mean((1, 3))

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)) / np.mean(b))

    return {"samples": relative(rounded, exact), "blocks": relative(blocks(rounded), blocks(exact))}


def _peak_tflops(dtype: str) -> float:
    """Of a product of two 8192² matrices, the best of five."""
    a = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.dtype(dtype))
    product = jax.jit(lambda x, y: x @ y)
    product(a, a).block_until_ready()
    best = min(_milliseconds(lambda: product(a, a)) for _ in range(5))
    return 2 * 8192**3 / best / 1e9


def _headline(figures: dict[str, Any]) -> str:
    text = (
        f"importance maps of {CONVOLUTIONS} convolutions 3×3 × {CHANNELS}, latents {CHANNELS} × {HEIGHT} × {WIDTH}, "
        f"{figures['dtype']}; {figures['device']}, jax {figures['jax']}, {figures['cpus']} CPUs"
    )
    if "torch" in figures:
        text += (
            f"\npeer: PyTorch {figures['torch']} (eager) on {figures['torch_device']}, "
            f"{figures['torch_threads']} threads, {figures['torch_layout']}; maps of the same sketches differ by "
            f"{figures['relative_difference']:.1e}"
        )
    return text


def _line(case: dict[str, Any]) -> str:
    line = f"batch {case['batch']:3d}, {case['sketches']:3d} sketches: {case['ms']:9.1f} ms"
    if "ratio_loop" in case:
        line += (
            f"; loop {case['loop_ms']:9.1f} ms: {case['ratio_loop']:.2f} ×"
            f", in the default layout {case['ratio_default']:.2f} ×"
            f", vmap {case['vmap_ms']:9.1f} ms: {case['ratio_vmap']:.2f} ×"
        )
    return line


def _print_work(figures: dict[str, Any]) -> None:
    work, memory, half = figures["work"], figures["memory"], figures["bfloat16"]
    print(
        f"twice the frames: {work['frames_doubled']:.2f} × the time; twice the pixels: {work['pixels_doubled']:.2f} ×; "
        f"twice the sketches: {work['sketches_doubled']:.2f} × their part; a further sketch: "
        f"{work['sketch_in_forward_passes']:.2f} forward passes"
    )
    print(
        f"budget of {memory['budget'] >> 20} MiB: {memory['frames_at_once']} frames at once; peak beyond what was "
        f"there and what is returned: {memory['2_times'] >> 20} MiB for 2 times as many frames, then "
        f"{memory['8_times'] >> 20} MiB more for 8 times as many"
    )
    print(
        f"bfloat16 against float32: {half['samples']:.3f} of the mean per sample, {half['blocks']:.4f} per 16×16 mean"
    )
