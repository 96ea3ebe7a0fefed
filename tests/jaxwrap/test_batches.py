"""Batches of pictures of different sizes: where the picture is in an output, and what ``"auto"`` looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance.batches import batched_importance_maps

KEY = jax.random.key(2)
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 4)), jnp.float32)


def gray(n: int, h: int, w: int, seed: int = 0) -> Yuv400:
    return Yuv400(np.random.default_rng(seed).uniform(0.5, 2, (n, h, w)).astype(np.float32))


def conv(z: Frame, stride: int = 1, padding: str = "SAME") -> jax.Array:
    return jax.lax.conv_general_dilated(
        z.y[..., None], KERNEL, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def every(receiver: Callable[[Frame], Any]) -> Callable[[int, int], Callable[[Frame], Any]]:
    return lambda height, width: receiver


def rows_in_channels(z: Frame) -> jax.Array:
    """``[N, 3, H, W]``: row i in channel i % 3, squared. Each sample reaches one output, so every sketch is exact."""
    rows = jnp.arange(z.y.shape[1])[None] % 3 == jnp.arange(3)[:, None]
    return z.y[:, None] ** 2 * rows[None, :, :, None].astype(z.y.dtype)


def test_channels_may_come_first() -> None:
    zs = [gray(1, 6, 12, seed=1), gray(2, 12, 8, seed=2)]
    maps = batched_importance_maps(every(rows_in_channels), zs, key=KEY, sketches=1, spatial_axes=(2, 3))
    for z, m in zip(zs, maps, strict=True):
        np.testing.assert_allclose(m.h.y, 4 * z.y**2, rtol=1e-5)


@pytest.mark.parametrize(
    ("receiver", "axes"),
    [
        (rows_in_channels, (1, 2)),
        (lambda z: {"boxes": z.y.reshape(len(z.y), -1, 2)}, (1, 2)),  # [N, anchors, classes]
        (lambda z: z.y, (2, 3)),
        (lambda z: z.y, (0, 1)),
    ],
)
def test_outputs_whose_padding_is_not_known_are_refused(receiver, axes) -> None:
    zs = [gray(1, 6, 12), gray(1, 12, 8)]
    with pytest.raises(ValueError, match=r"for frames of 12×12.*give spatial_axes .* or map pictures one by one"):
        batched_importance_maps(every(receiver), zs, key=KEY, spatial_axes=axes)


def test_outputs_of_strides_and_cut_borders_are_in_proportion() -> None:
    zs = [gray(1, 9, 30), gray(1, 13, 16)]
    for stride, padding in ((2, "SAME"), (2, "VALID"), (3, "VALID"), (1, "VALID")):
        receiver = every(lambda z, s=stride, p=padding: conv(z, s, p))
        assert len(batched_importance_maps(receiver, zs, key=KEY, sketches=1)) == 2


def test_auto_looks_at_a_pictures_own_part_of_the_canvas() -> None:
    """Each picture stops at the first number of sketches at which its own map is good enough."""

    def network(z: Frame) -> jax.Array:
        return jnp.tanh(conv(z))

    zs = [gray(1, 64, 64), gray(1, 17, 20, seed=1), gray(1, 33, 16, seed=2)]
    options: dict[str, Any] = {"target_error": 0.17, "max_sketches": 32}
    maps = batched_importance_maps(every(network), zs, key=KEY, sketches="auto", **options)
    fixed = {n: batched_importance_maps(every(network), zs, key=KEY, sketches=n) for n in (4, 8, 16, 32)}
    for i, m in enumerate(maps):
        errors = {n: float(found[i].relative_block_error()[0]) for n, found in fixed.items()}
        wanted = next((n for n, error in errors.items() if error <= 0.17), 32)
        assert int(m.frame_sketches[0]) == wanted, (i, errors)


def test_frames_of_a_batch_may_have_numbers_of_their_own() -> None:
    a, b = gray(1, 6, 8, seed=1), gray(1, 8, 6, seed=2)

    def maps(zs: list[Yuv400], numbers: Any) -> list[np.ndarray]:
        found = batched_importance_maps(every(conv), zs, key=KEY, sketches=1, frame_offset=numbers)
        return [np.asarray(m.h.y) for m in found]

    both = maps([a, b], [7, 3])
    np.testing.assert_array_equal(both[0], maps([a, b], 7)[0])
    np.testing.assert_array_equal(both[1], maps([a, b], 2)[1])
