"""BT.601 against scikit-image and the standard's corner values."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import rgb2ycbcr, ycbcr2rgb

from collapsible.errors import UsageError
from collapsible.imaging import (
    RGB_TO_YCBCR,
    YCBCR_OFFSET,
    YCBCR_TO_RGB,
    rgb_to_y,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_equals_scikit_image(rgb) -> None:
    # skimage's own matrix has the same three decimals.
    np.testing.assert_allclose(rgb_to_ycbcr(rgb), rgb2ycbcr(rgb), atol=1e-10)
    np.testing.assert_allclose(rgb_to_y(rgb), rgb2ycbcr(rgb)[..., 0], atol=1e-10)
    ycbcr = rgb2ycbcr(rgb)
    np.testing.assert_allclose(ycbcr_to_rgb(ycbcr), ycbcr2rgb(ycbcr) * 255, atol=1e-9)


def test_corners_of_the_standard() -> None:
    corners = np.array([[[0, 0, 0], [255, 255, 255], [0, 0, 255], [255, 0, 0]]], np.uint8)
    found = rgb_to_ycbcr(corners)[0]
    np.testing.assert_allclose(found[0], [16, 128, 128], atol=1e-12)
    np.testing.assert_allclose(found[1], [235, 128, 128], atol=1e-9)
    assert found[2, 1] == pytest.approx(240)
    assert found[3, 2] == pytest.approx(240)


def test_there_and_back(rgb) -> None:
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, atol=1e-10)


def test_constants_make_the_same_map(rgb) -> None:
    by_hand = rgb.astype(np.float64) @ RGB_TO_YCBCR.T + YCBCR_OFFSET
    np.testing.assert_allclose(by_hand, rgb_to_ycbcr(rgb), atol=1e-10)
    np.testing.assert_allclose((by_hand - YCBCR_OFFSET) @ YCBCR_TO_RGB.T, rgb, atol=1e-10)
    for constant in (RGB_TO_YCBCR, YCBCR_OFFSET, YCBCR_TO_RGB):
        with pytest.raises(ValueError, match="read-only"):
            constant[0] = 0


def test_types_and_scales(rgb) -> None:
    assert rgb_to_y(rgb).dtype == np.float64
    single = rgb_to_y(rgb.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, rgb_to_y(rgb), atol=1e-4)
    wide = rgb.astype(np.uint16) * 257
    np.testing.assert_allclose(rgb_to_ycbcr(wide), rgb_to_ycbcr(rgb), atol=1e-10)


@pytest.mark.parametrize("function", [rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb])
def test_wrong_input_is_named(function) -> None:
    with pytest.raises(UsageError, match="HxWx3"):
        function(np.zeros((4, 4)))
    with pytest.raises(UsageError, match="dtype int64"):
        function(np.zeros((4, 4, 3), np.int64))
