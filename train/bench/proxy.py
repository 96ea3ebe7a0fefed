"""Speed of the proxy codec against the TensorFlow proxy of Google's *sandwiched_compression*, in one run.

One step is: code 8 pictures of 256×256×3 samples with the 8×8 DCT, sum squared error and bits, differentiate with
respect to the samples and the quantiser step. The peer takes [8, 256, 256, 3]; here the same planes are 24 luma
pictures. The pictures are synthetic, Gaussian noise with the 1/f spectrum of photographs: bits and times of real ones
differ. Each side runs in a process of its own on the same data, with the same number of steps by turns (A B A B …), so
that a busy machine slows both. A step has ended when loss and both gradients exist on the device; each side copies the
loss, a scalar, to the host, and nothing else.

The peer's environment needs TensorFlow, and Pillow < 11.3: later ones ignore the peer's quantisation tables, and its
JPEGs get larger and slower than it means them to be. Nothing of the peer is kept here; its path is the user's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Yuv400
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.proxy import ProxyCodec, rate_scale
from jaxwrap.train.bench.peer import Peer

NUM_PICTURES, SIZE, PLANES = 8, 256, 3
STEP_SIZE = 8.0
BITS_WEIGHT = 1e-3
REFRESH_STEPS = 8
"""The rate scale is counted anew every so many steps in the variants ``refreshed``."""

PICTURES = "synthetic 1/f noise"

VARIANTS = {
    "exact": "8×8 blocks, JPEG bits counted in every step",
    "refreshed": f"8×8 blocks, rate scale counted every {REFRESH_STEPS} steps",
    "mixed_exact": "block sizes 4…32 mixed, JPEG bits counted in every step",
    "mixed_refreshed": f"block sizes 4…32 mixed, rate scale counted every {REFRESH_STEPS} steps",
}


def run(*, peer: Path | None = None, peer_python: Path | None = None, rounds: int = 12) -> dict[str, Any]:
    """Measures and prints milliseconds per step, and the peer's over ours.

    ``peer``: folder of a sandwiched_compression checkout; ``peer_python``: an interpreter that has TensorFlow
    (default: this one); without ``peer`` only our own figures. ``rounds`` of `REFRESH_STEPS` steps each; figures are
    medians over rounds, ratios medians of the rounds' ratios.

    Returns ``{"device", "jax", "cpus", "load_average", "pictures", "peer", "ms": {variant: …}, "ratio": {variant:
    …}}``; ``load_average`` is that of the last minute, at the end. Raises `ValueError` when the folder is no checkout,
    `RuntimeError` with the other side's messages when it fails.
    """
    if peer is not None and not (peer / "image_compression" / "encode_decode_intra_lib.py").is_file():
        raise ValueError(
            f"{peer} holds no image_compression/encode_decode_intra_lib.py: give a sandwiched_compression checkout"
        )
    with tempfile.TemporaryDirectory() as folder:
        planes = Path(folder) / "planes.npy"
        np.save(planes, _pictures())
        ours = Peer("jaxwrap", [sys.executable, "-c", _OUR_WORKER, str(planes)])
        sides = {variant: ours for variant in VARIANTS}
        if peer is not None:
            python = str(peer_python or sys.executable)
            worker = Path(folder) / "peer_worker.py"  # a file, because AutoGraph wants to read the source
            worker.write_text(_PEER_WORKER, encoding="utf-8")
            sides["peer"] = Peer("the peer", [python, str(worker), str(planes), str(peer.resolve())])
        try:
            seconds = {variant: np.empty(rounds) for variant in sides}
            for variant, side in sides.items():
                side.ask(variant)["seconds"]  # compiles
            for i in range(rounds):
                for variant, side in sides.items():
                    seconds[variant][i] = side.ask(variant)["seconds"]
        finally:
            for side in set(sides.values()):
                side.close()
    figures: dict[str, Any] = {
        **ours.about,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "pictures": PICTURES,
        "peer": sides["peer"].about["version"] if "peer" in sides else None,
        "ms": {variant: 1e3 * float(np.median(values)) for variant, values in seconds.items()},
        "ratio": {v: float(np.median(seconds["peer"] / seconds[v])) for v in VARIANTS} if "peer" in sides else {},
    }
    _print(figures)
    return figures


def _print(figures: dict[str, Any]) -> None:
    print(
        f"proxy codec, forward + gradient, {NUM_PICTURES} × {SIZE}² × {PLANES} of {figures['pictures']}; "
        f"{figures['device']}, jax {figures['jax']}, {figures['cpus']} CPUs, "
        + ("load unknown" if figures["load_average"] is None else f"load average {figures['load_average']:.1f}")
    )
    if figures["peer"]:
        print(f"{figures['ms']['peer']:9.2f} ms   peer (TensorFlow {figures['peer']}), JPEG run in every step")
    for variant, text in VARIANTS.items():
        ratio = f"{figures['ratio'][variant]:5.2f} ×" if figures["ratio"] else "       "
        print(f"{figures['ms'][variant]:9.2f} ms {ratio}   {text}")


def _pictures() -> np.ndarray:
    """``[24, 256, 256]`` float32 in 0…255 of noise with the 1/f spectrum of photographs; the same in every run."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.rfftfreq(SIZE), indexing="ij"))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(NUM_PICTURES * PLANES, SIZE, SIZE))) / frequency
    planes = np.fft.irfft2(spectrum, s=(SIZE, SIZE))
    planes *= 45 / planes.std(axis=(1, 2), keepdims=True)
    return np.clip(planes + 128, 0, 255).astype(np.float32)


