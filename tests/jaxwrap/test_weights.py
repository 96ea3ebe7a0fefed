from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.importance.maps import ImportanceMap
from jaxwrap.importance.weights import MapError, average_map, check_map, importance_weights


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


def test_a_frozen_map_averages_raw_maps_before_they_are_normalised() -> None:
    h = raw_map(3)
    frozen = average_map(ImportanceMap(h, None, None, 4))
    assert frozen.y.shape == (1, 4, 6)
    np.testing.assert_allclose(frozen.u[0], h.u.mean(0), rtol=1e-6)
    assert samples_of(importance_weights(frozen).planes, 0).mean() == pytest.approx(1)


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
