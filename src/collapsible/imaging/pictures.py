"""Read picture files: what they hold, upright and whole, or one clear line on why not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from collapsible.errors import CollapsibleError, PictureError, UsageError
from collapsible.imaging import exif as exif_bytes
from collapsible.imaging.decode import (
    UnsupportedPictureError,
    bits_of,
    channels_of,
    decode,
    webp_canvas,
)
from collapsible.imaging.png import SIGNATURE as PNG_SIGNATURE
from collapsible.imaging.png import check_png

MAX_PIXELS = 500_000_000
"""Pixels that ``read_picture`` accepts unless told otherwise."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
"""Lower-case suffixes that ``list_pictures`` looks for."""

# The plugins are called directly: ``Image.open`` would add its own limit on pixels, which is a
# global of the process and speaks through warnings, and would take phone JPEGs that carry a
# second picture (a depth or gain map) for animations.
_OPENERS: dict[str, Any] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
# catch_warnings swaps state of the whole process; two threads must not interleave there.
_WARNINGS = Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory.

    Attributes:
        pixels: HxWxC, uint8 or uint16, C-contiguous; C = 1 grey, 2 grey and alpha, 3 RGB,
            4 RGBA (alpha not premultiplied); full range of the dtype.
        format: where it came from: ``"PNG"``, ``"JPEG"``, ``"WebP"``, ``"TIFF"``, ``"BMP"``,
            ``"GIF"``, or ``""`` for pixels made in memory.
        icc_profile: the colour profile of ``pixels``, if the file has one.
        exif: the EXIF block (its TIFF structure, without the ``Exif`` prefix), orientation 1.
        dpi: horizontal and vertical pixels per inch, if the file says.
    """

    pixels: NDArray[Any]
    format: str = ""
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


@dataclass(frozen=True)
class PictureInfo:
    """What a picture file's header says.

    Attributes:
        width, height: pixels of the upright picture, as ``read_picture`` would return it.
        channels: as ``Picture.pixels`` would have; bits: per channel, 8 or 16.
        mode: Pillow's name of the stored pixel layout, such as ``"RGB"`` or ``"P"``.
        format: as in ``Picture``.
        frames: 1 for a still picture.
    """

    width: int
    height: int
    channels: int
    bits: int
    mode: str
    format: str
    frames: int


def read_picture(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    frame: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, BMP or GIF file, known by its content, not its name.

    8- and 16-bit pixels arrive without loss; 1-, 2- and 4-bit grey is spread over 0..255,
    palettes become RGB or RGBA, a transparent colour becomes alpha, and CMYK becomes RGB
    (without its profile, which would no longer apply). EXIF orientation is applied to the
    pixels and set to 1.

    Args:
        path: the file, or an open binary one that can be sought.
        frame: which frame of an animation or page of a TIFF, from 0.
        max_pixels: the largest width x height accepted; checked before pixels are decoded.

    Raises:
        PictureError: missing, empty, damaged, truncated or not a picture; larger than
            ``max_pixels``.
        UnsupportedPictureError: several frames and ``frame`` is None; a pixel type with no
            faithful form here (32-bit and floating-point TIFF, for example).
        UsageError: ``frame`` is not one of the file's.
    """
    with _opened(path, max_pixels) as (kind, file):
        if kind == "PNG":
            check_png(file)
        image = _open_frame(kind, file, frame, max_pixels)
        profile = image.info.get("icc_profile")
        exif = exif_bytes.strip_prefix(image.info.get("exif"))
        dpi = _dpi(image)
        # A GIF frame may be cropped from its canvas as it loads, which Pillow may warn about.
        with _quiet() if kind == "GIF" else nullcontext():
            pixels = decode(image, kind, lambda: _open_frame(kind, file, frame, max_pixels))
        if image.mode == "CMYK":
            profile = None
    return Picture(
        pixels=exif_bytes.upright(pixels, exif_bytes.orientation(exif)),
        format=kind,
        icc_profile=profile or None,
        exif=exif_bytes.reset_orientation(exif),
        dpi=dpi,
    )


