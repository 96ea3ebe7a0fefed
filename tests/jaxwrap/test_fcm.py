"""Wrappers of features: geometry, principal components, transforms folded in, statistics, errors."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxwrap.arrays import Yuv400
from jaxwrap.importance.gram import ChannelMoments, klt
from jaxwrap.wrappers.fcm import POWERS, FcmConfig, FcmTuning, FcmWrapper, Scale

CONFIG = FcmConfig(
    "toy", "cut", (Scale("fine", 4, 8), Scale("middle", 6, 16), Scale("coarse", 8, 32)), latent_channels=12, width=8
)


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"fine": (3, 8, 12, 4), "middle": (3, 4, 6, 6), "coarse": (3, 2, 3, 8)}
    return {name: (rng.standard_normal(shape) * 2 + 0.5).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def wrapper() -> FcmWrapper:
    return FcmWrapper(CONFIG, rngs=nnx.Rngs(0))


def _energy(tree: dict) -> float:
    return float(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in tree.values()))


def test_stacking_keeps_the_energy_of_all_scales_and_is_undone(features, wrapper):
    stacked = wrapper.stacked(features)
    assert stacked.shape == (3, 4, 6, CONFIG.stacked_channels)
    assert CONFIG.stacked_channels == 4 * 4 + 6 + 8
    assert float(jnp.sum(stacked**2)) == pytest.approx(_energy(features), rel=1e-5)
    back = wrapper._unstack(stacked)
    for name, x in features.items():
        np.testing.assert_allclose(back[name], x, atol=1e-6)


def test_the_sample_ratio_is_latents_over_features(features, wrapper):
    latents = wrapper.latents(features, {})
    assert CONFIG.sample_ratio == pytest.approx(latents.size / sum(x.size for x in features.values()))


def test_a_principal_start_errs_by_the_eigenvalues_it_leaves_out(features):
    wrapper = FcmWrapper(CONFIG, rngs=nnx.Rngs(1))
    mean = {name: x.mean((0, 1, 2)) for name, x in features.items()}
    rms = {name: float(np.sqrt(np.mean(x**2))) for name, x in features.items()}
    wrapper.set_constants(mean, rms)
    flat = np.asarray(wrapper.stacked(features), np.float64).reshape(-1, CONFIG.stacked_channels)
    covariance = flat.T @ flat / len(flat)
    wrapper.start_linear(mean, rms, covariance, reach=0.2)
    latents = np.asarray(wrapper.latents(features, {}), np.float64).reshape(-1, 12)
    assert np.sqrt(np.mean(latents[:, 0] ** 2)) == pytest.approx(0.2, rel=1e-4)
    sandwich = wrapper.sandwich(features)
    restored = sandwich.post(sandwich.pre(features))
    weights = wrapper.metric(features)
    error = sum(weights[k][0] * float(np.sum((np.asarray(restored[k]) - features[k]) ** 2)) for k in features)
    # The components of the coarse scale lie in a subspace (equal in four positions) that averaging projects on, so
    # the error is at most what the left-out eigenvalues hold.
    left_out = np.linalg.eigvalsh(covariance)[:-12].sum() * len(flat)
    assert 0 < error <= left_out * (1 + 1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_folding_a_transform_into_the_layers_codes_its_samples_and_restores_the_same(features, own):
    wrapper = FcmWrapper(CONFIG, rngs=nnx.Rngs(2))
    rng = np.random.default_rng(3)
    for side in (wrapper.reducer, wrapper.restorer):  # a residual branch that is not 0
        side.last[...] = jnp.asarray(rng.standard_normal(side.last.shape) * 0.1, jnp.float32)
        side.bias[...] = jnp.asarray(rng.standard_normal(side.bias.shape) * 0.1, jnp.float32)
    if own:
        q, _ = np.linalg.qr(rng.standard_normal((12, 12)))
        wrapper.transform[...] = jnp.asarray(q, jnp.float32)
        wrapper.restoring_transform[...] = jnp.asarray(q.T, jnp.float32)
    sandwich = wrapper.sandwich(features)
    z = sandwich.bottleneck(features)
    layout = wrapper.layout(features)
    transform = klt(ChannelMoments(layout).update(jax.device_get(z))).fitted(jax.device_get(z), 10)
    folded = wrapper.folded(transform)
    coded = folded.sandwich(features).bottleneck(features)
    np.testing.assert_allclose(coded.y, transform.apply(z).y, atol=0.05)
    assert np.asarray(folded.transform[...]).tolist() == np.eye(12).tolist()
    direct = sandwich.receive(z)
    after = folded.sandwich(features).receive(coded)
    for name in features:
        np.testing.assert_allclose(after[name], direct[name], atol=2e-3)


def test_statistics_are_coded_as_bfloat16_and_counted(features):
    wrapper = FcmWrapper(dataclasses.replace(CONFIG, statistics="picture"), rngs=nnx.Rngs(0))
    louder = {name: x * 3 + 1 for name, x in features.items()}
    found = wrapper.statistics(louder)
    assert wrapper.statistics_bits() == 3 * 2 * 16
    for name, x in louder.items():
        assert found[name].shape == (3, 2)
        assert np.asarray(found[name]).tolist() == np.asarray(found[name].astype(jnp.bfloat16), np.float32).tolist()
        np.testing.assert_allclose(found[name][:, 0], x.mean((1, 2, 3)), rtol=1e-2)
    # What is coded does not depend on level and contrast of the features, up to the rounding of their statistics.
    a, b = (wrapper.latents(x, wrapper.statistics(x)) for x in (features, louder))
    assert float(jnp.max(jnp.abs(a - b))) < 0.05 * float(jnp.max(jnp.abs(a)))
    assert FcmWrapper(CONFIG, rngs=nnx.Rngs(0)).statistics(features) == {}


def test_features_that_do_not_fit_are_listed_at_once(features, wrapper):
    wrong = {"fine": features["fine"][..., :3], "middle": features["middle"], "coarse": features["coarse"][:, :1]}
    with pytest.raises(ValueError, match=r"fine is \(3, 8, 12, 3\)(.|\n)*cover"):
        wrapper.layout(wrong)
    with pytest.raises(ValueError, match=r"no multiple of 16"):
        wrapper.layout({"fine": features["fine"][:, :7], **{k: features[k] for k in ("middle", "coarse")}})


def test_configurations_that_cannot_be_built_say_why():
    with pytest.raises(ValueError, match=r"stride 24(.|\n)*width=0"):
        FcmConfig("toy", "cut", (Scale("a", 4, 24),), width=0)
    assert FcmConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(ValueError, match="unknown fields colour"):
        FcmConfig.from_dict(CONFIG.to_dict() | {"colour": 1})


def test_tuned_constants_serve_any_size(features, wrapper):
    layout = wrapper.layout(features)
    rng = np.random.default_rng(5)
    root = rng.standard_normal((12, 12))
    tuning = FcmTuning(
        np.full(12, 500.0), root @ root.T, root @ root.T, np.array([-1.0, *range(11)]),
        np.stack([np.eye(12)] * 3), np.full(3, 2.0), np.zeros((3, 12)),
    )  # fmt: skip
    for used in (layout, dataclasses.replace(layout, height=5)):
        frozen = tuning.fwa(used)
        assert isinstance(frozen, Yuv400)
        assert frozen.y.shape == (1, *used.size)
        assert frozen.y[0, 0, 0] == np.float32(tuning.gram[0, 0])
        assert not frozen.y[0, used.height : used.tile_height].any()
        assert not frozen.y[0, :, used.width : used.tile_width].any()
        assert tuning.calibrated(used).y.min() == 0.0
        z = Yuv400(np.full((1, *used.size), 510.0, np.float32))
        np.testing.assert_allclose(tuning.fold(used, POWERS[0]).apply(z).y, 20.0)
    with pytest.raises(ValueError, match=r"power 0\.3"):
        tuning.fold(layout, 0.3)
