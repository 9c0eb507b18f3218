"""Writing: lossless where the format is, atomic always, PNG by its own specification."""

from __future__ import annotations

import errno
import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from collapsible.errors import PictureError, UsageError
from collapsible.imaging import (
    Picture,
    PngWriter,
    atomic_write,
    output_format,
    psnr,
    read_picture,
    write_picture,
)

RNG = np.random.default_rng(12)
CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth(*shape: int) -> np.ndarray:
    """Slopes in both directions with a little noise, so that each filter has its rows."""
    y, x, c = np.indices(shape)
    kind = (y // 7) % 4
    values = np.choose(kind, [x * 3, y * 5, x + y * 2, x * y // 3]) + c * 40
    values = (values + RNG.integers(0, 2, shape)) % 256
    for row in range(1, shape[0], 9):
        for column in range(1, shape[1]):
            values[row, column] = (values[row, column - 1] + values[row - 1, column]) // 2
    return values.astype(np.uint8)


def png_decoded(data: bytes) -> tuple[np.ndarray, set[int]]:
    """A plain PNG decoder, byte by byte as the specification says; also the filters met."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, header = 8, b"", ()
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        packed += body if kind == b"IDAT" else b""
        position += 12 + length
    assert kind == b"IEND"
    width, height, depth, colour, *rest = header
    assert rest == [0, 0, 0]
    bpp = CHANNELS[colour] * depth // 8
    raw = zlib.decompress(packed)
    stride = width * bpp
    assert len(raw) == height * (stride + 1)
    above, rows, filters = [0] * stride, [], set()
    for y in range(height):
        start = y * (stride + 1)
        kind_of_row, row = raw[start], list(raw[start + 1 : start + 1 + stride])
        filters.add(kind_of_row)
        for i in range(stride):
            a = row[i - bpp] if i >= bpp else 0
            b, c = above[i], above[i - bpp] if i >= bpp else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row[i] = (row[i] + (0, a, b, (a + b) // 2, paeth)[kind_of_row]) % 256
        rows.append(bytes(row))
        above = row
    pixels = np.frombuffer(b"".join(rows), ">u2" if depth == 16 else "u1")
    return pixels.reshape(height, width, CHANNELS[colour]), filters


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    channels=st.sampled_from([1, 2, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    height=st.integers(1, 12),
    width=st.integers(1, 30),
    level=st.sampled_from([0, 1, 2, 9]),
)
def test_png_by_the_specification(
    tmp_path_factory, data, channels, dtype, height, width, level
) -> None:
    pixels = noise(height, width, channels, dtype=dtype)
    path = tmp_path_factory.mktemp("png") / "a.png"
    depth = 8 * pixels.itemsize
    with PngWriter(path, height, width, channels, depth, compress_level=level) as writer:
        row = 0
        while row < height:
            step = data.draw(st.integers(1, height - row))
            writer.write_rows(pixels[row : row + step])
            row += step
    decoded, _ = png_decoded(path.read_bytes())
    np.testing.assert_array_equal(decoded, pixels)
    np.testing.assert_array_equal(read_picture(path).pixels, pixels)


@pytest.mark.parametrize(("level", "filters"), [(0, {0}), (1, {1, 2}), (6, {1, 2, 3, 4})])
def test_filters_are_chosen_by_row(tmp_path: Path, level: int, filters: set[int]) -> None:
    pixels = smooth(56, 90, 3)
    path = tmp_path / "a.png"
    write_picture(path, pixels, compress_level=level)
    decoded, met = png_decoded(path.read_bytes())
    np.testing.assert_array_equal(decoded, pixels)
    assert met == filters
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)


def test_real_picture_is_no_larger_than_pillow_makes_it(shared_data: Path, tmp_path: Path) -> None:
    pixels = read_picture(shared_data / "sr" / "Set5" / "HR" / "baby.png").pixels
    write_picture(tmp_path / "a.png", pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    assert (tmp_path / "a.png").stat().st_size < 1.1 * len(buffer.getvalue())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)


def test_png_streams_in_little_memory(tmp_path: Path) -> None:
    band = noise(50, 4000, 3)
    tracemalloc.start()
    try:
        with PngWriter(tmp_path / "a.png", 2000, 4000, 3) as writer:
            for _ in range(40):
                writer.write_rows(band)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The whole picture is 24 MB; a band, its filtered forms and one chunk are a quarter.
    assert peak < 8e6
    found = read_picture(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(found[-50:], band)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_lossless_formats_return_every_bit(tmp_path: Path, suffix, channels, dtype) -> None:
    pixels = noise(23, 37, channels, dtype=dtype)
    path = tmp_path / f"a.{suffix}"
    write_picture(path, pixels)
    found = read_picture(path).pixels
    if (suffix, channels, dtype) == ("tif", 2, np.uint16):
        pixels = pixels[..., [0, 0, 0, 1]]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)
    if suffix == "tif":
        truth = tifffile.imread(path)
        np.testing.assert_array_equal(truth.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("channels", [3, 4])
def test_lossless_webp(tmp_path: Path, channels: int) -> None:
    pixels = noise(23, 37, channels)
    write_picture(tmp_path / "a.webp", pixels, lossless=True)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.webp").pixels, pixels)
    write_picture(tmp_path / "b.webp", pixels)
    assert (tmp_path / "b.webp").stat().st_size < (tmp_path / "a.webp").stat().st_size


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_alpha_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 48, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, 16:32, 3] = 255
    pixels[:, 32:, 3] = 51
    write_picture(tmp_path / f"a.{suffix}", pixels)
    found = read_picture(tmp_path / f"a.{suffix}").pixels[8, [4, 24, 40]].astype(int)
    # 51/255 is a fifth: 200 / 5 + 255 * 4 / 5 = 244 and 0 + 204.
    expected = np.array([[255, 255, 255], [200, 0, 0], [244, 204, 204]])
    assert np.abs(found - expected).max() <= (0 if suffix == "bmp" else 2)


def test_8_bit_formats_round_16_bits(tmp_path: Path) -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_picture(tmp_path / "a.bmp", wide)
    expected = np.floor(wide / 257.0 + 0.5)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.bmp").pixels[..., 0], expected)


def test_jpeg_quality(tmp_path: Path) -> None:
    pixels = smooth(64, 64, 3)
    sizes, ratios = [], []
    for quality in (30, 95):
        write_picture(tmp_path / "a.jpg", pixels, quality=quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
        ratios.append(psnr(pixels, read_picture(tmp_path / "a.jpg").pixels))
    assert sizes[0] < sizes[1]
    assert ratios[0] < ratios[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_metadata_travels(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    given_picture = Picture(noise(8, 9, 3), "", profile, exif.tobytes()[6:], (300.0, 150.0))
    write_picture(tmp_path / f"a.{suffix}", given_picture)
    found = read_picture(tmp_path / f"a.{suffix}")
    assert found.icc_profile == profile
    if suffix != "webp":
        assert found.dpi == pytest.approx((300, 150), rel=1e-3)
    if suffix != "tif":
        assert found.exif == given_picture.exif
    with Image.open(tmp_path / f"a.{suffix}") as peer:
        assert peer.info["icc_profile"] == profile
        assert peer.getexif().get(0x010F) == ("A camera" if suffix != "tif" else None)


def test_a_profile_of_another_kind_is_left_out(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(tmp_path / "a.png", Picture(noise(4, 4, 1), icc_profile=profile))
    assert read_picture(tmp_path / "a.png").icc_profile is None


def test_16_bit_tiff_keeps_profile_and_dpi(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(5, 4, 3, dtype=np.uint16)
    write_picture(tmp_path / "a.tif", Picture(pixels, icc_profile=profile, dpi=(300, 72)))
    found = read_picture(tmp_path / "a.tif")
    assert (found.icc_profile, found.dpi) == (profile, (300, 72))
    np.testing.assert_array_equal(found.pixels, pixels)


def test_too_long_exif_is_left_out_of_a_jpeg(tmp_path: Path) -> None:
    long = Picture(noise(4, 4, 3), exif=b"II*\0" + bytes(70_000))
    write_picture(tmp_path / "a.jpg", long)
    assert read_picture(tmp_path / "a.jpg").exif is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1, 1, 4), (1, 300, 3), (300, 1, 3)])
def test_smallest_pictures(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    pixels = np.full(shape, 255, np.uint8)
    write_picture(tmp_path / f"a.{suffix}", pixels)
    found = read_picture(tmp_path / f"a.{suffix}").pixels
    assert found.shape[:2] == shape[:2]
    assert (found >= 254).all()


@pytest.mark.parametrize(("suffix", "side"), [("jpg", 65_501), ("webp", 16_384)])
def test_sides_that_a_format_cannot_hold(tmp_path: Path, suffix: str, side: int) -> None:
    with pytest.raises(PictureError, match=f"sides up to {side - 1} pixels"):
        write_picture(tmp_path / f"a.{suffix}", np.zeros((1, side), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_tiff_beyond_4_gigabytes(tmp_path: Path) -> None:
    vast = np.broadcast_to(np.uint8(0), (66_000, 66_000))
    with pytest.raises(PictureError, match=r"a\.tif: TIFF holds 4 GB"):
        write_picture(tmp_path / "a.tif", vast)
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(UsageError, match=r"suffix '\.gif'.*\.png"):
        write_picture(tmp_path / "a.gif", pixels)
    for wrong in (pixels.astype(float), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(UsageError, match="accepted"):
            write_picture(tmp_path / "a.png", wrong)
    with pytest.raises(UsageError, match="quality"):
        write_picture(tmp_path / "a.jpg", pixels, quality=0)
    with pytest.raises(UsageError, match="compress_level"):
        write_picture(tmp_path / "a.png", pixels, compress_level=10)
    for arguments in ((0, 4, 3), (4, 0, 3), (4, 4, 5), (4, 4, 3, 4)):
        with pytest.raises(UsageError, match="PNG"):
            PngWriter(tmp_path / "a.png", *arguments)
    assert list(tmp_path.iterdir()) == []
    assert [output_format(f"x.{s}") for s in ("JPG", "tif")] == ["JPEG", "TIFF"]


def test_png_rows_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UsageError, match="with statement"):
        PngWriter(path, 2, 2, 1).write_rows(np.zeros((1, 2), np.uint8))
    for wrong in (np.zeros((1, 3, 1), np.uint8), np.zeros((1, 2, 1), np.uint16)):
        with pytest.raises(UsageError, match="rows of shape"), PngWriter(path, 2, 2, 1) as writer:
            writer.write_rows(wrong)
    with pytest.raises(UsageError, match="height is 2"), PngWriter(path, 2, 2, 1) as writer:
        writer.write_rows(np.zeros((3, 2), np.uint8))
    with pytest.raises(PictureError, match="only 1 of 2 rows"), PngWriter(path, 2, 2, 1) as writer:
        writer.write_rows(np.zeros((1, 2), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half_and_fail() -> None:
        with PngWriter(path, 2, 2, 1) as writer:
            writer.write_rows(np.zeros((1, 2), np.uint8))
            raise error

    with pytest.raises(error):
        half_and_fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_ctrl_c_while_encoding(tmp_path: Path, monkeypatch, suffix: str) -> None:
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(PngWriter, "_push", interrupted)
    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_picture(tmp_path / f"a.{suffix}", np.zeros((4, 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch, suffix: str) -> None:
    """Every write goes to /dev/full, which fails as a full disk does."""
    opened = Path.open

    def full(self: Path, mode: str = "r", *args, **options):
        if self.suffix == ".part":
            opened(self, mode).close()
            return open("/dev/full", "wb")  # noqa: PTH123
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(PictureError, match=os.strerror(errno.ENOSPC)) as caught:
        write_picture(tmp_path / f"a.{suffix}", noise(200, 200, 3))
    assert f"a.{suffix}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch) -> None:
    def refused(self, *_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    # Simulated: tests may run as root, to whom every folder is writable.
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PictureError, match=r"cannot write .*a\.png: Permission denied"):
        write_picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8))


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"the folder .*nowhere does not exist"):
        write_picture(tmp_path / "nowhere" / "a.jpg", np.zeros((4, 4), np.uint8))
    (tmp_path / "b.png").mkdir()
    with pytest.raises(PictureError, match="it is a folder"):
        write_picture(tmp_path / "b.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match=r"a\.jpg"):
        write_picture(tmp_path / "file" / "a.jpg", np.zeros((4, 4), np.uint8))


def test_atomic_write_follows_links_and_the_umask(tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_bytes(b"old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    with atomic_write(link) as file:
        file.write(b"new")
        assert real.read_bytes() == b"old"
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    plain = tmp_path / "plain"
    plain.touch()
    assert real.stat().st_mode == plain.stat().st_mode
