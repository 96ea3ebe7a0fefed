"""Jacobian rows as weights of blocks; weights elsewhere in the picture; weights for some decisions only."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codec import DECISIONS, RowWeights, Weights
from jaxwrap.importance import MapError
from jaxwrap.methods import Dqp, Idse, Only, Shuffle, Wa, parse_method
from jaxwrap.methods import idse as idse_module

KEY = jax.random.key(3)
SHAPES = ((3, 40, 56), (3, 20, 28), (3, 20, 28))


def samples(seed: int = 0) -> Yuv420:
    rng = np.random.default_rng(seed)
    return Yuv420(*(rng.uniform(100, 900, shape).astype(np.float32) for shape in SHAPES))


def gain(shape: tuple[int, ...]) -> np.ndarray:
    return np.linspace(0.5, 3.0, shape[1] * shape[2], dtype=np.float32).reshape(1, *shape[1:])


def pointwise(z: Frame) -> Yuv420:
    """Each output depends on one sample."""
    return Yuv420(*(p * jnp.asarray(gain(p.shape)) for p in z.planes))


def smooth(z: Frame) -> tuple[jax.Array, jax.Array]:
    """Outputs depend on several samples of all planes, and not linearly."""
    y, u, v = (p / 512 for p in z.planes)
    blurred = y + jnp.roll(y, 1, 2) + 0.5 * jnp.roll(y, 3, 1)
    return jnp.tanh(blurred)[:, ::2, ::2] * u, v * v


def test_rows_of_a_pointwise_receiver_have_the_square_that_its_gain_says() -> None:
    alpha, z = 0.5, samples()
    weights = Idse(rows=3, alpha=alpha).plan(pointwise, z, KEY).weights
    assert isinstance(weights, RowWeights)
    assert weights.tau == pytest.approx(alpha / (1 + alpha))
    assert weights.decisions == DECISIONS
    h = [gain(shape) ** 2 for shape in SHAPES]
    mean = sum(p.sum() for p in h) / sum(p.size for p in h)
    for rows, expected, (n, height, width) in zip(weights.rows.planes, h, SHAPES, strict=True):
        assert rows.shape == (n, 3, height, width)
        square = np.square(rows).sum(1)
        np.testing.assert_allclose(square, np.broadcast_to(expected, square.shape) / ((1 + alpha) * mean), rtol=1e-5)
    assert {-1.0, 1.0} == {*np.sign(weights.rows.y).ravel()}  # signed: the rows are no map


def test_the_squares_of_rows_and_tau_are_the_weights_that_wa_makes_of_the_same_sketches() -> None:
    z = samples()
    rows, wa = (m.plan(smooth, z, KEY).weights for m in (Idse(rows=4, alpha=0.25), Wa(sketches=4, alpha=0.25)))
    assert isinstance(rows, RowWeights)
    assert isinstance(wa, Weights)
    for signed, plane in zip(rows.rows.planes, wa.planes.planes, strict=True):
        np.testing.assert_allclose(np.square(signed).sum(1) + rows.tau, plane, rtol=2e-5, atol=1e-7)


def test_rows_do_not_depend_on_how_many_frames_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    z, metric = samples(), (np.array([1.0, 2.0, 3.0], np.float32)[:, None, None], 1.0)
    method = Idse(rows=2, metric=metric)
    whole = method.plan(smooth, z, KEY).weights
    asked: list[int] = []

    def two(*args: Any) -> int:
        asked.append(args[3])
        return 2

    monkeypatch.setattr(idse_module, "chunk_frames", two)
    parts = dataclasses.replace(method, memory_budget=1 << 20).plan(smooth, z, KEY).weights
    assert asked == [1 << 20]
    for a, b in zip(whole.rows.planes, parts.rows.planes, strict=True):  # type: ignore[union-attr]
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_rows_are_refused_without_a_key_or_with_nothing_in_them() -> None:
    with pytest.raises(ValueError, match="idse draws random sketches"):
        Idse().plan(smooth, samples())
    with pytest.raises(ValueError, match="sketch"):
        Idse(rows=0)
    with pytest.raises(MapError, match="0 everywhere"):
        Idse().plan(lambda z: jax.tree.map(lambda p: p * 0, z), samples(), KEY)
    with pytest.raises(ValueError, match=r"tau = 1.0 was given"):
        RowWeights(samples(), 1.0)


def blocks_of(frame: Frame, n: int) -> list[tuple[tuple[int, ...], bytes]]:
    """Each 16×16 luma block of frame n with the chroma at the same place: its size and all its values."""
    height, width = frame.y.shape[-2:]
    found = []
    for top in range(0, height, 16):
        for left in range(0, width, 16):
            parts = [
                np.asarray(p)[n, ..., top // s : (top + 16) // s, left // s : (left + 16) // s]
                for p in frame.planes
                for s in [height // p.shape[-2]]
            ]
            found.append((parts[0].shape, b"".join(part.tobytes() for part in parts)))
    return found


@pytest.mark.parametrize("kind", ["weights", "rows"])
def test_shuffle_moves_whole_blocks_of_all_planes_together_and_in_all_frames_alike(kind: str) -> None:
    rng = np.random.default_rng(0)
    axes = () if kind == "weights" else (2,)
    planes = Yuv420(*(rng.normal(size=(n, *axes, h, w)).astype(np.float32) for n, h, w in SHAPES))
    given: Any = Weights(planes, "qp_offset", ("sse",)) if kind == "weights" else RowWeights(planes, 0.25, ("sse",))
    moved: Any = Shuffle().reweigh(given, KEY)
    after = moved.planes if kind == "weights" else moved.rows
    places = []
    for n in range(3):
        before, now = blocks_of(planes, n), blocks_of(after, n)
        assert sorted(before) == sorted(now)
        places.append([before.index(block) for block in now])
    assert places[0] == places[1] == places[2] != sorted(places[0])
    assert moved.decisions == ("sse",)
    rest = ("applied_as",) if kind == "weights" else ("tau",)
    assert [getattr(moved, name) for name in rest] == [getattr(given, name) for name in rest]
    same, other = (Shuffle().reweigh(given, key) for key in (KEY, jax.random.key(4)))
    first = [(r.planes if kind == "weights" else r.rows).y for r in (same, other)]  # type: ignore[union-attr]
    assert (first[0] == after.y).all()
    assert not (first[1] == after.y).all()


def test_shuffle_wants_a_key() -> None:
    with pytest.raises(ValueError, match="shuffle draws a permutation"):
        Shuffle().reweigh(Weights(Yuv400(np.ones((1, 16, 16), np.float32))), None)


def test_decisions_reach_the_weights_of_a_chain() -> None:
    z = samples()
    plan = parse_method("wa+shuffle+dqp+only:satd:sse").plan(smooth, z, KEY)
    assert isinstance(plan.weights, Weights)
    assert (plan.weights.applied_as, plan.weights.decisions) == ("qp_offset", ("sse", "satd"))
    wa = Wa().plan(smooth, z, KEY).weights
    np.testing.assert_allclose(np.sort(plan.weights.planes.y, None), np.sort(wa.planes.y, None), rtol=1e-6)  # type: ignore[union-attr]
    rows = parse_method("idse+only:sse", {"idse": {"rows": 2}}).plan(smooth, z, KEY).weights
    assert isinstance(rows, RowWeights)
    assert rows.decisions == ("sse",)
    assert Only(()).name == "only:none"
    with pytest.raises(ValueError, match="idse gives rows"):
        Dqp().reweigh(rows)
    with pytest.raises(ValueError, match="once each and in this order"):
        Weights(z, decisions=("rdoq", "sse"))
