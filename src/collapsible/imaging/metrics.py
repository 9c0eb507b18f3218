"""PSNR and SSIM by the protocol of the super-resolution field.

The protocol: compare Y (BT.601 studio range, unrounded, see ``colour``), crop ``scale`` pixels
at each border, peak 255; a set's figure is the mean over its pictures.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError
from collapsible.imaging.colour import rgb_to_y

_WINDOW = 11
_SIGMA = 1.5


def psnr(
    reference: NDArray[Any], test: NDArray[Any], *, crop: int = 0, peak: float = 255.0
) -> float:
    """Peak signal-to-noise ratio in dB of two equal-sized arrays (HxW or HxWxC).

    Args:
        reference: the truth; any real dtype, on a scale whose largest value is ``peak``.
        test: the same shape.
        crop: pixels ignored at each border (the field uses the scale).
        peak: the largest possible value.

    Returns:
        dB, and ``inf`` for identical arrays.

    Raises:
        UsageError: shapes differ, or the crop leaves nothing.
    """
    a, b = _cropped(reference, test, crop, smallest=1)
    difference = a - b
    mean_square = float(np.mean(np.square(difference)))
    return math.inf if mean_square == 0 else 10.0 * math.log10(peak * peak / mean_square)


def ssim(reference: NDArray[Any], test: NDArray[Any], *, crop: int = 0) -> float:
    """Structural similarity of two HxW planes on the 0..255 scale, at most 1.

    Wang et al. 2004, as the authors' MATLAB does it: an 11x11 Gaussian window of sigma 1.5 over
    the positions where it fits wholly, K1 = 0.01, K2 = 0.03, L = 255. ``crop`` and errors as in
    ``psnr``; what remains must be at least 11 pixels on each side.
    """
    if reference.ndim != 2:
        raise UsageError(f"ssim shape {reference.shape}: one plane HxW is accepted")
    a, b = _cropped(reference, test, crop, smallest=_WINDOW)
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    variances = _blur(a * a + b * b) - mean_a * mean_a - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return float(np.mean(luminance * structure))


def psnr_y(reference_rgb: NDArray[Any], test_rgb: NDArray[Any], crop: int) -> float:
    """PSNR in dB on the Y of two pictures; HxWx3 RGB, or grey (HxW, HxWx1) taken as Y itself."""
    return psnr(_luma(reference_rgb), _luma(test_rgb), crop=crop)


def ssim_y(reference_rgb: NDArray[Any], test_rgb: NDArray[Any], crop: int) -> float:
    """SSIM on the Y of two pictures; input as in ``psnr_y``."""
    return ssim(_luma(reference_rgb), _luma(test_rgb), crop=crop)


def _luma(picture: NDArray[Any]) -> NDArray[Any]:
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.ndim == 2:
        gain = 1.0 / 257.0 if picture.dtype == np.uint16 else 1.0
        return picture * gain
    return rgb_to_y(picture)


def _cropped(
    reference: NDArray[Any], test: NDArray[Any], crop: int, smallest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != test.shape:
        raise UsageError(
            f"pictures to compare have shapes {reference.shape} and {test.shape}: equal ones are "
            "accepted"
        )
    if crop < 0 or min(reference.shape[:2]) - 2 * crop < smallest:
        raise UsageError(
            f"crop {crop} of a picture of {reference.shape[1]}x{reference.shape[0]}: at least "
            f"{smallest} pixels must remain on each side"
        )
    inside = slice(crop, -crop or None)
    return (
        reference[inside, inside].astype(np.float64),
        test[inside, inside].astype(np.float64),
    )


def _blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean over the positions where the window fits wholly, one axis at a time."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    taps = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    taps /= taps.sum()
    height, width = plane.shape[0] - _WINDOW + 1, plane.shape[1] - _WINDOW + 1
    rows = taps[0] * plane[:height]
    for k in range(1, _WINDOW):
        rows += taps[k] * plane[k : k + height]
    total = taps[0] * rows[:, :width]
    for k in range(1, _WINDOW):
        total += taps[k] * rows[:, k : k + width]
    return total
