from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.fit.config import FitConfig, override, preset
from jaxwrap.train.fit.data import crop_batch, prefetch
from jaxwrap.train.fit.loop import fit

from jaxwrap.arrays import Yuv420
from jaxwrap.parameters import named_parameters

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


def test_prefetch_keeps_order_and_raises_what_its_maker_raised() -> None:
    assert list(prefetch(lambda k: k * k, 2, 6)) == [4, 9, 16, 25]

    def fail(k: int) -> int:
        raise RuntimeError(f"picture {k}")

    with pytest.raises(RuntimeError, match="picture 3"):
        list(prefetch(fail, 3, 9))


def test_eight_devices_give_the_loss_of_one(tmp_path: Path) -> None:
    assert jax.device_count() == 8
    fit(TINY, pictures(), pictures(1), tmp_path / "one", devices=jax.devices()[:1])
    fit(TINY, pictures(), pictures(1), tmp_path / "eight")
    # Sums over the batch are ordered differently: float32 rounding, grown over six steps of Adam.
    np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-4)


KILLED = """
import os, sys
from pathlib import Path
import jax
from test_fit import TINY, fit, pictures
fit(TINY, pictures(), pictures(1), Path(sys.argv[1]), devices=jax.devices()[:1], report=lambda p: print(p.step,
flush=True))
"""


@pytest.mark.parametrize("kill_at", [3, 4])
def test_a_killed_run_resumes_to_bit_identical_parameters(tmp_path: Path, kill_at: int) -> None:
    whole = tmp_path / "whole"
    fit(TINY, pictures(), pictures(1), whole, devices=jax.devices()[:1])

    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= kill_at:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "killed" / "last.wrapper.npz").exists(), "the run ended before it was killed"

    fit(TINY, pictures(), pictures(1), tmp_path / "killed", devices=jax.devices()[:1])
    wanted, found = parameters(whole), parameters(tmp_path / "killed")
    assert wanted.keys() == found.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert losses(tmp_path / "killed") == losses(whole)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = override(TINY, ["steps=2"])
    fit(config, pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])
    before = (tmp_path / "log.csv").read_bytes()
    fit(config, pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])
    assert (tmp_path / "log.csv").read_bytes() == before


def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    fit(override(TINY, ["steps=2"]), pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"lmbda: 16\.0 there, 4\.0 asked"):
        fit(override(TINY, ["steps=2", "lmbda=4"]), pictures(), pictures(1), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="no training folder"):
        fit(TINY, pictures(), pictures(1), tmp_path / "other")


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="at step [1-6]"):
        fit(override(TINY, ["learning_rate=1e38"]), pictures(), pictures(1), tmp_path, devices=jax.devices()[:1])


def test_small_pictures_are_refused_with_their_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32×32"):
        fit(TINY, pictures(side=32), pictures(1), tmp_path)


def test_bfloat16_follows_float32(tmp_path: Path) -> None:
    fit(TINY, pictures(), pictures(1), tmp_path / "f32", devices=jax.devices()[:1])
    fit(override(TINY, ["dtype=bfloat16"]), pictures(), pictures(1), tmp_path / "bf16", devices=jax.devices()[:1])
    # bfloat16 has 8 bits of mantissa, on activations that the skip path around the network does not pass.
    np.testing.assert_allclose(losses(tmp_path / "bf16"), losses(tmp_path / "f32"), rtol=2e-2)


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
