"""Results rows through CSV and back, keys, and the cache that keeps them."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxwrap.codecs import files
from jaxwrap.codecs.files import write_atomically
from jaxwrap.train.evaluate.cache import Cache
from jaxwrap.train.evaluate.points import COLUMNS, LATER, Point, point_key, read_points, write_points

POINT = Point(
    key="ab" * 16,
    dataset="kodak",
    sequence='a, "quoted" name',
    codec="x265",
    codec_version="4.2",
    config="intra",
    mode="wrapper-1/2",
    method="dqp",
    method_options='{"alpha":0.5}',
    lambda_scale=1.0,
    seed=0,
    qp=27.0,
    frames=1,
    bits=1234,
    header_bits=200,
    kbps=30.85,
    bpp=0.1,
    psnr_y=1 / 3,
    psnr_yuv=38.25,
    ms_ssim=None,
    encode_s=0.5,
    verified=True,
    mode_bits=4,
)


def test_the_columns_are_those_of_the_design_in_its_order() -> None:
    agreed = (
        "key dataset sequence codec codec_version config mode method method_options lambda_scale seed qp frames bits "
        "header_bits kbps bpp psnr_y psnr_yuv ms_ssim receiver_snr ap ap50 mask_ap mota idf1 hota encode_s map_s "
        "method_s decode_s wrapper_s verified"
    )
    assert (*agreed.split(), "mode_bits", *LATER) == COLUMNS


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
)
def test_a_row_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, value: float, name: str) -> None:
    path = tmp_path_factory.mktemp("points") / "results.csv"
    points = [POINT, dataclasses.replace(POINT, psnr_yuv=value, sequence=name, ms_ssim=value)]
    write_points(path, points)
    assert read_points(path) == points
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]


def test_what_was_not_measured_is_an_empty_cell(tmp_path: Path) -> None:
    write_points(tmp_path / "results.csv", [POINT])
    header, row = (tmp_path / "results.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert row.endswith(",,,,,,,,0.5,,,,,True,4,,")


def test_a_file_from_before_a_column_was_added_is_read_with_that_column_empty(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_points(path, [POINT])
    ends = ("," + ",".join(LATER), "," * len(LATER))
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line.removesuffix(end)}\n" for line, end in zip(lines, ends, strict=True)))
    assert read_points(path) == [POINT]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("psnr_yuv,", ""), "lacks the columns psnr_yuv; wanted"),
        (lambda text: text.splitlines()[0] + "\n", "no row"),
        (lambda text: "", "is something else; wanted a results.csv, with the columns key, "),
        (lambda text: text.replace("38.25", "good"), r"line 2: psnr_yuv = 'good' \(wanted float \| None\)"),
        (lambda text: text.replace("38.25", "nan").replace("1234", "1.5"), "bits = '1.5'.*psnr_yuv = 'nan'"),
        (lambda text: text.replace(",True,4,,", ""), "too short|verified = None"),
    ],
)
def test_a_damaged_csv_is_refused_naming_file_line_and_cell(tmp_path: Path, edit: object, message: str) -> None:
    path = tmp_path / "results.csv"
    write_points(path, [POINT])
    path.write_text(edit(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="not a CSV file"):
        read_points(tmp_path / "picture.csv")
    with pytest.raises(FileNotFoundError, match="jaxwrap evaluate"):
        read_points(tmp_path / "absent.csv")


def test_a_key_depends_on_every_setting_and_not_on_their_order() -> None:
    settings = {"qp": 27.0, "codec": ["x264", "1"], "clip": "00ff"}
    keys = {point_key(settings), *(point_key({**settings, name: "other"}) for name in settings)}
    assert len(keys) == 4
    assert point_key(dict(reversed(settings.items()))) in keys


def test_a_record_comes_back_from_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get("ab12") is None
    cache.put("ab12", dataclasses.asdict(POINT))
    assert Point(**(Cache(tmp_path / "cache").get("ab12") or {})) == POINT


@pytest.mark.parametrize(
    "damage", [b"", b'{"record": {"qp": 28}, "sha256": "0"}', b"[1]", b"\xff\xfe", b'{"record": {']
)
def test_a_damaged_record_is_reported_and_made_again(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path)
    cache.put("ab12", {"qp": 27})
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    with pytest.warns(RuntimeWarning, match=r"ab12\.json is damaged.*made again"):
        assert cache.get("ab12") is None
    cache.put("ab12", {"qp": 27})
    assert cache.get("ab12") == {"qp": 27}


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"disk is full: .*results\.csv .*run the same command again"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_records_are_plain_json_for_other_tools(tmp_path: Path) -> None:
    Cache(tmp_path).put("ab12", {"qp": 27, "ms_ssim": None})
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text())["record"] == {"qp": 27, "ms_ssim": None}
