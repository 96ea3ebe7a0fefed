"""Distortion against scikit-image, closed forms, and MS-SSIM put together from another library's SSIM."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage.data import camera
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from jaxwrap.arrays import Frame, Yuv400, Yuv420
from jaxwrap.metrics.distortion import (
    MS_SSIM_WEIGHTS,
    PSNR_CAP_DB,
    _ms_ssim_picture,
    _ssim_terms,
    mean_psnr,
    ms_ssim,
    mse,
    psnr,
    receiver_snr,
)


def noisy_pair(bit_depth: int) -> tuple[Yuv420, Yuv420]:
    rng = np.random.default_rng(3)
    top, dtype = (255, np.uint8) if bit_depth == 8 else (1023, np.uint16)
    source = [rng.integers(0, top + 1, s).astype(dtype) for s in ((3, 12, 16), (3, 6, 8), (3, 6, 8))]
    decoded = [np.clip(p.astype(int) + rng.integers(-9, 10, p.shape), 0, top).astype(dtype) for p in source]
    return Yuv420(*source), Yuv420(*decoded)


@pytest.mark.parametrize(("bit_depth", "top"), [(8, 255), (10, 1023)])
def test_psnr_of_every_plane_and_picture_equals_scikit_image(bit_depth: int, top: int) -> None:
    source, decoded = noisy_pair(bit_depth)
    got = psnr(source, decoded, bit_depth)
    for column, (a, b) in enumerate(zip(source.planes, decoded.planes, strict=True)):
        for n in range(3):
            assert got[n, column] == pytest.approx(peak_signal_noise_ratio(a[n], b[n], data_range=top), abs=1e-10)


def test_yuv_psnr_is_the_six_one_one_mean_of_frame_psnrs() -> None:
    # Constant errors: plane PSNRs are known in closed form, and differ between the two frames.
    source = Yuv420(*(np.full(s, 100, np.uint8) for s in ((2, 4, 4), (2, 2, 2), (2, 2, 2))))
    errors = {"y": (1, 2), "u": (3, 4), "v": (5, 6)}
    decoded = Yuv420(*(getattr(source, k) + np.array(e, np.uint8)[:, None, None] for k, e in errors.items()))
    plane = {k: np.mean([20 * np.log10(255 / e) for e in es]) for k, es in errors.items()}
    y, yuv = mean_psnr(source, decoded, 8)
    assert y == pytest.approx(plane["y"])
    assert yuv == pytest.approx((6 * plane["y"] + plane["u"] + plane["v"]) / 8)


def test_luma_only_frames_have_their_luma_psnr_as_yuv_psnr() -> None:
    source, decoded = noisy_pair(10)
    y, yuv = mean_psnr(Yuv400(source.y), Yuv400(decoded.y), 10)
    assert y == yuv


def test_the_same_error_relative_to_the_peak_has_the_same_psnr_at_both_depths() -> None:
    eight = psnr(Yuv400(np.zeros((1, 4, 4), np.uint8)), Yuv400(np.full((1, 4, 4), 255, np.uint8)), 8)
    ten = psnr(Yuv400(np.zeros((1, 4, 4), np.uint16)), Yuv400(np.full((1, 4, 4), 1023, np.uint16)), 10)
    assert eight[0, 0] == ten[0, 0] == 0.0


def test_identical_planes_are_capped_not_infinite() -> None:
    source, _ = noisy_pair(8)
    assert (psnr(source, source, 8) == PSNR_CAP_DB).all()
    assert receiver_snr({"p3": np.ones(4)}, {"p3": np.ones(4)}) == PSNR_CAP_DB


def test_receiver_snr_counts_all_leaves_together() -> None:
    wanted = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    received = {"a": np.array([3.0, 0.3]), "b": np.array([[4.4]])}
    assert receiver_snr(wanted, received) == pytest.approx(20.0)  # 25 / 0.25
    with pytest.raises(ValueError, match="zero throughout"):
        receiver_snr(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="must be alike"):
        receiver_snr(np.ones(3), np.ones(4))


def photograph_pair() -> tuple[np.ndarray, np.ndarray]:
    picture = camera()[100:277, 200:370].copy()  # 177 × 170: odd at several scales
    noise = np.random.default_rng(0).normal(0, 12, picture.shape)
    return picture, np.clip(np.round(picture + noise), 0, 255).astype(np.uint8)


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    return float(
        structural_similarity(x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
    )


def test_the_single_scale_part_equals_scikit_image() -> None:
    x, y = (p.astype(np.float32) / 255 for p in photograph_pair())
    luminance, contrast_structure = jax.jit(_ssim_terms)(x, y)
    assert float(np.mean(luminance * contrast_structure)) == pytest.approx(reference_ssim(x, y), abs=2e-5)


def test_ms_ssim_equals_one_put_together_from_scikit_image() -> None:
    # Where luminance is alike in both pictures (zero-mean noise), l ≈ 1 and c·s ≈ SSIM at every scale: to about 1e-3.
    source, decoded = photograph_pair()
    x, y = source / 255.0, decoded / 255.0
    wanted = 1.0
    for weight in MS_SSIM_WEIGHTS:
        wanted *= reference_ssim(x, y) ** weight
        x, y = (
            np.pad(p, ((0, p.shape[0] % 2), (0, p.shape[1] % 2)), mode="edge")
            .reshape(-(-p.shape[0] // 2), 2, -(-p.shape[1] // 2), 2)
            .mean((1, 3))
            for p in (x, y)
        )
    got = ms_ssim(Yuv400(source[None]), Yuv400(decoded[None]), 8)
    assert got == pytest.approx(wanted, abs=1e-3)
    assert 0.8 < wanted < 0.999


def test_ms_ssim_is_one_for_equal_pictures_and_absent_for_small_ones() -> None:
    source, _ = photograph_pair()
    assert float(_ms_ssim_picture(source / np.float32(255), source / np.float32(255))) == pytest.approx(1.0, abs=1e-6)
    assert ms_ssim(Yuv400(source[None, :160]), Yuv400(source[None, :160]), 8) is None


@pytest.mark.parametrize(
    ("decoded", "message"),
    [
        (Yuv400(np.zeros((3, 12, 16), np.uint8)), "differ"),
        (Yuv420(*(np.zeros(s, np.float32) for s in ((3, 12, 16), (3, 6, 8), (3, 6, 8)))), "to_integers"),
    ],
)
def test_frames_that_cannot_be_compared_are_refused(decoded: Frame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mse(noisy_pair(8)[0], decoded)
