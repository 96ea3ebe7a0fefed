from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.importance.weights import MapError, check_map, importance_weights, literal_weights


def raw_map(n: int = 2) -> Yuv420:
    rng = np.random.default_rng(0)
    sizes = ((n, 4, 6), (n, 2, 3), (n, 2, 3))
    return Yuv420(*(rng.exponential(3.0, size).astype(np.float32) for size in sizes))


def samples_of(frame: Yuv420, i: int) -> np.ndarray:
    return np.concatenate([np.asarray(p[i], np.float64).ravel() for p in frame.planes])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weights_follow_the_closed_form_with_one_mean_for_all_planes(alpha) -> None:
    h = raw_map()
    weights = importance_weights(h, alpha=alpha)
    assert weights.applied_as == "distortion"
    for i in range(2):
        expected = (samples_of(h, i) / samples_of(h, i).mean() + alpha) / (1 + alpha)
        np.testing.assert_allclose(samples_of(weights.planes, i), expected, rtol=1e-5)
        assert samples_of(weights.planes, i).mean() == pytest.approx(1)


def test_a_sequence_mean_keeps_importance_between_frames() -> None:
    h = raw_map()
    h = jax.tree.map(lambda p: p * np.array([1, 3], np.float32)[:, None, None], h)
    w = importance_weights(h, alpha=0, scope="sequence").planes
    both = np.stack([samples_of(h, 0), samples_of(h, 1)])
    np.testing.assert_allclose(np.stack([samples_of(w, 0), samples_of(w, 1)]), both / both.mean(), rtol=1e-5)


def test_the_weighted_cost_is_the_papers_cost_over_one_constant() -> None:
    """Σ (h + τ) q² + (mean h + τ) λ R, τ = α mean h, is Σ w q² + λ R times (1 + α) mean h: the encoder keeps its λ."""
    h, alpha, rate, lagrangian = raw_map(1), 0.7, 123.0, 4.5
    q = np.random.default_rng(1).standard_normal(sum(plane.shape[1] * plane.shape[2] for plane in h.planes))
    mean = samples_of(h, 0).mean()
    paper = ((samples_of(h, 0) + alpha * mean) * q**2).sum() + (mean + alpha * mean) * lagrangian * rate
    ours = (samples_of(importance_weights(h, alpha=alpha).planes, 0) * q**2).sum() + lagrangian * rate
    assert ours * (1 + alpha) * mean == pytest.approx(paper, rel=1e-6)


def test_weights_can_be_made_inside_jit() -> None:
    h = jax.tree.map(jnp.asarray, raw_map())
    inside = jax.jit(lambda m: importance_weights(m).planes)(h)
    np.testing.assert_allclose(inside.y, importance_weights(h).planes.y, rtol=1e-6)


ONES = np.ones((2, 4, 6), np.float32)
HALF = np.ones((2, 2, 3), np.float32)


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        (Yuv400(np.where(ONES > 0, np.nan, ONES)), "plane y holds NaN"),
        (Yuv420(ONES, HALF, -HALF), r"plane v holds negative values \(least -1\)"),
        (Yuv400(np.stack([ONES[0], 0 * ONES[0]])), "0 everywhere"),
        (Yuv420(ONES, ONES, ONES), "importance map: plane u has shape"),
    ],
)
def test_maps_that_cannot_weight_are_refused(planes, message) -> None:
    with pytest.raises(MapError, match=message):
        importance_weights(planes)


