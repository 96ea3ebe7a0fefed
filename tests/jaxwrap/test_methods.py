from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import EncodeRequest, EncodeResult, Weights, intra_period
from jaxwrap.codecs.proxy import ProxyCodec
from jaxwrap.importance import ControlVariate, MapError, TopDct, importance_map, importance_weights, yuv_metric
from jaxwrap.methods import Calibrated, Dqp, Fwa, Iwa, Refine, Sse, Wa, refine_samples
from jaxwrap.pipeline import Sandwich

KEY = jax.random.key(1)


def samples(n: int = 2, size: int = 16, seed: int = 0) -> Yuv400:
    """Smooth 10-bit pictures with a little texture."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(size) / 3.0)
    base = 500 + 300 * wave[:, None] * wave[None] + rng.normal(0, 20, (n, size, size))
    return Yuv400(base.astype(np.float32))


def blur(z: Frame) -> Yuv400:
    """A receiver whose gain depends on place: a 3×3 mean, stronger to the right."""
    mean = sum(jnp.roll(z.y, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    ramp = jnp.linspace(0.2, 2.0, z.y.shape[2], dtype=z.y.dtype)
    return Yuv400(mean * ramp[None, None])


@dataclasses.dataclass(frozen=True)
class UniformQuantiser:
    """The least a differentiable codec can be: samples rounded to the step, straight through; log-magnitude bits."""

    name: str = "uniform"
    version: str = "1"

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        step = (2.0 ** ((request.qp - 4.0) / 6.0) * 2.0 ** (request.bit_depth - 8))[:, None, None]  # type: ignore[index,operator]
        y = frames.y
        decoded = y + jax.lax.stop_gradient(jnp.round(y / step) * step - y)
        return EncodeResult(Yuv400(decoded), jnp.log2(1 + jnp.abs(y) / step).sum((1, 2)))


def objective_by_hand(receiver: Any, start: Frame, z: Frame, target: Any, codec: Any, qp: np.ndarray) -> np.ndarray:
    """L of `refine_samples` in NumPy, from the formula in its docstring, 4:0:0 and M = 1."""
    request = EncodeRequest(qp=jnp.asarray(qp, jnp.float32), bit_depth=10)  # type: ignore[arg-type]
    first, last = codec.encode(start, request), codec.encode(z, request)

    def square(a: Any, b: Any) -> np.ndarray:
        return ((np.asarray(a.y, np.float64) - np.asarray(b.y, np.float64)) ** 2).sum((1, 2))

    gain = square(receiver(first.decoded), receiver(start)) / square(first.decoded, start)
    lagrangian = 0.57 * 2 ** ((qp - 12) / 3) * 16
    return square(receiver(last.decoded), target) / gain + lagrangian * np.asarray(last.bits, np.float64)


def test_sse_leaves_samples_and_weights_alone() -> None:
    z = samples()
    plan = Sse().plan(blur, z)
    assert plan.z is z
    assert plan.weights is None
    assert plan.side_information_bits == 0


def test_wa_weights_are_the_normalised_map_of_its_receiver() -> None:
    z = samples()
    plan = Wa(sketches=3, alpha=0.5, metric=yuv_metric).plan(blur, z, KEY)
    expected = importance_weights(importance_map(blur, z, key=KEY, sketches=3, metric=yuv_metric), alpha=0.5)
    assert plan.z is z
    assert plan.undo is None
    assert plan.weights.applied_as == Wa.weights_as == "distortion"
    np.testing.assert_allclose(plan.weights.planes.y, expected.planes.y, rtol=1e-6)
    assert np.mean(plan.weights.planes.y[..., 8:]) > 2 * np.mean(plan.weights.planes.y[..., :8])


def never(_: Frame) -> Any:
    raise AssertionError("the receiver was looked at")


def test_maps_made_before_are_used_without_receiver_or_key_and_refused_where_they_do_not_fit() -> None:
    z = samples()
    h = Yuv400(np.random.default_rng(0).exponential(1.0, (1, 16, 16)).astype(np.float32))
    for method in (Wa(map=h), Iwa(map=h), Fwa(map=h), Calibrated(map=h)):
        assert not method.draws
        np.testing.assert_array_equal(method.plan(never, z).weights.planes.y, importance_weights(h).planes.y)
        with pytest.raises(MapError, match="16×16 was given for frames of 8×8"):
            method.plan(never, samples(size=8))
    for method in (Wa(), Iwa()):
        assert method.draws
        with pytest.raises(ValueError, match=f"{method.name} draws random sketches: give plan a key"):
            method.plan(blur, z)
    with pytest.raises(MapError, match="2 maps were given to calibrated"):
        Calibrated(map=z)


def test_a_frozen_map_that_is_constant_in_each_plane_serves_any_size() -> None:
    def colour(n: int, size: int, values: tuple[float, float, float]) -> Yuv420:
        sides = (size, size // 2, size // 2)
        return Yuv420(*(np.full((n, s, s), v, np.float32) for s, v in zip(sides, values, strict=True)))

    small, z = colour(1, 8, (2.0, 1.0, 3.0)), colour(2, 16, (0.0, 0.0, 0.0))
    found = Fwa(small, alpha=0.0).plan(never, z).weights.planes
    mean = (4 * 2 + 1 + 3) / 6
    for plane, like, value in zip(found.planes, z.planes, (2.0, 1.0, 3.0), strict=True):
        assert plane.shape == (1, *like.shape[1:])
        np.testing.assert_allclose(plane, value / mean, rtol=1e-6)
    varying = Yuv420(small.y + np.eye(8, dtype=np.float32)[None], small.u, small.v)
    with pytest.raises(MapError, match="8×8 was given for frames of 16×16"):
        Fwa(varying).plan(never, z)
    with pytest.raises(MapError, match="Yuv420 was given for Yuv400 frames"):
        Fwa(small).plan(never, samples())


@pytest.mark.parametrize(
    ("period", "clips", "holders"),
    [
        (3, None, [0, 0, 0, 3, 3, 3, 6]),
        (None, None, [0] * 7),
        (2, (3, 4), [0, 0, 2, 3, 3, 5, 5]),
        (1, (3, 4), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_iwa_holds_the_map_that_wa_gives_the_i_frame(period, clips, holders) -> None:
    z = samples(n=7, size=8)
    of_all = np.asarray(Wa(sketches=2).plan(square, z, KEY).weights.planes.y)
    held = np.asarray(Iwa(sketches=2, period=period, clips=clips).plan(square, z, KEY).weights.planes.y)
    # Batches of another size are compiled apart: float32 rounding.
    np.testing.assert_allclose(held, of_all[holders], rtol=1e-5)
    given = Yuv400(np.asarray(importance_map(square, z, key=KEY, sketches=2).h.y)[sorted(set(holders))])
    again = Iwa(period=period, clips=clips, map=given).plan(never, z).weights.planes.y
    np.testing.assert_allclose(np.broadcast_to(again, of_all.shape), of_all[holders], rtol=1e-5)


def test_iwa_takes_the_i_frames_part_of_references_and_metric_and_sees_them_together() -> None:
    z = samples(n=7, size=8)
    near = samples(n=7, size=8, seed=1)
    options: dict[str, Any] = {
        "control": ControlVariate(near, importance_map(blurred_square, near, key=KEY, sketches=20).h, 0.5),
        # Important on the left or on the right, by the frame; the scale of a frame would not show in its weights.
        "metric": Yuv400(np.stack([np.geomspace(1, 3.0 ** (n - 3), 8)[None].repeat(8, 0) for n in range(7)])),
    }
    of_all = np.asarray(Wa(sketches=2, **options).plan(blurred_square, z, KEY).weights.planes.y)
    held = np.asarray(Iwa(sketches=2, period=3, **options).plan(blurred_square, z, KEY).weights.planes.y)
    np.testing.assert_allclose(held, of_all[[0, 0, 0, 3, 3, 3, 6]], rtol=1e-4, atol=1e-4)

    def mixing(z: Frame) -> Yuv400:
        return Yuv400(z.y * z.y.mean())

    with pytest.raises(ValueError, match=r"mixes frames .* frames 0, 3, 6"):
        Iwa(period=3).plan(mixing, z, KEY)


def blurred_square(z: Frame) -> Yuv400:
    return blur(square(z))


def square(z: Frame) -> Yuv400:
    """A receiver whose gain depends on the samples, so that maps differ between frames."""
    return Yuv400(z.y * z.y / z.y.dtype.type(1000.0))


def test_iwa_refuses_bad_periods_and_maps_of_another_number_of_i_frames() -> None:
    z = samples(n=5, size=8)
    with pytest.raises(ValueError, match="a period of 0 frames"):
        Iwa(period=0)
    with pytest.raises(MapError, match=r"3 maps given for 2 I frames \(period 3, 5 frames\)"):
        Iwa(period=3, map=Yuv400(np.ones((3, 8, 8), np.float32))).plan(never, z)
    with pytest.raises(ValueError, match="clips of 2, 2 frames were given for a batch of 5"):
        Iwa(period=3, clips=(2, 2)).plan(square, z, KEY)


@pytest.mark.parametrize(("config", "period"), [("intra", 1), ("lowdelay", None), ("randomaccess", 24)])
def test_the_distance_of_i_pictures_follows_from_the_configuration(config, period) -> None:
    assert intra_period(config, 25.0) == period


def test_a_sequence_mean_is_taken_over_each_clip() -> None:
    z = samples(n=5, size=8)
    h = np.asarray(importance_map(square, z, key=KEY, sketches=2).h.y)
    w = Wa(sketches=2, alpha=0.0, scope="sequence", clips=(2, 3)).plan(square, z, KEY).weights.planes.y
    expected = np.concatenate([h[:2] / h[:2].mean(), h[2:] / h[2:].mean()])
    np.testing.assert_allclose(w, expected, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_dqp_strength_is_a_power_with_mean_1_again(strength) -> None:
    w = importance_weights(samples(), alpha=0.0)
    powered = Dqp(strength).reweigh(w)
    assert powered.applied_as == "qp_offset"
    y = np.asarray(w.planes.y, np.float64)
    np.testing.assert_allclose(powered.planes.y, y**strength / (y**strength).mean((1, 2), keepdims=True), rtol=1e-4)


def test_dqp_keeps_importance_between_frames_where_the_weights_have_it() -> None:
    w = Weights(Yuv400(np.stack([np.full((4, 4), 0.5), np.full((4, 4), 2.0)]).astype(np.float32)))
    np.testing.assert_allclose(np.asarray(Dqp(2.0).reweigh(w).planes.y)[:, 0, 0], [0.25, 4.0], rtol=1e-6)
    with pytest.raises(ValueError, match="strength -1"):
        Dqp(-1)


def test_wa_passes_on_how_many_sketches_a_map_takes() -> None:
    z = samples()
    options: dict[str, Any] = {"sketches": "auto", "target_error": 0.2, "max_sketches": 8, "sketch": TopDct(20)}
    found = Wa(alpha=0.0, **options).plan(blur, z, KEY).weights.planes.y
    expected = importance_weights(importance_map(blur, z, key=KEY, **options), alpha=0.0).planes.y
    np.testing.assert_array_equal(found, expected)
    four = importance_weights(importance_map(blur, z, key=KEY), alpha=0.0).planes.y
    assert not np.allclose(found, four)


@pytest.mark.parametrize("bad", [{"alpha": -1.0}, {"scope": "clip"}, {"sketches": 0}])
def test_bad_settings_of_weights_are_refused_before_anything_is_planned(bad) -> None:
    with pytest.raises(ValueError, match=r"was given|were asked for"):
        Wa(**bad)


QPS = np.array([27.0, 37.0])


def test_refine_lowers_the_objective_that_its_docstring_states() -> None:
    z, codec = samples(), UniformQuantiser()
    target = Yuv400(blur(z).y + 50.0)
    result = refine_samples(blur, z, codec, qp=QPS, target=target, steps=12)
    history = np.asarray(result.objective)
    assert history.shape == (13, 2)
    np.testing.assert_allclose(history[0], objective_by_hand(blur, z, z, target, codec, QPS), rtol=1e-3)
    np.testing.assert_allclose(history.min(0), objective_by_hand(blur, z, result.z, target, codec, QPS), rtol=1e-3)
    assert (history.min(0) < 0.97 * history[0]).all()


def test_refine_is_never_worse_than_its_start() -> None:
    """A step size far too large spoils every iterate but the first."""
    z = samples()
    result = refine_samples(blur, z, UniformQuantiser(), qp=QPS, steps=2, learning_rate=1e6)
    assert (np.asarray(result.objective)[1:] > np.asarray(result.objective)[0]).all()
    np.testing.assert_array_equal(result.z.y, z.y)


def test_refine_treats_every_picture_by_itself() -> None:
    z = samples()
    both = refine_samples(blur, z, UniformQuantiser(), qp=QPS, steps=3)
    second = refine_samples(blur, Yuv400(z.y[1:]), UniformQuantiser(), qp=37.0, steps=3)
    np.testing.assert_allclose(both.z.y[1:], second.z.y, atol=0.05)


def test_refine_does_not_depend_on_the_receivers_unit() -> None:
    z = samples()
    one = refine_samples(blur, z, UniformQuantiser(), qp=QPS, steps=4)
    other = refine_samples(blur, z, UniformQuantiser(), qp=QPS, steps=4, metric=1e-4)
    np.testing.assert_allclose(one.objective, other.objective, rtol=1e-3)


def halve(f: Frame) -> Yuv400:
    n, h, w = f.y.shape
    return Yuv400(f.y.reshape(n, h // 2, 2, w // 2, 2).mean((2, 4)))


def double(f: Frame) -> Yuv400:
    """A blurred post-processor, which refined samples can sharpen."""
    y = jnp.repeat(jnp.repeat(f.y, 2, 1), 2, 2)
    return Yuv400((y + jnp.roll(y, 1, 1) + jnp.roll(y, 1, 2) + jnp.roll(y, (1, 1), (1, 2))) / 4)


@pytest.mark.parametrize("codec", [UniformQuantiser(), ProxyCodec(rate_scale=2.0)], ids=["uniform", "proxy"])
def test_refine_improves_what_a_sandwich_gives_at_every_qp_of_a_batch(codec) -> None:
    original = samples(size=32)
    frames = Yuv400(original.y / np.float32(511.5) - np.float32(1))
    sandwich = Sandwich(pre=halve, post=double)
    request = EncodeRequest(qp=jnp.asarray(QPS, jnp.float32))  # type: ignore[arg-type]
    method = Refine(codec, qp=QPS, target=frames, metric=yuv_metric, steps=12)
    plain, refined = (sandwich(frames, codec, request, method=m) for m in (Sse(), method))

    def cost(coded: Any) -> np.ndarray:
        """At a quarter of the samples the receiver's gain is about 4, see `refine_samples`."""
        error = ((np.asarray(coded.frames.y) - frames.y) * 511.5) ** 2
        return error.sum((1, 2)) / 4 + 0.57 * 2 ** ((QPS - 12) / 3) * 16 * np.asarray(coded.result.bits)

    assert (cost(refined) < 0.98 * cost(plain)).all()
    assert refined.plan.weights is None
    assert 0 <= np.min(refined.plan.z.y) <= np.max(refined.plan.z.y) <= 1023


