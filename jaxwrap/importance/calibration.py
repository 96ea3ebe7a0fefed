"""Calibrated maps: weights that make Σ w q² the receiver's error for a codec's own errors, cross terms included.

A sketched diagonal is right for errors that do not correlate with one another. A codec's do: zeroed coefficients are
coherent over places and channels. With q the codec's error on a picture, the weight of a group g of samples is its
part of ‖J q‖²_M, half of what its errors do together with others included, over its own squared error: the value that
makes the sum over groups exact,

    w_g = Σ_{i∈g} q_i (JᵀMJ q)_i / Σ_{i∈g} q_i²,   so that   Σ_g w_g Σ_{i∈g} q_i² = ‖J q‖²_M exactly.

Deterministic: one forward and one backward derivative per picture. Use a middle QP and a few training pictures; sums
over pictures make one ratio per group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxwrap.arrays import Frame, Yuv400, check_frame, frame_of, size_of
from jaxwrap.importance.jacobian import Jacobian
from jaxwrap.importance.receiver import Metric, Receiver
from jaxwrap.packing import TileLayout, spread, unpack

Groups = Literal["plane"] | TileLayout | int
"""Samples that share a weight: all of a plane; the channel of a packed frame (its padding left out); or, for a number
b, the blocks of b × b samples of each plane."""

_SUMS = ("count", "numerator", "denominator", "numerator_squared", "product", "denominator_squared")


class Calibration:
    """Sums over pictures from which the calibrated weights follow; groups are numbered plane by plane, in raster order.

    ``size`` (height, width) and ``planes`` (1 or 3) are those of the frames. All sums are float64, so that parts that
    were computed apart merge to the same weights up to their last bits.
    """

    def __init__(self, groups: Groups, size: tuple[int, int], planes: int) -> None:
        _check_groups(groups, size, planes)
        self.groups, self.size, self.planes = groups, size, planes
        cells = self._cells()
        self.sums: dict[str, np.ndarray] = {name: np.zeros(sum(h * w for h, w in cells)) for name in _SUMS[1:]}
        self.sums["count"] = np.zeros(())

    def update(self, receiver: Receiver, z: Frame, q: Frame, *, metric: Metric = None) -> Calibration:
        """Includes a batch: samples z before coding, and the codec's errors q = ẑ − z, alike. Returns itself.

        Raises `ValueError` for frames of another size, and NaN or infinity in q or in the derivative.
        """
        check_frame(z)
        if size_of(z) != self.size or len(z.planes) != self.planes:
            (h, w), (height, width) = size_of(z), self.size
            raise ValueError(
                f"frames of {w}×{h} with {len(z.planes)} planes were given; this calibration is of {width}×{height} "
                f"with {self.planes}"
            )
        jacobian = Jacobian(receiver, z, metric)
        pulled = jacobian.transpose().mv(jacobian.mv(q))
        a = np.concatenate(
            [self._group(np.asarray(e, np.float64) * np.asarray(g, np.float64)) for e, g in _pairs(q, pulled)], axis=1
        )
        b = np.concatenate([self._group(np.square(np.asarray(e, np.float64))) for e in q.planes], axis=1)  # [N, groups]
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("the errors q or the receiver's derivative hold NaN or infinity: nothing was included")
        parts = {
            "count": len(a),
            "numerator": a.sum(0),
            "denominator": b.sum(0),
            "numerator_squared": (a * a).sum(0),
            "product": (a * b).sum(0),
            "denominator_squared": (b * b).sum(0),
        }
        for name, part in parts.items():
            self.sums[name] = self.sums[name] + part
        return self

    def merge(self, other: Calibration) -> Calibration:
        """Includes what another has seen; returns itself. Raises `ValueError` for other groups or frames."""
        mine, theirs = ((c.groups, c.size, c.planes) for c in (self, other))
        if mine != theirs:
            raise ValueError(f"a calibration of {theirs} cannot be merged into one of {mine}")
        for name in _SUMS:
            self.sums[name] = self.sums[name] + other.sums[name]
        return self

    def signed_weights(self) -> np.ndarray:
        """w ``[groups]`` before clipping. A group whose samples the codec never changed has the weight of all together.

        Raises `ValueError` where q was 0 everywhere.
        """
        numerator, denominator = self.sums["numerator"], self.sums["denominator"]
        if not denominator.sum() > 0:
            raise ValueError("no coding error was seen: calibrate at a QP that changes the samples")
        pooled = numerator.sum() / denominator.sum()
        seen = denominator > 0
        return np.where(seen, numerator / np.where(seen, denominator, 1.0), pooled)

    @property
    def negative(self) -> np.ndarray:
        """Numbers of the groups whose weight is negative, 0 in the map: their errors make up for those of others."""
        return np.flatnonzero(self.signed_weights() < 0)

    def standard_error(self) -> np.ndarray:
        """Of the weights, between pictures ``[groups]``: √(n/(n−1) Σ (a − w b)²) / Σ b, a and b a picture's two sums.

        NaN before two pictures were seen, and for groups that the codec never changed.
        """
        n, w = float(self.sums["count"]), self.signed_weights()
        if n < 2:
            return np.full(w.shape, np.nan)
        residual = (
            self.sums["numerator_squared"] - 2 * w * self.sums["product"] + w * w * self.sums["denominator_squared"]
        )
        seen = self.sums["denominator"] > 0
        error = np.sqrt(np.maximum(residual, 0) * n / (n - 1)) / np.where(seen, self.sums["denominator"], 1.0)
        return np.where(seen, error, np.nan)

    def shrunk_weights(self) -> np.ndarray:
        """w ``[groups]``, drawn towards their plane's own weight by as much as their spread within it is noise.

        w̄ + (1 − s²/v)₊ (w − w̄), with w̄ the plane's Σ a / Σ b, v the variance of w about it and s² the mean square of
        `standard_error` (James and Stein's estimator, with the noise known). Few pictures then make no difference where
        there is none, and groups that differ keep their difference. Raises `ValueError` before two pictures were seen.
        """
        w, error = self.signed_weights(), self.standard_error()
        if not np.isfinite(error).any():
            raise ValueError(
                f"{int(self.sums['count'])} picture(s) were seen; telling noise from differences takes at least two"
            )
        shrunk, start = w.copy(), 0
        for rows, columns in self._cells():
            part = slice(start, start + rows * columns)
            start += rows * columns
            seen = np.isfinite(error[part])
            if not seen.any():
                continue
            mean = self.sums["numerator"][part].sum() / self.sums["denominator"][part].sum()
            deviation = w[part] - mean
            variance = float(np.mean(deviation[seen] ** 2))
            noise = float(np.mean(error[part][seen] ** 2))
            kept = max(0.0, 1.0 - noise / variance) if variance > 0 else 0.0
            shrunk[part] = mean + kept * np.where(seen, deviation, 0.0)
        return shrunk

    def map(self, *, shrunk: bool = False) -> Frame:
        """The raw map h, 1 picture of float32 planes: each sample has its group's weight, negative ones clipped to 0.

        ``shrunk``: those of `shrunk_weights`. Padding of packed frames has its channel's. Normalise it like any other
        (`importance_weights`). Raises `ValueError` where no weight is positive.
        """
        return self._spread(np.maximum(self.shrunk_weights() if shrunk else self.signed_weights(), 0.0))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums, for `from_arrays`."""
        return dict(self.sums)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], groups: Groups, size: tuple[int, int], planes: int
    ) -> Calibration:
        """A calibration to go on with. Raises `ValueError` for arrays that are not one's of these groups and frames."""
        made = cls(groups, size, planes)
        for name, empty in made.sums.items():
            array = np.asarray(arrays.get(name, np.nan), np.float64)
            if array.shape != empty.shape or not np.isfinite(array).all():
                raise ValueError(f"calibration: {name} has shape {array.shape} or is not finite; wanted {empty.shape}")
            made.sums[name] = array
        return made

    def _plane_sizes(self) -> list[tuple[int, int]]:
        height, width = self.size
        return [(height, width), *[(height // 2, width // 2)] * (self.planes - 1)]

    def _cells(self) -> list[tuple[int, int]]:
        """Rows and columns of groups of each plane."""
        if isinstance(self.groups, TileLayout):
            return [(1, self.groups.channels)]
        if self.groups == "plane":
            return [(1, 1)] * self.planes
        return [(-(-h // self.groups), -(-w // self.groups)) for h, w in self._plane_sizes()]

    def _group(self, plane: np.ndarray) -> np.ndarray:
        """Sums over each group of one plane ``[N, H, W]``: ``[N, groups]``."""
        n, height, width = plane.shape
        if isinstance(self.groups, TileLayout):
            return unpack(Yuv400(plane), self.groups).sum((1, 2))
        if self.groups == "plane":
            return plane.sum((1, 2))[:, None]
        b = self.groups
        rows, cols = -(-height // b), -(-width // b)
        padded = np.pad(plane, ((0, 0), (0, rows * b - height), (0, cols * b - width)))
        return padded.reshape(n, rows, b, cols, b).sum((2, 4)).reshape(n, -1)

    def _spread(self, values: np.ndarray) -> Frame:
        if not values.max() > 0:
            raise ValueError("no group has a positive weight: this receiver's error is not one that weights can follow")
        values = values.astype(np.float32)
        if isinstance(self.groups, TileLayout):
            return spread(values[None], self.groups)
        cells, sizes, planes, start = self._cells(), self._plane_sizes(), [], 0
        for (rows, cols), (height, width) in zip(cells, sizes, strict=True):
            part = values[start : start + rows * cols].reshape(rows, cols)
            start += rows * cols
            b_h, b_w = (height, width) if self.groups == "plane" else (self.groups, self.groups)
            planes.append(part.repeat(b_h, 0).repeat(b_w, 1)[None, :height, :width])
        return frame_of(planes)


def calibrate(
    receiver: Receiver, z: Frame, q: Frame, *, metric: Metric = None, groups: Groups = "plane"
) -> Calibration:
    """A `Calibration` of one batch: samples z before coding and the codec's errors q = ẑ − z."""
    return Calibration(groups, size_of(z), len(z.planes)).update(receiver, z, q, metric=metric)


def _check_groups(groups: Any, size: tuple[int, int], planes: int) -> None:
    if isinstance(groups, TileLayout):
        if planes != 1 or groups.size != size:
            raise ValueError(
                f"channels of packed 4:0:0 frames of {groups.size[1]}×{groups.size[0]} were asked for; the frames are "
                f"{size[1]}×{size[0]} with {planes} planes"
            )
    elif groups != "plane" and (not isinstance(groups, int) or isinstance(groups, bool) or groups < 1):
        raise ValueError(
            f"groups {groups!r} were given; wanted 'plane', a TileLayout, or a block's side in samples ≥ 1"
        )


def _pairs(a: Frame, b: Frame) -> list[tuple[Any, Any]]:
    return list(zip(a.planes, b.planes, strict=True))
