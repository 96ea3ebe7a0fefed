"""Transforms against their definition: explicit cosine sums."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.codecs.jpeg.dct import BLOCK_SIZES, block_dct_matrices, islow_dct
from jaxwrap.importance import dct_matrix


def cosine_sum(samples: list[float]) -> list[float]:
    """Orthonormal DCT-II by its definition."""
    n = len(samples)
    scale = [math.sqrt((1 if k == 0 else 2) / n) for k in range(n)]
    return [scale[k] * sum(x * math.cos(math.pi * (i + 0.5) * k / n) for i, x in enumerate(samples)) for k in range(n)]


def test_block_matrices_transform_each_block_alone() -> None:
    x = np.random.default_rng(0).normal(size=32).astype(np.float32)
    for size, matrix in zip(BLOCK_SIZES, block_dct_matrices(), strict=True):
        expected = np.concatenate([cosine_sum(block.tolist()) for block in x.reshape(-1, size)])
        np.testing.assert_allclose(matrix @ x, expected, atol=1e-5)


def test_integer_dct_is_eight_times_the_orthonormal_one_rounded() -> None:
    planes = np.random.default_rng(1).integers(-128, 128, size=(2, 24, 16)).astype(np.float32)
    planes[1, :8, :8] = -128  # the largest sums
    planes[1, 8:16, :8] = np.where(np.indices((8, 8)).sum(0) % 2, 127, -128)
    got = np.array([list(row) for row in jax.jit(islow_dct)(jnp.asarray(planes))])  # [u, v, N, H/8, W/8]
    blocks = planes.astype(np.float64).reshape(2, 3, 8, 2, 8)
    expected = np.einsum("iu,jv,naibj->uvnab", dct_matrix(8), dct_matrix(8), blocks) * 8
    assert got.dtype == np.int32
    # Half a unit of the second pass, half of the first's after its amplification by √8 / 4, and the constants' own.
    assert np.abs(got - expected).max() < 1.5
