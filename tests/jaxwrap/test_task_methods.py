"""Maps through a task's head, and receivers with parameters of each frame."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwrap.arrays import Frame, Yuv400
from jaxwrap.importance import importance_map
from jaxwrap.importance.receiver import PerFrame
from jaxwrap.methods import Chain, Dqp, Iwa, TaskIwa, TaskWa, Wa, parse_method, stages_of

KEY = jax.random.key(3)


def frames(num: int = 5) -> Yuv400:
    return Yuv400(jax.random.uniform(jax.random.key(1), (num, 8, 16)) * 1023)


def restore(gains: PerFrame, z: Frame) -> dict[str, jax.Array]:
    return {"a": z.y * gains.values["g"][:, None, None] / 100, "b": jnp.sin(z.y / 300)}


def rank(features: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {"scores": features["a"] ** 2 + features["b"]}


def receiver(num: int = 5) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(restore, PerFrame({"g": jnp.arange(1.0, num + 1)}))


def of_both(features: Any, z: Frame) -> Any:
    return rank(restore(features, z))


@pytest.mark.parametrize(("task", "plain"), [(TaskWa, Wa), (TaskIwa, Iwa)])
def test_a_map_through_a_head_is_the_map_of_head_and_receiver(task: Any, plain: Any) -> None:
    options: dict[str, Any] = {"clips": (3, 2), "alpha": 0.0}
    if plain is Iwa:
        options["period"] = 2
    found = task(head=rank, **options).plan(receiver(), frames(), KEY)
    both = jax.tree_util.Partial(of_both, *receiver().args)
    wanted = plain(**options).plan(both, frames(), KEY)
    np.testing.assert_allclose(found.weights.planes.y, wanted.weights.planes.y, rtol=1e-5)
    without = plain(**options).plan(receiver(), frames(), KEY)
    assert np.abs(np.asarray(found.weights.planes.y - without.weights.planes.y)).max() > 0.1


def test_held_maps_are_those_of_the_i_frames_with_their_own_parameters() -> None:
    every = Wa(alpha=0.0).plan(receiver(), frames(), KEY).weights
    held = Iwa(alpha=0.0, period=2, clips=(3, 2)).plan(receiver(), frames(), KEY).weights
    assert every is not None
    assert held is not None
    for frame, own in enumerate((0, 0, 2, 3, 3)):
        np.testing.assert_allclose(held.planes.y[frame], every.planes.y[own], rtol=1e-5)


def test_chunks_of_a_map_take_their_frames_parameters() -> None:
    whole = importance_map(receiver(), frames(), key=KEY)
    parts = importance_map(receiver(), frames(), key=KEY, memory_budget=10_000)  # room for two frames
    np.testing.assert_allclose(parts.h.y, whole.h.y, rtol=1e-5)


def test_names_of_task_aware_methods_compose() -> None:
    chain = parse_method("wa:task+dqp", {"wa:task": {"head": rank}})
    assert isinstance(chain, Chain)
    assert chain.name == "wa:task+dqp"
    first, second = stages_of(chain)
    assert isinstance(first, TaskWa)
    assert isinstance(second, Dqp)
    assert chain.weights_as == "qp_offset"
    assert parse_method("iwa:task").name == "iwa:task"


def test_without_a_head_there_is_nothing_to_map() -> None:
    with pytest.raises(ValueError, match="method wa:task has no task: give head"):
        TaskWa().plan(receiver(), frames(), KEY)
