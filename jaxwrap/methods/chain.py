"""Compositions of methods, and their names: ``fwa+dqp``, ``fold+refine``, ``fold+refine+wa+dqp``, … ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import as_partial
from jaxwrap.methods.dqp import Dqp
from jaxwrap.methods.fold import Fold
from jaxwrap.methods.frozen import Calibrated, Fwa
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.methods.refine import Refine
from jaxwrap.methods.relinearise import Relinearise
from jaxwrap.methods.sse import Sse
from jaxwrap.methods.wa import Iwa, Wa

STAGES: dict[str, type[Method] | type[Dqp]] = {
    stage.name: stage for stage in (Sse, Wa, Iwa, Fwa, Calibrated, Dqp, Fold, Refine, Relinearise)
}
"""What a method's name is made of. All but dqp are methods by themselves."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Stages one after another: first those that change the samples (fold, refine), then at most one that weighs them
    (wa, iwa, fwa, calibrated), then perhaps `Dqp`, which turns the weights into QP offsets.

    Each stage is given the samples of the one before it, and the receiver behind whatever undoes them; a stage that
    draws is given the chain's own key, so that it draws what it would alone.
    """

    stages: tuple[Method | Dqp, ...]

    def __post_init__(self) -> None:
        weighing = [stage for stage in self.stages if not isinstance(stage, Dqp) and stage.weights_as is not None]
        names = [stage.name for stage in self.stages]
        listed = "+".join(names)
        if not self.stages:
            raise ValueError("a chain of no stages was given; wanted at least one")
        if len(names) > 1 and any(isinstance(stage, Sse) for stage in self.stages):
            raise ValueError(f"{listed}: sse leaves all as it is, and stands alone")
        if len(weighing) > 1:
            raise ValueError(f"{listed}: more than one stage weighs the samples; keep one of them")
        where = len(names) if not weighing else self.stages.index(weighing[0])
        rest = self.stages[where + 1 :]
        if not all(isinstance(stage, Dqp) for stage in rest) or len(rest) > 1:
            raise ValueError(f"{listed}: only dqp, once, may follow {names[where]}: put what changes the samples first")
        if any(isinstance(stage, Dqp) for stage in self.stages[:where]):
            raise ValueError(f"{listed}: dqp turns weights into QP offsets; wa, iwa, fwa or calibrated go before it")

    @property
    def name(self) -> str:
        """Names of the stages, joined by ``+``; ``wa+dqp`` is written ``dqp``, its short name."""
        names = [stage.name for stage in self.stages]
        if names[-2:] == [Wa.name, Dqp.name]:
            del names[-2]
        return "+".join(names)

    @property
    def draws(self) -> bool:
        """Whether any stage does."""
        return any(not isinstance(stage, Dqp) and stage.draws for stage in self.stages)

    @property
    def weights_as(self) -> Literal["distortion", "qp_offset"] | None:
        """QP offsets after `Dqp`; otherwise as the stage that weighs gives them."""
        if isinstance(self.stages[-1], Dqp):
            return "qp_offset"
        return self.stages[-1].weights_as

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """The stages' plans as one. Errors are those of the stages."""
        plan = Plan(z)
        for stage in self.stages:
            if isinstance(stage, Dqp):
                assert plan.weights is not None
                plan = dataclasses.replace(plan, weights=stage.offsets(plan.weights))
                continue
            step = stage.plan(receiver, plan.z, key)
            undo = step.undo
            if undo is not None:
                receiver = jax.tree_util.Partial(_after, as_partial(receiver), undo)
                undo = undo if plan.undo is None else jax.tree_util.Partial(_after, plan.undo, undo)
            plan = Plan(
                step.z,
                step.weights,
                plan.side_information_bits + step.side_information_bits,
                plan.undo if undo is None else undo,
            )
        return plan


def stages_of(method: Method) -> tuple[Method | Dqp, ...]:
    """The stages of a chain, or the method itself."""
    return method.stages if isinstance(method, Chain) else (method,)


def _after(second: Callable[[Frame], Any], first: Callable[[Frame], Frame], frame: Frame) -> Any:
    return second(first(frame))


def parse_method(text: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Method:
    """The method of a name: stages of `STAGES` joined by ``+``; ``dqp`` without a stage that weighs is ``wa+dqp``.

    ``options``: arguments of the stages, by their names; those of stages that do not occur are not looked at. Raises
    `ValueError` for unknown stages (with the list), stages that do not go together, and a stage that lacks an argument.
    """
    names = [name.strip() for name in text.split("+")]
    if unknown := [name for name in names if name not in STAGES]:
        raise ValueError(f"{unknown[0]!r} was asked for in method {text!r}; known: {', '.join(STAGES)}")
    if Dqp.name in names and not {Wa.name, Iwa.name, Fwa.name, Calibrated.name} & {*names}:
        names.insert(names.index(Dqp.name), Wa.name)
    stages = tuple(_stage(name, (options or {}).get(name, {})) for name in names)
    chain = Chain(stages)
    return stages[0] if len(stages) == 1 and not isinstance(stages[0], Dqp) else chain


def _stage(name: str, arguments: Mapping[str, Any]) -> Method | Dqp:
    kind: Any = STAGES[name]
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"method {name} needs {', '.join(missing)}: give it as options={{{name!r}: …}}")
    return kind(**arguments)
