from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Yuv420
from jaxwrap.parameters import named_parameters
from jaxwrap.train.fit import loop, step
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.fit.config import FitConfig, override, preset
from jaxwrap.train.fit.data import crop_batch
from jaxwrap.train.fit.loop import fit
from jaxwrap.wrappers.switchable import PostConfig, WrapperConfig

TINY = FitConfig(
    mode="post",
    steps=6,
    crop=64,
    batch=8,
    rate_refresh=2,
    log_every=2,
    checkpoint_every=2,
    validate_every=3,
    learning_rate=1e-3,
)


def small_network(config: FitConfig) -> WrapperConfig:
    """Two narrow levels, which compile in a fraction of the time: the loop around the network is what is tested."""
    post = PostConfig(widths=(8, 8), kernels=(3, 3), encoder_blocks=(0, 1), decoder_blocks=(0,))
    return WrapperConfig(Fraction(config.ratio), "bilinear", post)


@pytest.fixture(scope="module", autouse=True)
def small_programs_once(programs_on_disk: None) -> Iterator[None]:
    """The runs below, in this process and in the killed one, share their programs, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "wrapper_config", small_network)
        yield


def pictures(count: int = 3, side: int = 96) -> list[Yuv420]:
    """Smooth random pictures: coarse noise, enlarged."""
    rng = np.random.default_rng(7)

    def plane(size: int) -> np.ndarray:
        return np.repeat(np.repeat(rng.integers(0, 256, (1, size // 8, size // 8), dtype=np.uint8), 8, 1), 8, 2)

    return [Yuv420(plane(side), plane(side // 2), plane(side // 2)) for _ in range(count)]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return named_parameters(load_wrapper(folder / "last.wrapper.npz")[0])


def losses(folder: Path) -> list[float]:
    lines = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    return [float(row[lines[0].index("loss")]) for row in lines[1:] if row[lines[0].index("loss")]]


def test_crops_are_a_pure_function_of_seed_and_step() -> None:
    a, b = (crop_batch(pictures(), seed=1, step=5, batch=4, crop=32) for _ in range(2))
    c = crop_batch(pictures(), seed=1, step=6, batch=4, crop=32)
    assert all(np.array_equal(x, y) for x, y in zip(a.planes, b.planes, strict=True))
    assert not np.array_equal(a.y, c.y)


def test_crops_keep_chroma_with_its_luma() -> None:
    ramp = np.arange(64, dtype=np.uint8)
    y = np.broadcast_to(ramp * 2, (1, 64, 64))
    u = np.broadcast_to(ramp[:32] * 4 + 1, (1, 32, 32))  # the mean of the two luma columns above it
    batch = crop_batch([Yuv420(y, u, u)], seed=0, step=0, batch=16, crop=32)
    above = batch.y[:, ::2].reshape(16, 16, 16, 2).mean(-1)
    np.testing.assert_array_equal(above, batch.u)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on one device."""
    folder = tmp_path_factory.mktemp("whole")
    fit(TINY, pictures(), pictures(1), folder, devices=jax.devices()[:1])
    return folder


def test_eight_devices_give_the_loss_of_one(whole: Path, tmp_path: Path) -> None:
    assert jax.device_count() == 8
    fit(TINY, pictures(), pictures(1), tmp_path)
    # Sums over the batch are ordered differently: float32 rounding, grown over six steps of Adam.
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)


KILLED = """
import sys, time
from pathlib import Path
import jax
from jaxwrap.train.fit import step
from test_fit import TINY, fit, pictures, small_network
step.wrapper_config = small_network
def report(progress):
    print(progress.step, flush=True)
    if progress.step >= 3:
        time.sleep(600)  # until it is killed
fit(TINY, pictures(), pictures(1), Path(sys.argv[1]), devices=jax.devices()[:1], report=report)
"""


def test_a_killed_run_resumes_to_bit_identical_parameters(whole: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 3:  # a state was saved at step 2; best.wrapper.npz may be newer
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "last.wrapper.npz").exists(), "the run ended before it was killed"

    fit(TINY, pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])
    wanted, found = parameters(whole), parameters(tmp_path)
    assert wanted.keys() == found.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert losses(tmp_path) == losses(whole)


def test_a_finished_run_is_not_run_again(whole: Path) -> None:
    before = (whole / "log.csv").read_bytes()
    fit(TINY, pictures(), pictures(1), whole, devices=jax.devices()[:1])
    assert (whole / "log.csv").read_bytes() == before


def test_a_folder_of_another_configuration_is_refused_with_the_difference(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lmbda: 16\.0 there, 4\.0 asked"):
        fit(override(TINY, ["lmbda=4"]), pictures(), pictures(1), whole)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no training folder"):
        fit(TINY, pictures(), pictures(1), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate of step 1 is infinite; the validation before it counts its own, and step 2 is computed with step 1."""
    monkeypatch.setattr(loop, "_first_rate_scale", lambda config, batch: jnp.float32(jnp.inf))
    with pytest.raises(FloatingPointError, match=r"the loss is inf .* at step 1 "):
        fit(TINY, pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])


def test_small_pictures_are_refused_with_their_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32×32"):
        fit(TINY, pictures(side=32), pictures(1), tmp_path)


def test_bfloat16_follows_float32(whole: Path, tmp_path: Path) -> None:
    fit(override(TINY, ["dtype=bfloat16"]), pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])
    # bfloat16 has 8 bits of mantissa, on activations that the skip path around the network does not pass.
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=2e-2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stepps=3"], "did you mean steps"),
        (["steps"], "wanted KEY=VALUE"),
        (["steps=many"], "wanted int"),
        (["ratio=3/4"], "wanted one of"),
        (["crop=50", "lmbda=-1"], r"crop=50[\s\S]*lmbda=-1"),
    ],
)
def test_bad_overrides_say_what_is_wanted(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(preset("smoke"), words)


def test_an_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="smoke, pilot, full"):
        preset("huge")
