"""Constants of baseline JPEG (ITU-T T.81): scan order, quantisation tables, and the typical Huffman codes of Annex K.

Tables of 64 are in natural (raster) order unless the name says zigzag. Quantisation steps are integers in 1…255, the
range of a baseline file. Code tables are NumPy arrays, built once at import from the (BITS, HUFFVAL) lists that a DHT
segment carries.
"""

from __future__ import annotations

import numpy as np


def _zigzag() -> np.ndarray:
    """Natural index of each coefficient in scan order: anti-diagonals, each walked against the one before."""
    return np.array(
        sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8)), dtype=np.int32
    )


ZIGZAG = _zigzag()
"""``[64]``: ZIGZAG[k] is the natural index of the k-th coefficient of the scan."""

LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=np.int32,
).reshape(64)
"""``[64]``: the luminance quantisation table of Annex K (table K.1), which quality 50 uses unchanged."""

MAX_STEP = 255
"""Largest quantisation step of a baseline file (8-bit table entries)."""


def quality_table(quality: int) -> np.ndarray:
    """Quantisation table ``[64]`` int32 of libjpeg for luma at a quality of 1…100: `LUMA_TABLE` scaled, in 1…255."""
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality {quality} was given; libjpeg's scale is 1…100")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((LUMA_TABLE * percent + 50) // 100, 1, MAX_STEP).astype(np.int32)


def flat_table(step: int) -> np.ndarray:
    """Quantisation table ``[64]`` int32 with one step, 1…255, for all frequencies."""
    if not 1 <= step <= MAX_STEP:
        raise ValueError(f"quantisation step {step} was given; a baseline JPEG stores steps of 1…{MAX_STEP}")
    return np.full(64, step, dtype=np.int32)


# DHT payloads of the luminance codes (tables K.3 and K.5): number of codes of each length 1…16, then the symbols in
# code order.
_DC_BITS = (0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)
_DC_SYMBOLS = tuple(range(12))
_AC_BITS = (0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125)
_AC_SYMBOLS = bytes.fromhex(
    "0102030004110512213141061351610722711432"
    "8191a1082342b1c11552d1f02433627282090a16"
    "1718191a25262728292a3435363738393a434445"
    "464748494a535455565758595a63646566676869"
    "6a737475767778797a838485868788898a929394"
    "95969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6"
    "b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8"
    "d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8"
    "f9fa"
)


def _canonical_code(
    bits: tuple[int, ...], symbols: tuple[int, ...] | bytes, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Code words and lengths by symbol (Annex C): consecutive numbers within a length, doubled from one to the next."""
    words, lengths = np.zeros(size, np.int32), np.zeros(size, np.int32)
    word, next_symbol = 0, iter(symbols)
    for length, count in enumerate(bits, start=1):
        for _ in range(count):
            symbol = next(next_symbol)
            words[symbol], lengths[symbol] = word, length
            word += 1
        word <<= 1
    return words, lengths


DC_WORDS, DC_LENGTHS = _canonical_code(_DC_BITS, _DC_SYMBOLS, 12)
"""Code word and its length in bits for each DC size category 0…11."""

AC_WORDS, AC_LENGTHS = _canonical_code(_AC_BITS, _AC_SYMBOLS, 256)
"""Code word and its length in bits for each AC symbol 16·run + size (0 bits where the code has no such symbol)."""

END_OF_BLOCK = 0x00
ZERO_RUN = 0xF0
"""AC symbols without a coefficient: the rest of the block is zero; sixteen zeros."""

HEADER_NUM_BYTES = 2 + 18 + 69 + 13 + (21 + 12) + (21 + 162) + 10 + 2
"""Bytes of a grayscale JFIF file outside the entropy-coded segment: SOI, APP0, DQT, SOF0, two DHT, SOS, EOI."""
