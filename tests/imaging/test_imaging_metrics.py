"""PSNR and SSIM against published results and scikit-image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from collapsible.errors import UsageError
from collapsible.imaging import psnr, psnr_y, read_picture, resize, rgb_to_y, ssim, ssim_y

# Zhang et al. 2018 (RCAN), table 2, Set5; the third decimal as measured in shared/data.
RCAN = {2: (38.27, 38.274, 0.9614), 3: (34.74, 34.742, 0.9299), 4: (32.63, 32.634, 0.9002)}
# Bicubic on Set5: shared/data/README.md, and the usual published figures.
BICUBIC = {2: 33.67, 3: 30.40, 4: 28.43}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_published_numbers_of_rcan(shared_data: Path, scale: int) -> None:
    folder = shared_data / "sr" / "oracles" / "RCAN_Set5"
    ratios, similarities = [], []
    for path in sorted((folder / "HR" / "Set5" / f"x{scale}").iterdir()):
        high = read_picture(path).pixels
        result_path = folder / "SR" / "RCAN" / "Set5" / f"x{scale}"
        result = read_picture(result_path / path.name.replace("_HR_", "_RCAN_")).pixels
        ratios.append(psnr_y(high, result, scale))
        similarities.append(ssim_y(high, result, scale))
    assert len(ratios) == 5
    two, three, similarity = RCAN[scale]
    assert round(float(np.mean(ratios)), 2) == two
    assert round(float(np.mean(ratios)), 3) == three
    assert round(float(np.mean(similarities)), 4) == similarity


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_published_numbers_of_bicubic(shared_data: Path, scale: int) -> None:
    ratios = []
    for path in sorted((shared_data / "sr" / "Set5" / "HR").iterdir()):
        high = np.asarray(Image.open(path).convert("RGB"))
        high = high[: len(high) // scale * scale, : high.shape[1] // scale * scale]
        result = resize(resize(high, scale=1 / scale), scale=scale)
        ratios.append(psnr_y(high, result, scale))
    assert round(float(np.mean(ratios)), 2) == BICUBIC[scale]


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    clean = rng.uniform(16, 235, (60, 70)).cumsum(axis=1) % 200
    return clean, clean + rng.normal(0, 9, clean.shape)


@pytest.mark.parametrize("crop", [0, 1, 4])
def test_equal_scikit_image(pair, crop: int) -> None:
    a, b = pair
    inside = slice(crop, -crop or None)
    x, y = a[inside, inside], b[inside, inside]
    assert psnr(a, b, crop=crop) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255))
    peer = structural_similarity(
        x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a, b, crop=crop) == pytest.approx(peer, abs=1e-9)


def test_identity_and_known_error(pair) -> None:
    a, _ = pair
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-12)
    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(a, a + 1, peak=1.0) == pytest.approx(0)
    # Unsigned arithmetic must not wrap round.
    low, high = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert psnr(low, high) == pytest.approx(0) == psnr(high, low)


def test_grey_is_taken_as_luma() -> None:
    grey = np.random.default_rng(7).integers(0, 256, (20, 20), dtype=np.uint8)
    other = 255 - grey
    assert psnr_y(grey, other, 2) == psnr(grey, other, crop=2)
    assert psnr_y(grey[..., None], other[..., None], 2) == psnr(grey, other, crop=2)
    assert psnr_y(grey.astype(np.uint16) * 257, other.astype(np.uint16) * 257, 2) == pytest.approx(
        psnr(grey, other, crop=2)
    )
    rgb = np.random.default_rng(8).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    assert ssim_y(rgb[0], rgb[1], 1) == ssim(rgb_to_y(rgb[0]), rgb_to_y(rgb[1]), crop=1)


def test_wrong_input_is_named() -> None:
    plane = np.zeros((12, 20))
    with pytest.raises(UsageError, match="shapes"):
        psnr(plane, plane[1:])
    with pytest.raises(UsageError, match="at least 1 pixels"):
        psnr(plane, plane, crop=6)
    with pytest.raises(UsageError, match="crop -1"):
        psnr(plane, plane, crop=-1)
    with pytest.raises(UsageError, match="at least 11 pixels"):
        ssim(plane, plane, crop=1)
    with pytest.raises(UsageError, match="one plane"):
        ssim(np.zeros((20, 20, 3)), np.zeros((20, 20, 3)))
