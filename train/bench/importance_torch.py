"""Importance maps in PyTorch, for `jaxwrap.train.bench.importance`: run by a Python that has torch, without jaxwrap.

    python importance_torch.py CASE.npz OUTPUT.npz DEVICE DTYPE THREADS…

CASE holds the restoration network (``kernel_0`` … HWIO, ``bias_0`` …, ``upsample_before``), ``latents`` of one frame
[1, h, w, C], and ``sketches`` [n, 1, H, W, C], whose mean squared gradient goes to OUTPUT as ``h`` [1, h, w, C]. A line
of JSON says what runs here. Then every line on standard input, ``METHOD BATCH SKETCHES HEIGHT WIDTH``, is run once on
latents of that size and answered in JSON by its milliseconds, drawing the sketches included. METHOD is ``forward``,
``loop`` (a backward pass per sketch, the graph kept), ``vmap`` (`torch.func.vmap` of the pullback), or ``default``: the
loop in the layout that PyTorch takes when it is not told.

For the others, of the THREADS and of the two memory layouts the fastest pair is kept, judged by the loop. Eager mode,
no TF32.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional


class Restoration:
    """Convolutions with ReLU between them, one 2× nearest-neighbour upsampling."""

    def __init__(self, case: dict[str, np.ndarray], device: str, dtype: torch.dtype):
        count = sum(name.startswith("kernel_") for name in case)
        self.upsample_before = int(case["upsample_before"])
        self.kernels = [
            torch.from_numpy(case[f"kernel_{i}"].transpose(3, 2, 0, 1).copy()).to(device, dtype) for i in range(count)
        ]
        self.biases = [torch.from_numpy(case[f"bias_{i}"]).to(device, dtype) for i in range(count)]

    def use(self, layout: torch.memory_format) -> None:
        """Stores the kernels in the layout of the activations."""
        self.kernels = [kernel.contiguous(memory_format=layout) for kernel in self.kernels]

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] → [N, C, 2h, 2w]."""
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            if i == self.upsample_before:
                z = functional.interpolate(z, scale_factor=2, mode="nearest")
            z = functional.conv2d(z, kernel, bias, padding=1)
            if i < len(self.kernels) - 1:
                z = functional.relu(z)
        return z


def signs_like(y: torch.Tensor) -> torch.Tensor:
    """A Rademacher sketch."""
    return torch.randint(0, 2, y.shape, device=y.device, dtype=torch.int8).to(y.dtype).mul_(2).sub_(1)


def loop(network: Restoration, z: torch.Tensor, sketches: int) -> torch.Tensor:
    """Mean of squared gradients, one backward pass after another."""
    z = z.requires_grad_()
    y = network(z)
    h = torch.zeros_like(z)
    for i in range(sketches):
        (gradient,) = torch.autograd.grad(y, z, signs_like(y), retain_graph=i < sketches - 1)
        h += gradient**2
    return h / sketches


def vectorised(network: Restoration, z: torch.Tensor, sketches: int) -> torch.Tensor:
    """The same by one vectorised pullback."""
    y, pullback = torch.func.vjp(network, z)
    s = torch.stack([signs_like(y) for _ in range(sketches)])
    (gradients,) = torch.func.vmap(pullback)(s)
    return (gradients**2).mean(0)


def forward(network: Restoration, z: torch.Tensor, sketches: int) -> torch.Tensor:
    """r(z) alone."""
    with torch.no_grad():
        return network(z)


METHODS: dict[str, Callable[[Restoration, torch.Tensor, int], torch.Tensor]] = {
    "forward": forward,
    "loop": loop,
    "vmap": vectorised,
    "default": loop,
}


def main(case_path: str, output_path: str, device: str, dtype: str, *threads: str) -> None:
    """Writes the map of the case's own sketches, then answers timing requests."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"PyTorch {torch.__version__} has no CUDA here; jaxwrap runs on a GPU, so install a CUDA build of torch"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the fastest algorithm, found in the calls before timing
    case = dict(np.load(case_path))
    network = Restoration(case, device, getattr(torch, dtype))
    latents = torch.from_numpy(case["latents"].transpose(0, 3, 1, 2).copy()).to(device, getattr(torch, dtype))
    layout = torch.contiguous_format

    untuned = Restoration(case, device, getattr(torch, dtype))

    def inputs(batch: int, height: int, width: int) -> torch.Tensor:
        repeats = (batch, 1, -(-height // latents.shape[2]), -(-width // latents.shape[3]))
        return latents.repeat(repeats)[..., :height, :width]

    def milliseconds(method: str, batch: int, sketches: int, height: int, width: int) -> float:
        chosen = untuned if method == "default" else network
        z = inputs(batch, height, width).contiguous(
            memory_format=torch.contiguous_format if method == "default" else layout
        )
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        METHODS[method](chosen, z, sketches)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    def cost(setting: tuple[int, torch.memory_format]) -> float:
        nonlocal layout
        layout = setting[1]
        torch.set_num_threads(setting[0])
        network.use(layout)
        case_of_loop = ("loop", 1, 4, *latents.shape[2:])
        milliseconds(*case_of_loop)
        return min(milliseconds(*case_of_loop) for _ in range(3))

    settings = list(itertools.product(map(int, threads), (torch.contiguous_format, torch.channels_last)))
    count, layout = min(settings, key=cost)
    torch.set_num_threads(count)
    network.use(layout)

    z = latents.contiguous(memory_format=layout).requires_grad_()
    y = network(z)
    h = torch.zeros_like(z)
    for s in torch.from_numpy(case["sketches"].transpose(0, 1, 4, 2, 3).copy()).to(device, y.dtype):
        h += torch.autograd.grad(y, z, s, retain_graph=True)[0] ** 2
    np.savez(output_path, h=(h / len(case["sketches"])).float().cpu().numpy().transpose(0, 2, 3, 1))
    about = {
        "torch": torch.__version__,
        "torch_device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch_threads": count,
        "torch_layout": "channels_last" if layout == torch.channels_last else "contiguous",
    }
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        method, *numbers = line.split()
        batch, sketches, height, width = map(int, numbers)
        print(json.dumps({"milliseconds": milliseconds(method, batch, sketches, height, width)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
