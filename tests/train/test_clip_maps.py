from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxwrap.arrays import Yuv420
from jaxwrap.codecs.weightmap import read_maps
from jaxwrap.train import maps as module
from jaxwrap.train.maps import clip_maps, write_weights
from jaxwrap.train.media import Clip
from jaxwrap.wrappers.switchable import PostConfig, Wrapper, WrapperConfig

SMALL = PostConfig(widths=(6, 6), kernels=(3, 3), encoder_blocks=(0, 1), decoder_blocks=(0,))


@pytest.fixture(scope="module")
def wrapper() -> Wrapper:
    """With a last layer that is not zero, so that the map depends on the picture."""
    network = Wrapper(WrapperConfig(Fraction(1, 2), "bilinear", SMALL), rngs=nnx.Rngs(0))
    assert network.post_network is not None
    kernel = network.post_network.exit.pointwise_kernel
    kernel[...] = jax.random.normal(jax.random.key(1), kernel.shape) * 0.3
    return network


def clip(name: str, frames: int, height: int, width: int) -> Clip:
    rng = np.random.default_rng(len(name))
    y = rng.integers(0, 256, (frames, height, width), dtype=np.uint8)
    u, v = (rng.integers(0, 256, (frames, height // 2, width // 2), dtype=np.uint8) for _ in range(2))
    return Clip(name, Yuv420(y, u, v), 8, 25.0, Path(name))


def test_frames_in_chunks_give_the_maps_of_the_whole_clip(
    wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    video = clip("video", 3, 24, 32)
    whole = clip_maps(wrapper, [video], sketches=2, seed=5)[0]
    done: list[int] = []
    monkeypatch.setattr(module, "PIXELS_PER_BATCH", 2 * 24 * 32)
    chunked = clip_maps(wrapper, [video], sketches=2, seed=5, advance=done.append)[0]
    assert done == [2, 1]
    # Not byte for byte: the batch masks its padding by a metric of full size, whose products are rounded elsewhere.
    for a, b in zip(chunked.h.planes, whole.h.planes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    info = write_weights(tmp_path / "video.dat", [chunked], mode="wa", receiver="test", seed=5, alpha=0.5)
    read, _ = read_maps(tmp_path / "video.dat", size=(12, 16))
    assert info.maps == 3
    # By hand: one mean over all planes of each frame, then the share α of plain SSE.
    mean = sum(p.sum((1, 2)) for p in chunked.h.planes) / (12 * 16 * 1.5)
    np.testing.assert_allclose(read.y, (chunked.h.y / mean[:, None, None] + 0.5) / 1.5, rtol=1e-5)
    assert info.standard_error is not None
    assert info.standard_error > 0

    frozen = write_weights(tmp_path / "fwa.dat", [chunked], mode="fwa", receiver="test", seed=5, alpha=0.0)
    assert frozen.maps == 1
    averaged = chunked.h.y.mean(0)
    read, _ = read_maps(tmp_path / "fwa.dat")
    np.testing.assert_allclose(read.y[0] / read.y.mean(), averaged / averaged.mean(), rtol=1e-5)


def test_pictures_of_different_sizes_keep_their_own(wrapper: Wrapper, tmp_path: Path) -> None:
    maps = clip_maps(wrapper, [clip("a", 1, 24, 32), clip("bc", 1, 16, 40)], sketches=2, seed=0)
    assert [m.h.y.shape for m in maps] == [(1, 12, 16), (1, 8, 20)]
    with pytest.raises(ValueError, match=r"cannot be one file"):
        write_weights(tmp_path / "fwa.dat", maps, mode="fwa", receiver="test", seed=0)
