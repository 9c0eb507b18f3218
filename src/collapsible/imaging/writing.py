"""Write picture files, whole or not at all."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from collapsible.errors import PictureError, UsageError
from collapsible.imaging.exif import PREFIX
from collapsible.imaging.files import atomic_write
from collapsible.imaging.pictures import Picture
from collapsible.imaging.png import PngWriter

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WebP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
_LONGEST_SIDE = {"JPEG": 65_500, "WebP": 16_383}
# Offsets have 32 bits; a megabyte is left for the directory and the profile.
_LARGEST_TIFF = 2**32 - 2**20
# A JPEG segment holds 65,533 bytes, the prefix included.
_JPEG_EXIF_BYTES = 65_533 - len(PREFIX)
_BAND_PIXELS = 1 << 20


def output_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name asks for: PNG, JPEG, WebP, TIFF or BMP.

    Raises UsageError for any other suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        accepted = ", ".join(_FORMATS)
        raise UsageError(f"cannot write {path}: suffix {suffix!r}; {accepted} are accepted")
    return _FORMATS[suffix]


def code_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """What is left of [H, W, 1] or [H, W, 3] uint8 after JPEG at a quality of 1 to 100.

    As Pillow writes it by default: chroma at half the size. Raises ``UsageError`` for another
    quality.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality!r}: 1 to 100 are accepted")
    stream = io.BytesIO()
    grey = pixels.shape[2] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)).reshape(pixels.shape)


def write_picture(
    path: str | os.PathLike[str],
    picture: Picture | NDArray[Any],
    *,
    quality: int = 95,
    compress_level: int = 1,
    lossless: bool = False,
) -> None:
    """Write a picture in the format of the path's suffix, atomically.

    PNG and TIFF keep 16 bits and alpha (a TIFF holds 16-bit grey with alpha as RGBA). JPEG, WebP
    and BMP hold 8 bits: 16-bit values are divided by 257 and rounded. JPEG and BMP hold no
    alpha: the picture is laid on white.
    Profile, EXIF and dpi of a ``Picture`` are written where the format has a place for them and
    they fit (a profile must be of the pixels' kind, grey or RGB).

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp.
        picture: a ``Picture``, or pixels HxW or HxWx{1,2,3,4}, uint8 or uint16.
        quality: 1 to 100, for JPEG and lossy WebP.
        compress_level: 0 to 9, for PNG: size against time.
        lossless: for WebP.

    Raises:
        UsageError: another suffix, shape, dtype, quality or level.
        PictureError: the file cannot be written (folder missing or not writable, disk full), or
            the format cannot hold a picture of this size.
    """
    kind = output_format(path)
    if not isinstance(picture, Picture):
        picture = Picture(np.asarray(picture))
    pixels = _checked(picture.pixels)
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality!r}: 1 to 100 are accepted")
    height, width, channels = pixels.shape
    longest = _LONGEST_SIDE.get(kind)
    if longest and max(height, width) > longest:
        raise PictureError(
            f"cannot write {path}: {kind} holds sides up to {longest} pixels, the picture is "
            f"{width}x{height}; PNG and TIFF hold it"
        )
    if kind == "TIFF" and pixels.nbytes > _LARGEST_TIFF:
        raise PictureError(
            f"cannot write {path}: TIFF holds 4 GB, the picture has {pixels.nbytes} bytes; PNG "
            "holds it"
        )
    profile = _fitting_profile(picture.icc_profile, channels)
    if kind == "PNG":
        depth = 8 * pixels.dtype.itemsize
        with PngWriter(
            path, height, width, channels, depth, profile, picture.exif, compress_level, picture.dpi
        ) as writer:
            writer.write_rows(pixels)
        return
    options: dict[str, Any] = {}
    if profile:
        options["icc_profile"] = profile
    if picture.dpi:
        options["dpi"] = picture.dpi
    if kind == "JPEG":
        options["quality"] = quality
        if picture.exif and len(picture.exif) <= _JPEG_EXIF_BYTES:
            options["exif"] = PREFIX + picture.exif
    elif kind == "WebP":
        options |= {"quality": quality, "lossless": lossless, "exact": lossless}
        if picture.exif:
            options["exif"] = picture.exif
    with atomic_write(path) as file:
        if kind == "TIFF" and pixels.dtype == np.uint16 and channels > 1:
            if channels == 2:
                # Few programs, and not Pillow, know 16-bit grey with alpha in a TIFF.
                pixels = pixels[:, :, [0, 0, 0, 1]]
            _write_wide_tiff(file, pixels, profile, picture.dpi)
            return
        if kind != "TIFF":
            pixels = _to_8_bits(pixels)
        if kind in ("JPEG", "BMP"):
            pixels = _on_white(pixels)
        image = _image(pixels)
        try:
            image.save(file, kind.upper(), **options)
        except (ValueError, SystemError, struct.error) as error:
            raise PictureError(f"cannot write {path}: {error}") from error


