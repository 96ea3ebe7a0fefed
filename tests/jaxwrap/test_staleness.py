from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420, crop_to
from jaxwrap.importance.blocks import block_means
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map
from jaxwrap.importance.staleness import staleness
from jaxwrap.train.media import open_clips

KEY = jax.random.key(0)
SIZE = (144, 176)
KERNELS = [
    jnp.asarray(np.random.default_rng(i).standard_normal((3, 3, a, b)) * 1.4 / np.sqrt(9 * a), jnp.float32)
    for i, (a, b) in enumerate(((3, 8), (8, 16)))
]


def features(z: Frame) -> jax.Array:
    """Stands for a feature extractor: its ReLUs make the map follow the picture."""
    u, v = (jnp.repeat(jnp.repeat(p, 2, 1), 2, 2) for p in (z.u, z.v))
    x = jnp.stack([z.y, u, v], -1) / 128 - 1
    for kernel in KERNELS:
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x - 0.1)
    return x


@pytest.fixture(scope="module")
def clip(shared_data: Path) -> Yuv420:
    """Players, 50 Hz, fast."""
    return _frames(shared_data / "video" / "basketballpass_416x240.mkv")


@pytest.fixture(scope="module")
def other(shared_data: Path) -> Yuv420:
    return _frames(shared_data / "video" / "mobile_352x288.mkv")


def _frames(path: Path) -> Yuv420:
    frames = open_clips([path], max_frames=30)[0][0].frames
    return crop_to(jax.tree.map(lambda p: np.asarray(p, np.float32), frames), *SIZE)


def take(frames: Yuv420, *numbers: int) -> Yuv420:
    return jax.tree.map(lambda p: p[list(numbers)], frames)


@pytest.fixture(scope="module")
def reference(clip: Yuv420) -> ImportanceMap:
    return importance_map(features, take(clip, 0), key=KEY, sketches=8)


def test_the_next_frame_is_served_and_another_picture_is_not(clip, other, reference) -> None:
    near = staleness(features, take(clip, 1, 1), reference, key=KEY)
    assert not near.stale
    far = staleness(features, take(other, 0, 10), reference, key=KEY)
    assert far.stale
    assert far.frames.all()
    mixed = staleness(
        features,
        Yuv420(*(np.stack([a[1], b[0]]) for a, b in zip(clip.planes, other.planes, strict=True))),
        reference,
        key=KEY,
    )
    assert list(mixed.frames) == [False, True]


def test_change_grows_with_the_distance(clip, reference) -> None:
    change = staleness(features, take(clip, 1, 4, 12, 29), reference, key=KEY).change
    assert (np.diff(change) > 0).all()


def test_change_is_that_between_well_known_maps(clip, other, reference) -> None:
    """One sketch against 8 gives what 200 against 200 give, up to its stated noise."""
    z = Yuv420(*(np.stack([a[0], a[6], b[0]]) for a, b in zip(clip.planes, other.planes, strict=True)))
    means = block_means(importance_map(features, z, key=jax.random.key(9), sketches=200).h)
    blocks = np.stack([np.asarray(p, np.float64).reshape(3, -1) for p in means.planes], 1)
    relative = blocks / blocks.mean((1, 2), keepdims=True)
    truth = ((relative - relative[:1]) ** 2).mean((1, 2))
    found = [staleness(features, take(z, 1, 2), reference, key=jax.random.key(i)) for i in range(12)]
    mean = np.mean([f.change**2 for f in found], 0)
    np.testing.assert_allclose(mean, truth[1:], rtol=0.15)
    spread = ((relative - relative.mean(2, keepdims=True)) ** 2).mean((1, 2))
    np.testing.assert_allclose(found[0].spread[0] ** 2, spread[0], rtol=0.15)
    level = blocks.mean((1, 2))
    np.testing.assert_allclose(np.mean([f.scale for f in found], 0), level[1:] / level[0], rtol=0.05)


def test_an_unchanged_picture_is_rarely_called_stale_even_where_maps_say_nothing() -> None:
    """A linear receiver's map is flat: all that differs is noise, and the stated noise says how much."""
    z = Yuv400(np.zeros((40, 64, 64), np.float32))

    def blur(frame: Frame) -> jax.Array:
        return jax.lax.conv_general_dilated(
            frame.y[..., None], KERNELS[0][:, :, :1], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    known = importance_map(blur, Yuv400(z.y[:1]), key=KEY, sketches=16)
    found = staleness(blur, z, known, key=KEY)
    assert found.frames.mean() < 0.15
    # Many frames have no change left once noise is taken off; the rest less than 4 of its deviations.
    assert (found.change == 0).mean() > 0.25
    assert (found.change**2 < 4 * found.noise).all()


def test_what_cannot_be_judged_is_refused(clip, reference) -> None:
    z = take(clip, 1)
    one = importance_map(features, take(clip, 0), key=KEY, sketches=1)
    with pytest.raises(ValueError, match="from 1 sketch"):
        staleness(features, z, one, key=KEY)
    control = ControlVariate(take(clip, 1), reference.h, 0.5)
    corrected = importance_map(features, take(clip, 0), key=KEY, sketches=2, control=control)
    with pytest.raises(ValueError, match="control variate does not tell the spread between plain sketches"):
        staleness(features, z, corrected, key=KEY)
    with pytest.raises(ValueError, match="176×144 was given for frames of 160×144"):
        staleness(features, crop_to(z, 144, 160), reference, key=KEY)
    for tolerance in (0.0, np.nan):
        with pytest.raises(ValueError, match="wanted a number > 0"):
            staleness(features, z, reference, key=KEY, tolerance=tolerance)
