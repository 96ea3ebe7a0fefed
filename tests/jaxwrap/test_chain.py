"""Compositions of methods: what each stage is given, what comes back, and what they are called."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import EncodeRequest, EncodeResult, quantiser_step
from jaxwrap.codecs.proxy import ProxyCodec
from jaxwrap.importance import importance_map, importance_weights
from jaxwrap.importance.gram import PlaneScale, channel_transform
from jaxwrap.methods import STAGES, Chain, Dqp, Fold, Fwa, Method, Plan, Refine, Sse, Wa, parse_method, refine_samples
from jaxwrap.packing import TileLayout
from jaxwrap.pipeline import Sandwich

KEY = jax.random.key(5)
SCALE = PlaneScale((1.0, 0.5, 0.75))


def colour_samples(size: int = 16) -> Yuv420:
    rng = np.random.default_rng(0)
    sides = (size, size // 2, size // 2)
    wave = [np.sin(np.arange(s) / 3.0) for s in sides]
    return Yuv420(
        *((500 + 200 * w[:, None] * w[None] + rng.normal(0, 20, (2, len(w), len(w)))).astype(np.float32) for w in wave)
    )


def mixed(z: Frame) -> Yuv400:
    """A receiver that sees all planes, each with a gain of its own."""
    u, v = (jnp.repeat(jnp.repeat(p, 2, 1), 2, 2) for p in (z.u, z.v))
    return Yuv400(z.y + 0.3 * u + 0.6 * v + jnp.roll(z.y, 1, 2))


class IdentityCodec:
    """Nothing is lost: what comes back is what was coded, real-valued."""

    name, version = "identity", "1"

    def check(self, size: tuple[int, int], request: EncodeRequest) -> None:
        pass

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        return EncodeResult(frames, np.zeros(frames.y.shape[0]))


class RoundingCodec(IdentityCodec):
    """The least a differentiable codec can be: samples rounded to the step, straight through; log-magnitude bits."""

    def encode(self, frames: Frame, request: EncodeRequest) -> EncodeResult:
        step = quantiser_step(request.qp, request.bit_depth)[:, None, None]  # type: ignore[index]

        def one(plane: jax.Array) -> jax.Array:
            return plane + jax.lax.stop_gradient(jnp.round(plane / step) * step - plane)

        bits = [jnp.log2(1 + jnp.abs(plane) / step).sum((1, 2)) for plane in frames.planes]
        return EncodeResult(jax.tree.map(one, frames), sum(bits[1:], bits[0]))


def channels() -> tuple[Yuv400, Any]:
    layout = TileLayout(4, 8, 8)
    height, width = layout.size
    y = np.random.default_rng(1).uniform(100, 900, (2, height, width)).astype(np.float32)
    matrix = np.random.default_rng(2).normal(size=(4, 4)) + 2 * np.eye(4)
    return Yuv400(y), channel_transform(matrix, np.full(4, 400.0), layout)


@pytest.mark.parametrize("which", ["planes", "channels"])
def test_fold_is_undone_when_nothing_is_coded(which) -> None:
    z, transform = (colour_samples(), SCALE) if which == "planes" else channels()
    sandwich = Sandwich(pre=lambda f: f, post=lambda f: f)
    frames = jax.tree.map(lambda p: p / np.float32(511.5) - np.float32(1), z)
    plain, folded = (
        sandwich(frames, IdentityCodec(), EncodeRequest(qp=30.0), method=m) for m in (Sse(), Fold(transform))
    )
    assert np.abs(np.asarray(folded.plan.z.planes[-1]) - plain.plan.z.planes[-1]).max() > 20
    assert folded.plan.side_information_bits == 0
    for a, b in zip(folded.frames.planes, plain.frames.planes, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 of samples up to 1023


def test_fold_reaches_the_receiver_through_a_differentiable_codec() -> None:
    """The undo is part of the compiled sandwich, and gradients go through it."""
    z = colour_samples()
    frames = jax.tree.map(lambda p: jnp.asarray(p / np.float32(511.5) - np.float32(1)), z)
    sandwich = Sandwich(pre=lambda f: f, post=lambda f: f)
    codec, request = ProxyCodec(rate_scale=2.0), EncodeRequest(qp=10.0)

    @jax.jit
    def error(frames: Frame) -> jax.Array:
        coded = sandwich(frames, codec, request, method=Fold(SCALE))
        return sum(jnp.mean((a - b) ** 2) for a, b in zip(coded.frames.planes, frames.planes, strict=True))

    by_hand = SCALE.undo(codec.encode(SCALE.apply(sandwich.bottleneck(frames)), request).decoded)
    received = sandwich.receive(by_hand)
    expected = sum(np.mean((np.asarray(a) - b) ** 2) for a, b in zip(received.planes, frames.planes, strict=True))
    np.testing.assert_allclose(error(frames), expected, rtol=1e-4)
    assert all(np.isfinite(g).all() for g in jax.grad(error)(frames).planes)


def test_a_chain_does_what_its_stages_do_by_hand() -> None:
    z, codec = colour_samples(), RoundingCodec()
    target = Yuv400(mixed(z).y + 50.0)
    stages = (Fold(SCALE), Refine(codec, qp=32.0, target=target, steps=3), Wa(sketches=2), Dqp(0.5))
    plan = Chain(stages).plan(mixed, z, KEY)

    def behind(frame: Frame) -> Any:
        return mixed(SCALE.undo(frame))

    folded = SCALE.apply(z)
    refined = refine_samples(behind, folded, codec, qp=32.0, target=target, steps=3).z
    weights = importance_weights(importance_map(behind, refined, key=KEY, sketches=2))
    offsets = Dqp(0.5).reweigh(weights)
    for a, b in zip(plan.z.planes, refined.planes, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)
    for a, b in zip(plan.weights.planes.planes, offsets.planes.planes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)
    assert plan.weights.applied_as == "qp_offset"
    for a, b in zip(plan.undone(refined).planes, SCALE.undo(refined).planes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(plan.z.y - folded.y).max() > 1


def test_two_folds_are_undone_in_the_opposite_order() -> None:
    z, transform = channels()
    other = channel_transform(np.triu(np.ones((4, 4))), np.zeros(4), transform.layout)
    plan = Chain((Fold(transform), Fold(other))).plan(lambda f: f, z)
    np.testing.assert_allclose(plan.z.y, other.apply(transform.apply(z)).y, rtol=1e-5)
    np.testing.assert_allclose(plan.undone(plan.z).y, z.y, rtol=1e-4)


def test_side_information_of_stages_adds_up() -> None:
    class Told:
        name, draws, weights_as = "told", False, None

        def __init__(self, bits: Any) -> None:
            self.bits = bits

        def plan(self, receiver: Any, z: Frame, key: Any = None) -> Plan:
            return Plan(z, side_information_bits=self.bits)

    plan = Chain((Told(5), Told(np.array([1, 2])))).plan(mixed, colour_samples())
    np.testing.assert_array_equal(plan.side_information_bits, [6, 7])


OPTIONS: dict[str, dict[str, Any]] = {
    "fwa": {"map": Yuv400(np.ones((1, 8, 8), np.float32))},
    "calibrated": {"map": Yuv400(np.ones((1, 8, 8), np.float32))},
    "fold": {"transform": SCALE},
    "refine": {"codec": ProxyCodec(), "qp": 32.0},
    "refine:encoder": {"codec": ProxyCodec(), "qp": 32.0},
}


@pytest.mark.parametrize(
    ("text", "name", "draws", "weights_as"),
    [
        ("sse", "sse", False, None),
        ("wa", "wa", True, "distortion"),
        ("dqp", "dqp", True, "qp_offset"),
        ("wa+dqp", "dqp", True, "qp_offset"),
        (" iwa + dqp ", "iwa+dqp", True, "qp_offset"),
        ("fwa+dqp", "fwa+dqp", False, "qp_offset"),
        ("calibrated", "calibrated", False, "distortion"),
        ("fwa+shuffle", "fwa+shuffle", True, "distortion"),
        ("wa+dqp+only:none", "dqp+only:none", True, "qp_offset"),
        ("fwa+only:rdoq:sse", "fwa+only:sse:rdoq", False, "distortion"),
        ("fold+idse+shuffle", "fold+idse+shuffle", True, "rows"),
        ("fold", "fold", False, None),
        ("fold+refine+dqp", "fold+refine+dqp", True, "qp_offset"),
        ("fold+refine:encoder+calibrated+dqp", "fold+refine:encoder+calibrated+dqp", False, "qp_offset"),
    ],
)
def test_names_say_what_a_method_is_made_of(text, name, draws, weights_as) -> None:
    method: Method = parse_method(text, OPTIONS)
    assert (method.name, method.draws, method.weights_as) == (name, draws, weights_as)
    again = parse_method(method.name, OPTIONS)
    assert (again.name, type(again)) == (name, type(method))


def test_dqp_alone_makes_its_map_by_wa() -> None:
    method = parse_method("dqp", {"wa": {"sketches": 2}, "dqp": {"strength": 0.5}})
    assert isinstance(method, Chain)
    wa, dqp = method.stages
    assert isinstance(wa, Wa)
    assert (wa.sketches, dqp) == (2, Dqp(0.5))
    z = colour_samples()
    found, expected = (m.plan(mixed, z, KEY).weights for m in (method, Chain((Wa(sketches=2), Dqp(0.5)))))
    for a, b in zip(found.planes.planes, expected.planes.planes, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "'best' was asked for in method 'best'; known: " + ", ".join(STAGES) + ", only:…"),
        ("wa+", "'' was asked for in method"),
        ("sse+dqp", "sse leaves all as it is, and stands alone"),
        ("wa+fwa+dqp", "more than one stage weighs"),
        ("dqp+fold", r"only dqp, shuffle and only:…, each once, may follow wa"),
        ("wa+refine", r"only dqp, shuffle and only:…, each once, may follow wa"),
        ("wa+dqp+dqp", r"only dqp, shuffle and only:…, each once, may follow wa"),
        ("dqp+wa", "dqp turns weights into QP offsets; wa, iwa, fwa, calibrated or idse go before it"),
        ("shuffle+wa", "shuffle changes weights; wa, iwa"),
        ("only:sse", "only:sse changes weights"),
        ("wa+only:sse+only:rdoq", "each once, may follow wa"),
        ("wa+only:sse:bits", "decisions sse, bits were given; wanted some of sse, rdoq, satd, filters"),
        ("wa+only:", "wanted some of sse"),
        ("idse+dqp", "idse makes rows; put wa, iwa, fwa or calibrated before it"),
        ("wa+idse", "more than one stage weighs"),
    ],
)
def test_names_that_make_no_method_are_refused(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text, OPTIONS)


def test_a_stage_that_lacks_something_is_named_with_what_it_lacks() -> None:
    with pytest.raises(ValueError, match="method fwa needs map"):
        parse_method("fwa+dqp")
    with pytest.raises(ValueError, match="method refine needs codec, qp"):
        parse_method("refine")
    with pytest.raises(ValueError, match="no stages"):
        Chain(())
    assert isinstance(parse_method("fwa", OPTIONS), Fwa)