def test_maps_of_another_size_format_or_number_are_refused() -> None:
    frames = Yuv420(ONES, HALF, HALF)
    check_map(Yuv420(ONES[:1], HALF[:1], HALF[:1]), frames)
    with pytest.raises(MapError, match="8×4 was given for frames of 6×4"):
        check_map(Yuv420(np.ones((2, 4, 8)), np.ones((2, 2, 4)), np.ones((2, 2, 4))), frames)
    with pytest.raises(MapError, match="Yuv400 was given for Yuv420"):
        check_map(Yuv400(ONES), frames)
    with pytest.raises(MapError, match="2 maps given for 3 frames"):
        check_map(Yuv400(ONES), Yuv400(np.ones((3, 4, 6))))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha -1.*≥ 0"):
        importance_weights(raw_map(), alpha=-1)
    with pytest.raises(ValueError, match=r"'clip'.*frame, sequence"):
        importance_weights(raw_map(), scope="clip")  # type: ignore[arg-type]


def cost_of(paper_h: np.ndarray, tau: float, lagrangian: float, q: np.ndarray, rate: float) -> float:
    return float(((paper_h + tau) * q**2).sum() + lagrangian * rate)


@pytest.mark.parametrize("alpha", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("norm", ["mean", "l2", "frobenius"])
def test_literal_weights_and_their_lambda_factor_make_the_cost_that_the_paper_prints(norm, alpha) -> None:
    """Σ w q² + factor λ R, times one constant, is Σ (h + τ) q² + c λ R with τ and c computed from their formulas."""
    h = Yuv420(
        *(np.random.default_rng(2).exponential(3.0, s).astype(np.float32) for s in ((2, 24, 40), *[(2, 12, 20)] * 2))
    )
    made = literal_weights(h, norm=norm, alpha=alpha)
    assert made.weights.applied_as == "distortion"
    rng = np.random.default_rng(1)
    for i in range(2):
        values = samples_of(h, i)
        w, factor = samples_of(made.weights.planes, i), float(made.lambda_factor[i])
        assert w.mean() == pytest.approx(1, rel=1e-5)
        if norm == "frobenius":  # 16 × 16 luma blocks with the 8 × 8 of chroma at the same place, by loops
            y, u, v = (np.asarray(p[i], np.float64) for p in h.planes)
            blocks = [
                np.sqrt(
                    y[r : r + 16, c : c + 16].sum()
                    + u[r // 2 : r // 2 + 8, c // 2 : c // 2 + 8].sum()
                    + v[r // 2 : r // 2 + 8, c // 2 : c // 2 + 8].sum()
                )
                for r in range(0, 24, 16)
                for c in range(0, 40, 16)
            ]
            tau = alpha * np.mean(blocks)
        else:
            tau = alpha * (values.mean() if norm == "mean" else np.linalg.norm(values))
        multiplier = tau + (np.linalg.norm(values) / values.size if norm == "l2" else values.mean())
        q, rate, lagrangian = rng.standard_normal(values.size), 123.0, 4.5
        ours = (w * q**2).sum() + factor * lagrangian * rate
        paper = cost_of(values, tau, multiplier * lagrangian, q, rate)
        assert ours * (values.mean() + tau) == pytest.approx(paper, rel=1e-5)


def test_the_norm_taken_literally_hides_a_cut_of_lambda_by_the_root_of_the_number_of_samples() -> None:
    flat = Yuv400(np.full((1, 176, 176), 7.0, np.float32))
    assert float(literal_weights(flat, norm="l2", alpha=0.0).lambda_factor[0]) == pytest.approx(1 / 176, rel=1e-5)
    assert float(literal_weights(flat, norm="l2", alpha=1e4).lambda_factor[0]) == pytest.approx(1, abs=1e-3)
    assert float(literal_weights(flat, norm="mean", alpha=0.3).lambda_factor[0]) == pytest.approx(1)


def test_the_mean_read_into_the_papers_rule_gives_our_weights() -> None:
    h = raw_map()
    literal = literal_weights(h, norm="mean", alpha=0.7).weights.planes
    for a, b in zip(literal.planes, importance_weights(h, alpha=0.7).planes.planes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ValueError, match="norm 'max' was given; known: mean, l2, frobenius"):
        literal_weights(h, norm="max", alpha=0.7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha -1"):
        literal_weights(h, norm="l2", alpha=-1)
