"""Map files against the documented byte layout, and damaged files against the reader."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.codecs import files
from jaxwrap.codecs.weightmap import MapReader, MapWriter, read_maps, write_maps

WHAT = {"receiver": "post-processor", "sketches": 8, "standard_error": 0.5, "seed": 3}


def maps_of(count: int = 2, *, grey: bool = False) -> Frame:
    rng = np.random.default_rng(count)
    y, u, v = (rng.exponential(size=(count, *s)).astype(np.float32) for s in ((6, 8), (3, 4), (3, 4)))
    return Yuv400(y) if grey else Yuv420(y, u, v)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(("mode", "count"), [("fwa", 1), ("iwa", 3), ("wa", 2)])
def test_maps_and_their_description_come_back(tmp_path, grey, mode, count):
    maps = maps_of(count, grey=grey)
    written = write_maps(tmp_path / "m.dat", maps, mode=mode, **WHAT, details={"alpha": 0.25})
    chroma = "400" if grey else "420"
    found, info = read_maps(tmp_path / "m.dat", size=(6, 8), chroma=chroma)
    assert info == written
    assert (info.width, info.height, info.maps, info.mode, info.receiver) == (8, 6, count, mode, "post-processor")
    for plane, source in zip(found.planes, maps.planes, strict=True):
        np.testing.assert_array_equal(plane, source)
        assert plane.dtype == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dat", "m.json"]


def test_the_file_has_a_count_and_then_raster_planes_map_after_map(tmp_path):
    maps = maps_of(2)
    write_maps(tmp_path / "m.dat", maps, mode="wa", **WHAT)
    data = (tmp_path / "m.dat").read_bytes()
    values = [float(p[i, r, c]) for i in range(2) for p in maps.planes for r, c in np.ndindex(p.shape[1:])]
    assert data == struct.pack(f"<I{len(values)}f", 2, *values)


@pytest.mark.parametrize(
    ("maps", "mode", "message"),
    [
        (Yuv400(-maps_of(1).y), "fwa", "finite and ≥ 0"),
        (Yuv400(maps_of(1).y * np.float32(np.nan)), "fwa", "plane y of map 0 is nan at row 0, column 0"),
        (Yuv400(np.full((1, 2, 2), 1e300)), "fwa", "is inf"),
        (maps_of(2), "fwa", "2 maps were given for mode fwa; wanted 1"),
        (maps_of(2), "frame", "known: wa, iwa, fwa"),
        (Yuv400(np.ones((0, 2, 2))), "wa", "0 maps"),
    ],
)
def test_maps_that_an_encoder_could_not_use_are_not_written(tmp_path, maps, mode, message):
    with pytest.raises(ValueError, match=message):
        write_maps(tmp_path / "m.dat", maps, mode=mode, **WHAT)
    assert not list(tmp_path.iterdir())


def test_a_name_without_dat_is_refused(tmp_path):
    for act in (lambda p: write_maps(p, maps_of(), mode="wa", **WHAT), read_maps):
        with pytest.raises(ValueError, match=r"ends in \.dat"):
            act(tmp_path / "m.map")


def test_maps_of_other_frames_are_refused(tmp_path):
    write_maps(tmp_path / "m.dat", maps_of(), mode="wa", **WHAT)
    with pytest.raises(ValueError, match="maps of 8×6; the frames are 16×6"):
        read_maps(tmp_path / "m.dat", size=(6, 16))
    with pytest.raises(ValueError, match="in 420; the frames are 400"):
        read_maps(tmp_path / "m.dat", chroma="400")


@pytest.mark.parametrize("name", ["m.dat", "m.json"])
def test_a_missing_half_of_the_pair_is_named(tmp_path, name):
    write_maps(tmp_path / "m.dat", maps_of(), mode="wa", **WHAT)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_maps(tmp_path / "m.dat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": 7}, "even width"),
        ({"height": 8}, "bytes"),
        ({"maps": True}, "maps is True"),
        ({"maps": 1}, "bytes"),
        ({"chroma": "444"}, "one of 400, 420"),
        ({"mode": "x"}, "one of wa, iwa, fwa"),
        ({"sketches": -1}, "sketches"),
        ({"standard_error": "a"}, "standard_error"),
        ({"sha256": "0"}, "SHA-256"),
        ({"details": []}, "details"),
        ({"more": 1}, "the description of a map file has"),
        ({"receiver": "another"}, r"m\.json has checksum"),
        ({"standard_error": 10**400}, "standard_error"),
    ],
)
def test_a_description_that_does_not_fit_is_named(tmp_path, change, message):
    write_maps(tmp_path / "m.dat", maps_of(), mode="wa", **WHAT)
    description = tmp_path / "m.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_maps(tmp_path / "m.dat")


def test_a_description_that_is_not_json_is_named(tmp_path):
    write_maps(tmp_path / "m.dat", maps_of(), mode="wa", **WHAT)
    for text, message in (("{", "not JSON"), ("[1]", "has list")):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_maps(tmp_path / "m.dat")


def test_a_count_that_contradicts_the_description_is_named(tmp_path):
    write_maps(tmp_path / "m.dat", maps_of(), mode="wa", **WHAT)
    data = (tmp_path / "m.dat").read_bytes()
    (tmp_path / "m.dat").write_bytes(b"\5" + data[1:])
    with pytest.raises(ValueError, match="holds 5 maps"):
        read_maps(tmp_path / "m.dat")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_change_of_any_byte_is_noticed(tmp_path_factory, data):
    folder: Path = tmp_path_factory.getbasetemp()
    write_maps(folder / "m.dat", maps_of(), mode="wa", **WHAT)
    content = bytearray((folder / "m.dat").read_bytes())
    if data.draw(st.booleans(), label="cut or extend"):
        end = data.draw(st.integers(0, len(content) + 8).filter(lambda n: n != len(content)))
        content = (content + b"\0" * 8)[:end]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "m.dat").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.dat"):
        read_maps(folder / "m.dat")


@given(st.binary(max_size=64) | st.from_regex(r'\{"width": ?[-\d\w"]*.*', fullmatch=True))
@settings(max_examples=60, deadline=None)
def test_any_bytes_as_description_give_a_value_error(tmp_path_factory, content):
    folder: Path = tmp_path_factory.getbasetemp()
    write_maps(folder / "d.dat", maps_of(), mode="wa", **WHAT)
    (folder / "d.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"d\.json"):
        read_maps(folder / "d.dat")


def test_an_interrupted_write_leaves_a_pair_that_fits_or_an_error(tmp_path, monkeypatch):
    write_maps(tmp_path / "m.dat", maps_of(2), mode="wa", **WHAT)
    replace = files.os.replace

    def full(source, target):
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk is full"):
        write_maps(tmp_path / "m.dat", maps_of(3), mode="wa", **WHAT)
    with pytest.raises(ValueError, match="bytes"):
        read_maps(tmp_path / "m.dat")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.dat", "m.json"]


def test_maps_written_a_few_at_a_time_are_those_written_at_once(tmp_path):
    whole = maps_of(7)
    about = {"mode": "wa", **WHAT, "details": {"alpha": 0.25, "ranges": (1, 2)}}
    once = write_maps(tmp_path / "once.dat", whole, **about)

    def part(start: int, stop: int) -> Frame:
        return Yuv420(*(p[start:stop] for p in whole.planes))

    with MapWriter(tmp_path / "parts.dat", size=(6, 8), chroma="420") as writer:
        writer.append(part(0, 3))
        with pytest.raises(ValueError, match="plane v of map 3"):
            writer.append(Yuv420(whole.y[3:4], whole.u[3:4], -whole.v[3:4]))
        with pytest.raises(ValueError, match="maps of 8×6 in 420; 8×6 in 400 was given"):
            writer.append(Yuv400(whole.y[3:4]))
        writer.append(part(3, 4))
        writer.append(part(4, 7))
        assert not (tmp_path / "parts.dat").exists()
        assert writer.finish(**about) == once
    for suffix in (".dat", ".json"):
        assert (tmp_path / f"parts{suffix}").read_bytes() == (tmp_path / f"once{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4
    with MapReader.open(tmp_path / "parts.dat") as reader:
        assert reader.info == once
        np.testing.assert_array_equal(reader.read(2, 5).u, whole.u[2:5])
        np.testing.assert_array_equal(reader.read(5).v, whole.v[5:])
        with pytest.raises(ValueError, match="maps 6 to 8"):
            reader.read(6, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"details": {"alpha": np.nan}}, "cannot be written as JSON"),
        ({"details": {"alpha": np.ones(2)}}, "cannot be written as JSON"),
        ({"standard_error": float("nan")}, "cannot be written as JSON"),
        ({"seed": np.int64(3)}, "cannot be written as JSON"),
        ({"seed": 0.5}, r"m\.json: seed is 0\.5; wanted a whole number"),
        ({"sketches": -1}, r"m\.json: sketches is -1"),
    ],
)
def test_a_description_that_cannot_be_leaves_what_was_there(tmp_path, change, message):
    before = write_maps(tmp_path / "m.dat", maps_of(2), mode="wa", **WHAT)
    with pytest.raises(ValueError, match=message):
        write_maps(tmp_path / "m.dat", maps_of(1), mode="wa", **{**WHAT, **change})
    assert read_maps(tmp_path / "m.dat")[1] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dat", "m.json"]


def test_a_writer_stays_alone_with_its_file(tmp_path):
    with (
        MapWriter(tmp_path / "m.dat", size=(6, 8), chroma="420"),
        pytest.raises(OSError, match="written by another process"),
    ):
        MapWriter(tmp_path / "m.dat", size=(6, 8), chroma="420")


@pytest.mark.parametrize("others", ["finished", "gave up"])
def test_a_writer_that_comes_while_another_ends_does_not_touch_its_file(tmp_path, monkeypatch, others):
    """The part is opened, then renamed or removed by who held it, and only then locked."""
    first = MapWriter(tmp_path / "m.dat", size=(6, 8), chroma="420")
    first.append(maps_of(2))
    lock, ends = files.fcntl.flock, [first]

    def slow(file, operation) -> None:
        while ends:
            other = ends.pop()
            if others == "finished":
                other.finish(mode="wa", **WHAT)
            other.close()
        lock(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", slow)
    with MapWriter(tmp_path / "m.dat", size=(6, 8), chroma="420") as second:
        if others == "finished":
            np.testing.assert_array_equal(read_maps(tmp_path / "m.dat")[0].y, maps_of(2).y)
        second.append(maps_of(3))
        second.finish(mode="wa", **WHAT)
    np.testing.assert_array_equal(read_maps(tmp_path / "m.dat")[0].y, maps_of(3).y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dat", "m.json"]


def test_a_full_disk_is_named_and_the_maps_from_before_are_kept(tmp_path, monkeypatch):
    before = write_maps(tmp_path / "m.dat", maps_of(3), mode="wa", **WHAT)
    write = files.GrowingFile._write

    def full(self, offset: int, content: bytes) -> None:
        write(self, offset, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.GrowingFile, "_write", full)
    with pytest.raises(OSError, match=r"disk is full: .*m\.dat"):
        write_maps(tmp_path / "m.dat", maps_of(2), mode="wa", **WHAT)
    assert read_maps(tmp_path / "m.dat")[1] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dat", "m.json"]
