"""Maps of pictures of different sizes in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxwrap.arrays import Frame, check_frame, crop_to, num_frames, pad_to, size_of
from jaxwrap.importance.blocks import BLOCK
from jaxwrap.importance.maps import ImportanceMap, importance_map
from jaxwrap.importance.receiver import Receiver, as_floats, as_partial, map_prefix, output_of
from jaxwrap.importance.sketch import SketchKind, TopDct


def batched_importance_maps(
    make_receiver: Callable[[int, int], Receiver],
    zs: Sequence[Frame],
    *,
    key: jax.Array,
    sketches: int | Literal["auto"] = 4,
    metric: Callable[[Any], Any] | None = None,
    sketch: SketchKind | TopDct = "rademacher",
    size: tuple[int, int] | None = None,
    spatial_axes: tuple[int, int] = (1, 2),
    **options: Any,
) -> list[ImportanceMap]:
    """Maps of pictures of different sizes in one batch: padded to a common size, padding masked out of the metric,
    maps cropped back.

    With ``sketches="auto"`` a picture's error is that of its own blocks and samples, as of its map when it is alone.
    Output arrays of three axes or more have a picture in ``spatial_axes``, H' and W' in proportion to z; the part that
    belongs to the padding has weight 0. Smaller outputs (class scores) count whole, and see the padding. A picture's
    edge meets replicated samples instead of the receiver's own border rule, so its map differs from the one alone
    within half a receptive field of the right and lower edges. The work grows with the largest height times the
    largest width: group pictures of similar size.

    Args:
      make_receiver: (luma height, luma width of the padded batch) → receiver for frames of that size.
      zs: frames of one chroma format, each with N ≥ 1 pictures; frames are numbered through in this order for ``key``.
      metric: function from an output of one frame (as `jax.ShapeDtypeStruct`, at the picture's own size) to weights,
        such as `yuv_metric`; None for 1.
      size: common (luma height, luma width); None: that of the largest members. Batches of one size and number of
        pictures share compiled code.
      spatial_axes: of the outputs, as in `exact_diagonal`: (2, 3) for ``[N, C, H, W]``.
      options: further ones of `importance_map`: ``frame_offset`` (the first frame's, or the numbers of all frames of
        all members), ``target_error``, ``max_sketches``, ``memory_budget``, ``devices``.

    Returns:
      One map per member of ``zs``, at its own size. Errors as in `importance_map`; and `ValueError` for outputs of
      three axes or more that are not in the frames' proportion, up to rounding, along ``spatial_axes``: what belongs to
      the padding is then not known (channels first, or boxes and tokens in one axis).
    """
    if not zs:
        raise ValueError("no frames were given: batched_importance_maps wants at least one")
    formats = {type(z).__name__ for z in zs}
    if len(formats) > 1:
        raise ValueError(
            f"frames of different chroma formats were given ({', '.join(sorted(formats))}): map each on its own"
        )
    for z in zs:
        check_frame(z)
    sizes = [size_of(z) for z in zs]
    height, width = size or (max(h for h, _ in sizes), max(w for _, w in sizes))
    batch = jax.tree.map(
        lambda *p: jnp.concatenate(p),
        *(pad_to(as_floats(z), height, width) for z in zs),
    )
    receiver = make_receiver(height, width)
    output = output_of(as_partial(receiver), batch)
    _check_proportion(output, height, width, spatial_axes)

    def own_part(shape: tuple[int, ...], h: int, w: int) -> tuple[int, ...]:
        own = [1, *shape[1:]]
        if len(shape) >= 3:
            for axis, part, whole in zip(spatial_axes, (h, w), (height, width), strict=True):
                own[axis] = -(-part * shape[axis] // whole)
        return tuple(own)

    def weights_of(z: Frame) -> Any:
        own = jax.tree.map(lambda y: jax.ShapeDtypeStruct(own_part(y.shape, *size_of(z)), y.dtype), output)
        given = 1.0 if metric is None else metric(own)

        def fill(weight: Any, part: jax.ShapeDtypeStruct, whole: jax.ShapeDtypeStruct) -> np.ndarray:
            full = np.zeros((num_frames(z), *whole.shape[1:]), np.float32)
            full[tuple(slice(0, n) for n in (num_frames(z), *part.shape[1:]))] = weight
            return full

        return map_prefix(fill, given, own, output)

    masked = jax.tree.map(lambda *w: np.concatenate(w), *(weights_of(z) for z in zs))
    whole = importance_map(
        receiver,
        batch,
        key=key,
        sketches=sketches,
        metric=masked,
        sketch=sketch,
        own_sizes=[own for z, own in zip(zs, sizes, strict=True) for _ in range(num_frames(z))],
        **options,
    )
    maps, start = [], 0
    for z, (h, w) in zip(zs, sizes, strict=True):
        part = slice(start, start + num_frames(z))
        blocks = (part, slice(0, -(-h // BLOCK)), slice(0, -(-w // BLOCK)))
        maps.append(
            ImportanceMap(
                crop_to(_index(whole.h, part), h, w),
                None if whole.standard_error is None else crop_to(_index(whole.standard_error, part), h, w),
                None if whole.block_standard_error is None else _index(whole.block_standard_error, blocks),
                whole.sketches,
                None if whole.frame_sketches is None else whole.frame_sketches[part],
                whole.controlled,
            )
        )
        start = part.stop
    return maps


def _check_proportion(output: Any, height: int, width: int, axes: tuple[int, int]) -> None:
    """Raises `ValueError` for arrays of three axes or more without a picture, in proportion to the frames, in ``axes``.

    Each length may be off by one, by rounding or a border: H'/H and W'/W differ by less than 1/H + 1/W.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(output):
        if leaf.ndim < 3:
            continue
        if min(axes) >= 1 and len(set(axes)) == 2 and max(axes) < leaf.ndim:
            rows, columns = (leaf.shape[axis] for axis in axes)
            if abs(rows * width - columns * height) < height + width:
                continue
        raise ValueError(
            f"the receiver's {jax.tree_util.keystr(path) or 'output'} has shape {leaf.shape} for frames of "
            f"{width}×{height}: axes {axes} are not a picture in their proportion, so the padding cannot be masked; "
            "give spatial_axes ((2, 3) for [N, C, H, W]), or map pictures one by one with importance_map"
        )


def _index(frame: Frame, index: Any) -> Frame:
    return jax.tree.map(lambda p: p[index], frame)
