"""What a sweep asks of a mode, whatever it codes: pictures, packed features, or nothing."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame
from jaxwrap.importance.receiver import Metric, Receiver, root_metric
from jaxwrap.methods import Fold, Fwa, Method, TaskAware, stages_of
from jaxwrap.pipeline import Sandwich
from jaxwrap.train.evaluate.sources import Source

PIXELS_PER_CALL = 4_000_000
"""Luma samples of originals that a network sees at once: bounds memory at any length of clip."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a mode makes of the clips of a batch, before any method.

    ``sandwich``: the codec's two sides for these clips; ``z``: its samples, all clips one after another.
    ``receiver``: what bits are spent for, where it is not the sandwich's own far end. ``target``: what that receiver
    should give. ``side_bits``: what a decoder must be told beside the streams, ``[N]`` or one number per picture.
    ``references``: of each clip what its measurement needs. ``seconds``: of the wrapper's near side.
    """

    sandwich: Sandwich
    z: Frame
    receiver: Receiver | None
    target: Callable[[], Any]
    references: list[Any]
    seconds: float
    side_bits: Any = 0


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a mode measures on the decoded samples of one clip.

    ``figures``: columns of a `Point`. ``seconds``: of the wrapper's far side. ``energies``: signal and noise of each
    column in dB that can be pooled over clips. ``predictions``: of the task, where there is one: a COCO results list,
    or rows of MOTChallenge files.
    """

    figures: dict[str, Any]
    seconds: float
    energies: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    predictions: list[Any] | None = None


class Mode(abc.ABC):
    """What an encoder is used in, by its name in results rows.

    ``bits``: what it costs to tell the mode. ``pre_hash`` and ``post_hash`` identify what the two sides compute, with
    their parameters: modes of equal ``pre_hash`` give the codec the same samples, so these are encoded once.
    ``receiver_hash`` identifies what looks at the decoded samples, where that is not the far side.
    """

    name: str
    bits: int
    pre_hash: str
    post_hash: str
    receiver_hash: str

    @property
    @abc.abstractmethod
    def takes_methods(self) -> bool:
        """Whether allocation methods other than sse are tried on it."""

    @property
    def sends(self) -> bool:
        """Whether anything is coded at all."""
        return True

    @abc.abstractmethod
    def coded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of luma that the codec is given for pictures of ``size``."""

    def coded_planes(self, planes: int) -> int:
        """Planes that the codec is given for sources of this many: 3 in 4:2:0, 1 in 4:0:0."""
        return planes

    @abc.abstractmethod
    def prepare(self, batch: Sequence[Source]) -> Prepared:
        """The samples of clips of one size."""

    @abc.abstractmethod
    def measure(self, source: Source, reference: Any, undo: Any, decoded: Frame) -> Measured:
        """What came of a clip: ``reference`` is its own in `Prepared`, ``undo`` its plan's."""

    def settings_of(self, stage: Any) -> dict[str, Any]:
        """Fields of a method's stage that are this mode's to set."""
        return {}

    def check_method(self, method: Method) -> None:
        """Raises `ValueError` where a method wants what this mode cannot give it."""
        for stage in stages_of(method):
            if isinstance(stage, Fwa) and stage.map is None:
                raise ValueError(f"method {method.name} needs a map: mode {self.name} has none of its own")
            if isinstance(stage, Fold) and stage.transform is None:
                raise ValueError(f"method {method.name} needs a transform: mode {self.name} has none of its own")
            if isinstance(stage, TaskAware):
                raise ValueError(
                    f"method {method.name} weighs by a task, and mode {self.name} has none: give --task, and a --run "
                    "that codes a network's features"
                )

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"pre": self.pre_hash, "post": self.post_hash, "receiver": self.receiver_hash, "bits": self.bits}


def energies(wanted: Any, received: Any, metric: Metric) -> tuple[float, float]:
    """‖r(z)‖²_M and ‖r(ẑ) − r(z)‖²_M over all frames, in 64 bits on the host."""
    output = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
    root = root_metric(metric, output, on_host=True)

    def energy(tree: Any) -> float:
        squares = jax.tree.map(lambda leaf, r: float(np.sum(np.square(np.asarray(leaf * r, np.float64)))), tree, root)
        return sum(jax.tree.leaves(squares))

    error = jax.tree.map(lambda a, b: np.asarray(b, np.float64) - np.asarray(a, np.float64), wanted, received)
    return energy(wanted), energy(error)


def decibels(signal: float, noise: float) -> float | None:
    """10 log₁₀(signal / noise); None where one of the two is 0."""
    return 10.0 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def in_chunks(function: Any, tree: Any, frames_per_call: int) -> Any:
    """Applies a compiled function to a few frames ``[N, …]`` at a time, always the same number, so that it is compiled
    once."""
    count = jax.tree.leaves(tree)[0].shape[0]
    size = max(1, min(frames_per_call, count))
    parts = []
    for start in range(0, count, size):
        indices = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(jax.block_until_ready(function(jax.tree.map(lambda plane, i=indices: plane[i], tree))))
    return jax.tree.map(lambda *planes: jnp.concatenate(planes)[:count], *parts)
