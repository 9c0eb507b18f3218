"""Bicubic resizing equal to MATLAB's ``imresize``, which made the field's test pictures."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError

Border = Literal["mirror", "clamp"]

# One band's working set (source rows, accumulator, one tap) should stay in a core's own cache.
_BAND_VALUES = 1 << 16
# At these scales single precision gives the same integers for 8-bit pictures (see _accumulator).
_SINGLE_IS_EXACT = frozenset({0.25, 1 / 3, 0.5, 2.0, 3.0, 4.0})


def resize(
    image: NDArray[Any],
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    border: Border = "mirror",
    antialias: bool = True,
) -> NDArray[Any]:
    """Resize with the bicubic kernel (a = -0.5) exactly as MATLAB's ``imresize`` does.

    Args:
        image: HxW or HxWxC; uint8, uint16 or floating point, any value range.
        scale: output size over input size; the output is ``ceil(scale * input)``.
        size: (height, width) of the output in pixels, in place of ``scale``.
        border: how pixels beyond the border are made: ``"mirror"`` (MATLAB since about 2010)
            or ``"clamp"`` (older MATLAB, which made the LR pictures of Set5 and Set14).
        antialias: widen the kernel by 1/scale when shrinking (MATLAB's default).

    Returns:
        A new array of the same dtype and number of dimensions. Integers are rounded half up
        and clipped, once after each of the two passes, as MATLAB does; floats are not rounded.
        The axis that shrinks most goes first; at equal scales the rows (vertical) do.

    Raises:
        UsageError: not exactly one of ``scale`` and ``size``; a value that is not positive;
            an unknown border, dtype or shape.
    """
    _check(image, border)
    height, width = image.shape[:2]
    if (scale is None) == (size is None):
        raise UsageError("resize takes exactly one of scale and size")
    if scale is not None:
        if not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"resize scale {scale!r}: a positive finite number is accepted")
        scales = (float(scale), float(scale))
        lengths = (_scaled_length(height, scale), _scaled_length(width, scale))
    else:
        assert size is not None
        lengths = (int(size[0]), int(size[1]))
        if min(lengths) < 1:
            raise UsageError(f"resize size {size!r}: two positive integers are accepted")
        scales = (lengths[0] / height, lengths[1] / width)

    planes = image.reshape(height, width, -1)
    for axis in sorted((0, 1), key=lambda a: scales[a]):
        weights, indices = _taps(planes.shape[axis], lengths[axis], scales[axis], border, antialias)
        kind = _accumulator(image.dtype, scales[axis])
        if axis == 0:
            planes = _resize_rows(planes, weights, indices, kind)
        else:
            turned = _resize_rows(_turn(planes), weights, indices, kind)
            planes = _turn(turned)
    return planes.reshape(lengths + image.shape[2:])


def crop_to_multiple(image: NDArray[Any], n: int) -> NDArray[Any]:
    """Crop the bottom and right of HxW or HxWxC so that both sides are multiples of ``n``.

    Returns a view. Raises UsageError where ``n`` is not positive or a side is below ``n``.
    """
    if n < 1:
        raise UsageError(f"crop_to_multiple by {n}: a positive integer is accepted")
    height, width = image.shape[:2]
    if height < n or width < n:
        raise UsageError(f"crop_to_multiple by {n}: the picture is only {width}x{height}")
    return image[: height - height % n, : width - width % n]


def _mirrored(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Places in a mirrored axis of ``length`` pixels, each as one of 0 to ``length - 1``.

    The mirror lies on the border itself, so that the last pixel comes twice: MATLAB's and NumPy's
    ``symmetric``. Places may lie any number of lengths beyond the border.
    """
    folded = indices % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def cut(image: NDArray[Any], top: int, left: int, height: int, width: int) -> NDArray[Any]:
    """A part of HxW or HxWxC, mirrored where it lies beyond the border.

    Returns a view where all of it lies within, else a new array.
    """
    if 0 <= top <= image.shape[0] - height and 0 <= left <= image.shape[1] - width:
        return image[top : top + height, left : left + width]
    rows = _mirrored(np.arange(top, top + height), image.shape[0])
    columns = _mirrored(np.arange(left, left + width), image.shape[1])
    return image[rows[:, None], columns]


def extend(image: NDArray[Any], around: int) -> NDArray[Any]:
    """HxW or HxWxC with ``around`` mirrored pixels more on each side."""
    height, width = image.shape[:2]
    return cut(image, -around, -around, height + 2 * around, width + 2 * around)


def _check(image: NDArray[Any], border: str) -> None:
    if border not in ("mirror", "clamp"):
        raise UsageError(f"resize border {border!r}: 'mirror' and 'clamp' are accepted")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UsageError(f"resize shape {image.shape}: HxW and HxWxC, not empty, are accepted")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise UsageError(f"resize dtype {image.dtype}: uint8, uint16 and floats are accepted")


def _scaled_length(length: int, scale: float) -> int:
    # A product such as 49 * (1/49) may miss its integer by rounding; ceil must not see that.
    exact = length * scale
    nearest = round(exact)
    return max(1, nearest if abs(exact - nearest) < 1e-9 * exact else math.ceil(exact))


def _accumulator(dtype: np.dtype[Any], scale: float) -> type[np.floating[Any]]:
    """The float type to sum in; single precision only where it gives the exact integer.

    At x2 and x4 the weights are dyadic with at most 12 fractional bits, so 8-bit sums are exact
    in 24 bits. At x3 they are multiples of 1/81 or 1/27: a sum is never closer than 1/162 to a
    rounding tie, and single precision errs by less than 1e-4.
    """
    return np.float32 if dtype == np.uint8 and scale in _SINGLE_IS_EXACT else np.float64


def _cubic(x: NDArray[Any]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5 (Keys 1981, eq. 15)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))


