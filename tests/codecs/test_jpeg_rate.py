"""The JPEG model against libjpeg, through Pillow."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxwrap.codecs.jpeg.rate import entropy_coded_bits, jpeg_num_bytes
from jaxwrap.codecs.jpeg.tables import (
    AC_LENGTHS,
    AC_WORDS,
    DC_LENGTHS,
    DC_WORDS,
    HEADER_NUM_BYTES,
    ZIGZAG,
    flat_table,
    quality_table,
)

TABLES = [quality_table(quality) for quality in range(5, 101, 5)] + [
    flat_table(step) for step in (1, 2, 3, 5, 8, 17, 40, 90, 255)
]


num_bytes = jax.jit(jpeg_num_bytes)  # shared by the tests: it takes seconds to compile


def libjpeg_file(picture: np.ndarray, table: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", qtables=[table.tolist()])
    return buffer.getvalue()


def num_stuffed(file: bytes) -> int:
    return file[HEADER_NUM_BYTES - 2 :].count(b"\xff\x00")


def every_case(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Each plane with each table: (planes, tables, libjpeg's files)."""
    planes, tables = np.repeat(planes, len(TABLES), axis=0), np.tile(TABLES, (len(planes), 1))
    return planes, tables, [libjpeg_file(plane, table) for plane, table in zip(planes, tables, strict=True)]


def pictures(height: int, width: int) -> np.ndarray:
    """One of each kind that reaches another corner of the code tables."""
    rng = np.random.default_rng(height * width)
    y, x = np.indices((height, width))
    smooth = 120 + 60 * np.sin(x / 9 + y / 14) + 40 * np.cos(y / 5) + rng.normal(0, 4, (height, width))
    kinds = [
        np.zeros((height, width)),
        np.full((height, width), 255),
        smooth,
        rng.integers(0, 256, (height, width)),
        rng.integers(0, 2, (height, width)) * 255,
        (x + y) % 2 * 255,
        (x // 8 + y // 8) % 2 * 255,  # the largest DC differences
        (rng.random((height, width)) < 0.02) * 200,  # long runs
    ]
    return np.clip(np.stack(kinds), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 33)])
def test_file_size_equals_libjpegs_at_every_quality_and_flat_step(height: int, width: int) -> None:
    planes, tables, files = every_case(pictures(height, width))
    np.testing.assert_array_equal(num_bytes(planes, tables), [len(file) for file in files])


@pytest.mark.shared
def test_photographs_have_libjpegs_size(shared_data: Path) -> None:
    photograph = np.asarray(Image.open(shared_data / "kodak" / "kodim05.png").convert("L"))
    crops = np.stack([photograph[60 * i : 60 * i + 17, 90 * i : 90 * i + 33] for i in range(8)])
    planes, tables, files = every_case(crops)
    np.testing.assert_array_equal(num_bytes(planes, tables), [len(file) for file in files])


def test_size_without_the_bit_stream_leaves_out_the_stuffing_only() -> None:
    planes, tables, files = every_case(pictures(24, 40))
    got = jax.jit(lambda plane, table: jpeg_num_bytes(plane, table, exact=False))(planes, tables)
    np.testing.assert_array_equal(got, [len(file) - num_stuffed(file) for file in files])


@pytest.mark.parametrize("quality", [1, 5, 25, 49, 50, 51, 75, 95, 100])
def test_quality_table_is_the_one_libjpeg_writes(quality: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "jpeg", quality=quality)
    assert quality_table(quality).tolist() == list(Image.open(buffer).quantization[0])


def test_codes_and_scan_order_are_those_of_a_libjpeg_file() -> None:
    table = np.arange(1, 65)
    file = libjpeg_file(np.zeros((8, 8), np.uint8), table)
    quantisation = file.index(b"\xff\xdb") + 5
    np.testing.assert_array_equal(list(file[quantisation : quantisation + 64]), table[ZIGZAG])
    position = 0
    for words, lengths in ((DC_WORDS, DC_LENGTHS), (AC_WORDS, AC_LENGTHS)):
        position = file.index(b"\xff\xc4", position) + 5
        counts = file[position : position + 16]
        symbols = file[position + 16 : position + 16 + sum(counts)]
        by_code = sorted((int(lengths[s]), int(words[s]), s) for s in range(len(lengths)) if lengths[s])
        assert [s for _, _, s in by_code] == list(symbols)
        assert [sum(length == i for length, _, _ in by_code) for i in range(1, 17)] == list(counts)


def test_nothing_leaves_the_device() -> None:
    text = str(jax.make_jaxpr(jpeg_num_bytes)(jnp.zeros((1, 8, 8)), flat_table(8)))
    assert "callback" not in text


def test_errors_name_what_came_and_what_is_wanted() -> None:
    with pytest.raises(ValueError, match=r"shape \(8, 8\).*\[N, H, W\]"):
        entropy_coded_bits(np.zeros((8, 8)), flat_table(8))
    with pytest.raises(ValueError, match=r"shape \(8, 8\).*\[64\] or \[2, 64\]"):
        entropy_coded_bits(np.zeros((2, 8, 8)), np.ones((8, 8)))
    with pytest.raises(ValueError, match=r"quality 0 .*1…100"):
        quality_table(0)
    with pytest.raises(ValueError, match=r"step 256 .*1…255"):
        flat_table(256)
