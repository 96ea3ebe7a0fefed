"""Methods ``wa:task`` and ``iwa:task``: maps of what a task makes of the receiver's output.

Between equal errors of features, only some change what a task finds. The receiver is looked at through a *head* h, from
its output to what the task ranks and places by (`jaxwrap.tasks.detector`), and J is that of h ∘ r. The decoder stays as
it is: what it restores goes to any task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import Receiver, as_partial
from jaxwrap.methods.plan import Plan
from jaxwrap.methods.wa import Iwa, Wa


@dataclasses.dataclass(frozen=True, eq=False)
class TaskAware(Wa):
    """A map through ``head``: output of the receiver → float arrays ``[N, …]``, whose metric ``metric`` is.

    A sweep sets the head to that of its mode's task.
    """

    head: Receiver | None = None

    def plan(self, receiver: Callable[[Frame], Any], z: Frame, key: jax.Array | None = None) -> Plan:
        """As `Wa.plan`, for h ∘ r. Raises `ValueError` without a head, and as `Wa.plan` does."""
        if self.head is None:
            raise ValueError(f"method {self.name} has no task: give head, a function of the receiver's output")
        return super().plan(jax.tree_util.Partial(_behind, as_partial(self.head), as_partial(receiver)), z, key)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskWa(TaskAware):
    """`Wa` through a task's head."""

    name: ClassVar[str] = "wa:task"


@dataclasses.dataclass(frozen=True, eq=False)
class TaskIwa(TaskAware, Iwa):
    """`Iwa` through a task's head."""

    name: ClassVar[str] = "iwa:task"


def _behind(head: Callable[[Any], Any], receiver: Callable[[Frame], Any], frame: Frame) -> Any:
    return head(receiver(frame))
