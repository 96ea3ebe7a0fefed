"""Benches at tiny sizes: what they count, what one training step does, and what they refuse."""

from __future__ import annotations

import importlib.util
import sys

import jax
import numpy as np
import pytest

from jaxwrap.metrics.complexity import count_macs
from jaxwrap.train.bench import importance, postprocessor, proxy
from jaxwrap.wrappers.switchable import PostConfig

SMALL = PostConfig(widths=(8, 8), kernels=(3, 3), encoder_blocks=(0, 1), decoder_blocks=(0,))


def test_the_figures_of_the_post_processor_are_those_of_its_output_size(capsys):
    figures = postprocessor.run(height=32, width=48, num_frames=2, config=SMALL, implementation="shift", rounds=1)
    # Luma from half the size: 2 taps horizontally on half the rows, 2 vertically on all, 3 per sample; chroma half.
    assert figures["resampling_mac_per_pixel"] == 4.5
    # Quarter resolution: entry 9·6 + 6·8, 1×1 up (an eighth of it), exit 9·8 + 8·6, chroma 9·2·2; sixteenth: down and
    # encoder, 4·8 + 8·8 and 9·8 + 8·8, and the 1×1, which runs before doubling.
    assert figures["mac_per_pixel"] == pytest.approx((102 + 120 + 36) / 4 + (96 + 136 + 64) / 16)
    assert figures["forward_ms_per_frame"] > 0
    assert figures["implementation"] == {"forward": "shift"}
    printed = capsys.readouterr().out
    assert "no TF32" in printed
    assert "4.50 in resampling" in printed


def test_a_training_step_of_the_post_processor_is_adams():
    frame = postprocessor._random_frame(1, 16, 16)
    network = postprocessor._Network(SMALL, "shift", "float32", frame, (32, 32))
    before = jax.tree.map(np.asarray, network.state)
    first = float(network.train())
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b), network._trained, before)
    # The first step of Adam moves each parameter by the learning rate against its gradient's sign, or less near zero.
    steps = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(moved)])
    assert steps.max() <= postprocessor.LEARNING_RATE * 1.001
    assert np.median(steps) == pytest.approx(postprocessor.LEARNING_RATE, rel=1e-3)
    assert float(network.train()) < first


def test_options_that_the_post_processor_bench_does_not_know_are_named():
    with pytest.raises(ValueError, match="known: float32, bfloat16"):
        postprocessor.run(dtype="float16")
    with pytest.raises(ValueError, match="known: shift, grouped, auto"):
        postprocessor.run(implementation="winograd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs peer_python"):
        postprocessor.run(torch=True)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="this Python has torch")
def test_a_peer_without_torch_is_reported_with_its_own_message():
    with pytest.raises(RuntimeError, match="No module named 'torch'"):
        postprocessor.run(
            height=32, width=32, config=SMALL, implementation="shift", torch=True, peer_python=sys.executable
        )


def test_pytorch_agrees_with_outputs_and_losses():
    pytest.importorskip("torch")
    for dtype, tolerance in postprocessor.TOLERANCES.items():
        figures = postprocessor.run(
            height=32,
            width=32,
            config=SMALL,
            implementation="shift",
            dtype=dtype,
            training=True,
            rounds=1,
            torch=True,
            peer_python=sys.executable,
        )
        assert figures["max_abs_difference"] <= tolerance
        assert figures["torch_train_steps_per_s"] > 0


def test_the_proxy_bench_refuses_a_folder_that_is_no_checkout(tmp_path):
    with pytest.raises(ValueError, match="give a sandwiched_compression checkout"):
        proxy.run(peer=tmp_path)


def test_pictures_of_the_proxy_bench_have_the_spectrum_they_are_said_to_have():
    pictures = proxy._pictures()
    assert pictures.shape == (24, 256, 256)
    assert 0 <= pictures.min() <= pictures.max() <= 255
    power = np.mean(np.abs(np.fft.fft2(pictures - pictures.mean((1, 2), keepdims=True))) ** 2, axis=0)
    # 1/f in amplitude: 1/f² in power, a factor 4 per octave.
    assert power[8, 0] / power[32, 0] == pytest.approx(16, rel=0.5)


def test_the_network_of_the_importance_bench_has_the_work_that_is_counted():
    latents = importance._latents(1, (8, 12))
    counted = count_macs(lambda z: importance._restore(importance._parameters(), z), latents)
    # A map of one sketch is two passes, an operation is half a multiply–accumulate.
    assert importance._flops((8, 12), sketches=1) == 4 * counted.total
    assert importance._restore(importance._parameters(), latents).shape == (1, 16, 24, 64)


def test_the_importance_bench_measures_what_it_is_asked_for(capsys):
    figures = importance.run(sketches=(2,), batches=(1,), rounds=2, work=False)
    (case,) = figures["cases"]
    assert (case["batch"], case["sketches"]) == (1, 2)
    assert case["ms"] > 0
    assert "batch   1,   2 sketches" in capsys.readouterr().out
    with pytest.raises(ValueError, match="known: float32, bfloat16"):
        importance.run(dtype="float16")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="this Python has torch")
def test_an_importance_peer_without_torch_is_reported_with_its_own_message():
    with pytest.raises(RuntimeError, match="No module named 'torch'"):
        importance.run(sketches=(2,), batches=(1,), work=False, peer_python=sys.executable)
