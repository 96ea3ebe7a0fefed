"""A method's settings: as the JSON of a results row, and those that a sweep sets itself."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxwrap.methods import Chain, Method, stages_of

SET_BY_SWEEP = ("qp", "target", "clips", "period", "encoder", "request", "memory_budget")
"""Fields of methods that a sweep sets: to each QP, the original frames, the clips' lengths, the distance of the
encoder's I pictures, the encoder, what is asked of it, and, for long clips, the memory that maps may take. All that
figures depend on is in the rows' keys, as settings and clips of the sweep."""

NOT_IN_RESULTS = (*SET_BY_SWEEP, "devices", "head")
"""Fields that are no options of a row: a head is its mode's."""


def fields_of(method: Method) -> set[str]:
    """Names of the fields of a method or of its stages."""
    return {
        field.name for part in stages_of(method) if dataclasses.is_dataclass(part) for field in dataclasses.fields(part)
    }


def with_fields(method: Any, values: dict[str, Any], of_stage: Callable[[Any], dict[str, Any]] | None = None) -> Any:
    """The method with those of the fields set that it, or its stages, have; ``of_stage`` gives more for each stage."""
    if isinstance(method, Chain):
        return Chain(tuple(with_fields(stage, values, of_stage) for stage in method.stages))
    names = fields_of(method)
    given = values if of_stage is None else {**values, **of_stage(method)}
    chosen = {name: value for name, value in given.items() if name in names}
    return dataclasses.replace(method, **chosen) if chosen else method


def method_options(method: Method) -> dict[str, Any]:
    """A method's settings as JSON values, without `NOT_IN_RESULTS`; those of a chain by the names of its stages."""
    if isinstance(method, Chain):
        return {stage.name: options for stage in method.stages if (options := _options(stage))}
    return _options(method)


def digest_of(*arrays: Any) -> str:
    """SHA-256 of arrays: shapes, types and content."""
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array)
        digest.update(f"{values.shape}{values.dtype.str}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _options(stage: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(stage):
        return {}
    fields = [field.name for field in dataclasses.fields(stage) if field.name not in NOT_IN_RESULTS]
    return {name: _describe(getattr(stage, name)) for name in fields}


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if hasattr(value, "shape"):
        return digest_of(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    leaves = jax.tree.leaves(value)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return {"type": type(value).__name__, "sha256": digest_of(*leaves)}
    raise ValueError(
        f"a method option of type {type(value).__name__} cannot be written into a results row; "
        "use numbers, text, functions, arrays, or dataclasses of these"
    )
