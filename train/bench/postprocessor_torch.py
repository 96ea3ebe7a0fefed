"""The post-processor in PyTorch, for `jaxwrap.train.bench.postprocessor`: run by a Python that has torch, without
jaxwrap.

    python postprocessor_torch.py CASE.npz OUTPUT.npz DEVICE DTYPE THREADS…

CASE holds ``config`` (JSON of `PostConfig`), ``size`` (height, width), the bottleneck ``y``, ``u``, ``v`` and one
array per parameter, named by its path. DEVICE is ``cpu`` or ``cuda``, DTYPE the network's ``float32`` or ``bfloat16``
(parameters, resampling and sums with the input stay float32, as in jaxwrap). Of the THREADS given, the fastest number
is kept. The decoded frame goes to OUTPUT; a line of JSON says what runs here. Then every line on standard input is run
once, on inputs that lie on the device, and answered in JSON by its milliseconds, the device's work included:
``forward``, or ``train``, an Adam step, which also gives its loss. Eager mode, no TF32, channels_last throughout,
PyTorch's fast layout for these sizes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

ACTIVATIONS = {
    "relu": functional.relu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.1),
    "hard_swish": functional.hardswish,
}

LEARNING_RATE = 1e-3  # as in postprocessor.py


class PostProcessor(torch.nn.Module):
    """The network of `jaxwrap.wrappers.switchable.PostProcessor`, with parameters in PyTorch's layout."""

    def __init__(self, config: dict, arrays: dict[str, np.ndarray], dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.config, self.activation = config, ACTIVATIONS[config["activation"]]
        self.weights = torch.nn.ParameterDict()
        for path, array in arrays.items():
            name = path.rsplit("/", 1)[-1]
            if name == "depthwise_kernel":
                array = array.transpose(2, 0, 1)[:, None]  # [C, 1, k, k]
            elif name == "pointwise_kernel":
                array = array.T[..., None, None]  # [O, C, 1, 1]
            elif name == "kernel":
                array = array.transpose(3, 2, 0, 1)  # [O, C, k, k]
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            self.weights[path.replace("/", "_")] = torch.nn.Parameter(tensor)

    def separable(self, x: torch.Tensor, path: str, stride: int = 1) -> torch.Tensor:
        """Depthwise k×k (even kernels at stride 2 are unpadded), 1×1, bias."""
        kernel = self.weight(f"{path}_depthwise_kernel")
        x = functional.conv2d(x, kernel, None, stride, (kernel.shape[-1] - stride) // 2, groups=kernel.shape[0])
        return functional.conv2d(x, self.weight(f"{path}_pointwise_kernel"), self.weight(f"{path}_bias"))

    def weight(self, name: str) -> torch.Tensor:
        """A parameter in the dtype of the computation."""
        return self.weights[name].to(self.dtype)

    def unet(self, x: torch.Tensor) -> torch.Tensor:
        """Six channels in, six channels of residual out."""
        act, config = self.activation, self.config
        levels = len(config["widths"])
        h, width = x.shape[-2:]
        multiple = 2 ** (levels - 1)
        if h % multiple or width % multiple:
            x = functional.pad(x, (0, -width % multiple, 0, -h % multiple), mode="replicate")
        x = act(self.separable(x, "entry"))
        skips = []
        for level, blocks in enumerate(config["encoder_blocks"]):
            for block in range(blocks):
                x = act(self.separable(x, f"encoder_{level}_{block}"))
            if level < levels - 1:
                skips.append(x)
                x = act(self.separable(x, f"down_{level}", 2))
        for level in reversed(range(levels - 1)):
            x = functional.conv2d(x, self.weight(f"up_{level}_kernel"), self.weight(f"up_{level}_bias"))
            x = skips[level] + functional.interpolate(x, scale_factor=2, mode="nearest")
            for block in range(config["decoder_blocks"][level]):
                x = act(self.separable(x, f"decoder_{level}_{block}"))
        return self.separable(x, "exit")[..., :h, :width]

    def forward(self, planes: list[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
        """Planes [N, 1, H, W] of the bottleneck → planes of ``size``."""
        sizes = [size, (size[0] // 2, size[1] // 2), (size[0] // 2, size[1] // 2)]
        y, u, v = (
            p if p.shape[-2:] == s else functional.interpolate(p, size=s, mode="bilinear", align_corners=False)
            for p, s in zip(planes, sizes, strict=True)
        )
        uv = torch.cat([u, v], 1).to(self.dtype)
        x = torch.cat([functional.pixel_unshuffle(y, 2).to(self.dtype), uv], 1)
        residual = self.unet(x.contiguous(memory_format=torch.channels_last)).to(y.dtype)
        uv = functional.conv2d(uv, self.weight("chroma_kernel"), self.weight("chroma_bias"), padding=1).to(y.dtype)
        uv = uv + residual[:, 4:]
        return [y + functional.pixel_shuffle(residual[:, :4], 2), uv[:, :1], uv[:, 1:]]


def main(case_path: str, output_path: str, device: str, dtype: str, *threads: str) -> None:
    """Writes the decoded frame, says what it is, then answers timing requests until standard input closes."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"PyTorch {torch.__version__} has no CUDA here; jaxwrap runs on a GPU, so install a CUDA build of torch"
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the fastest algorithm, found in the calls before timing
    case = dict(np.load(case_path))
    config, size = json.loads(str(case.pop("config"))), tuple(int(s) for s in case.pop("size"))
    planes = [torch.from_numpy(case.pop(name))[:, None].to(device) for name in ("y", "u", "v")]
    network = PostProcessor(config, case, getattr(torch, dtype)).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)

    def forward() -> list[torch.Tensor]:
        with torch.no_grad():
            return network(planes, size)

    def train() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss = sum((p**2).mean() for p in network(planes, size))
        loss.backward()
        optimiser.step()
        return loss.detach()

    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(task: Callable[[], Any]) -> tuple[float, Any]:
        synchronise()
        start = time.perf_counter()
        result = task()
        synchronise()
        return (time.perf_counter() - start) * 1e3, result

    def forward_ms(count: int) -> float:
        torch.set_num_threads(count)
        timed(forward)
        return min(timed(forward)[0] for _ in range(3))

    kept = min(map(int, threads), key=forward_ms)
    torch.set_num_threads(kept)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    frame = [p[:, 0].cpu().numpy() for p in forward()]
    np.savez(output_path, *frame)
    print(json.dumps({"torch": torch.__version__, "torch_device": name, "torch_threads": kept}), flush=True)
    tasks = {"forward": forward, "train": train}
    for line in sys.stdin:
        task = line.strip()
        milliseconds, result = timed(tasks[task])
        loss = {"loss": result.item()} if task == "train" else {}
        print(json.dumps({"milliseconds": milliseconds, **loss}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
