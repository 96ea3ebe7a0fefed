"""Refinement at a real encoder: x265 on small pictures, and a stand-in that shows each rule by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.codec import EncodeRequest, EncodeResult
from jaxwrap.codecs.proxy import ProxyCodec
from jaxwrap.codecs.x26x import X26x
from jaxwrap.methods import Relinearise, refine_samples, relinearised_samples
from jaxwrap.methods.refine import encode, pose_problem
from jaxwrap.methods.relinearise import _moved_proxy

PROXY = ProxyCodec(rate_scale=2.0)  # the rate is scaled to the encoder's
QP = 32


def pictures(n: int = 3, size: int = 32) -> Yuv400:
    """Smooth 10-bit pictures, each with more texture than the one before."""
    rng = np.random.default_rng(3)
    wave = np.sin(np.arange(size) / 4.0)
    texture = np.arange(1, n + 1)[:, None, None] * rng.normal(0, 15, (n, size, size))
    return Yuv400((500 + 250 * wave[:, None] * wave[None] + texture).clip(0, 1023).astype(np.float32))


def blur(z: Frame) -> Yuv400:
    return Yuv400((z.y + jnp.roll(z.y, 1, 1) + jnp.roll(z.y, 1, 2) + jnp.roll(z.y, (1, 1), (1, 2))) / 4)


def sharp_target(z: Frame) -> Yuv400:
    """What the receiver should give: the picture itself, which refined samples come nearer to."""
    return Yuv400(jnp.asarray(z.y))


def real_cost(z: Frame, start: Frame, target: Frame, encoder: Any, request: EncodeRequest) -> np.ndarray:
    """L = ‖y − r(ẑ)‖² / g + λ R in NumPy, with the encoder's own ẑ, R, and g from its error at the start."""

    def coded(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        result = encoder.encode(jax.tree.map(np.asarray, frame), request)
        return np.asarray(result.decoded.y, np.float64), np.asarray(result.bits, np.float64)

    def received(y: np.ndarray) -> np.ndarray:
        return np.asarray(blur(Yuv400(jnp.asarray(y, jnp.float32))).y, np.float64)

    first, _ = coded(start)
    gain = ((received(first) - received(start.y)) ** 2).sum((1, 2)) / ((first - start.y) ** 2).sum((1, 2))
    decoded, bits = coded(z)
    error = ((received(decoded) - np.asarray(target.y)) ** 2).sum((1, 2))
    return error / gain + 0.57 * 2 ** ((request.qp - 12) / 3) * 16 * bits


@pytest.mark.parametrize("config", ["intra", "lowdelay"])
def test_the_real_objective_of_x265_never_rises_and_falls(config) -> None:
    z, encoder, request = pictures(), X26x("x265"), EncodeRequest(qp=QP, config=config)
    # x265 miscodes P pictures no wider than its CTU of 64, and says so: wider ones outside intra.
    z = z if config == "intra" else Yuv400(np.tile(z.y, (1, 1, 3)))
    target = sharp_target(z)
    result = relinearised_samples(blur, z, PROXY, encoder, request, rounds=2, target=target, steps=6)
    before, after = (real_cost(frame, z, target, encoder, request) for frame in (z, result.z))
    np.testing.assert_allclose(result.objective[0], before, rtol=1e-4)
    if config == "intra":
        assert (after <= before * (1 + 1e-6)).all()
        assert (after < 0.99 * before).any()
        np.testing.assert_allclose(np.min(result.objective, 0), after, rtol=1e-4)
        plain = refine_samples(blur, z, PROXY, qp=QP, target=target, steps=12).z
        assert (after <= real_cost(plain, z, target, encoder, request) * (1 + 1e-6)).all()
    else:  # pictures predict from each other, so that the clip is judged as a whole
        assert after.sum() < 0.99 * before.sum()


def test_the_proxy_is_moved_half_way_to_the_encoder_and_has_its_bits() -> None:
    z, encoder, request = pictures(), X26x("x265"), EncodeRequest(qp=QP)
    real = encoder.encode(z, request)
    problem, start = pose_problem(blur, z, PROXY, qp=QP, target=None, metric=None, bit_depth=10, rate_weight=1.0)
    decoded = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), real.decoded)
    bits = np.asarray(real.bits, np.float32)
    same = encode(_moved_proxy(problem, start, decoded, bits), start)
    own = np.asarray(encode(problem, start).decoded.y)
    np.testing.assert_allclose(same.decoded.y, (own + real.decoded.y) / 2, atol=1e-3)
    np.testing.assert_allclose(same.bits, real.bits, rtol=1e-5)
    assert np.abs(own - real.decoded.y).max() > 5


