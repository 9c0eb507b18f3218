"""Pictures in NumPy: read and write, colour, MATLAB-exact bicubic, PSNR and SSIM. Never torch."""

from __future__ import annotations

from collapsible.imaging.resize import Border, crop_to_multiple, resize

__all__ = ["Border", "crop_to_multiple", "resize"]
