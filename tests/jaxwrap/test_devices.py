"""Maps that are spread over devices, or decide on their own number of sketches: the same bytes as without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance.maps import ControlVariate, ImportanceMap, importance_map

pytestmark = pytest.mark.usefixtures("optimised_programs")

KEY = jax.random.key(2)
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 4)) / 3, jnp.float32)


def network(z: Frame, gain: jax.Array | float = 1.0) -> dict[str, jax.Array]:
    x = jax.lax.conv_general_dilated(z.y[..., None], KERNEL, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return {"features": jnp.tanh(x * gain), "pooled": jnp.square(x).mean((1, 2))}


def frames(n: int = 5) -> Yuv400:
    """Pictures of very different contrast, so that they need different numbers of sketches."""
    noise = np.random.default_rng(7).uniform(-1, 1, (n, 17, 20))
    return Yuv400((noise * np.geomspace(0.05, 8, n)[:, None, None]).astype(np.float32))


def assert_same_bytes(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.mark.parametrize(("number", "sketch"), [(8, "rademacher"), (3, "gaussian")])
def test_any_number_of_devices_gives_the_bytes_of_one(number: int, sketch: Any) -> None:
    z, devices = frames(), jax.devices()[:number]
    assert len(devices) == number
    assert_same_bytes(
        importance_map(network, z, key=KEY, frame_offset=2, sketch=sketch),
        importance_map(network, z, key=KEY, frame_offset=2, sketch=sketch, devices=devices),
    )


def test_devices_serve_every_option_at_once() -> None:
    z, devices = frames(), jax.devices()[:2]
    metric = {"features": np.random.default_rng(3).uniform(0, 2, (5, 17, 20, 4)).astype(np.float32), "pooled": 3.0}
    control = ControlVariate(frames(1), Yuv400(np.ones((1, 17, 20), np.float32)))
    options: dict[str, Any] = {
        "sketches": "auto",
        "metric": metric,
        "control": control,
        "target_error": 0.2,
        "max_sketches": 8,
    }
    receiver = jax.tree_util.Partial(lambda gain, z: network(z, gain), jnp.float32(1.5))
    one = importance_map(receiver, z, key=KEY, **options)
    # An odd number of frames on two devices: the last chunk is padded.
    several = importance_map(receiver, z, key=KEY, devices=devices, memory_budget=250_000, **options)
    assert_same_bytes(one, several)


def test_devices_that_do_not_serve_are_refused() -> None:
    device = jax.devices()[0]
    for devices in ([], [device, device]):
        with pytest.raises(ValueError, match="wanted 1 or more, each once"):
            importance_map(network, frames(), key=KEY, devices=devices)
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda z: importance_map(network, z, key=KEY, devices=[device]).h)(frames())


AUTO: dict[str, Any] = {"sketches": "auto", "target_error": 0.1, "max_sketches": 20}


@pytest.fixture(scope="module")
def automatic() -> ImportanceMap:
    return importance_map(network, frames(), key=KEY, **AUTO)


def test_sketches_are_added_until_each_frame_meets_the_target(automatic: ImportanceMap) -> None:
    taken, error = np.asarray(automatic.frame_sketches), np.asarray(automatic.relative_block_error())
    assert automatic.sketches == 20
    assert len(set(taken)) > 1
    assert set(taken) <= {4, 8, 16, 20}
    assert (error[taken < 20] <= 0.1).all()
    for number in set(taken) - {4}:
        before = importance_map(network, frames(), key=KEY, sketches=int({8: 4, 16: 8, 20: 16}[number]))
        assert (np.asarray(before.relative_block_error())[taken == number] > 0.1).all()


def test_a_frame_that_took_n_sketches_has_the_map_of_n_sketches(automatic: ImportanceMap) -> None:
    for n, taken in enumerate(np.asarray(automatic.frame_sketches)):
        fixed = importance_map(network, frames(), key=KEY, sketches=int(taken))
        for name in ("h", "standard_error", "block_standard_error"):
            ours, wanted = getattr(automatic, name).y[n], getattr(fixed, name).y[n]
            assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes()


def test_a_frames_number_of_sketches_does_not_depend_on_its_batch(automatic: ImportanceMap) -> None:
    z = frames()
    assert_same_bytes(automatic, importance_map(network, z, key=KEY, memory_budget=200_000, **AUTO))
    assert_same_bytes(automatic, importance_map(network, z, key=KEY, devices=jax.devices()[:3], **AUTO))
    for i in range(5):
        one = importance_map(network, Yuv400(z.y[i : i + 1]), key=KEY, frame_offset=i, **AUTO)
        assert_same_bytes(one, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], automatic))


def test_auto_asks_for_values_and_for_sense() -> None:
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda z: importance_map(network, z, key=KEY, sketches="auto").h)(frames())
    for options in ({"target_error": 0.0}, {"target_error": np.nan}, {"max_sketches": 1}):
        with pytest.raises(ValueError, match="wanted a finite error > 0 and at least 2"):
            importance_map(network, frames(), key=KEY, sketches="auto", **options)
    with pytest.raises(ValueError, match="'four' sketches"):
        importance_map(network, frames(), key=KEY, sketches="four")  # type: ignore[arg-type]
