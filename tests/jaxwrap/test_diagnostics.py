"""Diagnostics against dense matrices, closed forms and brute-force loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420, frame_of
from jaxwrap.importance.diagnostics import (
    attributed_error,
    block_energy,
    diagonal_error,
    error_terms,
    map_correlation,
    pooled_means,
    pooled_sums,
    sketch_errors,
)
from jaxwrap.importance.jacobian import Jacobian, JacobianRows, sketched_rows

HEIGHT, WIDTH = 4, 6
SAMPLES = HEIGHT * WIDTH
MATRIX = np.random.default_rng(0).normal(size=(SAMPLES + 5, SAMPLES)).astype(np.float32)


def linear(frame: Frame) -> jax.Array:
    return frame.y.reshape(frame.y.shape[0], -1) @ jnp.asarray(MATRIX.T)


def quadratic(frame: Frame) -> dict[str, jax.Array]:
    x = frame.y
    return {"a": x + 0.3 * x * jnp.roll(x, 1, 2), "b": x[:, ::2] ** 2}


def pictures(seed: int, *, scale: float = 1.0) -> Yuv400:
    return Yuv400(scale * np.random.default_rng(seed).normal(size=(2, HEIGHT, WIDTH)).astype(np.float32))


def add(a: Frame, b: Frame) -> Frame:
    return jax.tree.map(np.add, a, b)


def test_the_terms_of_equation_4_are_those_of_dense_algebra() -> None:
    z, q = pictures(1), pictures(2, scale=0.1)
    wanted = np.random.default_rng(3).normal(size=(2, SAMPLES + 5)).astype(np.float32)
    metric = np.random.default_rng(4).uniform(0.5, 2.0, SAMPLES + 5).astype(np.float32)
    terms = error_terms(linear, z, add(z, q), wanted=jnp.asarray(wanted), metric=metric)
    e = q.y.reshape(2, -1).astype(np.float64) @ MATRIX.T
    eta = wanted - z.y.reshape(2, -1).astype(np.float64) @ MATRIX.T
    # float32 sums over 29 outputs
    np.testing.assert_allclose(terms.coding, (metric * e * e).sum(1), rtol=1e-4)
    np.testing.assert_allclose(terms.linear, (metric * e * e).sum(1), rtol=1e-4)
    np.testing.assert_allclose(terms.wrapper, (metric * eta * eta).sum(1), rtol=1e-4)
    np.testing.assert_allclose(terms.cross, 2 * (metric * e * eta).sum(1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(terms.total, (metric * (eta - e) ** 2).sum(1), rtol=1e-4)


def test_a_receiver_that_is_not_linear_parts_from_its_linearisation() -> None:
    z, q = pictures(1), pictures(2)
    small = error_terms(quadratic, z, add(z, jax.tree.map(lambda p: 1e-2 * p, q)))
    large = error_terms(quadratic, z, add(z, q))
    np.testing.assert_allclose(small.linear, small.coding, rtol=0.05)
    assert (np.abs(large.linear / large.coding - 1) > 0.1).all()
    np.testing.assert_array_equal(large.wrapper, 0.0)


def test_what_a_map_believes_is_the_weighted_squared_error() -> None:
    z, q = pictures(1), pictures(2)
    h = np.abs(pictures(5).y)
    expected = [sum(float(w * e * e) for w, e in zip(h[n].ravel(), q.y[n].ravel(), strict=True)) for n in range(2)]
    np.testing.assert_allclose(diagonal_error(Yuv400(h), z, add(z, q)), expected, rtol=1e-4)
    # One map serves all pictures.
    expected[1] = sum(float(w * e * e) for w, e in zip(h[0].ravel(), q.y[1].ravel(), strict=True))
    np.testing.assert_allclose(diagonal_error(Yuv400(h[:1]), z, add(z, q)), expected, rtol=1e-4)


def test_attributed_errors_of_a_linear_receiver_are_q_times_hq() -> None:
    z, q = pictures(1), pictures(2)
    parts = attributed_error(linear, z, add(z, q))
    flat = q.y.reshape(2, -1).astype(np.float64)
    expected = flat * (flat @ (MATRIX.astype(np.float64).T @ MATRIX))
    np.testing.assert_allclose(parts.y.reshape(2, -1), expected, rtol=1e-3, atol=1e-3)


def test_attributed_errors_add_up_exactly_for_a_quadratic_receiver() -> None:
    z, q = pictures(1), pictures(2)
    wanted = jax.tree.map(lambda leaf: leaf + 0.7, quadratic(jax.tree.map(jnp.asarray, z)))
    terms = error_terms(quadratic, z, add(z, q), wanted=wanted)
    parts = attributed_error(quadratic, z, add(z, q), wanted=wanted)
    # D has degree 4 along q, the highest that two Gauss-Legendre nodes integrate exactly; float32.
    np.testing.assert_allclose(parts.y.sum((1, 2)), terms.total - terms.wrapper, rtol=1e-4)


def test_attributed_errors_give_the_derivative_for_moving_quality_between_blocks() -> None:
    z, q = pictures(1), pictures(2)
    wanted = linear(jax.tree.map(jnp.asarray, pictures(3)))
    own = np.asarray(attributed_error(linear, z, add(z, q)).y)
    with_cross = np.asarray(attributed_error(linear, z, add(z, q), wanted=wanted).y)

    def total(columns: slice, factor: float) -> np.ndarray:
        scaled = q.y.copy()
        scaled[:, :, columns] *= factor
        return np.asarray(error_terms(linear, z, Yuv400(z.y + scaled), wanted=wanted).total, np.float64)

    for columns in (slice(0, 3), slice(3, 6)):
        slope = (total(columns, 1.01) - total(columns, 0.99)) / 0.02
        # A quadratic part counts twice, a part that is linear in q (the cross term) once.
        quadratic_part, cross_part = own[:, :, columns].sum((1, 2)), (with_cross - own)[:, :, columns].sum((1, 2))
        np.testing.assert_allclose(slope, 2 * quadratic_part + cross_part, rtol=0.02, atol=0.5)


def test_pooled_sums_and_means_follow_all_planes_of_a_block() -> None:
    rng = np.random.default_rng(0)
    frame = Yuv420(rng.normal(size=(1, 20, 36)), rng.normal(size=(1, 10, 18)), rng.normal(size=(1, 10, 18)))
    sums, means = pooled_sums(frame, 16), pooled_means(frame, 16)
    assert sums.shape == means.shape == (1, 2, 3)
    for row, column in itertools.product(range(2), range(3)):
        parts = [
            plane[0, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for plane, side in zip(frame.planes, (16, 8, 8), strict=True)
        ]
        values = np.concatenate([part.ravel() for part in parts])
        assert sums[0, row, column] == pytest.approx(values.sum())
        assert means[0, row, column] == pytest.approx(values.mean())


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    assert map_correlation(a, a + 2 * b) == pytest.approx(np.corrcoef(a.ravel(), (a + 2 * b).ravel())[0, 1])
    assert map_correlation(a, 3 - 2 * a) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="must be alike"):
        map_correlation(a, b[:2])
    with pytest.raises(ValueError, match="constant map"):
        map_correlation(a, np.ones((3, 5)))


def gaussian_rows(count: int, seed: int, *, height: int = 8, width: int = 8) -> tuple[JacobianRows, np.ndarray]:
    """Rows of a known H: luma g = L s with Gaussian s, so that E g gᵀ = L Lᵀ; chroma couples to luma."""
    rng = np.random.default_rng(seed)
    samples = height * width * 3 // 2
    root = np.eye(samples) + 0.3 * np.random.default_rng(99).normal(size=(samples, samples)) / math.sqrt(samples)
    flat = rng.normal(size=(count, samples)) @ root.T / math.sqrt(count)
    y, u, v = np.split(flat, [height * width, height * width * 5 // 4], axis=1)
    planes = [
        part.reshape(1, count, height // s, width // s).astype(np.float32) for part, s in ((y, 1), (u, 2), (v, 2))
    ]
    return JacobianRows(frame_of(planes)), root @ root.T


@pytest.mark.parametrize("block", [4, None])
def test_energy_off_the_diagonal_is_unbiased(block: int | None) -> None:
    _, hessian = gaussian_rows(2, 0)
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    chroma = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    plane = np.repeat([0, 1, 2], [64, 16, 16])
    cell = np.concatenate([places // 4 @ [2, 1], chroma // 2 @ [2, 1], chroma // 2 @ [2, 1]])
    if block is None:
        cell = np.zeros_like(cell)
    same_cell, same_plane = cell[:, None] == cell, plane[:, None] == plane
    energy = hessian**2
    expected = np.array(
        [(energy * same_cell).sum(), (energy * same_cell * same_plane).sum(), np.square(np.diag(hessian)).sum()]
    )
    found = []
    for seed in range(60):
        result = block_energy(gaussian_rows(6, seed)[0], block)
        found.append([result.total, result.within, result.diagonal])
    error = np.std(found, axis=0, ddof=1) / math.sqrt(len(found))
    # Within 4 of their own standard errors, which are small enough to tell the plain (biased) estimate apart.
    assert (np.abs(np.mean(found, 0) - expected) < 4 * error).all()
    assert (error / expected < 0.1).all()


def test_energy_of_a_pointwise_receiver_is_all_on_the_diagonal() -> None:
    z = pictures(1)
    rows = sketched_rows(Jacobian(lambda frame: {"y": 3 * frame.y}, z), jax.random.key(0), 4)
    result = block_energy(rows, 4)
    # Rademacher sketches of a diagonal: g_s = ±3 each, so blocks of k samples estimate (Σ ± 9)², and the whole is k 81
    # in expectation only; the diagonal itself has no variance.
    assert result.diagonal == pytest.approx(2 * SAMPLES * 81, rel=1e-5)
    one_sample_blocks = block_energy(rows, 1)
    assert one_sample_blocks.total == pytest.approx(one_sample_blocks.diagonal, rel=1e-5)
    assert one_sample_blocks.off_diagonal == pytest.approx(0.0, abs=1e-5)


def test_map_error_follows_the_gaussian_law() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2.0, (1, 1, 32, 48))
    rows = JacobianRows(Yuv400((scale * rng.normal(size=(1, 96, 32, 48))).astype(np.float32)))
    errors = sketch_errors(rows, reference=64)
    assert [error.sketches for error in errors] == [2, 4, 8, 16, 32]
    for error in errors:
        assert error.law == pytest.approx(math.sqrt(2 / error.sketches))
        # 1536 independent samples, 32 / n groups: 5 % is more than 3 standard errors everywhere.
        assert error.samples == pytest.approx(error.law, rel=0.05)
        # 256 independent samples in a 16×16 mean.
        assert error.blocks < 2 * error.law / 16


def test_map_error_of_a_receiver_without_variance_is_zero() -> None:
    z = pictures(1)
    rows = sketched_rows(Jacobian(lambda frame: {"y": 3 * frame.y}, z), jax.random.key(0), 6)
    assert [e.samples for e in sketch_errors(rows, counts=(2,), reference=3)] == pytest.approx([0.0], abs=1e-6)


def _bad_calls() -> list[tuple[Any, str]]:
    z, q = pictures(1), pictures(2)
    rows = JacobianRows(Yuv400(np.ones((1, 1, 8, 8), np.float32)))
    colour = JacobianRows(frame_of([np.ones((1, 3, s, s), np.float32) for s in (8, 4, 4)]))
    return [
        (lambda: error_terms(linear, z, Yuv400(q.y[:1])), "must be alike"),
        (lambda: error_terms(linear, z, q, wanted=jnp.zeros((2, 3))), "should be received"),
        (lambda: attributed_error(linear, z, q, metric=np.ones(3)), "must broadcast"),
        (lambda: block_energy(rows, 4), "at least 2"),
        (lambda: block_energy(colour, 3), "even sides"),
        (lambda: sketch_errors(rows), "leave too few"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_what_does_not_fit_is_named(number: int) -> None:
    call, message = _bad_calls()[number]
    with pytest.raises(ValueError, match=message):
        call()
