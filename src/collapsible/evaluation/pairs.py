"""Test pictures and their low-resolution forms, given or made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import PictureError, UsageError
from collapsible.imaging import crop_to_multiple, list_pictures, read_picture, resize, rgb_to_y


@dataclass(frozen=True)
class PicturePair:
    """``high`` uint8 [s H, s W, C] and ``low`` [H, W, C]; C is 1 (grey) or 3 (RGB).

    ``low`` is uint8, but for pairs of luma, where it is float64 in 0..255 (see ``luma_pair``).
    """

    name: str
    high: NDArray[np.uint8]
    low: NDArray[Any]


def luma(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Y [H, W] on the 0..255 scale, unrounded; a grey picture is its own Y."""
    if picture.ndim == 2 or picture.shape[2] == 1:
        return picture.reshape(picture.shape[:2]).astype(np.float64)
    return rgb_to_y(picture.astype(np.float64))


def has_given_low(data: Path, scale: int) -> bool:
    """Whether the folder brings its own low-resolution pictures of this scale."""
    return (data / "HR").is_dir() and (data / f"LRx{scale}").is_dir()


def find_pairs(data: Path, scale: int) -> list[tuple[Path, Path | None]]:
    """The high-resolution files of a folder, each with its low-resolution file if there is one.

    ``data`` holds the pictures themselves, or ``HR`` and, if given, ``LRx2`` and so on with files
    of the same names (suffixes may differ).
    Raises ``UsageError`` where the folder or its pictures are missing, ``PictureError`` where a
    low-resolution file is.
    """
    if not data.is_dir():
        raise UsageError(f"no folder of pictures at {data}")
    if not (data / "HR").is_dir():
        return [(path, None) for path in _pictures(data)]
    high = _pictures(data / "HR")
    if not has_given_low(data, scale):
        return [(path, None) for path in high]
    low = {path.stem: path for path in _pictures(data / f"LRx{scale}")}
    missing = [path.name for path in high if path.stem not in low]
    if missing:
        raise PictureError(f"{data / f'LRx{scale}'} lacks {', '.join(missing)}")
    return [(path, low[path.stem]) for path in high]


def read_pair(high_path: Path, low_path: Path | None, scale: int) -> PicturePair:
    """Read one pair; without a low-resolution file, make it by MATLAB's bicubic.

    The high-resolution picture is cropped to a multiple of the scale first. Alpha is dropped.
    Raises ``PictureError`` for a file that cannot be read, has 16 bits, or does not fit its pair.
    """
    high = _read(high_path)
    if min(high.shape[:2]) < scale:
        raise PictureError(
            f"{high_path}: {high.shape[1]}x{high.shape[0]} is too small for x{scale}"
        )
    high = crop_to_multiple(high, scale)
    if low_path is None:
        return PicturePair(high_path.stem, high, resize(high, scale=1 / scale))
    low = _read(low_path)
    if (low.shape[0] * scale, low.shape[1] * scale) != high.shape[:2]:
        raise PictureError(
            f"{low_path} is {low.shape[1]}x{low.shape[0]}: for {high_path.name} at x{scale} it "
            f"must be {high.shape[1] // scale}x{high.shape[0] // scale}"
        )
    return PicturePair(high_path.stem, high, low)


def luma_pair(path: Path, scale: int) -> PicturePair:
    """The pair by the protocol of SRCNN and VDSR, by which SESR's tables were measured too.

    The 8-bit luma of the picture, rounded, is the high resolution; the low one is that by MATLAB's
    bicubic, not rounded. Bicubic enlargement then has the PSNR that those tables print for it, on
    all of Set5, Set14 and B100 and at x2 and x4. Errors as for ``read_pair``.
    """
    whole = read_pair(path, None, scale)
    high = np.rint(luma(whole.high)).astype(np.uint8)[..., None]
    return PicturePair(whole.name, high, resize(high.astype(np.float64), scale=1 / scale))


def read_pairs(data: Path, scale: int) -> list[PicturePair]:
    """All pairs of a folder in memory; see ``find_pairs`` and ``read_pair``."""
    return [read_pair(high, low, scale) for high, low in find_pairs(data, scale)]


def luma_middles(
    pairs: Iterable[PicturePair], scale: int, side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The middles of pairs, those smaller left out: their luma in [0, 1].

    Low [N, 1, side, side] and high [N, 1, s * side, s * side]. Raises ``UsageError`` where no pair
    is large enough.
    """
    lows, highs = [], []
    for pair in pairs:
        top, left = ((length - side) // 2 for length in pair.low.shape[:2])
        if min(top, left) < 0:
            continue
        lows.append(luma(pair.low)[top : top + side, left : left + side])
        rows, columns = (slice(scale * at, scale * (at + side)) for at in (top, left))
        highs.append(luma(pair.high)[rows, columns])
    if not lows:
        raise UsageError(f"no picture has {scale * side} pixels a side")
    low, high = ((np.stack(parts) / 255).astype(np.float32)[:, None] for parts in (lows, highs))
    return low, high


def _pictures(folder: Path) -> list[Path]:
    found = list_pictures(folder)
    if not found:
        raise UsageError(f"no pictures in {folder}")
    return found


def _read(path: Path) -> NDArray[np.uint8]:
    pixels = read_picture(path).pixels
    if pixels.dtype != np.uint8:
        raise PictureError(f"{path}: 16 bits a channel; the protocol is for 8-bit pictures")
    channels = pixels.shape[2]
    return np.ascontiguousarray(pixels[..., : channels - (channels in (2, 4))])
