"""The Jacobian as an operator against `jax.jacrev` and finite differences; rows, blocks, transforms against loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.importance.jacobian import (
    Jacobian,
    cut_blocks,
    dct_matrix,
    flatten,
    sketched_rows,
    transform_rows,
)
from jaxwrap.importance.maps import importance_map, yuv_metric
from jaxwrap.importance.sketch import TopDct

KEY = jax.random.key(5)
KERNEL = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3, 1, 2)), jnp.float32)


def gray(n: int = 2, h: int = 4, w: int = 6, seed: int = 0) -> Yuv400:
    return Yuv400(np.random.default_rng(seed).uniform(0, 4, (n, h, w)).astype(np.float32))


def colour(n: int = 2, h: int = 4, w: int = 6, seed: int = 0) -> Yuv420:
    rng = np.random.default_rng(seed)
    return Yuv420(*(rng.uniform(0, 4, s).astype(np.float32) for s in ((n, h, w), *[(n, h // 2, w // 2)] * 2)))


def conv(x: jax.Array, stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = KERNEL.astype(x.dtype)
    return jax.lax.conv_general_dilated(x[..., None], kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def attention(z: Frame) -> jax.Array:
    tokens = conv(z.y / 8, 2).reshape(z.y.shape[0], -1, 2)
    scores = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", tokens, tokens), axis=-1)
    return jnp.einsum("nqk,nkc->nqc", scores, tokens)


def upsampling(z: Frame) -> jax.Array:
    return jnp.sin(conv(jnp.repeat(jnp.repeat(z.y, 2, 1), 2, 2)))


def multi_scale(z: Yuv420) -> dict[str, Any]:
    return {"full": jnp.tanh(conv(z.y)), "half": (z.y[:, ::2, ::2] * z.u + z.v**2,), "mean": jnp.mean(z.y, (1, 2))}


def dense(receiver: Callable[[Frame], Any], z: Frame, i: int) -> np.ndarray:
    """J of frame i alone by reverse mode, ``[outputs, samples]``."""
    frame = jax.tree.map(lambda p: jnp.asarray(p[i : i + 1]), z)
    rows = jax.jit(jax.jacrev(lambda f: flatten(receiver(f))[0]))(frame)
    return np.concatenate([np.asarray(p, np.float64).reshape(p.shape[0], -1) for p in rows.planes], axis=1)


CASES = [
    pytest.param(attention, gray(), None, id="strided, attention"),
    pytest.param(upsampling, gray(), 2.0, id="upsampling"),
    pytest.param(multi_scale, colour(), {"full": 3.0, "half": 1.0, "mean": 0.5}, id="multi-scale"),
]


@pytest.mark.parametrize(("receiver", "z", "metric"), CASES)
def test_the_operator_is_the_jacobian_and_its_transpose_the_transpose(receiver, z, metric) -> None:
    jacobian = Jacobian(receiver, z, metric)
    matrix = np.asarray(jacobian.as_matrix(), np.float64)
    output = jacobian.output
    if isinstance(metric, dict):
        weights = {
            name: jax.tree.map(lambda y, w=w: np.full(y.shape[1:], w), output[name]) for name, w in metric.items()
        }
    else:
        weights = np.full(output.shape[1:], 1.0 if metric is None else metric)
    root = np.sqrt(np.concatenate([w.ravel() for w in jax.tree.leaves(weights)]))
    for i in range(2):
        np.testing.assert_allclose(matrix[i], root[:, None] * dense(receiver, z, i), rtol=1e-4, atol=1e-5)

    rng = np.random.default_rng(1)
    q = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), z)
    u = jax.tree.map(lambda y: rng.standard_normal(y.shape).astype(np.float32), output)
    columns, rows = flatten(q), flatten(u)
    transposed = jacobian.transpose()
    np.testing.assert_allclose(flatten(jacobian.mv(q)), np.einsum("nij,nj->ni", matrix, columns), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(flatten(transposed.mv(u)), np.einsum("nij,ni->nj", matrix, rows), rtol=1e-3, atol=1e-4)
    assert transposed.transpose() is jacobian


def test_the_operator_is_the_limit_of_finite_differences() -> None:
    with jax.enable_x64(True):
        z = jax.tree.map(lambda p: p.astype(np.float64), colour())
        q = jax.tree.map(lambda p: np.random.default_rng(2).standard_normal(p.shape), z)
        step = 1e-5

        def at(sign: float) -> jax.Array:
            return flatten(multi_scale(jax.tree.map(lambda p, e: jnp.asarray(p + sign * step * e), z, q)))

        # Central differences err by step² times a third derivative of order 1 to 100, and by 1e-16 / step.
        np.testing.assert_allclose(
            flatten(Jacobian(multi_scale, z).mv(q)), (at(1) - at(-1)) / (2 * step), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("sketch", ["rademacher", TopDct(3)])
def test_the_squares_of_rows_sum_to_the_map_of_the_same_key(sketch) -> None:
    z = colour()
    rows = sketched_rows(Jacobian(multi_scale, z), KEY, 4, sketch=sketch, frame_offset=7)
    h = importance_map(multi_scale, z, key=KEY, sketches=4, sketch=sketch, frame_offset=7).h
    assert rows.rows == 4
    for row, plane in zip(rows.planes.planes, h.planes, strict=True):
        assert row.shape == (2, 4, *plane.shape[1:])
        np.testing.assert_allclose((row**2).sum(1), plane, rtol=1e-5, atol=1e-6)


def test_rows_measure_the_error_of_a_receiver_by_finite_differences() -> None:
    """Σ_s (row_s · q)² over many rows is ‖r(z + q) − r(z)‖² of a small q."""
    z, rng = gray(), np.random.default_rng(3)
    q = rng.standard_normal(z.y.shape).astype(np.float32) * 1e-2

    def norms(y: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            moved = upsampling(Yuv400(jnp.asarray(y.astype(np.float64) + q)))
            return np.asarray(((moved - upsampling(Yuv400(jnp.asarray(y.astype(np.float64))))) ** 2).sum((1, 2, 3)))

    rows = np.asarray(sketched_rows(Jacobian(upsampling, z), KEY, 400).planes.y)
    parts = 400 * np.einsum("nshw,nhw->ns", rows, q) ** 2
    error = parts.std(1, ddof=1) / np.sqrt(parts.shape[1])
    # Four standard errors, and 2 % for the second-order term of the expansion.
    assert (np.abs(parts.mean(1) - norms(z.y)) < 4 * error + 0.02 * norms(z.y)).all()


def test_rows_of_a_frame_do_not_depend_on_its_batch() -> None:
    z = gray(3)
    whole = sketched_rows(Jacobian(upsampling, z), KEY, 2, frame_offset=4).planes.y
    one = sketched_rows(Jacobian(upsampling, Yuv400(z.y[2:])), KEY, 2, frame_offset=6).planes.y
    np.testing.assert_allclose(whole[2:], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [4, 8])
def test_blocks_hold_the_rows_and_zeros_beyond_the_edge(size) -> None:
    z = colour(1, 6, 10)
    rows = sketched_rows(Jacobian(multi_scale, z), KEY, 2)
    for cut, plane in zip(cut_blocks(rows, size).planes, rows.planes.planes, strict=True):
        (_, _, height, width) = plane.shape
        down, across = -(-height // size), -(-width // size)
        assert cut.shape == (1, 2, down, across, size, size)
        for (i, j, k, m), value in np.ndenumerate(np.asarray(cut)[0, 1]):
            row, column = i * size + k, j * size + m
            assert value == (plane[0, 1, row, column] if row < height and column < width else 0)


def test_the_dct_matrix_is_that_of_scipy() -> None:
    for size in (4, 8, 16, 32):
        x = np.random.default_rng(size).standard_normal(size)
        np.testing.assert_allclose(dct_matrix(size).T @ x, scipy.fft.dct(x, norm="ortho"), atol=1e-12)


def test_transformed_rows_are_the_rows_times_the_kronecker_product() -> None:
    """FP-RDO equation 16 with explicit matrices: b = r D, D = D_r ⊗ D_c, vec stacking columns."""
    z = gray(1, 8, 8)
    cut = cut_blocks(sketched_rows(Jacobian(upsampling, z), KEY, 3), 4)
    column = dct_matrix(4)
    row = np.linalg.qr(np.random.default_rng(4).standard_normal((4, 4)))[0]
    transformed = transform_rows(cut, column, row)
    d = np.kron(row, column)
    for s, i, j in np.ndindex(3, 2, 2):
        block = np.asarray(cut.y, np.float64)[0, s, i, j]
        expected = block.ravel("F") @ d
        np.testing.assert_allclose(transformed.y[0, s, i, j].ravel("F"), expected, rtol=1e-4, atol=1e-5)
    # The error of a block means the same in both domains (equations 14 and 15).
    q = np.random.default_rng(5).standard_normal((4, 4))
    np.testing.assert_allclose(
        np.einsum("nsijkl,kl->nsij", transformed.y, column.T @ q @ row),
        np.einsum("nsijkl,kl->nsij", cut.y, q),
        rtol=1e-4,
        atol=1e-4,
    )


def test_float64_receivers_have_float64_rows() -> None:
    with jax.enable_x64(True):
        z = jax.tree.map(lambda p: p.astype(np.float64), gray())
        rows = sketched_rows(Jacobian(lambda f: f.y**3, z), jax.random.key(0), 1).planes.y
        assert rows.dtype == np.float64
        np.testing.assert_allclose(np.abs(rows[:, 0]), 3 * z.y**2, rtol=1e-14)


def test_what_does_not_fit_is_refused() -> None:
    z = gray()
    jacobian = Jacobian(upsampling, z, yuv_metric_of_all)
    rows = sketched_rows(jacobian, KEY, 1)
    with pytest.raises(ValueError, match=r"wanted errors like z: Yuv400 of \[\(2, 4, 6\)\]"):
        jacobian.mv(gray(1))
    with pytest.raises(ValueError, match="wanted errors like z"):
        jacobian.mv(colour())
    with pytest.raises(ValueError, match=r"wanted one like the receiver's output: \(2, 8, 12, 2\)"):
        jacobian.transpose().mv(np.zeros((2, 8, 12)))
    with pytest.raises(ValueError, match="0 sketches"):
        sketched_rows(jacobian, KEY, 0)
    with pytest.raises(ValueError, match="NaN or infinite in frames 3, 4"):
        sketched_rows(Jacobian(lambda f: jnp.sqrt(f.y * 0), z), KEY, 1, frame_offset=3)
    with pytest.raises(ValueError, match="known sizes: 4, 8, 16, 32"):
        cut_blocks(rows, 5)
    with pytest.raises(ValueError, match="the row transform has shape"):
        transform_rows(cut_blocks(rows, 4), dct_matrix(4), dct_matrix(8))
    with pytest.raises(ValueError, match="column transform is not orthogonal"):
        transform_rows(cut_blocks(rows, 4), 2 * dct_matrix(4), dct_matrix(4))
    with pytest.raises(ValueError, match="int32"):
        Jacobian(lambda f: f.y.astype(jnp.int32), z)


def yuv_metric_of_all(output: jax.ShapeDtypeStruct) -> float:
    return yuv_metric(Yuv400(output)).y
