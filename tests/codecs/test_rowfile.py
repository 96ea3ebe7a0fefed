"""Row files against the documented byte layout, and damaged files against the reader."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.codecs.rowfile import RowInfo, RowReader, RowWriter, read_rows, write_rows
from jaxwrap.importance.jacobian import JacobianRows


def rows_of(frames: int = 2, rows: int = 3, *, grey: bool = False, seed: int = 0) -> JacobianRows:
    rng = np.random.default_rng(seed)
    y, u, v = (rng.standard_normal((frames, rows, *s)).astype(np.float32) for s in ((6, 8), (3, 4), (3, 4)))
    return JacobianRows(Yuv400(y) if grey else Yuv420(y, u, v))


@pytest.mark.parametrize("grey", [False, True])
def test_rows_come_back_with_their_signs(tmp_path, grey) -> None:
    rows = rows_of(grey=grey)
    written = write_rows(tmp_path / "j.rows", rows)
    found, info = read_rows(tmp_path / "j.rows")
    assert info == written == RowInfo(3, 8, 6, "400" if grey else "420", 2)
    for plane, source in zip(found.planes.planes, rows.planes.planes, strict=True):
        np.testing.assert_array_equal(plane, source)
        assert plane.dtype == np.float32
    assert [p.name for p in tmp_path.iterdir()] == ["j.rows"]


def test_the_file_has_a_header_frames_of_rows_of_planes_and_a_hash(tmp_path) -> None:
    rows = rows_of()
    write_rows(tmp_path / "j.rows", rows)
    values = [float(p[n, s, i, j]) for n in range(2) for s in range(3) for p in rows.planes.planes
              for i, j in np.ndindex(p.shape[2:])]  # fmt: skip
    content = struct.pack(f"<8s6I{len(values)}f", b"JWROWS\r\n", 1, 3, 8, 6, 420, 2, *values)
    assert (tmp_path / "j.rows").read_bytes() == content + hashlib.sha256(content).digest()


def test_a_file_written_frame_by_frame_is_the_file_written_at_once(tmp_path) -> None:
    whole = rows_of(5)
    write_rows(tmp_path / "once.rows", whole)
    (tmp_path / ".parts.rows.part").write_bytes(b"what a killed process has left" * 500)
    with RowWriter(tmp_path / "parts.rows", rows=3, size=(6, 8), chroma="420") as writer:
        for start, stop in ((0, 2), (2, 3), (3, 5)):
            assert writer.count == start
            writer.append(JacobianRows(Yuv420(*(p[start:stop] for p in whole.planes.planes))))
        assert not (tmp_path / "parts.rows").exists()
        writer.finish()
    assert (tmp_path / "parts.rows").read_bytes() == (tmp_path / "once.rows").read_bytes()
    with RowReader.open(tmp_path / "parts.rows") as reader:
        found = reader.read(1, 4)
    np.testing.assert_array_equal(found.planes.u, whole.planes.u[1:4])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["once.rows", "parts.rows"]


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path) -> None:
    with RowWriter(tmp_path / "j.rows", rows=3, size=(6, 8), chroma="420") as writer:
        writer.append(rows_of())
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_are_refused(tmp_path) -> None:
    first = RowWriter(tmp_path / "j.rows", rows=3, size=(6, 8), chroma="420")
    with first, pytest.raises(OSError, match=r"j\.rows is being written by another process"):
        write_rows(tmp_path / "j.rows", rows_of())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (JacobianRows(Yuv400(np.full((1, 2, 4, 4), np.nan))), "plane y of row 0 of frame 0 is nan"),
        (JacobianRows(Yuv400(np.full((1, 2, 4, 4), 1e300))), "is inf"),
        (JacobianRows(Yuv400(np.zeros((2, 4, 4)))), r"wanted \[N, ℓ, H, W\]"),
        (JacobianRows(Yuv400(np.zeros((0, 2, 4, 4)))), "no frames"),
        (JacobianRows(Yuv400(np.zeros((1, 0, 4, 4)))), "0 rows per frame"),
        (JacobianRows(Yuv420(*(np.zeros((1, 2, 4, 4)),) * 3)), r"\(2, 2, 2\).*were given"),
        (JacobianRows(Yuv420(*(np.zeros((1, 2, 3, 4)),) * 3)), "even width"),
    ],
)
def test_rows_that_an_encoder_could_not_use_are_not_written(tmp_path, rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        write_rows(tmp_path / "j.rows", rows)
    assert not list(tmp_path.iterdir())


def change(offset: int, value: int):
    return lambda content: content[:offset] + struct.pack("<I", value) + content[offset + 4 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: b"", "0 bytes: too short"),
        (lambda c: c[:50], "too short"),
        (lambda c: b"RIFF" + c[4:], "starts with b'RIFF"),
        (change(8, 2), "version 2; this program reads version 1"),
        (change(12, 0), "of 0 rows"),
        (change(12, 4), "bytes; .* were wanted for 2 frames of 4 rows"),
        (change(16, 7), "even width"),
        (change(20, 8), "were wanted"),
        (change(24, 444), "chroma 444"),
        (change(24, 400), "were wanted"),
        (change(28, 2**32 - 1), "were wanted for 4294967295 frames"),
        (lambda c: c[:-1], "were wanted"),
        (lambda c: c + b"\0", "were wanted"),
        (lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:], "has SHA-256"),
        (lambda c: c[:-1] + bytes([c[-1] ^ 1]), "has SHA-256"),
    ],
)
def test_damage_is_named(tmp_path, damage, message) -> None:
    path = tmp_path / "j.rows"
    write_rows(path, rows_of())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"j\.rows.*{message}"):
        read_rows(path)


def test_values_that_are_not_finite_are_named_though_the_hash_fits(tmp_path) -> None:
    path = tmp_path / "j.rows"
    write_rows(path, rows_of(1, 1))
    content = bytearray(path.read_bytes()[:-32])
    content[32:36] = struct.pack("<f", np.inf)
    path.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(ValueError, match="plane y of row 0 of frame 0 is inf at line 0, column 0"):
        read_rows(path)


def test_frames_and_files_that_are_not_there_are_named(tmp_path) -> None:
    write_rows(tmp_path / "j.rows", rows_of())
    with RowReader.open(tmp_path / "j.rows") as reader, pytest.raises(ValueError, match=r"frames 1 to 3 .* holds 2"):
        reader.read(1, 3)
    with pytest.raises(FileNotFoundError, match=r"k\.rows"):
        read_rows(tmp_path / "k.rows")
    with pytest.raises(ValueError, match=r"ends in \.rows"):
        read_rows(tmp_path / "j.dat")
