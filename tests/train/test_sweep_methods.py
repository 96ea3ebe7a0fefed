"""Methods in a sweep: chains, folds, maps made before, and what the sweep tells them. Stand-in encoder in conftest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv420
from jaxwrap.codec import EncodeRequest
from jaxwrap.codecs.proxy import ProxyCodec
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance import yuv_metric
from jaxwrap.importance.gram import PlaneScale
from jaxwrap.methods import Iwa, Plan, Sse, Wa, parse_method
from jaxwrap.metrics.distortion import mean_psnr
from jaxwrap.samples import change_bit_depth, denormalise, normalise, to_integers
from jaxwrap.train.evaluate import networks
from jaxwrap.train.evaluate import rows as rows_module
from jaxwrap.train.evaluate.modes import MODE_BITS, Mode, codec_mode, mode_of
from jaxwrap.train.evaluate.options import fields_of, method_options, with_fields
from jaxwrap.train.evaluate.sweep import run_sweep
from jaxwrap.wrappers.switchable import PostConfig, PreConfig, WrapperConfig, wrapper_from_config


def small_wrapper() -> Mode:
    post = PostConfig(widths=(4,), kernels=(3,), encoder_blocks=(0,), decoder_blocks=())
    pre = PreConfig(widths=(4,), mlp_width=4)
    return mode_of(wrapper_from_config(WrapperConfig(Fraction(1, 2), pre, post)))


def test_options_of_a_chain_are_by_stage_and_leave_out_what_the_sweep_sets() -> None:
    scale = PlaneScale((1.0, 0.5, 0.5))
    chain = parse_method("fold+refine:encoder+iwa+dqp", {"fold": {"transform": scale}, "refine:encoder": REFINE})
    options = json.loads(json.dumps(method_options(chain)))
    assert list(options) == ["fold", "refine:encoder", "iwa", "dqp"]
    assert options["fold"] == {"transform": {"type": "PlaneScale", "scales": [1.0, 0.5, 0.5], "bit_depth": 10}}
    assert options["dqp"] == {"strength": 1.0}
    assert not {"qp", "target", "clips", "period", "encoder", "request"} & {*options["refine:encoder"], *options["iwa"]}
    assert {"qp", "period", "encoder", "strength"} <= fields_of(chain)
    changed = with_fields(chain, {"period": 5, "qp": 40.0, "clips": (1, 2), "unknown": 0})
    assert changed.name == chain.name
    _, refine, iwa, _ = changed.stages
    assert (refine.qp, refine.clips, iwa.period, iwa.clips) == (40.0, (1, 2), 5, (1, 2))
    assert method_options(changed) == method_options(chain)


REFINE = {"codec": ProxyCodec(rate_scale=2.0), "qp": 0.0, "metric": yuv_metric}


def test_weights_that_no_encoder_takes_are_refused_before_anything_runs(tmp_path: Path, stand_in: ModuleType) -> None:
    clips = [bigger(stand_in.clips()[0])]
    modes, codecs = [codec_mode(), small_wrapper()], [X26x("x265")]
    with pytest.raises(
        ValueError,
        match=r"lake in mode wrapper-1/2 with method wa: .*x265 takes them as QP offsets only.*wa\+dqp instead",
    ):
        run_sweep(clips, modes, codecs, [32], [Sse(), Wa()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "kind", "maps", "message"),
    [
        ("intra", Wa, 3, r"dqp: the file holds 3 maps; lake, .* in intra want 1, or 4, one per frame: make the maps"),
        ("intra", Iwa, 3, r"iwa\+dqp: .* want 1, or 4, one per I frame \(--period 1\)"),
        ("lowdelay", Iwa, 4, r"iwa\+dqp: .* want 1, or 2, one per clip, its first frame \(no --period\)"),
    ],
)
def test_another_number_of_maps_than_any_batch_has_frames_is_refused_before_anything_runs(
    tmp_path: Path, stand_in: ModuleType, config: Any, kind: Any, maps: int, message: str
) -> None:
    clips = [bigger(clip) for clip in stand_in.clips()[:2]]  # of 2 frames each, one batch
    h = Yuv420(*(np.ones((maps, *shape), np.float32) for shape in ((48, 72), (24, 36), (24, 36))))
    method = parse_method(f"{kind.name}+dqp", {kind.name: {"map": h}})
    with pytest.raises(ValueError, match=message):
        run_sweep(clips, [small_wrapper()], [X26x("x265")], [32], [method], tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def bigger(clip: Any, scale: int = 6) -> Any:
    """The clip with samples repeated, 144 × 96: the encoders take its half."""
    frames = jax.tree.map(lambda p: p.repeat(scale, 1).repeat(scale, 2), clip.frames)
    return dataclasses.replace(clip, frames=frames)


def test_chains_maps_and_folds_run_through_a_real_encoder_and_are_undone(tmp_path: Path, stand_in: ModuleType) -> None:
    """Two clips of 2 frames as one batch; every row recomputed by `Sandwich` on its clip alone."""
    clips = [bigger(clip) for clip in stand_in.clips()[:2]]
    mode, codec = small_wrapper(), X26x("x265")
    scale, rng = PlaneScale((1.0, 0.5, 0.75)), np.random.default_rng(0)
    h = Yuv420(*(rng.exponential(1, s).astype(np.float32) for s in ((1, 48, 72), (1, 24, 36), (1, 24, 36))))
    options = {"fold": {"transform": scale}, "fwa": {"map": h, "alpha": 0.0}}
    methods = [parse_method(name, options) for name in ("sse", "fold", "fold+fwa+dqp")]
    result = run_sweep(clips, [mode], [codec], [42], methods, tmp_path / "out", processes=1)
    assert result.failures == []
    assert all(point.verified for point in result.points)
    found = {(p.sequence, p.method, p.qp): p for p in result.points}
    assert len(found) == 2 * 3
    for clip in clips:
        source = change_bit_depth(clip.frames, 8, 10)
        sandwich = mode.sandwich(96, 144)
        for method in methods:
            request = EncodeRequest(42.0, fps=clip.fps)
            coded = sandwich(normalise(source, 10), codec, request, method=method)
            point = found[clip.name, method.name, 42.0]
            received = to_integers(denormalise(coded.frames, 10), 10)
            assert point.bits == int(np.sum(coded.result.bits)) + MODE_BITS
            # Rounding of samples that lie between two integers differs between one batch and another.
            assert point.psnr_yuv == pytest.approx(mean_psnr(source, received, 10)[1], abs=2e-3)
    # Undone: chroma was halved before the encoder, and is in its place again behind it.
    fold, plain = (found["lake", name, 42.0] for name in ("fold", "sse"))
    assert fold.bits < plain.bits
    assert abs(fold.psnr_yuv - plain.psnr_yuv) < 3


@dataclasses.dataclass(frozen=True)
class Listener:
    """Notes what a sweep set, one entry per plan."""

    seen: ClassVar[list[Any]] = []
    name: ClassVar[str] = "listener"
    draws: ClassVar[bool] = False
    weights_as: ClassVar[None] = None
    period: Any = 0
    clips: Any = None
    encoder: Any = None
    request: Any = None
    memory_budget: Any = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None) -> Plan:
        Listener.seen.append((self.period, self.clips, self.encoder.name, self.request, self.memory_budget))
        return Plan(z)


def test_the_sweep_tells_methods_the_encoder_and_where_its_i_pictures_are(tmp_path: Path, stand_in: ModuleType) -> None:
    Listener.seen.clear()
    first, second, third = stand_in.clips()
    clips = [first, second, dataclasses.replace(third, fps=100.0)]
    codecs = [stand_in.CoarseCodec(str(tmp_path / "log"), name=name) for name in ("one", "two")]
    run_sweep(
        clips, [small_wrapper()], codecs, [22], [Listener()], tmp_path / "out", processes=2, config="randomaccess"
    )
    expected = [
        (period, lengths, name, EncodeRequest(22.0, "randomaccess", 10, fps), None)
        for period, lengths, fps in ((48, (2, 2), 50.0), (96, (2,), 100.0))
        for name in ("one", "two")
    ]
    assert Listener.seen == expected


def test_maps_of_a_clip_longer_than_a_batch_have_a_budget(
    tmp_path: Path, stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`importance_map` chunks by it, without changing a byte."""
    Listener.seen.clear()
    codec = stand_in.CoarseCodec(str(tmp_path / "log"))
    monkeypatch.setattr(rows_module, "PIXELS_PER_BATCH", 2 * 16 * 24 - 1)
    run_sweep(stand_in.clips()[:1], [small_wrapper()], [codec], [22], [Listener()], tmp_path / "out", processes=1)
    assert [seen[-1] for seen in Listener.seen] == [networks.MEMORY_BUDGET]
