"""100,000 damaged files against the readers of maps and rows, in memory: none crashes, none is read wrongly.

A reader may raise `ValueError`, or give back exactly what was written. Damage is a handful of random operations on the
bytes of a good file; a quarter of the files are signed again afterwards, so that the checks behind the hashes are
reached too: those may be read, as what they then say, and never with values that no writer would write.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable

import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.codecs.rowfile import RowReader, write_rows
from jaxwrap.codecs.weightmap import MapReader, write_maps
from jaxwrap.importance.jacobian import JacobianRows

INPUTS = 25_000
"""Per test; there are four."""

INTERESTING = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\0\0"]
TOKENS = [
    *(b"-1", b"0", b"1.5", b"1e999", b"NaN", b"Infinity", b"2147483648", b"9" * 400, b"420", b"400"),
    *(b"[", b"{", b"}", b'"', b",", b":", b"null", b"true", b"wa", b"fwa", b'"width": 2,', b"\\ud800", b"\xff\xfe"),
]


def damaged(content: bytes, rng: np.random.Generator, tokens: list[bytes]) -> bytes:
    """One to four operations: flip a bit, set a byte, cut, repeat, insert or overwrite with a token, swap two parts."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at, other = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
        operation, token = int(rng.integers(8)), tokens[int(rng.integers(len(tokens)))]
        if operation == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif operation == 1 and at < len(data):
            data[at] = int(rng.integers(256))
        elif operation == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif operation == 3:
            data[at:at] = data[at:other][:64]
        elif operation == 4:
            data[at:at] = token
        elif operation == 5:
            data[at : at + len(token)] = token
        elif operation == 6:
            del data[at:]
        else:
            data = data[other:] + data[at:other] + data[:at]
    return bytes(data)


def try_all(read: Callable[[bytes], object], change: Callable[[int], bytes], good: bytes, same: Callable) -> int:
    """Number of damaged inputs that were read; all of them as ``same`` wants, all others refused with `ValueError`."""
    accepted = 0
    for i in range(INPUTS):
        content = change(i)
        try:
            result = read(content)
        except ValueError:
            continue
        accepted += 1
        assert same(result, content), (i, content)
    return accepted


@pytest.fixture(scope="module")
def map_pair(tmp_path_factory) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(0)
    maps = Yuv420(*(rng.exponential(size=(2, *s)).astype(np.float32) for s in ((4, 6), (2, 3), (2, 3))))
    path = tmp_path_factory.mktemp("maps") / "m.dat"
    write_maps(path, maps, mode="wa", receiver="r", sketches=2, standard_error=0.5, seed=1, details={"alpha": 0.25})
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


@pytest.fixture(scope="module")
def row_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("rows") / "j.rows"
    write_rows(path, JacobianRows(Yuv400(np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32))))
    return path.read_bytes()


def read_map(data: bytes, description: bytes) -> tuple:
    reader = MapReader(io.BytesIO(data), description, "m.dat")
    return reader.info, reader.read()


def equal(a: tuple, b: tuple) -> bool:
    planes = zip(a[1].planes, b[1].planes, strict=True)
    return a[0] == b[0] and type(a[1]) is type(b[1]) and all(p.tobytes() == q.tobytes() for p, q in planes)


def test_damaged_maps_are_refused(map_pair) -> None:
    data, description = map_pair
    rng, good = np.random.default_rng(1), read_map(data, description)
    accepted = try_all(
        lambda c: read_map(c, description),
        lambda i: damaged(data, rng, INTERESTING),
        data,
        lambda result, content: content == data and equal(result, good),
    )
    assert accepted < INPUTS / 100  # operations that change nothing


def test_damaged_descriptions_are_refused_or_say_the_same(map_pair) -> None:
    data, description = map_pair
    rng, good = np.random.default_rng(2), read_map(data, description)

    def same(result: tuple, content: bytes) -> bool:
        # Spaces between fields and other ways to write a value may change; what is said may not.
        return equal(result, good) and json.loads(content) == json.loads(description)

    accepted = try_all(lambda c: read_map(data, c), lambda i: damaged(description, rng, TOKENS), description, same)
    assert 0 < accepted < INPUTS / 10


def test_damaged_maps_that_are_signed_again_are_read_as_what_they_say(map_pair) -> None:
    data, description = map_pair
    rng = np.random.default_rng(3)
    fields = json.loads(description)

    def signed(content: bytes, changes: dict) -> bytes:
        new = {**fields, **changes, "sha256": hashlib.sha256(content).hexdigest()}
        del new["checksum"]
        text = json.dumps(new, sort_keys=True, separators=(",", ":"))
        return json.dumps({**new, "checksum": hashlib.sha256(text.encode()).hexdigest()}).encode()

    accepted = refused = 0
    odd: list = [0, -1, 1, 2, 3, 4, 6, 2**31, 2**64, 10**400, 1.5, None, True, "420", "400", "", [], {}, {"a": [None]}]
    for _ in range(INPUTS):
        content = bytearray(data)
        for _ in range(rng.integers(0, 3)):
            at = 4 * int(rng.integers(len(content) // 4))
            content[at : at + 4] = INTERESTING[int(rng.integers(len(INTERESTING)))]
        names = rng.choice(sorted(set(fields) - {"sha256", "checksum"}), int(rng.integers(0, 3)), replace=False)
        changes = {str(name): odd[int(rng.integers(len(odd)))] for name in names}
        try:
            info, maps = read_map(bytes(content), signed(bytes(content), changes))
        except ValueError:
            refused += 1
            continue
        accepted += 1
        # Whatever is read has the size and number that it states, holds the very bytes, and can weight an encoder.
        assert maps.y.shape == (info.maps, info.height, info.width)
        stored = b"".join(p[n].tobytes() for n in range(info.maps) for p in maps.planes)
        assert info.maps.to_bytes(4, "little") + stored == bytes(content)
        assert all(np.isfinite(p).all() and (p >= 0).all() for p in maps.planes)
    assert min(accepted, refused) > INPUTS / 20


def test_damaged_rows_are_refused_or_read_as_what_they_say(row_file) -> None:
    rng = np.random.default_rng(4)

    def change(i: int) -> bytes:
        if i % 2:
            return damaged(row_file, rng, INTERESTING)
        content = bytearray(row_file[:-32])
        for _ in range(rng.integers(1, 3)):
            at = 4 * int(rng.integers(16 if i % 4 else len(content) // 4))
            content[at : at + 4] = (*INTERESTING, b"\2\0\0\0", b"\3\0\0\0", b"\4\0\0\0", b"\6\0\0\0")[
                int(rng.integers(10))
            ]
        return bytes(content) + hashlib.sha256(content).digest()

    def same(result: tuple, content: bytes) -> bool:
        info, rows = result
        shape = (info.frames, info.rows, info.height, info.width)
        return (
            content[-32:] == hashlib.sha256(content[:-32]).digest()
            and rows.planes.y.shape == shape
            and rows.planes.y.tobytes() == content[32:-32]
            and bool(np.isfinite(rows.planes.y).all())
        )

    def read(content: bytes) -> tuple:
        reader = RowReader(io.BytesIO(content), "j.rows")
        return reader.info, reader.read()

    accepted = try_all(read, change, row_file, same)
    assert INPUTS / 100 < accepted < INPUTS / 2
