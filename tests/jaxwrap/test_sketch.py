from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn, idctn

from jaxwrap.importance.sketch import SKETCHES, Sketch, TopDct, sketch_row

KEY = jax.random.key(7)
OUTPUT = {"a": jax.ShapeDtypeStruct((3, 4, 5), jnp.float32), "b": jax.ShapeDtypeStruct((3, 7), jnp.float32)}


def output_of(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(s.shape), s.dtype) for name, s in OUTPUT.items()}


def as_matrix(tree: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(3, -1) for leaf in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("kind", SKETCHES)
def test_rows_have_identity_covariance(kind) -> None:
    draw = jax.jit(jax.vmap(lambda i: sketch_row(KEY, i, OUTPUT, kind=kind)))
    drawn = draw(jnp.arange(400))  # [400, 3, …]
    rows = np.concatenate([np.asarray(leaf).reshape(1200, -1) for leaf in jax.tree.leaves(drawn)], axis=1)
    # An entry of the covariance of 1200 draws has a standard deviation of at most √(2/1200) = .041; 6 of them.
    np.testing.assert_allclose(rows.T @ rows / 1200, np.eye(27), atol=0.25)


@pytest.mark.parametrize("kind", SKETCHES)
def test_norm_is_preserved_in_the_mean(kind) -> None:
    v = output_of(1)
    apply = jax.jit(jax.vmap(lambda seed: Sketch(jax.random.key(seed), OUTPUT, rows=4, kind=kind).mv(v)))
    norms = (np.asarray(apply(jnp.arange(400))) ** 2).sum(2)  # [400, 3] of ‖S v‖²
    exact = (as_matrix(v) ** 2).sum(1)
    np.testing.assert_array_less(np.abs(norms.mean(0) - exact), 4 * norms.std(0) / np.sqrt(400))


@pytest.mark.parametrize("kind", SKETCHES)
def test_transpose_is_the_adjoint(kind) -> None:
    sketch, v = Sketch(KEY, OUTPUT, rows=5, kind=kind), output_of(2)
    u = jnp.asarray(np.random.default_rng(3).standard_normal((3, 5)), jnp.float32)
    left = (np.asarray(sketch.mv(v)) * np.asarray(u)).sum(1)
    right = (as_matrix(v) * as_matrix(sketch.transpose_mv(u))).sum(1)
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_a_frames_sketch_does_not_depend_on_its_batch() -> None:
    whole = sketch_row(KEY, 2, OUTPUT)
    alone = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype), OUTPUT)
    part = sketch_row(KEY, 2, alone, frame_offset=1)
    jax.tree.map(lambda w, p: np.testing.assert_array_equal(w[1:2], p), whole, part)


def test_rows_frames_leaves_and_keys_differ() -> None:
    like = [jax.ShapeDtypeStruct((2, 64), jnp.float32)] * 2
    draws = [
        sketch_row(k, i, like)[leaf][n]
        for k in (KEY, jax.random.key(8))
        for i in (0, 1)
        for leaf in (0, 1)
        for n in (0, 1)
    ]
    assert len({np.asarray(d).tobytes() for d in draws}) == 16


def test_rademacher_gives_signs_of_the_outputs_dtype() -> None:
    row = sketch_row(KEY, 0, jax.ShapeDtypeStruct((2, 33), jnp.bfloat16))
    assert row.dtype == jnp.bfloat16
    assert set(np.unique(np.asarray(row, np.float32))) == {-1.0, 1.0}


def test_unknown_sketches_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"hadamard.*rademacher, gaussian"):
        Sketch(KEY, OUTPUT, rows=4, kind="hadamard")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 sketches"):
        Sketch(KEY, OUTPUT, rows=0)


def projected(leaf: np.ndarray, k: int) -> np.ndarray:
    """P v by SciPy's DCT: the k largest coefficients of each frame and channel."""
    wide = np.asarray(leaf, np.float64)
    if wide.ndim < 3:
        return wide
    spectrum = dctn(wide, axes=(1, 2), norm="ortho")
    for n in range(wide.shape[0]):
        for channel in np.ndindex(wide.shape[3:]):
            part = spectrum[(n, slice(None), slice(None), *channel)]
            part[np.abs(part) < np.sort(np.abs(part).ravel())[-min(k, part.size)]] = 0
    return idctn(spectrum, axes=(1, 2), norm="ortho")


