"""Allocation methods: how bits are spent, one object each with ``plan(receiver, z, key) -> Plan``."""

from jaxwrap.methods.dqp import Dqp
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.methods.refine import Refine, Refined, refine_samples
from jaxwrap.methods.sse import Sse

METHODS: dict[str, type[Sse] | type[Dqp] | type[Refine]] = {method.name: method for method in (Sse, Dqp, Refine)}
"""Methods by the name that results rows and commands use."""


def method_class(name: str) -> type[Sse] | type[Dqp] | type[Refine]:
    """The class of a method by name. Raises `ValueError` listing the known names."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} was asked for; known: {', '.join(METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Dqp", "Method", "Plan", "Refine", "Refined", "Sse", "method_class", "refine_samples"]
