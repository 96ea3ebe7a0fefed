"""Traces of the patched encoders: what is written is read, anything else is refused with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxwrap.codecs.reference.trace import UNIT_COLUMNS, read_trace

GOOD = (
    "jaxwrap trace 1 hm\n"
    "bits 0 I 0 0 8 8 117\n"
    "cost 0 y 4 8 3 2 -12.5 2 0.25 -1e-3 1 -2 3 0 5 -1023\n"
    "bits 8 B 64 32 32 64 0\n"
    "cost 8 v 0 0 1 1 9 0 -3\n"
)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_units_and_costs_are_read_as_written(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, GOOD))
    assert trace.encoder == "hm"
    assert trace.types == ("I", "B")
    assert trace.units.dtype == np.int32
    assert trace.units.tolist() == [[0, 0, 0, 8, 8, 117], [8, 64, 32, 32, 64, 0]]
    assert len(UNIT_COLUMNS) == trace.units.shape[1]
    first, second = trace.costs
    assert (first.frame, first.plane, first.x, first.y, first.distortion) == (0, "y", 4, 8, -12.5)
    assert first.partial.tolist() == [0.25, -0.001]
    assert first.difference.tolist() == [[1, -2, 3], [0, 5, -1023]]  # raster: two lines of three
    assert (second.partial.shape, second.difference.tolist()) == ((0,), [[-3]])


def test_a_trace_of_nothing_has_no_units(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "jaxwrap trace 1 jm\n"))
    assert (trace.encoder, trace.units.shape, trace.types, trace.costs) == ("jm", (0, 6), (), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with ''; wanted 'jaxwrap trace 1 hm'"),
        ("jaxwrap trace 2 hm\n", "starts with 'jaxwrap trace 2 hm'"),
        ("jaxwrap trace 1 vtm\n", "starts with 'jaxwrap trace 1 vtm'"),
        ("jaxwrap trace 1 hm", "ends within line 1: the encoder was stopped"),
        (GOOD[:-3], "ends within line 5: the encoder was stopped"),
        (GOOD.replace("\n", "\r\n"), "starts with"),
        (GOOD + "sao 0\n", "line 6, 'sao 0': wanted a record"),
        (GOOD + "\n", "line 6, '': wanted a record"),
        (GOOD.replace("8 8 117", "8 117"), "line 2.*6 fields after 'bits'; wanted POC TYPE"),
        (GOOD.replace("B 64", "b 64"), "line 4.*picture type 'b'; wanted I, P or B"),
        (GOOD.replace("117", "11.7"), "line 2.*'11.7' where a whole number"),
        (GOOD.replace("117", "-117"), "line 2.*negative"),
        (GOOD.replace("117", "9" * 5000), "line 2.*where a whole number of 32 bits"),
        (GOOD.replace("32 64 0", "0 64 0"), "line 4.*without area"),
        (GOOD.replace("cost 8 v", "cost 8 r"), "line 5.*plane 'r'; wanted y, u or v"),
        (GOOD.replace("1 1 9 0", "1 1 nan 0"), "line 5.*'nan' where a finite number"),
        (GOOD.replace("-1e-3", "p"), "line 3.*'p' where a finite number"),
        (GOOD.replace("-1023", ""), "line 3.*'' where a whole number"),
        (GOOD.replace(" -1023", ""), "line 3.*7 values p and q; wanted 2 \\+ 3·2"),
        (GOOD.replace("1 1 9 0 -3", "1 1"), "line 5.*6 fields after 'cost'"),
        (GOOD.encode() + b"\xff\n", "not text in UTF-8"),
    ],
)
def test_anything_else_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_trace(write(tmp_path, text))
    assert "trace.txt" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_trace(tmp_path / "none.txt")


def test_changed_characters_are_refused_or_read_as_what_they_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    accepted = refused = 0
    for _ in range(1200):
        at, new = int(rng.integers(len(GOOD))), "0123456789-.e \nIPByuvbitscost_+"[int(rng.integers(30))]
        text = GOOD[:at] + new * int(rng.integers(2)) + GOOD[at + int(rng.integers(2)) :]
        try:
            trace = read_trace(write(tmp_path, text))
        except ValueError:
            refused += 1
            continue
        accepted += 1
        lines = text.split("\n")[1:-1]
        units = [line.split(" ")[1:] for line in lines if line.startswith("bits ")]
        assert [[int(f) for f in fields[:1] + fields[2:]] for fields in units] == trace.units.tolist()
        assert tuple(fields[1] for fields in units) == trace.types
        costs = [line.split(" ") for line in lines if line.startswith("cost ")]
        for fields, cost in zip(costs, trace.costs, strict=True):
            size = cost.difference.size
            assert [int(f) for f in fields[-size:]] == cost.difference.ravel().tolist()
            assert [float(f) for f in fields[9:-size]] == cost.partial.tolist()
            assert (fields[2], float(fields[7])) == (cost.plane, cost.distortion)
    assert min(accepted, refused) > 100