@dataclasses.dataclass(frozen=True)
class Moody:
    """Codes in steps of 8. A picture that is not one of ``known`` costs a little less than those, or, where ``dear``
    says so of the known one that is nearest in brightness, very much more."""

    known: Any
    dear: tuple[bool, ...]
    name: str = "moody"
    version: str = "1"

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        pass

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        bits = np.full(len(frames.y), 1000.0)
        for n, picture in enumerate(frames.y):
            nearest = int(np.argmin([abs(picture.mean() - other.mean()) for other in self.known.y]))
            if not np.array_equal(picture, self.known.y[nearest]):
                bits[n] = 1e6 if self.dear[nearest] else 900.0
        return EncodeResult(Yuv400(np.round(frames.y / 8) * 8), bits)


@pytest.mark.parametrize(("config", "kept"), [("intra", [True, False, True]), ("lowdelay", [False] * 3)])
def test_a_round_is_kept_where_it_helps_picture_by_picture_in_intra_and_by_clips_otherwise(config, kept) -> None:
    z = Yuv400((pictures().y * 0.3 + np.float32([500, 100, 300])[:, None, None]).astype(np.float32))
    encoder = Moody(z, dear=(False, True, False))
    request = EncodeRequest(qp=QP, config=config)
    options: dict[str, Any] = {"rounds": 2, "target": sharp_target(z), "steps": 3, "learning_rate": 0.01}
    result = relinearised_samples(blur, z, PROXY, encoder, request, **options)
    moved = [not np.array_equal(a, b) for a, b in zip(result.z.y, z.y, strict=True)]
    assert moved == kept
    assert np.asarray(result.objective).shape == (4, 3)
    if config == "lowdelay":  # the same pictures as clips of their own
        apart = relinearised_samples(blur, z, PROXY, encoder, request, clips=(1, 1, 1), **options)
        assert [not np.array_equal(a, b) for a, b in zip(apart.z.y, z.y, strict=True)] == [True, False, True]


def test_the_method_takes_its_qp_and_needs_an_encoder() -> None:
    z = pictures(1)
    method = Relinearise(PROXY, qp=37.0, rounds=1, steps=3, target=sharp_target(z))
    assert (method.name, method.draws, method.weights_as) == ("refine:encoder", False, None)
    with pytest.raises(ValueError, match="was given no encoder"):
        method.plan(blur, z)
    encoder = X26x("x264")
    plan = dataclasses.replace(method, encoder=encoder, request=EncodeRequest(qp=None, preset="fast")).plan(blur, z)
    expected = relinearised_samples(
        blur, z, PROXY, encoder, EncodeRequest(qp=37.0, preset="fast"), rounds=1, steps=3, target=sharp_target(z)
    )
    np.testing.assert_array_equal(plan.z.y, expected.z.y)
    assert plan.weights is plan.undo is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "0 rounds were asked for"),
        ({"request": EncodeRequest(qp=None)}, "QP None was given"),
        ({"request": EncodeRequest(qp=np.array([22.0, 27.0, 32.0]))}, "takes one QP for all"),
        ({"clips": (2, 2)}, "clips of 2, 2 frames were given for a batch of 3"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_bad_settings_are_refused(change, message) -> None:
    given: dict[str, Any] = {"encoder": X26x("x265"), "request": EncodeRequest(qp=QP), **change}
    with pytest.raises(ValueError, match=message):
        relinearised_samples(blur, pictures(), PROXY, **given)
