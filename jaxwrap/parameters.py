"""Network parameters as named arrays, and back, with every mismatch reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def named_parameters(module: nnx.Module) -> dict[str, np.ndarray]:
    """All `nnx.Param` of a module as ``{"post.head.kernel": array}``, in a fixed order, as host arrays."""
    return {name: np.asarray(leaf) for name, leaf in _named_leaves(module).items()}


def parameter_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all `nnx.Param` by name; the module may be abstract (`nnx.eval_shape`)."""
    return {name: tuple(leaf.shape) for name, leaf in _named_leaves(module).items()}


def assign_parameters(
    module: nnx.Module, arrays: Mapping[str, np.ndarray], *, source: str = "the given arrays"
) -> None:
    """Writes named arrays into the module.

    Raises `ValueError` listing *all* missing, unexpected and misshapen names at once; the module is then unchanged.
    ``source`` names the arrays' origin in that message. The module may be abstract (`nnx.eval_shape`), so that nothing
    is drawn or compiled for parameters that are replaced.
    """
    wanted = _named_leaves(module)
    faults = [f"missing: {name} {wanted[name].shape}" for name in wanted if name not in arrays]
    faults += [f"unexpected: {name} {arrays[name].shape}" for name in arrays if name not in wanted]
    for name, array in wanted.items():
        if name in arrays and arrays[name].shape != array.shape:
            faults.append(f"misshapen: {name} is {arrays[name].shape}, wanted {array.shape}")
        elif name in arrays and not np.issubdtype(arrays[name].dtype, np.floating):
            faults.append(f"not real numbers: {name} is {arrays[name].dtype}")
        elif name in arrays and not np.isfinite(arrays[name]).all():
            faults.append(f"not finite: {name}")
    if faults:
        raise ValueError(
            f"{source} does not fit this network ({len(faults)} mismatches); "
            "use the configuration it was trained with:\n  " + "\n  ".join(faults)
        )
    state = nnx.state(module, nnx.Param)
    flat = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(arrays[".".join(_part(k) for k in path)]), nnx.to_pure_dict(state)
    )
    nnx.replace_by_pure_dict(state, flat)
    nnx.update(module, state)


def _named_leaves(module: nnx.Module) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    return {".".join(_part(k) for k in path): leaf for path, leaf in sorted(leaves, key=lambda p: str(p[0]))}


def _part(key: object) -> str:
    return str(getattr(key, "key", getattr(key, "idx", key)))
