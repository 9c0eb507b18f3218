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
from collapsible.imaging.decode import UnsupportedPictureError
from collapsible.imaging.files import atomic_write
from collapsible.imaging.metrics import psnr, psnr_y, ssim, ssim_y
from collapsible.imaging.pictures import (
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    Picture,
    PictureInfo,
    list_pictures,
    picture_info,
    read_picture,
)
from collapsible.imaging.png import PngWriter
from collapsible.imaging.resize import Border, crop_to_multiple, cut, extend, resize
from collapsible.imaging.writing import code_jpeg, output_format, write_picture

__all__ = [
    "MAX_PIXELS",
    "PICTURE_SUFFIXES",
    "RGB_TO_YCBCR",
    "YCBCR_OFFSET",
    "YCBCR_TO_RGB",
    "Border",
    "Picture",
    "PictureInfo",
    "PngWriter",
    "UnsupportedPictureError",
    "atomic_write",
    "code_jpeg",
    "crop_to_multiple",
    "cut",
    "extend",
    "list_pictures",
    "output_format",
    "picture_info",
    "psnr",
    "psnr_y",
    "read_picture",
    "resize",
    "rgb_to_y",
    "rgb_to_ycbcr",
    "ssim",
    "ssim_y",
    "write_picture",
    "ycbcr_to_rgb",
]
