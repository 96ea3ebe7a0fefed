"""Moved curves against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from jaxwrap.arrays import Yuv400, Yuv420
from jaxwrap.importance.prediction import bit_shares, moved_totals, offset_bits, weight_spread_bits
from jaxwrap.metrics.bjontegaard import bd_rate

QPS = np.array([17, 22, 27, 32, 37, 42, 47])


def test_exponential_blocks_move_along_their_own_exponential() -> None:
    base = np.array([3.0, 1.0, 2.0])
    blocks = base * 2.0 ** (QPS[:, None] / 3)  # D ∝ 2^(QP/3): 4 times for 6 QPs
    offsets = np.array([-7, 0, 11])  # beyond both ends of the QPs too
    expected = (base * 2.0 ** ((QPS[:, None] + offsets) / 3)).sum(1)
    np.testing.assert_allclose(moved_totals(QPS, blocks, offsets), expected, rtol=1e-12)


def test_without_offsets_totals_stay_and_values_may_be_negative() -> None:
    blocks = np.random.default_rng(0).normal(size=(len(QPS), 9))
    np.testing.assert_allclose(moved_totals(QPS, blocks, np.zeros(9)), blocks.sum(1), rtol=1e-12)


def test_a_common_offset_of_one_spacing_gives_the_next_point() -> None:
    blocks = np.random.default_rng(0).normal(size=(len(QPS), 9))
    np.testing.assert_allclose(moved_totals(QPS, blocks, np.full(9, 5))[:-1], blocks[1:].sum(1), rtol=1e-9)


def test_the_predicted_gain_is_the_spread_of_the_weights_at_high_rates() -> None:
    """N samples per block with D_b = w_b N Δ² and R_b = N (c − log₂ Δ): −3 log₂ w equalises w D and saves ½ log₂ AM/GM
    bits per sample at equal distortion."""
    w = np.array([0.25, 1.0, 1.75, 1.0])
    offsets = -3 * np.log2(w)
    step = 2.0 ** (QPS[:, None] / 6)
    samples = 256
    distortion, bits = samples * w * step**2 * np.ones((7, 4)), samples * (12 - np.log2(step)) * np.ones((7, 4))
    moved_d, moved_r = moved_totals(QPS, distortion, offsets), moved_totals(QPS, bits, offsets)
    quality, moved_quality = -10 * np.log10(distortion.sum(1)), -10 * np.log10(moved_d)
    saved = np.interp(moved_quality[::-1], quality[::-1], bits.sum(1)[::-1])[::-1] - moved_r
    # R is linear in QP here, and moved_totals interpolates its logarithm between QPs 5 apart: chords lie 0.1 % too low,
    # 4 % of what is saved.
    np.testing.assert_allclose(saved[1:-1] / (4 * samples), weight_spread_bits(w), rtol=0.05)
    assert bd_rate(bits.sum(1), quality, moved_r, moved_quality).value < 0


def test_spread_of_two_levels_has_its_closed_form() -> None:
    assert weight_spread_bits(np.ones((3, 4))) == 0
    assert weight_spread_bits(np.array([0.5, 1.5])) == pytest.approx(-0.25 * np.log2(0.75))


def test_bit_shares_follow_the_coefficients_that_stay() -> None:
    """A cosine of one frequency has one coefficient per 8×8 cell, 8 · amplitude / 2 for an orthonormal transform."""
    place = (np.arange(8) + 0.5) * np.pi / 8
    cell = np.outer(np.cos(2 * place), np.cos(3 * place))  # coefficient (2, 3) = 4
    luma, chroma = np.zeros((1, 32, 48)), np.zeros((1, 16, 24))
    luma[0, :16, :16] = np.tile(cell, (2, 2))
    luma[0, 16:, 32:] = 3 * np.tile(cell, (2, 2))
    z = Yuv420(luma + 100, chroma, chroma.copy())
    z.u[0, :8, 16:] = 5 * cell
    shares = bit_shares(z, 7.9, 16).reshape(2, 3)  # 4 > 7.9 / 2
    np.testing.assert_allclose(shares * 9, [[4, 0, 1], [0, 0, 4]], atol=0.01)
    np.testing.assert_allclose(bit_shares(z, 8.1, 16).reshape(2, 3) * 5, [[0, 0, 1], [0, 0, 4]], atol=0.01)
    np.testing.assert_allclose(bit_shares(z, 1000.0, 16), 1 / 6)
    np.testing.assert_allclose(bit_shares(z, 7.9, 32).reshape(1, 2) * 9, [[4, 5]], atol=0.01)
    with pytest.raises(ValueError, match="multiple of 16"):
        bit_shares(z, 8.0, 8)
    assert bit_shares(Yuv400(luma), 8.0, 8).shape == (24,)


def test_offset_bits_are_the_entropy_of_their_changes() -> None:
    assert offset_bits(np.zeros((4, 4), int)) == 0
    alternating = np.tile([0, 2], 8).reshape(4, 4)  # differences: 0 once, +2 8 times, −2 7 times
    p = np.array([1, 8, 7]) / 16
    assert offset_bits(alternating) == pytest.approx(-16 * (p * np.log2(p)).sum())


def test_what_cannot_be_moved_is_named() -> None:
    blocks = np.ones((7, 3))
    with pytest.raises(ValueError, match="at least two, rising"):
        moved_totals(QPS[::-1], blocks, np.zeros(3))
    with pytest.raises(ValueError, match="wanted \\[7, blocks\\]"):
        moved_totals(QPS, blocks[:5], np.zeros(3))
    with pytest.raises(ValueError, match="all blocks are 0"):
        moved_totals(QPS, 0 * blocks, np.zeros(3))
    with pytest.raises(ValueError, match="must be positive"):
        weight_spread_bits(np.array([0.0, 1.0]))