PICTURES = {
    "features": np.random.default_rng(5).standard_normal((2, 6, 5, 3)).astype(np.float32),
    "plane": np.random.default_rng(6).standard_normal((2, 3, 4)).astype(np.float32),
    "scores": np.random.default_rng(7).standard_normal((2, 7)).astype(np.float32),
}


@pytest.mark.parametrize("k", [2, 100])
def test_top_dct_sketches_the_projection_on_the_largest_coefficients(k: int) -> None:
    """E[s sᵀ] v = P v, and every row lies in the range of P."""
    v = jax.tree.map(jnp.asarray, PICTURES)
    kind = TopDct(k)
    kept = kind.select(v)
    rows = jax.jit(jax.vmap(lambda i: sketch_row(KEY, i, v, kind=kind, kept=kept)))(jnp.arange(600))
    flat = {name: np.asarray(r, np.float64).reshape(600, 2, -1) for name, r in rows.items()}
    inner = sum((flat[name] * PICTURES[name].reshape(1, 2, -1)).sum(2) for name in v)  # [600, 2] of ⟨s, v⟩
    total = 0.0
    for name, leaf in PICTURES.items():
        wanted = projected(leaf, k).reshape(2, -1)
        np.testing.assert_allclose(flat[name][0], projected_row(flat[name][0].reshape(leaf.shape), leaf, k), atol=1e-5)
        mean = (inner[..., None] * flat[name]).mean(0)
        # The mean of 600 draws, each of standard deviation ‖P v‖ or less per entry.
        assert np.abs(mean - wanted).max() < 5 * np.sqrt((projected_norm(k) ** 2).max() / 600)
        total += (wanted**2).sum(1)
    spread = (inner**2).std(0) / np.sqrt(600)
    np.testing.assert_array_less(np.abs((inner**2).mean(0) - total), 4 * spread)


def projected_norm(k: int) -> np.ndarray:
    return np.sqrt(sum((projected(leaf, k).reshape(2, -1) ** 2).sum(1) for leaf in PICTURES.values()))


def projected_row(row: np.ndarray, like: np.ndarray, k: int) -> np.ndarray:
    """The part of a row that P for ``like`` keeps."""
    if like.ndim < 3:
        return row.reshape(2, -1)
    mask = np.abs(dctn(projected(like, k), axes=(1, 2), norm="ortho")) > 1e-9
    return idctn(dctn(row, axes=(1, 2), norm="ortho") * mask, axes=(1, 2), norm="ortho").reshape(2, -1)


def test_the_top_dct_operator_keeps_the_norm_of_the_projection() -> None:
    v = {name: jnp.asarray(leaf) for name, leaf in PICTURES.items()}
    apply = jax.jit(jax.vmap(lambda seed: Sketch(jax.random.key(seed), v, rows=4, kind=TopDct(3)).mv(v)))
    norms = (np.asarray(apply(jnp.arange(300))) ** 2).sum(2)
    np.testing.assert_array_less(np.abs(norms.mean(0) - projected_norm(3) ** 2), 4 * norms.std(0) / np.sqrt(300))


def test_top_dct_finds_the_picture_in_the_axes_that_it_is_told() -> None:
    """Channels first, the same features have the same sketches; what lacks the axes is kept whole."""
    last = {"features": jnp.asarray(PICTURES["features"]), "scores": jnp.asarray(PICTURES["scores"])}
    first = {**last, "features": jnp.moveaxis(last["features"], 3, 1)}  # [N, C, H, W]
    rows = [
        sketch_row(KEY, 1, v, kind=kind, kept=kind.select(v))
        for v, kind in ((last, TopDct(3)), (first, TopDct(3, spatial_axes=(2, 3))))
    ]
    np.testing.assert_array_equal(jnp.moveaxis(rows[1]["features"], 1, 3), rows[0]["features"])
    np.testing.assert_array_equal(rows[1]["scores"], rows[0]["scores"])
    plane, kind = jnp.asarray(PICTURES["plane"]), TopDct(1, spatial_axes=(2, 3))
    assert set(np.unique(sketch_row(KEY, 0, plane, kind=kind, kept=kind.select(plane)))) == {-1.0, 1.0}


def test_top_dct_wants_a_coefficient_and_two_axes() -> None:
    with pytest.raises(ValueError, match="at least 1 coefficient"):
        TopDct(0)
    for axes in ((0, 1), (2, 2)):
        with pytest.raises(ValueError, match="wanted two different ones from 1 on"):
            TopDct(spatial_axes=axes)