_OUR_WORKER = "import sys; from jaxwrap.train.bench.proxy import serve; serve(sys.argv[1])"


def serve(planes: str) -> None:
    """The process of our own side: reads variant names from standard input until it ends."""
    x = jnp.asarray(np.load(planes))
    mixed = jnp.asarray([4, 8, 16, 32] * (len(x) // 4), jnp.int32)
    steps = {
        "exact": _training_step(x, 8, refresh=False),
        "refreshed": _training_step(x, 8, refresh=True),
        "mixed_exact": _training_step(x, mixed, refresh=False),
        "mixed_refreshed": _training_step(x, mixed, refresh=True),
    }
    print(json.dumps({"device": str(jax.devices()[0].device_kind), "jax": jax.__version__}), flush=True)
    for line in sys.stdin:
        step = steps[line.strip()]
        start = time.perf_counter()
        for i in range(REFRESH_STEPS):
            step(i)
        print(json.dumps({"seconds": (time.perf_counter() - start) / REFRESH_STEPS}), flush=True)


def _training_step(x: jax.Array, block_sizes: Any, *, refresh: bool) -> Callable[[int], None]:
    """A step on ``x [N, H, W]`` that has finished when it returns; with ``refresh``, number 0 counts the rate scale."""
    step_size = jnp.float32(STEP_SIZE)

    def loss(x: jax.Array, step_size: jax.Array, scale: jax.Array | None) -> jax.Array:
        codec = ProxyCodec(step_size, block_sizes=block_sizes, rate_scale=scale)
        result = codec.encode(Yuv400(x), EncodeRequest(qp=None, bit_depth=8))
        return jnp.mean((result.decoded.y - x) ** 2) + BITS_WEIGHT * jnp.sum(result.bits)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    count = jax.jit(lambda x, q: rate_scale(Yuv400(x), q, bit_depth=8, block_sizes=block_sizes))
    scale = None

    def step(i: int) -> None:
        nonlocal scale
        if refresh and i == 0:
            scale = count(x, step_size)
        loss_value, _ = jax.block_until_ready(gradient(x, step_size, scale))
        float(loss_value)

    return step


_PEER_WORKER = f"""
import json, sys, time
import numpy as np
sys.path.insert(0, sys.argv[2])
import tensorflow as tf
from image_compression.encode_decode_intra_lib import EncodeDecodeIntra

planes = np.load(sys.argv[1]).reshape({PLANES}, {NUM_PICTURES}, {SIZE}, {SIZE})
x = tf.constant(planes.transpose(1, 2, 3, 0))
codec = EncodeDecodeIntra(rounding_fn=lambda v: v + tf.stop_gradient(tf.round(v) - v), qstep_init={STEP_SIZE})

@tf.function
def gradient(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        decoded, bits = codec(x)
        loss = tf.reduce_mean((decoded - x) ** 2) + {BITS_WEIGHT} * tf.reduce_sum(bits)
    return loss, *tape.gradient(loss, [x, codec.qstep])

print(json.dumps({{"version": tf.__version__}}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range({REFRESH_STEPS}):
        loss, *_ = gradient(x)
        tf.test.experimental.sync_devices()
        loss.numpy()
    print(json.dumps({{"seconds": (time.perf_counter() - start) / {REFRESH_STEPS}}}), flush=True)
"""
