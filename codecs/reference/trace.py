"""Traces of the patched encoders: the bits of each coding unit, and the block costs that the encoder compared.

UTF-8 text, LF. The first line is ``jaxwrap trace 1 hm`` or ``jaxwrap trace 1 jm``; then records in coding order, fields
separated by one space::

    bits POC TYPE X Y WIDTH HEIGHT BITS
    cost POC PLANE X Y WIDTH HEIGHT D L p_1 … p_L q_1 … q_(WIDTH·HEIGHT)

``bits``: one per coding unit as finally written (HM: leaf coding unit; JM: macroblock); TYPE is I, P or B; positions
and sizes in luma samples. ``cost``: PLANE is y, u or v, positions and sizes in samples of that plane; D is the
distortion that was compared, without a factor for chroma; q = reconstruction − original in raster order; p the L
partial inner products of what was coded before in the same 16×16 grid block, where that is what D was counted from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

Encoder = Literal["hm", "jm"]
PictureType = Literal["I", "P", "B"]
Plane = Literal["y", "u", "v"]

MAGIC = "jaxwrap trace 1"
UNIT_COLUMNS = ("frame", "x", "y", "width", "height", "bits")
"""Columns of `Trace.units`, those of `jaxwrap.codec.EncodeResult.units`."""

_LARGEST = 2**31 - 1
_MOST_DIGITS = 11


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BlockCost:
    """A block as the encoder judged it.

    ``frame`` is the POC; ``x``, ``y`` its corner in samples of ``plane``. ``distortion`` is what was compared: Σ w q²,
    or with Jacobian rows its increment Σ_s [(p_s + r_s·q)² − p_s²] + τ Σ q², which may be negative. ``partial``: p,
    float64 ``[L]``, empty where D was not counted from any. ``difference``: q, int32 ``[height, width]``.
    """

    frame: int
    plane: Plane
    x: int
    y: int
    distortion: float
    partial: np.ndarray
    difference: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a patched encoder wrote.

    ``units``: int32 ``[K, 6]``, columns `UNIT_COLUMNS`, in coding order. ``types``: ``[K]``, of each unit's picture.
    ``costs``: in the order of the decisions; empty unless they were asked for.
    """

    encoder: Encoder
    units: np.ndarray
    types: tuple[PictureType, ...]
    costs: tuple[BlockCost, ...]


def read_trace(path: str | Path) -> Trace:
    """Reads a whole trace.

    Raises `FileNotFoundError`, or `ValueError` naming file and line, what came and what was wanted: another kind or
    version of file, a record of another form, a number that is none, and a last line that is not complete (the encoder
    was stopped).
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); wanted the trace of a patched encoder") from error
    first, *lines = text.split("\n")
    encoder = first.removeprefix(f"{MAGIC} ")
    if encoder == first or encoder not in get_args(Encoder):
        raise ValueError(f"{path} starts with {first[:80]!r}; wanted '{MAGIC} hm' or '{MAGIC} jm'")
    if not text.endswith("\n"):
        raise ValueError(f"{path} ends within line {1 + len(lines)}: the encoder was stopped while it wrote; run again")
    units: list[tuple[int, ...]] = []
    types: list[PictureType] = []
    costs: list[BlockCost] = []
    for number, line in enumerate(lines[:-1], start=2):
        kind, *fields = line.split(" ")
        try:
            if kind == "bits":
                unit, picture = _unit(fields)
                units.append(unit)
                types.append(picture)
            elif kind == "cost":
                costs.append(_cost(fields))
            else:
                raise ValueError("wanted a record 'bits' or 'cost'")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, {line[:80]!r}: {error}") from error
    return Trace(
        cast(Encoder, encoder), np.array(units, np.int32).reshape(-1, len(UNIT_COLUMNS)), tuple(types), tuple(costs)
    )


def _unit(fields: Sequence[str]) -> tuple[tuple[int, ...], PictureType]:
    if len(fields) != 7:
        raise ValueError(f"{len(fields)} fields after 'bits'; wanted POC TYPE X Y WIDTH HEIGHT BITS")
    if fields[1] not in get_args(PictureType):
        raise ValueError(f"picture type {fields[1]!r}; wanted I, P or B")
    frame, x, y, width, height, bits = map(_whole, (fields[0], *fields[2:]))
    if min(frame, x, y, bits) < 0 or min(width, height) < 1:
        raise ValueError("negative numbers, or a unit without area")
    return (frame, x, y, width, height, bits), cast(PictureType, fields[1])


def _cost(fields: Sequence[str]) -> BlockCost:
    if len(fields) < 8:
        raise ValueError(f"{len(fields)} fields after 'cost'; wanted POC PLANE X Y WIDTH HEIGHT D L p … q …")
    if fields[1] not in get_args(Plane):
        raise ValueError(f"plane {fields[1]!r}; wanted y, u or v")
    frame, x, y, width, height, rows = map(_whole, (fields[0], *fields[2:6], fields[7]))
    if min(frame, x, y, rows) < 0 or min(width, height) < 1:
        raise ValueError("negative numbers, or a block without area")
    values = fields[8:]
    if len(values) != rows + width * height:
        raise ValueError(f"{len(values)} values p and q; wanted {rows} + {width}·{height}")
    return BlockCost(
        frame,
        cast(Plane, fields[1]),
        x,
        y,
        _finite(fields[6]),
        np.array([_finite(text) for text in values[:rows]], np.float64),
        np.array([_whole(text) for text in values[rows:]], np.int32).reshape(height, width),
    )


def _whole(text: str) -> int:
    # `int` also takes spaces, underscores, signs and digits of other scripts; an encoder writes none of them.
    is_whole = text.isascii() and text.removeprefix("-").isdigit() and len(text) <= _MOST_DIGITS
    if not is_whole or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:40]!r} where a whole number of 32 bits was wanted")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} where a finite number was wanted")
    return value
