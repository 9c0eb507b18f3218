"""PNG in bands: a picture of any height is written with the memory of a few rows."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import PictureError, UsageError
from collapsible.imaging.files import atomic_write

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_MAX_SIDE = 2**31 - 1
# Filtered and compressed in pieces that fit a core's cache; written in IDAT chunks of a megabyte.
_BAND_BYTES = 1 << 19
_CHUNK_BYTES = 1 << 20
_READ_BYTES = 1 << 20


class PngWriter:
    """Write a PNG band by band; the file appears only when all rows are in.

    A context manager::

        with PngWriter("out.png", height, width, channels=3) as writer:
            for band in bands:  # any number of rows at a time, from the top
                writer.write_rows(band)

    Memory is bounded by the band. Filters are chosen per row by the smallest sum of absolute
    differences (PNG specification, section 12.7): up to level 1 between Sub and Up, which keeps
    the file as small as Pillow's level 1 at less than half its time; above, among all five.

    Args:
        path: the target, replaced atomically at the end.
        height, width: pixels.
        channels: 1 grey, 2 grey+alpha, 3 RGB, 4 RGBA.
        bit_depth: 8 (uint8 rows) or 16 (uint16 rows).
        icc_profile, exif: kept in the file; ``exif`` with or without its ``Exif`` prefix.
        dpi: horizontal and vertical pixels per inch.
        compress_level: zlib's 0 (none) to 9 (smallest).

    Raises:
        UsageError: an impossible size, depth, channel count or level; rows of another shape or
            dtype; too many rows.
        PictureError: the file cannot be written, or the block ended with rows missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        channels: int,
        bit_depth: int = 8,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
        compress_level: int = 1,
        dpi: tuple[float, float] | None = None,
    ) -> None:
        if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
            raise UsageError(f"PNG size {width}x{height}: sides from 1 to {_MAX_SIDE} are accepted")
        if channels not in _COLOUR_TYPES:
            raise UsageError(f"PNG with {channels} channels: 1, 2, 3 and 4 are accepted")
        if bit_depth not in (8, 16):
            raise UsageError(f"PNG bit depth {bit_depth}: 8 and 16 are accepted")
        if compress_level not in range(10):
            raise UsageError(f"compress_level {compress_level!r}: 0 to 9 are accepted")
        self.path = Path(path)
        self.height, self.width, self.channels = height, width, channels
        self.bit_depth = bit_depth
        self.rows_written = 0
        self._level = compress_level
        colour = _COLOUR_TYPES[channels]
        header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
        metadata = _metadata(icc_profile, exif, dpi)
        # Goes out with the first pixels.
        self._head = SIGNATURE + b"".join(
            _chunk(kind, data) for kind, data in [(b"IHDR", header), *metadata]
        )
        self._stack = ExitStack()
        self._file: BinaryIO | None = None
        self._deflate = zlib.compressobj(compress_level)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._stride = channels * bit_depth // 8
        self._above = np.zeros((1, width * self._stride), np.uint8)

    def __enter__(self) -> PngWriter:
        self._file = self._stack.enter_context(atomic_write(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if self.rows_written != self.height:
                raise PictureError(
                    f"cannot write {self.path}: only {self.rows_written} of {self.height} rows "
                    "were given"
                )
            self._push(self._deflate.flush())
            self._flush()
            assert self._file is not None
            self._file.write(_chunk(b"IEND", b""))

    def write_rows(self, rows: NDArray[Any]) -> None:
        """Add rows (n x width x channels, or n x width for one channel), from the top down."""
        kind = np.uint8 if self.bit_depth == 8 else np.uint16
        if rows.ndim == 2 and self.channels == 1:
            rows = rows[:, :, None]
        if rows.shape[1:] != (self.width, self.channels) or rows.dtype != kind:
            raise UsageError(
                f"PNG rows of shape {rows.shape} and dtype {rows.dtype}: "
                f"(n, {self.width}, {self.channels}) and {np.dtype(kind)} are accepted"
            )
        if self._file is None:
            raise UsageError("PngWriter is used in a with statement: rows came before it began")
        if self.rows_written + len(rows) > self.height:
            raise UsageError(
                f"PNG rows {self.rows_written + len(rows)}: the height is {self.height}"
            )
        band = max(1, _BAND_BYTES // self._above.size)
        for start in range(0, len(rows), band):
            piece = rows[start : start + band]
            if self.bit_depth == 16:
                piece = piece.astype(">u2").view(np.uint8)
            raw = np.ascontiguousarray(piece).reshape(len(piece), -1)
            self._push(self._deflate.compress(self._filter(raw).data))
        self.rows_written += len(rows)

    def _filter(self, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Each row behind the number of its filter."""
        result = np.empty((raw.shape[0], raw.shape[1] + 1), np.uint8)
        above = np.concatenate([self._above, raw[:-1]])
        self._above = raw[-1:].copy()
        if self._level == 0:
            result[:, 0], result[:, 1:] = 0, raw
            return result
        left = _shifted(raw, self._stride)
        tried = [(1, raw - left), (2, raw - above)]
        if self._level > 1:
            tried += [(0, raw), (3, raw - _average(left, above))]
            tried += [(4, raw - _paeth(left, above, _shifted(above, self._stride)))]
        costs = np.stack([_cost(rows) for _, rows in tried])
        best = costs.argmin(axis=0)
        for i, (number, rows) in enumerate(tried):
            chosen = best == i
            if chosen.all():
                result[:, 0], result[:, 1:] = number, rows
                break
            result[chosen, 0], result[chosen, 1:] = number, rows[chosen]
        return result

    def _push(self, data: bytes) -> None:
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._file is not None
        self._file.write(self._head)
        if self._pending_bytes:
            self._file.write(_chunk(b"IDAT", b"".join(self._pending)))
        self._head, self._pending, self._pending_bytes = b"", [], 0


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


def check_png(file: BinaryIO) -> tuple[int, int]:
    """Walk the chunks of a PNG; bit depth and colour type, if every critical chunk is whole.

    Pillow does not compare the checksums of pixel data, so a flipped bit would pass unseen.
    Raises PictureError with the reason alone; leaves the file at its start.
    """
    file.seek(len(SIGNATURE))
    depth = colour = -1
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise PictureError("it ends before its last chunk")
        length, kind = struct.unpack(">I4s", head)
        critical = not kind[0] & 0x20
        first = file.read(min(length, 26)) if critical else b""
        if depth < 0:
            if kind != b"IHDR" or len(first) != 13:
                raise PictureError("it does not begin with a header")
            depth, colour = first[8], first[9]
        checksum, left = zlib.crc32(first, zlib.crc32(kind)), length - len(first)
        if not critical:
            file.seek(left, os.SEEK_CUR)
        while critical and left > 0:
            piece = file.read(min(left, _READ_BYTES))
            if not piece:
                raise PictureError("it ends inside its pixel data")
            checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        stored = file.read(4)
        if len(stored) < 4:
            raise PictureError("it ends before its last chunk")
        if critical and stored != struct.pack(">I", checksum):
            name = kind.decode("ascii", "replace")
            raise PictureError(f"the checksum of its {name} chunk does not match")
        if kind == b"IEND":
            file.seek(0)
            return depth, colour


def _metadata(
    icc_profile: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None
) -> list[tuple[bytes, bytes]]:
    chunks: list[tuple[bytes, bytes]] = []
    if icc_profile:
        chunks.append((b"iCCP", b"ICC Profile\x00\x00" + zlib.compress(icc_profile)))
    if dpi:
        per_metre = [min(max(round(value / 0.0254), 1), _MAX_SIDE) for value in dpi]
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\x00\x00")))
    return chunks


def _shifted(rows: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    """The byte of the pixel to the left; zero at the border."""
    left = np.zeros_like(rows)
    left[:, stride:] = rows[:, :-stride]
    return left


def _cost(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    # Every fifth byte is enough to choose a filter by, saves most of the time, and falls on
    # every channel in turn.
    signed = rows[:, ::5].view(np.int8) if rows.shape[1] > 64 else rows.view(np.int8)
    return np.abs(signed.astype(np.int16)).sum(axis=1)


def _average(left: NDArray[np.uint8], above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # The floor of the mean without a ninth bit.
    one = np.uint8(1)
    return (left >> one) + (above >> one) + (left & above & one)


def _paeth(
    left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """PNG specification, section 9.4."""
    a, b, c = (x.astype(np.int16) for x in (left, above, corner))
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    first = (to_a <= to_b) & (to_a <= to_c)
    second: NDArray[np.uint8] = np.where(to_b <= to_c, above, corner)
    chosen: NDArray[np.uint8] = np.where(first, left, second)
    return chosen
