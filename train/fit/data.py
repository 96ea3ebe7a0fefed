"""Training crops: a batch is a pure function of (seed, step), so the data position of a checkpoint is its step
number."""

from __future__ import annotations

import numpy as np

from jaxwrap.arrays import Yuv420, size_of


def crop_batch(pictures: list[Yuv420], *, seed: int, step: int, batch: int, crop: int) -> Yuv420:
    """Random crops, half of them mirrored: uint8 samples, y ``[batch, crop, crop]``.

    ``pictures``: one-frame 8-bit batches, each at least ``crop`` wide and high. Offsets are even, so that chroma stays
    in place.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    chosen = rng.integers(len(pictures), size=batch)
    y = np.empty((batch, crop, crop), np.uint8)
    u, v = (np.empty((batch, crop // 2, crop // 2), np.uint8) for _ in range(2))
    for i, which in enumerate(chosen):
        source = pictures[which]
        height, width = size_of(source)
        top, left = (2 * int(rng.integers((side - crop) // 2 + 1)) for side in (height, width))
        flip = slice(None, None, -1 if rng.integers(2) else 1)
        y[i] = source.y[0, top : top + crop, left : left + crop][:, flip]
        for out, plane in ((u, source.u), (v, source.v)):
            out[i] = plane[0, top // 2 : (top + crop) // 2, left // 2 : (left + crop) // 2][:, flip]
    return Yuv420(y, u, v)
