from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance import diagonal, maps
from jaxwrap.importance.maps import ControlVariate, importance_map
from jaxwrap.importance.memory import frames_within

pytestmark = pytest.mark.usefixtures("optimised_programs")

KEY = jax.random.key(2)
BUDGET = 400_000
KERNELS = [
    jnp.asarray(np.random.default_rng(i).standard_normal((3, 3, a, 6)) / 6, jnp.float32) for i, a in enumerate((1, 6))
]


def network(z: Frame) -> dict[str, jax.Array]:
    x = z.y[..., None]
    for kernel in KERNELS:
        x = jax.nn.gelu(
            jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
    return {"features": x, "pooled": x.mean((1, 2))}


def frames(n: int = 5) -> Yuv400:
    return Yuv400(np.random.default_rng(7).uniform(0, 4, (n, 18, 20)).astype(np.float32))


def needed(**options: Any) -> int:
    """Bytes for one frame, as the error says."""
    with pytest.raises(ValueError, match="one frame of this receiver needs") as error:
        frames_within(network, frames(1), 1000, **options)
    return int(str(error.value).split("needs ")[1].split(" bytes")[0].replace(",", ""))


def assert_same_bytes(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes at each call of a compiled stage: what is alive, its results, and its temporaries as the compiler says."""
    before = {id(a) for a in jax.live_arrays()}
    peaks: list[int] = []

    def watch(module: Any, name: str) -> None:
        stage = getattr(module, name)

        def run(*arguments: Any, **options: Any) -> Any:
            alive = {id(a): a.nbytes for a in jax.live_arrays() if id(a) not in before}
            analysis = stage.lower(*arguments, **options).compile().memory_analysis()
            new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
            peaks.append(max(sum(alive.values()) + new, analysis.argument_size_in_bytes + new))
            return stage(*arguments, **options)

        monkeypatch.setattr(module, name, run)

    watch(maps, "linearise")
    for name in ("start", "add_sketch", "finish", "unsettled", "settle"):
        watch(diagonal, name)
    return peaks


@pytest.mark.parametrize("case", ["four sketches", "auto with control"])
def test_nothing_that_runs_needs_more_than_the_budget(case: str, watched: list[int]) -> None:
    z, options, kind = frames(), {}, {}
    if case != "four sketches":
        kind = {"auto": True, "control": True}
        control = ControlVariate(frames(1), Yuv400(np.ones((1, 18, 20), np.float32)))
        options = {"sketches": "auto", "control": control, "target_error": 1e-6, "max_sketches": 8}
    budget = int(2.3 * needed(**kind))
    assert 1 < frames_within(network, z, budget, frames=5, **kind) < 5
    importance_map(network, z, key=KEY, memory_budget=budget, **options)
    assert 0.5 * budget < max(watched) <= budget


def test_chunks_give_the_bytes_of_the_whole() -> None:
    z = frames()
    whole = importance_map(network, z, key=KEY, frame_offset=3)
    metric = {"features": np.random.default_rng(3).uniform(0, 2, (5, 18, 20, 6)).astype(np.float32), "pooled": 3.0}
    weighted = importance_map(network, z, key=KEY, metric=metric, sketches=1)
    for budget in (int(1.3 * needed()), int(2.6 * needed())):  # chunks of 1, and of 2 with one padded
        assert_same_bytes(whole, importance_map(network, z, key=KEY, frame_offset=3, memory_budget=budget))
        assert_same_bytes(
            weighted, importance_map(network, z, key=KEY, metric=metric, sketches=1, memory_budget=budget)
        )


def test_what_was_compiled_to_be_analysed_is_not_compiled_again(caplog: pytest.LogCaptureFixture) -> None:
    def fresh(z: Frame) -> Any:
        return network(z)["features"]

    def compiled(name: str) -> int:
        return sum(r.getMessage().startswith(f"Finished XLA compilation of jit({name})") for r in caplog.records)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        number = frames_within(fresh, frames(1), BUDGET, frames=6)
        assert 1 < number < 6
        stages = ("linearise", "add_sketch")
        analysed = {name: compiled(name) for name in stages}
        assert all(1 <= count <= 3 for count in analysed.values())
        for _ in range(2):
            frames_within(fresh, frames(4), BUDGET, frames=6)
            importance_map(fresh, frames(6), key=KEY, memory_budget=BUDGET)
        assert {name: compiled(name) for name in stages} == analysed


def test_chunks_are_as_few_and_as_even_as_can_be() -> None:
    most = frames_within(network, frames(1), 10**6)
    assert most >= 4
    total = 2 * most + 1
    size = frames_within(network, frames(1), 10**6, frames=total)
    assert -(-total // size) == 3 == -(-total // most)
    assert 3 * size - total < 3


def test_a_budget_below_one_frame_says_how_much_is_needed() -> None:
    one = needed()
    assert frames_within(network, frames(1), one) == 1
    with pytest.raises(ValueError, match=f"{one - 1:,} bytes was given; one frame .* needs {one:,} bytes"):
        importance_map(network, frames(), key=KEY, memory_budget=one - 1)
    with pytest.raises(ValueError, match="budget of 0 bytes"):
        importance_map(network, frames(), key=KEY, memory_budget=0)
    assert needed(control=True) > 1.5 * one
    assert needed(auto=True) >= one


def test_a_budget_wants_values() -> None:
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda z: importance_map(network, z, key=KEY, memory_budget=10**6).h)(frames())
