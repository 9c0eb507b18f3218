"""Hostile files: each ends in one line that names the file, and never in another error."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from collapsible.errors import PictureError
from collapsible.imaging import picture_info, read_picture

FORMATS = {
    "png": {},
    "jpg": {"quality": 90},
    "webp": {},
    "lossless.webp": {"lossless": True},
    "tif": {},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "bmp": {},
    "gif": {},
}


def sample(name: str) -> bytes:
    y, x = np.indices((60, 80))
    pixels = np.stack([y * 4, x * 3, (x * y) % 256], 2).astype(np.uint8)
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.split(".")[-1], name.split(".")[-1])
    Image.fromarray(pixels).save(buffer, kind, **FORMATS[name])
    return buffer.getvalue()


def refused(path: Path) -> str:
    """The message, which must be one line naming the file."""
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def test_samples_are_sound(tmp_path: Path) -> None:
    for name in FORMATS:
        path = tmp_path / f"a.{name}"
        path.write_bytes(sample(name))
        assert read_picture(path).pixels.shape == (60, 80, 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    data = sample(name)
    path = tmp_path / f"cut.{name}"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_header_and_then_rubbish(tmp_path: Path, name: str) -> None:
    data = sample(name)
    path = tmp_path / f"rubbish.{name}"
    path.write_bytes(data[:16] + b"\xa5" * (len(data) - 16))
    refused(path)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
    keep=st.floats(0.3, 1),
)
def test_any_damage_ends_in_pixels_or_one_line(tmp_path_factory, name, flips, keep) -> None:
    data = bytearray(sample(name))
    for place, change in flips:
        # Half of the damage falls on the header, where it hurts most.
        span = len(data) if change % 2 else min(64, len(data))
        data[int(place * span)] ^= change
    path = tmp_path_factory.mktemp("damage") / f"damaged.{name}"
    path.write_bytes(data[: max(1, int(len(data) * keep))])
    for function in (read_picture, picture_info):
        message = ""
        try:
            function(path, max_pixels=1_000_000)
        except PictureError as error:
            message = str(error)
        assert not message or path.name in message
        assert "\n" not in message


def test_one_flipped_bit_of_png_pixels_is_seen(tmp_path: Path) -> None:
    """Pillow alone returns other pixels here, without a word."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    data = bytearray(buffer.getvalue())
    data[data.index(b"IDAT") + 40] ^= 1
    path = tmp_path / "flipped.png"
    path.write_bytes(data)
    assert "checksum of its IDAT chunk" in refused(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_empty_and_text_files(tmp_path: Path, suffix: str) -> None:
    empty, text = tmp_path / f"empty.{suffix}", tmp_path / f"text.{suffix}"
    empty.touch()
    text.write_text("This is no picture.\n" * 20)
    assert "the file is empty" in refused(empty)
    assert "not a picture in a known format" in refused(text)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nowhere.png")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert "it is a folder" in refused(folder)
    with pytest.raises(PictureError, match="it is a folder"):
        picture_info(folder)


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    side = 60_000
    jpeg = bytearray(sample("jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    bmp = bytearray(sample("bmp"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(sample("gif"))
    gif[6:10] = struct.pack("<HH", side, side)
    tif = bytearray(sample("tif"))
    (directory,) = struct.unpack_from("<I", tif, 4)
    for entry in range(struct.unpack_from("<H", tif, directory)[0]):
        place = directory + 2 + 12 * entry
        if struct.unpack_from("<H", tif, place)[0] in (256, 257):
            tif[place + 2 : place + 12] = struct.pack("<HII", 4, 1, side)
    extended = struct.pack("<I", 0) + (side - 1).to_bytes(3, "little") * 2
    webp = b"VP8X" + struct.pack("<I", 10) + extended + sample("webp")[12:]
    return {
        "png": png_bomb(side),
        "jpg": bytes(jpeg),
        "bmp": bytes(bmp),
        "gif": bytes(gif),
        "tif": bytes(tif),
        "webp": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
    }


@pytest.mark.parametrize("suffix", sorted(bombs()))
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(bombs()[suffix])
    tracemalloc.start()
    try:
        message = refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "60000x60000 pixels; up to 500000000 pixels are accepted" in message
    assert peak < 5e6
    with pytest.raises(PictureError, match="60000x60000"):
        picture_info(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
def test_the_limit_on_pixels_is_the_callers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(sample(suffix))
    assert read_picture(path, max_pixels=60 * 80).pixels.shape == (60, 80, 3)
    with pytest.raises(PictureError, match="80x60 pixels; up to 4799 pixels"):
        read_picture(path, max_pixels=60 * 80 - 1)


def test_above_pillows_own_limit_no_warning_leaks(tmp_path: Path, monkeypatch) -> None:
    """Above the limit Pillow warns, above twice the limit it refuses."""
    for limit in (4000, 2000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr("collapsible.imaging.decode._BAND_PIXELS", 1000)
        for name in FORMATS:
            path = tmp_path / f"a.{name}"
            path.write_bytes(sample(name))
            try:
                assert read_picture(path).pixels.shape == (60, 80, 3)
            except PictureError as error:
                # Newer versions of Pillow ask before their WebP decoder exists.
                if not ("webp" in name and limit == 2000 and "Pillow refuses it" in str(error)):
                    raise


def test_a_gif_frame_that_grows_the_canvas_is_measured(tmp_path: Path) -> None:
    data = bytearray(sample("gif"))
    place = data.index(b"\x2c", 13 + 3 * 256)
    data[place + 5 : place + 9] = struct.pack("<HH", 50_000, 50_000)
    path = tmp_path / "grows.gif"
    path.write_bytes(data)
    assert "2500000000 pixels" in refused(path)
    data[place + 5 : place + 9] = struct.pack("<HH", 300, 300)
    path.write_bytes(data)
    with pytest.raises(PictureError, match="300x300 pixels; up to 80000 pixels"):
        read_picture(path, max_pixels=80_000)


def test_memory_that_runs_out_is_one_line(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(sample("png"))

    def exhausted(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "crop", exhausted)
    assert "not enough memory" in refused(path)


def test_a_compressed_text_bomb_beside_the_pixels(tmp_path: Path) -> None:
    text = zlib.compress(bytes(200_000_000), 9)
    body = b"Comment\0\0" + text
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = sample("png")
    path = tmp_path / "text.png"
    path.write_bytes(data[:33] + chunk + data[33:])
    tracemalloc.start()
    try:
        refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_threads_read_side_by_side_and_leave_the_warnings_alone(tmp_path: Path) -> None:
    """A file that Pillow warns about, read by many threads, leaves the filters as they were."""
    broken_animation = struct.pack(">I", 8) + b"acTL" + struct.pack(">II", 0, 0)
    broken_animation += struct.pack(">I", zlib.crc32(broken_animation[4:]))
    data = sample("png")
    path = tmp_path / "odd.png"
    path.write_bytes(data[:33] + broken_animation + data[33:])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_picture(path).pixels, range(64)))
    assert all((pixels == found[0]).all() for pixels in found)
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(path).close()
