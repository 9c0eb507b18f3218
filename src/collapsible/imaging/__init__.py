"""Pictures in NumPy: read and write, colour, MATLAB-exact bicubic, PSNR and SSIM. Never torch."""

from __future__ import annotations

from collapsible.imaging.colour import (
    RGB_TO_YCBCR,
    YCBCR_OFFSET,
    YCBCR_TO_RGB,
    rgb_to_y,
    rgb_to_ycbcr,
    ycbcr_to_rgb,
)
from collapsible.imaging.metrics import psnr, psnr_y, ssim, ssim_y
from collapsible.imaging.resize import Border, crop_to_multiple, resize

__all__ = [
    "RGB_TO_YCBCR",
    "YCBCR_OFFSET",
    "YCBCR_TO_RGB",
    "Border",
    "crop_to_multiple",
    "psnr",
    "psnr_y",
    "resize",
    "rgb_to_y",
    "rgb_to_ycbcr",
    "ssim",
    "ssim_y",
    "ycbcr_to_rgb",
]
