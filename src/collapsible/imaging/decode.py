"""From an opened file to pixels: every stored layout becomes HxWxC of 8 or 16 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION

from collapsible.errors import PictureError

# Pixels move from Pillow to NumPy in bands, so that no second whole copy exists.
_BAND_PIXELS = 1 << 20
_DIRECT = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow's RGB is 8-bit: its 16-bit unpackers keep one byte of two. Reading a file once as
# big-endian and once as little-endian yields both bytes, by Pillow's own decoders.
_NATIVE, _FOREIGN = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_BYTE_PAIRS = {
    f"{layout};16{order}": (f"{layout};16{high}", f"{layout};16{low}")
    for layout in ("RGB", "RGBA", "RGBX")
    for order, high, low in (("L", "L", "B"), ("B", "B", "L"), ("N", _NATIVE, _FOREIGN))
}


class UnsupportedPictureError(PictureError):
    """A sound file that holds something this package does not process as it stands."""


def _provide_memory(image: ImageFile) -> None:
    """Give an opened TIFF its memory, where Pillow would first apply its own limit on pixels."""
    extents = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    size = (max(box[2] for box in extents), max(box[3] for box in extents))
    image.im = Image.new(image.mode, size).im


def decode(image: ImageFile, kind: str, again: Callable[[], ImageFile]) -> NDArray[Any]:
    """Pixels HxWxC of an opened frame; ``again`` opens the same frame anew."""
    if kind == "TIFF":
        _provide_memory(image)
    # A transparent grey of few bits is spread over 0..255, as its pixels will be.
    key_scale = {"1": 255, "L;2": 85, "L;4": 17}.get(_rawmode(image), 1)
    if bits_of(image, kind) == 16 and image.mode not in _WIDE_GREY:
        pixels = _wide(image, kind, again)
    else:
        pixels = _narrow(image)
    key = image.info.get("transparency")
    if key is None or pixels.shape[2] in (2, 4):
        return pixels
    return _with_alpha(pixels, key, key_scale)


def bits_of(image: ImageFile, kind: str) -> int:
    """8 or 16: the bits per channel that ``decode`` returns."""
    if image.mode in _WIDE_GREY:
        return 16
    if kind == "TIFF":
        tags: Any = image
        return 16 if 16 in _as_tuple(tags.tag_v2.get(BITSPERSAMPLE, 8)) else 8
    return 16 if kind == "PNG" and _rawmode(image).endswith(";16B") else 8


def channels_of(image: ImageFile, kind: str) -> int:
    """1 to 4: the channels that ``decode`` returns."""
    keyed = int(image.info.get("transparency") is not None)
    if image.mode in ("1", "L", *_WIDE_GREY):
        return 1 + keyed
    if image.mode in ("LA", "La") or _rawmode(image) == "LA;16B":
        return 2
    if image.mode in ("RGBA", "RGBa", "PA"):
        return 4
    return 3 + keyed


def webp_canvas(file: BinaryIO) -> tuple[int, int]:
    """Width and height that a WebP announces (RFC 9649); leaves the file at its start."""
    head = file.read(30)
    file.seek(0)
    chunk, fields = head[12:16], int.from_bytes(head[20:30], "little")
    if len(head) == 30 and chunk == b"VP8X":
        return (fields >> 32 & 0xFFFFFF) + 1, (fields >> 56 & 0xFFFFFF) + 1
    if len(head) == 30 and chunk == b"VP8 ":
        return fields >> 48 & 0x3FFF, fields >> 64 & 0x3FFF
    if len(head) >= 25 and chunk == b"VP8L":
        return (fields >> 8 & 0x3FFF) + 1, (fields >> 22 & 0x3FFF) + 1
    raise PictureError("damaged or truncated WebP (no picture header)")


def _narrow(image: ImageFile) -> NDArray[Any]:
    mode = image.mode
    if mode in _WIDE_GREY:
        image.load()
        pixels = np.array(image, dtype=np.uint16)
        return pixels[:, :, None]
    if mode in ("P", "PA"):
        see_through = mode == "PA" or image.info.get("transparency") is not None
        return _pixels(image.convert("RGBA" if see_through else "RGB"))
    if mode in _DIRECT:
        image.load()
        return _pixels(image)
    target = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}
    if mode not in target:
        raise _unsupported(f"pixels of type {mode!r}")
    return _pixels(image.convert(target[mode]))


def _wide(image: ImageFile, kind: str, again: Callable[[], ImageFile]) -> NDArray[Any]:
    """16-bit colour, or grey with alpha, without loss."""
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":
        # Four bytes a pixel, just as 8-bit RGBA: read as such, they are the two values.
        _set_rawmode(image, "RGBA")
        image.load()
        return _pixels(image).view(">u2").astype(np.uint16)
    planar = image.tag_v2.get(PLANAR_CONFIGURATION, 1) if hasattr(image, "tag_v2") else 1  # type: ignore[attr-defined]
    if rawmode not in _BYTE_PAIRS or planar != 1:
        raise _unsupported(f"16-bit pixels of layout {rawmode!r}")
    high, low = _BYTE_PAIRS[rawmode]
    _set_rawmode(image, high)
    image.load()
    pixels = _pixels(image).astype(np.uint16)
    pixels <<= 8
    image.im = None  # type: ignore[assignment]
    second = again()
    if kind == "TIFF":
        _provide_memory(second)
    _set_rawmode(second, low)
    second.load()
    _pixels(second, add_to=pixels)
    return pixels


def _pixels(image: Image.Image, add_to: NDArray[np.uint16] | None = None) -> NDArray[Any]:
    channels = _DIRECT[image.mode]
    width, height = image.size
    result = np.empty((height, width, channels), np.uint8) if add_to is None else add_to
    across = min(width, _BAND_PIXELS)
    down = max(1, _BAND_PIXELS // width)
    for top in range(0, height, down):
        for left in range(0, width, across):
            target = result[top : top + down, left : left + across]
            box = (left, top, left + target.shape[1], top + target.shape[0])
            piece = np.asarray(image.crop(box)).reshape(target.shape)
            if add_to is None:
                target[...] = piece
            else:
                target |= piece
    return result


def _with_alpha(pixels: NDArray[Any], key: Any, scale: int) -> NDArray[Any]:
    """Alpha 0 where a pixel is the one transparent colour of its file, full elsewhere."""
    top = np.iinfo(pixels.dtype).max
    # Some versions of Pillow have already spread a 1-bit key, hence the minimum.
    colour = np.minimum(np.array(_as_tuple(key)) * scale, top)
    if colour.size != pixels.shape[2]:
        raise PictureError("its transparent colour does not fit its pixels")
    height, width, channels = pixels.shape
    result = np.empty((height, width, channels + 1), pixels.dtype)
    result[:, :, :channels] = pixels
    opaque = (pixels != colour).any(axis=2)
    result[:, :, channels] = opaque * pixels.dtype.type(top)
    return result


def _rawmode(image: ImageFile) -> str:
    if not image.tile:
        return ""
    args: Any = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def _set_rawmode(image: ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _unsupported(what: str) -> UnsupportedPictureError:
    return UnsupportedPictureError(
        f"{what} have no faithful form here; 8- and 16-bit grey, RGB and alpha are accepted"
    )
