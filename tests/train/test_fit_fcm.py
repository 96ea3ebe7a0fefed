"""Training of feature wrappers: members of a job, resuming, the transform inside, files, errors."""

from __future__ import annotations

import csv
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.parameters import named_parameters
from jaxwrap.train.fit.checkpoints import load_wrapper, shipped_wrappers
from jaxwrap.train.fit.config import override
from jaxwrap.train.fit.fcm_checkpoints import load_fcm
from jaxwrap.train.fit.fcm_config import PRESETS, FcmFitConfig, Member
from jaxwrap.train.fit.fcm_data import FeatureSet, feature_crops, picture_files, scales_of
from jaxwrap.train.fit.fcm_loop import fit_fcm
from jaxwrap.train.fit.fcm_step import FcmState, refreshed_transform, task_error

SIZE = (128, 128)
TOY = types.SimpleNamespace(name="toy", split="cut", digest="0" * 16)
CONFIG = FcmFitConfig(
    latent_channels=6, latent_stride=8, width=6, blocks=1, batch=2, crop=8, steps=24, log_every=12, checkpoint_every=12,
    validate_every=12, rate_refresh=2, transform_every=6, learning_rate=0.01,
)  # fmt: skip


def _features(count: int, seed: int) -> FeatureSet:
    """Two scales that have most of their energy in common, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((count, 8, 8, 3))
    mix = np.random.default_rng(0).standard_normal((3, 12))
    coarse = base @ mix[:, :6]
    fine = np.repeat(np.repeat(base @ mix[:, 6:], 2, 1), 2, 2) + 0.1 * rng.standard_normal((count, 16, 16, 6))
    return FeatureSet({"fine": fine.astype(np.float16), "coarse": coarse.astype(np.float16)})


@pytest.fixture(scope="module")
def data() -> tuple[FeatureSet, FeatureSet]:
    return _features(12, 1), _features(4, 2)


@pytest.fixture(scope="module")
def job(data, tmp_path_factory, programs_on_disk):
    """Two members of different widths, with the KLT inside, in one run."""
    out = tmp_path_factory.mktemp("job") / "run"
    config = override(CONFIG, ["members=width=3:6", "transform=klt", "start=random"])
    return out, config, fit_fcm(config, TOY, *data, out, size=SIZE)


def test_a_job_writes_a_wrapper_per_member_of_its_own_width(job):
    _, config, files = job
    assert config.member_list() == [Member(1.0, 3, 0), Member(1.0, 6, 0)]
    for file, width in zip(files, (3, 6), strict=True):
        wrapper, tuning, notes = load_fcm(file)
        assert wrapper.config.width == width
        assert wrapper.reducer.first.shape == (12, width)
        assert notes["member"]["width"] == width
        assert tuning is not None


def test_the_transform_of_training_ends_up_in_the_layers(job):
    _, _, files = job
    wrapper, tuning, _ = load_fcm(files[1])
    assert np.asarray(wrapper.transform[...]).tolist() == np.eye(6).tolist()
    assert (np.diag(tuning.gram) > 0).all()
    # p = 0: the KLT alone, whose rows are orthonormal.
    np.testing.assert_allclose(tuning.matrices[0] @ tuning.matrices[0].T, np.eye(6), atol=1e-9)


def test_the_transform_is_each_members_klt():
    rng = np.random.default_rng(4)
    roots = rng.standard_normal((2, 5, 5))
    covariances = roots @ roots.transpose(0, 2, 1)
    eyes = jnp.stack([jnp.eye(5)] * 2)
    params = {"transform": eyes, "restoring_transform": eyes}
    state = FcmState(jnp.int32(0), params, None, None, None, None, jnp.asarray(covariances, jnp.float32))  # type: ignore[arg-type]
    found = refreshed_transform(state).params
    for t, inverse, covariance in zip(found["transform"], found["restoring_transform"], covariances, strict=True):
        np.testing.assert_allclose(t @ inverse, np.eye(5), atol=1e-5)
        # Latents are rows: x T has the covariance Tᵀ C T, diagonal, largest variance first.
        after = np.asarray(t, np.float64).T @ covariance @ np.asarray(t, np.float64)
        np.testing.assert_allclose(after, np.diag(np.linalg.eigvalsh(covariance)[::-1]), atol=1e-4)


def test_training_lowers_the_cost_of_every_member(job):
    out, config, _ = job
    with (out / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
    for member in config.member_list():
        costs = [float(row["validation_loss"]) for row in rows if row["member"] == member.name]
        assert len(costs) == 3
        assert costs[-1] < costs[0] - 1.0


def test_a_stopped_run_goes_on_to_the_same_bytes(job, data, tmp_path):
    _, config, files = job

    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.step == 12 and "validation_cost" not in progress.metrics:
            raise Stopped

    again = tmp_path / "run"
    with pytest.raises(Stopped):
        fit_fcm(config, TOY, *data, again, size=SIZE, report=stop)
    resumed = fit_fcm(config, TOY, *data, again, size=SIZE)
    for a, b in zip(files, resumed, strict=True):
        first, second = (named_parameters(load_fcm(file)[0]) for file in (a, b))
        assert all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match=r"another configuration(.|\n)*steps"):
        fit_fcm(override(config, ["steps=25"]), TOY, *data, again, size=SIZE)


def test_crops_are_aligned_across_scales(data):
    from jaxwrap.wrappers.fcm import FcmConfig

    training, _ = data
    shape = FcmConfig("toy", "cut", scales_of(training.tensors, SIZE), latent_channels=6, latent_stride=8)
    crops = feature_crops(training, shape, seed=0, step=3, batch=4, crop=8)
    assert crops["fine"].shape == (4, 8, 8, 6)
    assert crops["coarse"].shape == (4, 4, 4, 6)
    again = feature_crops(training, shape, seed=0, step=3, batch=4, crop=8)
    assert np.array_equal(crops["fine"], again["fine"])
    # Both scales show the same places: the fine one's means are a linear map of the coarse one.
    mix = np.random.default_rng(0).standard_normal((3, 12))
    fine = crops["fine"].reshape(4, 4, 2, 4, 2, 6).mean((2, 4))
    base = crops["coarse"] @ np.linalg.pinv(mix[:, :6])
    assert np.abs(base @ mix[:, 6:] - fine).mean() < 0.1
    with pytest.raises(ValueError, match="crop=32"):
        feature_crops(training, shape, seed=0, step=0, batch=1, crop=32)


def test_the_task_error_counts_boxes_only_where_something_is_found():
    boxes = jnp.asarray([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]]])
    scores, classes = jnp.asarray([[0.9, 0.0]]), jnp.zeros((1, 2), jnp.int32)

    def task(features):
        return features["boxes"], features["scores"], classes

    wanted = {"boxes": boxes, "scores": scores}
    nothing_moved = task_error(task, wanted, wanted)
    empty_moved = task_error(task, {"boxes": boxes.at[0, 1].add(3.0), "scores": scores}, wanted)
    found_moved = task_error(task, {"boxes": boxes.at[0, 0].add(3.0), "scores": scores}, wanted)
    assert float(nothing_moved) == float(empty_moved) == 0.0
    assert float(found_moved) == pytest.approx(4 * 0.09 * 0.81 / (0.81 + 0.01), rel=1e-5)
    gradient = jax.grad(lambda s: task_error(task, {"boxes": boxes, "scores": s}, wanted))(scores + 0.05)
    assert (np.asarray(gradient) > 0).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["members=depth=1:2"], "no KEY=VALUE:VALUE"),
        (["members=width=999"], "width in 1 … 128"),
        (["members=seed=0:0"], "different ones"),
        (["crop=9", "qp_low=50", "qp_high=20", "task=-1"], r"task=-1(.|\n)*crop=9(.|\n)*qp_low=50"),
        (["balanced=maybe"], "true or false"),
    ],
)
def test_settings_that_cannot_run_are_refused_at_once(words, message):
    with pytest.raises(ValueError, match=message):
        override(PRESETS["fcm-yolox-nano"], words)


def test_folders_without_pictures_and_files_that_are_no_wrapper_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        picture_files(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="0 pictures"):
        picture_files(str(tmp_path))
    with pytest.raises(ValueError, match="not a feature wrapper"):
        load_fcm("pair-1of2")
    with pytest.raises(ValueError, match="with --task"):
        load_wrapper("fcm-yolox-nano")


def test_shipped_wrappers_load_with_their_constants_and_are_small():
    shipped = {name for name in shipped_wrappers() if name.startswith("fcm-")}
    assert {"fcm-yolox-nano", "fcm-yolo-fastestv2"} <= shipped
    for name in shipped:
        wrapper, tuning, notes = load_fcm(name)
        assert wrapper.config.sample_ratio <= 0.25
        assert tuning is not None
        assert notes["trained_with"]["data"] == "coco/train2017"
    assert sum(file.stat().st_size for file in shipped_wrappers().values()) < 5_000_000