def _taps(
    length: int, new_length: int, scale: float, border: str, antialias: bool
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Weights and source indices, both (taps, new_length), for one axis."""
    shrink = min(scale, 1.0) if antialias else 1.0
    support = 4.0 / shrink
    centre = (np.arange(new_length) + 0.5) / scale - 0.5
    first = np.floor(centre - support / 2).astype(np.intp)
    indices = first + np.arange(math.ceil(support) + 2)[:, None]
    weights = _cubic((centre - indices) * shrink)
    weights /= weights.sum(axis=0)
    # Taps that fall on the kernel's zeros carry only rounding residue.
    used = (np.abs(weights) > 1e-14).any(axis=1)
    weights, indices = weights[used], indices[used]
    if border == "clamp":
        return weights, indices.clip(0, length - 1)
    return weights, _mirrored(indices, length)


def _turn(planes: NDArray[Any]) -> NDArray[Any]:
    """Swap rows and columns of HxWxC into a new contiguous array."""
    height, width, channels = planes.shape
    turned = np.empty((width, height, channels), planes.dtype)
    # Plane by plane, so that NumPy's inner loop is a column and not a handful of channels.
    for channel in range(channels):
        turned[:, :, channel] = planes[:, :, channel].T
    return turned


def _resize_rows(
    planes: NDArray[Any],
    weights: NDArray[np.float64],
    indices: NDArray[np.intp],
    kind: type[np.floating[Any]],
) -> NDArray[Any]:
    """Weighted sums of whole rows, band by band: HxWxC to (new_length)xWxC."""
    rows = planes.reshape(planes.shape[0], -1)
    taps, new_length = weights.shape
    result = np.empty((new_length, rows.shape[1]), planes.dtype)
    factors = weights.astype(kind)[:, :, None]
    band = max(1, _BAND_VALUES // rows.shape[1])
    acc = np.empty((min(band, new_length), rows.shape[1]), kind)
    tap = np.empty_like(acc)
    for start in range(0, new_length, band):
        stop = min(start + band, new_length)
        picked = indices[:, start:stop]
        low = int(picked.min())
        source = rows[low : int(picked.max()) + 1].astype(kind)
        picked = picked - low
        total, term = acc[: stop - start], tap[: stop - start]
        np.take(source, picked[0], axis=0, out=total, mode="clip")
        total *= factors[0, start:stop]
        for k in range(1, taps):
            np.take(source, picked[k], axis=0, out=term, mode="clip")
            term *= factors[k, start:stop]
            total += term
        if planes.dtype.kind == "u":
            total += 0.5
            np.floor(total, out=total)
            np.clip(total, 0, np.iinfo(planes.dtype).max, out=total)
        result[start:stop] = total
    return result.reshape(new_length, *planes.shape[1:])
