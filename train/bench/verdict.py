"""The verdict of `jaxwrap diagnose`, scored: predicted against measured BD-rates of QP offsets from importance maps.

Wrappers: the shipped ``pair-1of2`` and ``post-1of2`` as they are (matched: trained through a transform codec), and each
badly scaled for the codec in three ways. A fixed invertible linear map A of the normalised samples (0 is mid-grey)
follows the pre-processor, and its inverse precedes the post-processor, so that without a codec nothing changes:

* ``patches``: samples × 1 and × 1/3 in a checkerboard of 64×64 luma samples, the top left patch × 1, chroma with the
  luma at its place. The importance of blocks differs by 9, and offsets can reach it.
* ``chroma``: U and V × 1/2. Their importance is 4 times what it was, but blocks are equal: offsets cannot reach it.
* ``spectrum``: in the odd patches of the same checkerboard, the orthonormal 8×8 DCT coefficients (u, v) with u + v ≥ 6
  × 1/8. The importance of blocks differs, but through coefficients that are mostly quantised to 0.

Predictions see plain encodes only (`jaxwrap.train.verdict`). Measured are real encodes with the same weights.

A prediction under 1 % says "no effect"; in truth a pair has an effect where the interval of its measured BD-rate leaves
0 out, however small. On kodim01, 02, 03, 05, 06 and 07, on which nothing was developed, 15 of 16 verdicts are true: all
8 gains, 7 of 8 without one; "no effect" throughout would be true in 7. The one missed is a loss of 0.6 % (pair-1of2 as
trained, x265). Gains are predicted too large: 1.1 to 1.3 times for ``patches``, 1.6 to 1.7 times for ``spectrum``. No
pair of these loses 1 % or more: that a loss would be foreseen is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from scipy.fft import dct  # type: ignore[import-untyped]

from jaxwrap.arrays import Frame, size_of
from jaxwrap.codecs.x26x import X26x
from jaxwrap.importance.weights import DEFAULT_ALPHA
from jaxwrap.pipeline import Sandwich
from jaxwrap.train.evaluate.modes import BIT_DEPTH
from jaxwrap.train.evaluate.workers import Workers
from jaxwrap.train.fit.checkpoints import load_wrapper
from jaxwrap.train.media import Clip
from jaxwrap.train.runs import console
from jaxwrap.train.verdict import (
    Effect,
    Score,
    Subject,
    encode_pictures,
    maps_of,
    measured_curves,
    offset_weights,
    pictures_of,
    predicted_curves,
    score,
    subject_of,
    wider,
)

WRAPPERS = ("pair-1of2", "post-1of2")
PATCH = 64
PATCH_GAIN = 1 / 3
CHROMA_GAIN = 1 / 2
SPECTRUM_ORDER = 6
SPECTRUM_GAIN = 1 / 8

Scaling = Callable[[Frame, bool], Frame]
"""(normalised samples, whether to undo) → samples."""


def run(
    *,
    clips: Sequence[Clip],
    codecs: Sequence[X26x],
    qps: Sequence[int] = (22, 27, 32, 37, 42),
    wrappers: Sequence[str] = WRAPPERS,
    scalings: Sequence[str] = ("as trained", "patches", "chroma", "spectrum"),
    sketches: int = 4,
    alpha: float = DEFAULT_ALPHA,
    seed: int = 0,
    processes: int = 2,
) -> dict[str, Any]:
    """Scores every wrapper × scaling × codec on these pictures; prints the table.

    Returns ``{"settings", "pairs": [{"wrapper", "codec", "predicted", "measured" (each "mean", "low", "high", "values",
    "effect"), "same_effect"}], "same_effect", "without_effect"}``; the last two count pairs.
    """
    pairs = []
    with Workers(processes) as workers:
        for wrapper in wrappers:
            matched = subject_of(load_wrapper(wrapper)[0], wrapper)
            for name in scalings:
                subject = matched if name == "as trained" else scaled(matched, name)
                pictures = list(pictures_of(subject, clips))
                weights = offset_weights(maps_of(pictures, sketches=sketches, seed=seed), alpha)
                for codec in codecs:
                    all_qps = wider(qps)
                    plain = encode_pictures(pictures, codec, all_qps, workers)
                    weighted = encode_pictures(pictures, codec, qps, workers, weights=weights)
                    inner = [[results[all_qps.index(qp)] for qp in qps] for results in plain]
                    predicted = score(
                        [
                            predicted_curves(p, codec, results, w, all_qps, qps)
                            for p, results, w in zip(pictures, plain, weights, strict=True)
                        ]
                    )
                    measured = score(
                        [measured_curves(*each, qps) for each in zip(pictures, inner, weighted, strict=True)]
                    )
                    pairs.append(_pair(subject.name, codec.name, predicted, measured))
                    console.print(
                        f"{subject.name}, {codec.name}: predicted {_percent(pairs[-1]['predicted']['mean'])}, measured "
                        f"{_percent(pairs[-1]['measured']['mean'])}",
                        highlight=False,
                    )
    figures = {
        "settings": {
            "pictures": [clip.name for clip in clips], "qps": list(qps), "sketches": sketches, "alpha": alpha,
            "seed": seed, "codecs": {codec.name: codec.version for codec in codecs}, "bit_depth": BIT_DEPTH,
        },
        "pairs": pairs,
        "without_effect": sum(pair["measured"]["effect"] == "no effect" for pair in pairs),
        "same_effect": sum(pair["same_effect"] for pair in pairs),
    }  # fmt: skip
    console.print(_table(figures))
    return figures


def scaled(subject: Subject, name: str) -> Subject:
    """The subject with one of the `SCALINGS` between its networks and the codec."""
    if name not in SCALINGS:
        raise ValueError(f"scaling {name!r} was asked for; known: {', '.join(SCALINGS)}")
    scaling = SCALINGS[name]

    def sandwich(height: int, width: int) -> Sandwich:
        matched = subject.sandwich(height, width)
        return Sandwich(
            lambda frames: scaling(matched.pre(frames), False),
            lambda samples: matched.post(scaling(samples, True)),
            matched.bit_depth,
        )

    return Subject(f"{subject.name}, {name}", sandwich)


def patches(frame: Frame, undo: bool) -> Frame:
    """See the module."""
    gain = 1 / PATCH_GAIN if undo else PATCH_GAIN
    return jax.tree.map(lambda p: jnp.where(_odd_patches(p, frame), p * gain, p), frame)


def chroma(frame: Frame, undo: bool) -> Frame:
    """See the module."""
    gain = 1 / CHROMA_GAIN if undo else CHROMA_GAIN
    luma, *others = frame.planes
    return type(frame)(luma, *(p * gain for p in others))


def spectrum(frame: Frame, undo: bool) -> Frame:
    """See the module. Planes are completed to whole 8×8 blocks by edge replication; what is cut off is not changed."""
    basis = jnp.asarray(dct(np.eye(8), axis=0, norm="ortho"), jnp.float32)
    order = np.add.outer(np.arange(8), np.arange(8))
    by_order = np.where(order >= SPECTRUM_ORDER, 1 / SPECTRUM_GAIN if undo else SPECTRUM_GAIN, 1.0)
    gains = jnp.asarray(by_order.reshape(1, 1, 8, 1, 8), jnp.float32)

    def one(plane: Any) -> Any:
        n, h, w = plane.shape
        rows, columns = h // 8, w // 8
        whole = plane[:, : rows * 8, : columns * 8]
        blocks = whole.reshape(n, rows, 8, columns, 8)
        coefficients = jnp.einsum("ui,nricj,vj->nrucv", basis, blocks, basis)
        changed = jnp.einsum("ui,nrucv,vj->nricj", basis, coefficients * gains, basis)
        return plane.at[:, : rows * 8, : columns * 8].set(
            jnp.where(_odd_patches(whole, frame), changed.reshape(whole.shape), whole)
        )

    return jax.tree.map(one, jax.tree.map(jnp.asarray, frame))


SCALINGS: dict[str, Scaling] = {"patches": patches, "chroma": chroma, "spectrum": spectrum}


def _odd_patches(plane: Any, frame: Frame) -> jax.Array:
    """``[1, H, W]``: whether a sample lies in an odd patch of the checkerboard."""
    side = PATCH if plane.shape[2] > size_of(frame)[1] // 2 else PATCH // 2
    rows, columns = (np.arange(n) // side for n in plane.shape[1:])
    return jnp.asarray((np.add.outer(rows, columns) % 2 == 1)[None])


def _pair(wrapper: str, codec: str, predicted: Score, measured: Score) -> dict[str, Any]:
    def figures(of: Score, effect: Effect) -> dict[str, Any]:
        i = of.interval
        mean, low, high = (None, None, None) if i is None else (i.mean, i.low, i.high)
        return {"mean": mean, "low": low, "high": high, "effect": effect, "values": of.values,
                "left_out": of.left_out}  # fmt: skip

    sides = figures(predicted, predicted.effect), figures(measured, measured.measured_effect)
    return {
        "wrapper": wrapper,
        "codec": codec,
        "predicted": sides[0],
        "measured": sides[1],
        "same_effect": predicted.effect == measured.measured_effect,
    }


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:+.2f} %"


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title="BD-rate of QP offsets from maps, receiver's error", title_justify="left")
    for column in ("wrapper", "codec"):
        table.add_column(column)
    for column in ("predicted", "95 % interval", "measured", "95 % interval", "verdict", "in truth"):
        table.add_column(column, justify="right")
    for pair in figures["pairs"]:
        cells = []
        for side in (pair["predicted"], pair["measured"]):
            cells += [
                _percent(side["mean"]),
                "—" if side["low"] is None else f"{side['low']:+.2f} … {side['high']:+.2f}",
            ]
        table.add_row(
            pair["wrapper"], pair["codec"], *cells, pair["predicted"]["effect"], pair["measured"]["effect"],
            style=None if pair["same_effect"] else "red",
        )  # fmt: skip
    count = len(figures["pairs"])
    table.caption = (
        f'{figures["same_effect"]} of {count} verdicts are true, where "no effect" throughout would be true in '
        f"{figures['without_effect']}; {len(figures['settings']['pictures'])} pictures."
    )
    return table
