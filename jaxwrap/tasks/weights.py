"""Published weights into networks: a key map says from which arrays of a file each parameter is made, and every
mismatch is reported at once.

Files hold PyTorch's layouts: kernels ``[O, I, k, k]`` (depthwise ``[C, 1, k, k]``), matrices ``[O, I]``, and batch
normalisation as ``weight``, ``bias``, ``running_mean``, ``running_var``. Networks here hold HWIO kernels, and
normalisation folded into them: γ (W x − μ) / √(σ² + ε) + β = (s W) x + (β − s μ), s = γ / √(σ² + ε).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import numpy as np
from flax import nnx

from jaxwrap.parameters import assign_parameters, parameter_shapes

BATCH_NORM_EPSILON = 1e-5
"""ε where a file's own code sets no other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """How a parameter comes about: ``convert(*arrays of these keys)`` gives it in our layout, or raises `ValueError`
    where the arrays' shapes do not fit each other."""

    keys: tuple[str, ...]
    convert: Callable[..., np.ndarray]


KeyMap = dict[str, Source]
"""Parameter of a network (`jaxwrap.parameters.parameter_shapes`) → where it comes from."""


def convolution(path: str, key: str, *, norm: str | None = None, epsilon: float = BATCH_NORM_EPSILON) -> KeyMap:
    """Key map of one `jaxwrap.tasks.blocks.Conv` at ``path`` from ``key.weight`` and ``key.bias``; or without a bias
    of its own, and with the batch normalisation ``norm``, of this ε, folded in."""
    return _folded(path, key, norm, epsilon, lambda w: w.transpose(2, 3, 1, 0))


def depthwise_convolution(
    path: str, key: str, *, norm: str | None = None, epsilon: float = BATCH_NORM_EPSILON
) -> KeyMap:
    """Key map of one `jaxwrap.tasks.blocks.Depthwise`, as `convolution`."""
    return _folded(path, key, norm, epsilon, lambda w: w[:, 0].transpose(1, 2, 0))


def linear(path: str, key: str) -> KeyMap:
    """Key map of one `flax.nnx.Linear` at ``path`` from ``key.weight`` and ``key.bias``."""
    return {
        f"{path}.kernel": Source((f"{key}.weight",), np.transpose),
        f"{path}.bias": Source((f"{key}.bias",), np.asarray),
    }


def load_state(
    network: nnx.Module,
    arrays: Mapping[str, np.ndarray],
    key_map: Mapping[str, Source],
    *,
    ignored: Collection[str] = (),
    source: str = "the given weights",
) -> None:
    """Assigns every parameter of a network (which may be abstract, `nnx.eval_shape`) from published arrays.

    ``ignored``: endings of keys that may be in the arrays without being used. ``source`` names the arrays in messages.

    Raises `ValueError` that lists *all* missing, unexpected and misshapen keys, arrays that are no real or no finite
    numbers, and parameters that the key map leaves out; the network is then unchanged.
    """
    wanted = parameter_shapes(network)
    used = {key for entry in key_map.values() for key in entry.keys}
    faults = [f"missing: {key}" for key in sorted(used - set(arrays))]
    surplus = sorted(key for key in set(arrays) - used if not key.endswith(tuple(ignored)))
    faults += [f"unexpected: {key} {np.shape(arrays[key])}" for key in surplus]
    faults += [f"without a source: {name} {wanted[name]}" for name in sorted(set(wanted) - set(key_map))]
    faults += [f"no such parameter: {name}" for name in sorted(set(key_map) - set(wanted))]
    for key in sorted(used & set(arrays)):
        if not np.issubdtype(arrays[key].dtype, np.floating):
            faults.append(f"not real numbers: {key} is {arrays[key].dtype}")
        elif not np.isfinite(arrays[key]).all():
            faults.append(f"not finite: {key}")
    made: dict[str, np.ndarray] = {}
    for name, entry in key_map.items():
        if name not in wanted or not set(entry.keys) <= set(arrays):
            continue
        given = [arrays[key] for key in entry.keys]
        try:
            made[name] = np.ascontiguousarray(entry.convert(*given), np.float32)
            shape = made[name].shape
        except (ValueError, IndexError):
            shape = None
        if shape != wanted[name]:
            origin = ", ".join(f"{key} {array.shape}" for key, array in zip(entry.keys, given, strict=True))
            gives = "does not fit together" if shape is None else f"gives {shape}"
            faults.append(f"misshapen: {origin} {gives}, wanted {wanted[name]} for {name}")
    if faults:
        raise ValueError(
            f"{source} do not fit this network ({len(faults)} mismatches); use the file that was published for it:\n  "
            + "\n  ".join(faults)
        )
    assign_parameters(network, made, source=source)


def _folded(
    path: str, key: str, norm: str | None, epsilon: float, layout: Callable[[np.ndarray], np.ndarray]
) -> KeyMap:
    if norm is None:
        return {
            f"{path}.kernel": Source((f"{key}.weight",), layout),
            f"{path}.bias": Source((f"{key}.bias",), np.asarray),
        }
    gamma, beta, mean, variance = (f"{norm}.{k}" for k in ("weight", "bias", "running_mean", "running_var"))

    def kernel(w: np.ndarray, g: np.ndarray, v: np.ndarray) -> np.ndarray:
        return layout(w * _scale(len(w), epsilon, g, v).reshape(-1, *(1,) * (w.ndim - 1)))

    def offset(b: np.ndarray, m: np.ndarray, g: np.ndarray, v: np.ndarray) -> np.ndarray:
        return b - m * _scale(len(b), epsilon, g, v, m)

    return {
        f"{path}.kernel": Source((f"{key}.weight", gamma, variance), kernel),
        f"{path}.bias": Source((beta, mean, gamma, variance), offset),
    }


def _scale(channels: int, epsilon: float, gamma: np.ndarray, variance: np.ndarray, *others: np.ndarray) -> np.ndarray:
    if {array.shape for array in (gamma, variance, *others)} != {(channels,)}:
        raise ValueError("normalisation of another number of channels")
    return gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
