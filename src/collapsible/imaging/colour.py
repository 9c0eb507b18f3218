"""BT.601 colour in studio range, as the super-resolution field measures it.

Values are on the 0..255 scale and stay floating point: Y is in 16..235, Cb and Cr in 16..240
with 128 as neutral. Rounding Y would cost about 0.09 dB at 38 dB, so nothing here rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError


def _frozen(values: Any) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


RGB_TO_YCBCR = _frozen(
    np.array(
        [
            [65.481, 128.553, 24.966],
            [-37.797, -74.203, 112.0],
            [112.0, -93.786, -18.214],
        ]
    )
    / 255.0
)
"""3x3, float64, read-only: ``ycbcr = RGB_TO_YCBCR @ rgb + YCBCR_OFFSET`` for RGB in 0..255
(ITU-R BT.601; the same constants as MATLAB's ``rgb2ycbcr``)."""

YCBCR_OFFSET = _frozen([16.0, 128.0, 128.0])
"""The offset of (Y, Cb, Cr) on the 0..255 scale."""

YCBCR_TO_RGB = _frozen(np.linalg.inv(RGB_TO_YCBCR))
"""3x3 inverse: ``rgb = YCBCR_TO_RGB @ (ycbcr - YCBCR_OFFSET)``."""


def rgb_to_y(rgb: NDArray[Any]) -> NDArray[Any]:
    """Luma Y (16..235) of HxWx3 RGB, as HxW.

    uint8 and floats are taken as 0..255; uint16 as 0..65535 and brought to 0..255 first.
    The result is float32 for float32 input and float64 otherwise. Raises UsageError for
    another shape or dtype.
    """
    planes, gain = _as_float(rgb, "rgb_to_y")
    return _combine(planes, RGB_TO_YCBCR[0] * gain, YCBCR_OFFSET[0])


def rgb_to_ycbcr(rgb: NDArray[Any]) -> NDArray[Any]:
    """Y, Cb and Cr of HxWx3 RGB, as HxWx3; types, ranges and errors as in ``rgb_to_y``."""
    planes, gain = _as_float(rgb, "rgb_to_ycbcr")
    result = np.empty(rgb.shape, planes.dtype)
    for i in range(3):
        result[..., i] = _combine(planes, RGB_TO_YCBCR[i] * gain, YCBCR_OFFSET[i])
    return result


def ycbcr_to_rgb(ycbcr: NDArray[Any]) -> NDArray[Any]:
    """RGB on the 0..255 scale of HxWx3 YCbCr; floats, neither rounded nor clipped.

    Types and errors as in ``rgb_to_y``.
    """
    planes, gain = _as_float(ycbcr, "ycbcr_to_rgb")
    result = np.empty(ycbcr.shape, planes.dtype)
    offset = -(YCBCR_TO_RGB @ YCBCR_OFFSET)
    for i in range(3):
        result[..., i] = _combine(planes, YCBCR_TO_RGB[i] * gain, offset[i])
    return result


def _as_float(pixels: NDArray[Any], caller: str) -> tuple[NDArray[Any], float]:
    """The pixels as floats, and the gain that brings them to 0..255."""
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UsageError(f"{caller} shape {pixels.shape}: HxWx3 is accepted")
    if pixels.dtype == np.float32 or pixels.dtype == np.float64:
        return pixels, 1.0
    if pixels.dtype == np.uint8 or pixels.dtype == np.float16:
        return pixels.astype(np.float64), 1.0
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float64), 1.0 / 257.0
    raise UsageError(f"{caller} dtype {pixels.dtype}: uint8, uint16 and floats are accepted")


def _combine(
    planes: NDArray[Any], weights: NDArray[np.float64], offset: np.float64
) -> NDArray[Any]:
    # A fixed order of additions: the same bits on every machine, which a BLAS does not promise.
    w = weights.astype(planes.dtype)
    total = planes[..., 0] * w[0]
    total += planes[..., 1] * w[1]
    total += planes[..., 2] * w[2]
    total += planes.dtype.type(offset)
    return total