def _checked(pixels: NDArray[Any]) -> NDArray[Any]:
    shaped = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if shaped.ndim != 3 or shaped.shape[2] not in (1, 2, 3, 4) or 0 in shaped.shape:
        raise UsageError(
            f"picture of shape {pixels.shape}: HxW and HxWx1 to HxWx4, not empty, are accepted"
        )
    if shaped.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"picture of dtype {pixels.dtype}: uint8 and uint16 are accepted")
    return shaped


def _fitting_profile(profile: bytes | None, channels: int) -> bytes | None:
    """The profile, if its colour space (ICC.1, header bytes 16 to 19) is that of the pixels."""
    space = b"GRAY" if channels < 3 else b"RGB "
    return profile if profile and profile[16:20] == space else None


def _to_8_bits(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.dtype == np.uint8:
        return pixels
    result = np.empty(pixels.shape, np.uint8)
    for rows in _bands(pixels):
        result[rows] = (pixels[rows].astype(np.uint32) + 128) // 257
    return result


def _on_white(pixels: NDArray[Any]) -> NDArray[Any]:
    channels = pixels.shape[2]
    if channels in (1, 3):
        return pixels
    result = np.empty((*pixels.shape[:2], channels - 1), np.uint8)
    for rows in _bands(pixels):
        colour = pixels[rows, :, :-1].astype(np.uint16)
        alpha = pixels[rows, :, -1:].astype(np.uint16)
        result[rows] = (colour * alpha + 255 * (255 - alpha) + 127) // 255
    return result


def _bands(pixels: NDArray[Any]) -> list[slice]:
    step = max(1, _BAND_PIXELS // pixels.shape[1])
    return [slice(start, start + step) for start in range(0, pixels.shape[0], step)]


def _image(pixels: NDArray[Any]) -> Image.Image:
    # Without the last axis Pillow sees one channel; 16 bits only ever arrive as grey.
    return Image.fromarray(
        np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    )


def _write_wide_tiff(
    file: BinaryIO,
    pixels: NDArray[Any],
    profile: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:
    """An uncompressed little-endian 16-bit RGB or RGBA TIFF 6.0; Pillow cannot write one."""
    height, width, channels = pixels.shape
    size = pixels.size * 2
    short, long, rational, undefined = 3, 4, 5, 7
    resolution = [struct.pack("<II", round(value * 1000), 1000) for value in dpi or ()]
    tags: list[tuple[int, int, int, bytes]] = [
        (256, long, 1, struct.pack("<I", width)),
        (257, long, 1, struct.pack("<I", height)),
        (258, short, channels, struct.pack("<H", 16) * channels),
        (259, short, 1, struct.pack("<H", 1)),
        (262, short, 1, struct.pack("<H", 2)),
        (273, long, 1, struct.pack("<I", 8)),
        (277, short, 1, struct.pack("<H", channels)),
        (278, long, 1, struct.pack("<I", height)),
        (279, long, 1, struct.pack("<I", size)),
    ]
    if dpi:
        tags += [(282, rational, 1, resolution[0]), (283, rational, 1, resolution[1])]
        tags += [(296, short, 1, struct.pack("<H", 2))]
    if channels == 4:
        tags.append((338, short, 1, struct.pack("<H", 2)))
    if profile:
        tags.append((34675, undefined, len(profile), profile))
    # Header, pixels, values too long for their entry, then the directory itself.
    body = bytearray()
    entries = b""
    for tag, kind, count, value in tags:
        if len(value) > 4:
            offset = 8 + size + len(body)
            body += value + b"\x00" * (len(value) % 2)
            value = struct.pack("<I", offset)
        entries += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\x00")
    file.write(struct.pack("<2sHI", b"II", 42, 8 + size + len(body)))
    for rows in _bands(pixels):
        file.write(pixels[rows].astype("<u2").tobytes())
    file.write(bytes(body) + struct.pack("<H", len(tags)) + entries + b"\x00" * 4)