def picture_info(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> PictureInfo:
    """What the file's header says, without decoding pixels; errors as in ``read_picture``."""
    with _opened(path, max_pixels) as (kind, file):
        image = _open_frame(kind, file, 0, max_pixels)
        width, height = image.size
        if exif_bytes.orientation(exif_bytes.strip_prefix(image.info.get("exif"))) >= 5:
            width, height = height, width
        return PictureInfo(
            width=width,
            height=height,
            channels=channels_of(image, kind),
            bits=bits_of(image, kind),
            mode=image.mode,
            format=kind,
            frames=_frames(image),
        )


def list_pictures(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """Files in a folder whose suffix is that of a known format (any case), sorted by path.

    Hidden files and folders (a leading dot) are left out; links to folders are not followed.
    Raises UsageError if there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"no folder at {root}")
    found: list[Path] = []
    for here, folders, names in os.walk(root):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in PICTURE_SUFFIXES)


@contextmanager
def _opened(
    path: str | os.PathLike[str] | BinaryIO, max_pixels: int
) -> Iterator[tuple[str, BinaryIO]]:
    """The file and its format; whatever goes wrong inside becomes one line naming the file."""
    named = isinstance(path, str | os.PathLike)
    try:
        with Path(path).open("rb") if named else nullcontext(path) as file:
            kind = _kind(file)
            if kind == "WebP":
                # Its decoder allocates the canvas before Pillow can say how large it is.
                _check_size(webp_canvas(file), max_pixels)
            try:
                yield kind, file
            except CollapsibleError:
                raise
            except MemoryError as error:
                raise PictureError("there is not enough memory to decode it") from error
            except Image.DecompressionBombError as error:
                raise PictureError(f"Pillow refuses it: {_one_line(error)}") from error
            except Exception as error:
                if str(error) == "unknown pixel mode":
                    raise UnsupportedPictureError(f"{kind} of an {error}") from error
                raise PictureError(f"damaged or truncated {kind} ({_one_line(error)})") from error
    except (PictureError, UsageError) as error:
        where = path if named else getattr(path, "name", "the picture")
        raise type(error)(f"cannot read {where}: {error}") from error.__cause__
    except IsADirectoryError as error:
        raise PictureError(f"cannot read {path}: it is a folder; a file is accepted") from error
    except OSError as error:
        raise PictureError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of oddities in metadata; here the pixels decide whether a file is sound."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _kind(file: BinaryIO) -> str:
    head = file.read(16)
    file.seek(0)
    if not head:
        raise PictureError("the file is empty")
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM":
        return "BMP"
    raise PictureError("it is not a picture in a known format (PNG, JPEG, WebP, TIFF, BMP, GIF)")


def _open_frame(kind: str, file: BinaryIO, frame: int | None, max_pixels: int) -> ImageFile:
    """The header of the chosen frame, its size checked and its pixels not yet decoded."""
    file.seek(0)
    with _quiet():
        image: ImageFile = _OPENERS[kind](file, "")
        _check_size(image.size, max_pixels)
        frames = _frames(image)
        if frame is None and frames > 1:
            raise UnsupportedPictureError(
                f"it holds {frames} frames, and animations are not processed; choose one frame "
                f"from 0 to {frames - 1}"
            )
        if frame is not None and not 0 <= frame < frames:
            raise UsageError(f"frame {frame}: 0 to {frames - 1} are accepted")
        if frames > 1:
            image.seek(frame or 0)
        _check_size(image.size, max_pixels)
    return image


def _frames(image: ImageFile) -> int:
    return int(getattr(image, "n_frames", 1))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(
            f"its header announces {width}x{height} pixels; up to {max_pixels} pixels are accepted"
        )
    if width < 1 or height < 1:
        raise PictureError(f"its header announces {width}x{height} pixels")


def _dpi(image: ImageFile) -> tuple[float, float] | None:
    given = image.info.get("dpi")
    try:
        x, y = (float(value) for value in given or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # Pillow reports 1 for a TIFF that says nothing.
    return (x, y) if 1 < x < 1e6 and 1 < y < 1e6 else None
