"""Compositions of methods, and their names: ``fwa+dqp``, ``fold+refine``, ``fold+refine+wa+shuffle``, … ."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import as_partial
from jaxwrap.methods.dqp import Dqp
from jaxwrap.methods.fold import Fold
from jaxwrap.methods.frozen import Calibrated, Fwa
from jaxwrap.methods.idse import Idse
from jaxwrap.methods.only import PREFIX, Only
from jaxwrap.methods.plan import Method, Plan, WeightsAs
from jaxwrap.methods.refine import Refine
from jaxwrap.methods.relinearise import Relinearise
from jaxwrap.methods.shuffle import Shuffle
from jaxwrap.methods.sse import Sse
from jaxwrap.methods.task import TaskIwa, TaskWa
from jaxwrap.methods.wa import Iwa, Wa

WeightStage = Dqp | Shuffle | Only
"""Stages that change the weights of the one before them: ``reweigh(weights, key) -> weights``."""

Stage = Method | WeightStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (Sse, Wa, Iwa, Fwa, Calibrated, Idse, TaskWa, TaskIwa, Dqp, Shuffle, Fold, Refine, Relinearise)
}
"""What a method's name is made of, beside ``only:…``. All but dqp, shuffle and only are methods by themselves."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Stages one after another: first those that change the samples (fold, refine), then at most one that weighs them
    (wa, iwa, fwa, calibrated, idse, wa:task, iwa:task), then perhaps, each once, those that change the weights: `Dqp`
    makes QP offsets of them, `Shuffle` puts them elsewhere, `Only` says what decides by them.

    Each stage is given the samples of the one before it, and the receiver behind whatever undoes them; a stage that
    draws is given the chain's own key, so that it draws what it would alone.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        weighing = [
            stage for stage in self.stages if not isinstance(stage, WeightStage) and stage.weights_as is not None
        ]
        names = [stage.name for stage in self.stages]
        listed = "+".join(names)
        if not self.stages:
            raise ValueError("a chain of no stages was given; wanted at least one")
        if len(names) > 1 and any(isinstance(stage, Sse) for stage in self.stages):
            raise ValueError(f"{listed}: sse leaves all as it is, and stands alone")
        if len(weighing) > 1:
            raise ValueError(f"{listed}: more than one stage weighs the samples; keep one of them")
        where = len(names) if not weighing else self.stages.index(weighing[0])
        before, rest = self.stages[:where], self.stages[where + 1 :]
        if not all(isinstance(stage, WeightStage) for stage in rest) or len({*map(type, rest)}) < len(rest):
            raise ValueError(
                f"{listed}: only dqp, shuffle and only:…, each once, may follow {names[where]}: put what changes the "
                "samples first"
            )
        if early := next((stage for stage in before if isinstance(stage, WeightStage)), None):
            what = "turns weights into QP offsets" if isinstance(early, Dqp) else "changes weights"
            raise ValueError(f"{listed}: {early.name} {what}; wa, iwa, fwa, calibrated or idse go before it")
        if any(isinstance(stage, Idse) for stage in weighing) and any(isinstance(stage, Dqp) for stage in rest):
            raise ValueError(
                f"{listed}: dqp takes weights of samples, and idse makes rows; put wa, iwa, fwa or calibrated before it"
            )

    @property
    def name(self) -> str:
        """Names of the stages, joined by ``+``; ``wa+dqp`` is written ``dqp``, its short name."""
        names = [stage.name for stage in self.stages]
        pairs = list(itertools.pairwise(names))
        if (Wa.name, Dqp.name) in pairs:
            del names[pairs.index((Wa.name, Dqp.name))]
        return "+".join(names)

    @property
    def draws(self) -> bool:
        """Whether any stage does."""
        return any(stage.draws for stage in self.stages)

    @property
    def weights_as(self) -> WeightsAs | None:
        """QP offsets where there is a `Dqp`; otherwise as the stage that weighs gives them."""
        if any(isinstance(stage, Dqp) for stage in self.stages):
            return "qp_offset"
        methods = [stage for stage in self.stages if not isinstance(stage, WeightStage)]
        return next((stage.weights_as for stage in methods if stage.weights_as is not None), None)

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """The stages' plans as one. Errors are those of the stages."""
        plan = Plan(z)
        for stage in self.stages:
            if isinstance(stage, WeightStage):
                assert plan.weights is not None
                plan = dataclasses.replace(plan, weights=stage.reweigh(plan.weights, key))
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


def stages_of(method: Method) -> tuple[Stage, ...]:
    """The stages of a chain, or the method itself."""
    return method.stages if isinstance(method, Chain) else (method,)


def _after(second: Callable[[Frame], Any], first: Callable[[Frame], Frame], frame: Frame) -> Any:
    return second(first(frame))


def parse_method(text: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Method:
    """The method of a name: stages of `STAGES`, and ``only:`` with decisions (``only:sse:rdoq``, ``only:none``), joined
    by ``+``; ``dqp`` without a stage that weighs is ``wa+dqp``.

    ``options``: arguments of the stages, by their names; those of stages that do not occur are not looked at. Raises
    `ValueError` for unknown stages (with the list), stages that do not go together, and a stage that lacks an argument.
    """
    names = [name.strip() for name in text.split("+")]
    if unknown := [name for name in names if name not in STAGES and not name.startswith(PREFIX)]:
        raise ValueError(f"{unknown[0]!r} was asked for in method {text!r}; known: {', '.join(STAGES)}, {PREFIX}…")
    weighing = {kind.name for kind in (Wa, Iwa, Fwa, Calibrated, Idse, TaskWa, TaskIwa)}
    if Dqp.name in names and not weighing & {*names}:
        names.insert(names.index(Dqp.name), Wa.name)
    stages = tuple(_stage(name, (options or {}).get(name, {})) for name in names)
    chain = Chain(stages)
    return stages[0] if len(stages) == 1 and not isinstance(stages[0], WeightStage) else chain


def _stage(name: str, arguments: Mapping[str, Any]) -> Stage:
    if name.startswith(PREFIX):
        return Only.named(name)
    kind: Any = STAGES[name]
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in arguments and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"method {name} needs {', '.join(missing)}: give it as options={{{name!r}: …}}")
    return kind(**arguments)
