"""What a receiver must not do, and the errors that say so.

Found while the receiver is traced, so paid once per compiled shape: outputs that are not float or lack the frames'
axis, random numbers (dropout in training mode), changes of a network's state. Found by running it: values that are not
finite, outputs that do not depend on z, and frames that depend on one another (batch statistics in training mode),
looked for once per receiver and shape.

Not found: a dependence between frames when a batch, or a chunk of it, holds one frame (the map is then that of the
receiver on one frame alone), or one that a NaN does not travel along (through `jnp.nan_to_num`, an argmax or a
comparison).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, num_frames

RANDOM_PRIMITIVES = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma")


def check_output(output: Any, num: int) -> None:
    """Raises `ValueError` unless the output is a pytree of float arrays with a leading axis of ``num`` frames."""
    leaves = jax.tree_util.tree_leaves_with_path(output)
    if not leaves:
        raise ValueError("the receiver returned no arrays: there is nothing whose error could be measured")
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path) or "output"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"the receiver's {name} is {leaf.dtype}: an importance map needs real outputs that have a derivative "
                "(return scores rather than indices, and leave rounding out)"
            )
        if leaf.ndim < 1 or leaf.shape[0] != num:
            raise ValueError(
                f"the receiver's {name} has shape {leaf.shape}: the leading axis must be the {num} frames of z"
            )


def primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives of a jaxpr, and of those inside them (jit, custom derivatives, scan, remat)."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(getattr(inner, "jaxpr", None), "eqns"):
                    yield from primitives(inner)


def draws_nothing(jaxpr: Any) -> None:
    """Raises `ValueError` where a traced receiver draws random numbers."""
    for name in primitives(jaxpr):
        if name in RANDOM_PRIMITIVES:
            raise ValueError(
                f"the receiver draws random numbers ({name}): its output has to follow from z alone. Is a network in "
                "training mode (dropout)? Call network.eval(), or draw the numbers outside and give them as parameters"
            )


@contextlib.contextmanager
def no_state_changes() -> Iterator[None]:
    """Turns Flax's refusal to change a network's state inside compiled code into one that says what to do."""
    try:
        yield
    except flax.errors.TraceContextError as error:
        raise ValueError(
            "the receiver changes the state of a network while it runs (dropout's random numbers or batch statistics "
            f"in training mode): call network.eval() first. Flax says: {error}"
        ) from error


def finite_frames(tree: Any) -> jax.Array:
    """Which frames hold no NaN or infinity, ``[N]``."""
    flags = [jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(flags).all(0)


def refuse(bad: jax.Array | np.ndarray, what: str, frame_offset: Any) -> None:
    """Raises for the flagged frames, named by their numbers in the sequence; nothing is known while tracing.

    ``frame_offset``: number of the first frame, or the numbers of all (of more than there are flags, the first ones).
    """
    if isinstance(bad, jax.core.Tracer) or not (flags := np.asarray(bad)).any():
        return
    places, offset = np.flatnonzero(flags), np.asarray(frame_offset)
    numbers = [str(int(number)) for number in (offset[places] if offset.ndim else places + offset)]
    listed = ", ".join(numbers[:8]) + (" …" if len(numbers) > 8 else "")
    raise ValueError(f"{what} frame{'s' if len(numbers) > 1 else ''} {listed}")


_KNOWN_INDEPENDENT: set[Any] = set()


@jax.jit
def _every_other_spoilt(z: Frame, first: Any) -> Frame:
    """NaN in frames ``first``, ``first`` + 2, …."""

    def spoil(plane: jax.Array) -> jax.Array:
        chosen = (jnp.arange(plane.shape[0]) % 2 == first)[:, None, None]
        return jnp.where(chosen, jnp.asarray(jnp.nan, plane.dtype), plane)

    return jax.tree.map(spoil, z)


def check_independence(
    function: jax.tree_util.Partial, z: Frame, finite_output: Callable[[Frame], jax.Array], frame_offset: Any
) -> None:
    """Raises `ValueError` where a frame's output depends on another frame; looked for once per receiver and shape.

    The odd frames are set to NaN, then the even ones: NaN travels along all dependences of ordinary arithmetic.
    ``finite_output`` says for which frames of such a z the output is finite, ``[N]``: compiled code that exists anyway,
    so that the check costs two forward passes. Nothing is known from one frame, or while tracing.
    """
    if num_frames(z) < 2 or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((function, z))):
        return
    leaves, structure = jax.tree.flatten((function, z))
    known = structure, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
    if known in _KNOWN_INDEPENDENT:
        return

    spoilt = np.zeros(num_frames(z), bool)
    for first in (1, 0):
        reached = ~np.asarray(finite_output(_every_other_spoilt(z, first)))
        reached[first::2] = False
        spoilt |= reached
    refuse(
        spoilt,
        "the receiver mixes frames (batch statistics in training mode? call network.eval(), or map frames one by one): "
        "another frame changes the output of",
        frame_offset,
    )
    if len(_KNOWN_INDEPENDENT) >= 1024:
        _KNOWN_INDEPENDENT.clear()
    _KNOWN_INDEPENDENT.add(known)
