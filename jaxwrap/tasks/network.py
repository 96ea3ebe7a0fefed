"""A network as an ordered list of named layers, so that it splits after any of them.

Each layer makes one tensor, named as the layer, from tensors that the layers before it made (or from the images). What
passes from part 1 to part 2 follows from that table: every tensor that is still wanted once a layer has run.

A `Network` is a pytree of its parameters: it is an argument of compiled code, and networks that differ in weights alone
share that code. ``jax.tree_util.Partial(function, network)`` is a receiver (`jaxwrap.importance`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from flax import nnx

Tensors = dict[str, jax.Array]
"""Named tensors, NHWC."""

IMAGES = "images"
"""Name of a network's input in the table of its layers."""

Layer = tuple[str, tuple[str, ...], nnx.Module | str]
"""(name, names of the tensors that it takes, module that is called with them in this order, or the name of the layer
whose module, weights included, serves here too)."""


class Network(nnx.Module):
    """Named layers in the order in which they run.

    ``name``: of the network. ``multiple``: sides of the input must be multiples of it. ``layers``: names of all layers
    in the order in which they run. ``outputs``: those whose tensors the network gives out. ``blocks``: the layers'
    modules by name.
    """

    def __init__(self, name: str, layers: Sequence[Layer], *, outputs: Sequence[str], multiple: int):
        self.name, self.multiple = name, multiple
        self.layers = tuple(layer for layer, _, _ in layers)
        self.outputs = tuple(outputs)
        self.inputs = tuple(inputs for _, inputs, _ in layers)
        self.blocks = nnx.Dict({layer: block for layer, _, block in layers if not isinstance(block, str)})
        self.used_blocks = tuple(block if isinstance(block, str) else layer for layer, _, block in layers)
        made = {IMAGES}
        for layer, inputs in zip(self.layers, self.inputs, strict=True):
            if layer in made or not made.issuperset(inputs):
                raise ValueError(f"layer {layer!r} takes {inputs}: names must be new, and made by layers before it")
            made.add(layer)
        if not made.issuperset(outputs):
            raise ValueError(f"outputs {tuple(outputs)} of {name}: not all of them are layers")

    def __call__(self, images: jax.Array) -> Tensors:
        """Images ``[N, H, W, C]`` → the raw outputs by name. Raises `ValueError` for sides that are no multiples of
        ``multiple``."""
        self._check_images(images)
        return self._run({IMAGES: images}, 0, len(self.layers))

    def first(self, images: jax.Array, layer: str) -> Tensors:
        """Part 1: images → all tensors that later layers, or the outputs, still need once ``layer`` has run.

        Raises `ValueError` for an unknown layer, and as the whole does.
        """
        stop = self._after(layer)
        self._check_images(images)
        return self._run({IMAGES: images}, 0, stop)

    def rest(self, tensors: Mapping[str, jax.Array], layer: str) -> Tensors:
        """Part 2: what `first` gave for ``layer`` → the raw outputs, as of the whole.

        Raises `ValueError` for an unknown layer, and for tensors that are missing or not wanted there (all listed).
        """
        start = self._after(layer)
        wanted = self.alive(layer)
        if set(tensors) != set(wanted):
            raise ValueError(
                f"{self.name} after {layer!r} goes on from the tensors {', '.join(wanted)}; given: "
                f"{', '.join(tensors) or 'none'}"
            )
        return self._run(dict(tensors), start, len(self.layers))

    def alive(self, layer: str) -> tuple[str, ...]:
        """Names of the tensors between part 1 and part 2 when the network is split after ``layer``, in the order in
        which they are made."""
        return self._alive(self._after(layer))

    def _alive(self, stop: int) -> tuple[str, ...]:
        needed = {name for inputs in self.inputs[stop:] for name in inputs} | set(self.outputs)
        return tuple(name for name in (IMAGES, *self.layers[:stop]) if name in needed)

    def _run(self, tensors: Tensors, start: int, stop: int) -> Tensors:
        for layer, inputs, block in list(zip(self.layers, self.inputs, self.used_blocks, strict=True))[start:stop]:
            tensors[layer] = self.blocks[block](*(tensors[name] for name in inputs))
        return {name: tensors[name] for name in self._alive(stop)}

    def _after(self, layer: str) -> int:
        if layer not in self.layers:
            raise ValueError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        return self.layers.index(layer) + 1

    def _check_images(self, images: jax.Array) -> None:
        if images.ndim != 4 or any(side % self.multiple or not side for side in images.shape[1:3]):
            raise ValueError(
                f"images of shape {tuple(images.shape)} were given; {self.name} takes [N, H, W, C], H and W multiples "
                f"of {self.multiple}"
            )