def nan_below(z: Frame) -> Yuv400:
    """Finite at the start, NaN as soon as a sample falls."""
    return Yuv400(jnp.where(z.y < 100.0, jnp.nan, 1.0) * z.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qp": 52.0}, "QP 52.0 was given.*0 to 51"),
        ({"qp": [22.0, 27.0, 32.0]}, r"QPs of shape \(3,\) were given for 2 pictures"),
        ({"qp": 27.0, "steps": 0}, "0 steps"),
        ({"qp": 27.0, "rate_weight": -1.0}, "rate_weight -1.0"),
        (
            {"qp": 27.0, "target": Yuv400(np.zeros((2, 8, 8), np.float32))},
            r"target is .*\(2, 8, 8\).*they must be alike",
        ),
        ({"qp": 27.0, "target": np.zeros((2, 16, 16), np.float32)}, "they must be alike"),
    ],
)
def test_bad_refine_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        refine_samples(blur, samples(), UniformQuantiser(), **options)


def test_refine_names_step_and_picture_of_a_nan_and_a_receiver_out_of_reach() -> None:
    z = Yuv400(np.stack([np.full((8, 8), 900.0), np.full((8, 8), 230.0)]).astype(np.float32))
    with pytest.raises(ValueError, match="objective of picture 1 is NaN or infinite at step 1"):
        refine_samples(
            nan_below, z, UniformQuantiser(), qp=27.0, target=Yuv400(np.zeros((2, 8, 8), np.float32)), learning_rate=0.4
        )
    with pytest.raises(ValueError, match="in picture 0, 1 no coding error reaches"):
        refine_samples(lambda f: Yuv400(0 * f.y), samples(), UniformQuantiser(), qp=27.0)


def test_weights_of_colour_frames_have_the_frames_planes() -> None:
    z = Yuv420(
        *(
            np.random.default_rng(i).uniform(0, 1023, s).astype(np.float32)
            for i, s in enumerate([(1, 8, 8), (1, 4, 4), (1, 4, 4)])
        )
    )
    planes = Wa(sketches=1).plan(lambda f: jax.tree.map(lambda p: p**2, f), z, KEY).weights.planes
    assert [p.shape for p in planes.planes] == [p.shape for p in z.planes]
