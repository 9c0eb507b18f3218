"""EXIF orientation: read it, reset it, and turn pixels upright, leaving every other byte alone."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ORIENTATION = 0x0112
_SHORT = 3
PREFIX = b"Exif\x00\x00"


def strip_prefix(exif: bytes | None) -> bytes | None:
    """The TIFF structure itself, without the marker that JPEG puts before it; None if empty."""
    if not exif:
        return None
    return exif[len(PREFIX) :] if exif.startswith(PREFIX) else exif


def orientation(exif: bytes | None) -> int:
    """The orientation 1..8 (Exif 2.32, tag 0x0112); 1 where it is absent or damaged."""
    found = _locate(exif)
    if exif is None or found is None:
        return 1
    position, order = found
    (value,) = struct.unpack_from(order + "H", exif, position)
    return value if 1 <= value <= 8 else 1


def reset_orientation(exif: bytes | None) -> bytes | None:
    """The same EXIF with orientation 1; nothing else changes, maker notes included."""
    found = _locate(exif)
    if exif is None or found is None:
        return exif
    position, order = found
    return exif[:position] + struct.pack(order + "H", 1) + exif[position + 2 :]


def upright(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """HxWxC pixels as they should be seen, given their orientation 1..8."""
    if turn in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _locate(exif: bytes | None) -> tuple[int, str] | None:
    """Where the orientation's value lies, and the byte order, if the tag is there and sound."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get((exif or b"")[:4])
    if exif is None or order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION and kind == _SHORT and values == 1 and entry + 12 <= len(exif):
                return entry + 8, order
    except struct.error:
        pass
    return None
