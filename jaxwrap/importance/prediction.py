"""What QP offsets would do to a rate–distortion curve, predicted from encodes without them.

An encoder with constant QP gives, at a few QPs, the received error and the bits of every block. Offsets ΔQP = −3 log₂ w
move each block along its own two curves: block b at QP + ΔQP_b is taken to look as it does in the plain encode at that
QP. So D(QP) = Σ_b D_b(QP + ΔQP_b) and R(QP) = Σ_b R_b(QP + ΔQP_b), to which `offset_bits` add; the Bjøntegaard delta of
this curve against the plain one is the prediction. With `jaxwrap.importance.diagnostics.attributed_error` as D_b, the
derivative of D with respect to small offsets is right for any receiver, whether or not a map describes it. Left out are
what a block's quality does to the prediction of its neighbours, and the encoder's own decisions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def moved_totals(qps: ArrayLike, blocks: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Σ_b X_b(QP + ΔQP_b) at every QP, ``[Q]``.

    Between QPs the logarithm of the total Σ |X_b| is interpolated linearly, and so are the blocks' shares of it: an X_b
    may be negative. Beyond the first and the last QP the total goes on with its last slope, at the last shares.

    Args:
      qps: ``[Q]``, rising.
      blocks: X_b at those QPs, ``[Q, B]``.
      offsets: ΔQP_b, ``[Q, B]`` or ``[B]``.
    """
    x, values = np.asarray(qps, np.float64), np.asarray(blocks, np.float64)
    if x.ndim != 1 or len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(f"QPs {x.tolist()} were given; wanted at least two, rising")
    if values.shape[:1] != x.shape or values.ndim != 2:
        raise ValueError(f"values of shape {values.shape} were given for {len(x)} QPs; wanted [{len(x)}, blocks]")
    size = np.abs(values).sum(1)  # [Q]
    if not (size > 0).all():
        raise ValueError("all blocks are 0 at some QP: there is nothing to move there")
    at = x[:, None] + np.broadcast_to(offsets, values.shape)  # [Q, B]
    cell = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    place = (at - x[cell]) / (x[cell + 1] - x[cell])  # beyond the ends: outside [0, 1]
    logs = np.log(size)
    total = np.exp(logs[cell] + place * (logs[cell + 1] - logs[cell]))
    shares = values / size[:, None]
    inside = np.clip(place, 0.0, 1.0)
    first, second = (np.take_along_axis(shares, c, axis=0) for c in (cell, cell + 1))
    return (total * (first + inside * (second - first))).sum(1)


def offset_bits(offsets: np.ndarray) -> float:
    """Bits that telling the offsets ``[rows, columns]`` takes: the entropy of their differences in raster order.

    Encoders code each block's QP against the one before, adaptively, which comes close to this where every block has
    coefficients.
    """
    _, counts = np.unique(np.diff(np.asarray(offsets).ravel(), prepend=0), return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def weight_spread_bits(weights: np.ndarray) -> float:
    """½ log₂ of the arithmetic over the geometric mean of the blocks' weights: bits per sample that they could save.

    The gain of giving each block a squared error proportional to 1/w in place of an equal one, at high rates, where all
    samples are coded and weights say all that there is to say. 0 for equal weights. Weights are positive, any shape.
    """
    w = np.asarray(weights, np.float64)
    if not (w > 0).all():
        raise ValueError("weights must be positive: those of alpha > 0 are")
    return 0.5 * float(np.log2(w.mean()) - np.log2(w).mean())
