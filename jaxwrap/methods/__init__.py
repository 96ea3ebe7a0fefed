"""Allocation methods: how bits are spent, one object each with ``plan(receiver, z, key) -> Plan``."""

from jaxwrap.methods.chain import STAGES, Chain, parse_method, stages_of
from jaxwrap.methods.dqp import Dqp
from jaxwrap.methods.fold import Fold, Transform
from jaxwrap.methods.frozen import Calibrated, Fwa
from jaxwrap.methods.idse import Idse
from jaxwrap.methods.only import Only
from jaxwrap.methods.plan import Method, Plan
from jaxwrap.methods.refine import Refine, Refined, refine_samples
from jaxwrap.methods.relinearise import Relinearise, relinearised_samples
from jaxwrap.methods.shuffle import Shuffle
from jaxwrap.methods.sse import Sse
from jaxwrap.methods.task import TaskAware, TaskIwa, TaskWa
from jaxwrap.methods.wa import Iwa, Wa

__all__ = [
    "STAGES",
    "Calibrated",
    "Chain",
    "Dqp",
    "Fold",
    "Fwa",
    "Idse",
    "Iwa",
    "Method",
    "Only",
    "Plan",
    "Refine",
    "Refined",
    "Relinearise",
    "Shuffle",
    "Sse",
    "TaskAware",
    "TaskIwa",
    "TaskWa",
    "Transform",
    "Wa",
    "parse_method",
    "refine_samples",
    "relinearised_samples",
    "stages_of",
]
