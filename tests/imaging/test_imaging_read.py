"""Reading: every layout of every format, against Pillow, tifffile and the PNG specification."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from collapsible.errors import UsageError
from collapsible.imaging import (
    UnsupportedPictureError,
    list_pictures,
    picture_info,
    read_picture,
)

RNG = np.random.default_rng(11)
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(pixels: np.ndarray, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A 16-bit PNG by the specification alone: no filters, the seven Adam7 passes if asked."""
    height, width, channels = pixels.shape
    passes = [(0, 1, 0, 1)]
    if interlaced:
        passes = [
            (0, 8, 0, 8),
            (0, 8, 4, 8),
            (4, 8, 0, 4),
            (0, 4, 2, 4),
            (2, 4, 0, 2),
            (0, 2, 1, 2),
            (1, 2, 0, 1),
        ]
    raw = b""
    for y, dy, x, dx in passes:
        part = pixels[y::dy, x::dx]
        if part.size:
            raw += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
    header = struct.pack(
        ">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, int(interlaced)
    )
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([1, 2, 3, 4]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    interlaced=st.booleans(),
)
def test_16_bit_png_is_read_without_loss(
    tmp_path_factory, channels, height, width, interlaced
) -> None:
    pixels = noise(height, width, channels, dtype=np.uint16)
    path = tmp_path_factory.mktemp("png") / "wide.png"
    path.write_bytes(png_bytes(pixels, interlaced=interlaced))
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_transparent_colour_becomes_alpha(tmp_path: Path, channels: int) -> None:
    pixels = noise(6, 7, channels, dtype=np.uint16)
    key = pixels[2, 3]
    path = tmp_path / "key.png"
    path.write_bytes(png_bytes(pixels, extra=chunk(b"tRNS", key.astype(">u2").tobytes())))
    found = read_picture(path).pixels
    assert found.shape == (6, 7, channels + 1)
    np.testing.assert_array_equal(found[..., :channels], pixels)
    expected = np.full((6, 7), 65535)
    expected[2, 3] = 0
    np.testing.assert_array_equal(found[..., channels], expected)
    assert picture_info(path).channels == channels + 1


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (suffix, mode)
        for suffix in ("png", "tiff", "bmp", "webp")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        if (suffix, mode) not in {("bmp", "LA"), ("bmp", "RGBA")}  # BMP holds no alpha
    ],
)
def test_8_bit_layouts_equal_pillow(tmp_path: Path, suffix: str, mode: str) -> None:
    source = Image.fromarray(noise(21, 34, 4), "RGBA")
    image = source.convert("RGB").quantize(37) if mode == "P" else source.convert(mode)
    path = tmp_path / f"a.{suffix}"
    image.save(path, lossless=True, exact=True)
    with Image.open(path) as opened:
        stored = opened.mode
        plain = {"1": "L", "P": "RGB"}.get(stored, stored)
        expected = np.asarray(opened.convert(plain))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, expected.reshape(picture.pixels.shape))
    assert picture.pixels.flags.c_contiguous
    info = picture_info(path)
    assert (info.height, info.width, info.channels) == picture.pixels.shape
    assert (info.bits, info.mode, info.frames, info.format) == (8, stored, 1, picture.format)
    assert picture.format == {"tiff": "TIFF", "webp": "WebP"}.get(suffix, suffix.upper())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_with_a_transparent_level(tmp_path: Path, bits: int) -> None:
    levels = noise(5, 8) % 2**bits
    packed = np.packbits(
        np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(5, -1), 1
    )
    header = struct.pack(">IIBBBBB", 8, 5, bits, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    path = tmp_path / "few.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(">H", 1))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    found = read_picture(path).pixels
    np.testing.assert_array_equal(found[..., 0], levels * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(found[..., 1], np.where(levels == 1, 0, 255))


def test_palettes_with_transparency_become_rgba(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 9) % 4, "P")
    colours = noise(4, 3)
    image.putpalette(colours.tobytes())
    alpha = np.array([0, 99, 255, 7], np.uint8)
    path = tmp_path / "p.png"
    image.save(path, transparency=alpha.tobytes())
    index = np.asarray(image)
    found = read_picture(path).pixels
    np.testing.assert_array_equal(found[..., :3], colours[index])
    np.testing.assert_array_equal(found[..., 3], alpha[index])


def test_rgb_with_a_transparent_colour_becomes_rgba(tmp_path: Path) -> None:
    pixels = noise(6, 6, 3)
    path = tmp_path / "key.png"
    Image.fromarray(pixels).save(path, transparency=tuple(int(v) for v in pixels[4, 1]))
    found = read_picture(path).pixels
    np.testing.assert_array_equal(found[..., :3], pixels)
    assert (found[..., 3] == 0).sum() == 1
    assert found[4, 1, 3] == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiff_equals_tifffile(
    tmp_path: Path, order: str, compression: str | None, channels: int
) -> None:
    pixels = noise(33, 18, channels, dtype=np.uint16)
    path = tmp_path / "wide.tif"
    data = pixels[..., 0] if channels == 1 else pixels
    tifffile.imwrite(
        path,
        data,
        byteorder=order,
        compression=compression,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
    )
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture_info(path).bits == 16


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff_equals_pillow(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(noise(40, 50, 3)).save(path, compression=compression)
    np.testing.assert_array_equal(read_picture(path).pixels, np.asarray(Image.open(path)))


@pytest.mark.parametrize("kind", ["float", "int32", "16-bit layout"])
def test_pixels_without_a_faithful_form_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.tif"
    if kind == "float":
        tifffile.imwrite(path, np.zeros((4, 5), np.float32))
    elif kind == "int32":
        tifffile.imwrite(path, np.zeros((4, 5), np.int32))
    else:
        planes = noise(3, 8, 8, dtype=np.uint16)
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(UnsupportedPictureError, match=r"odd\.tif"):
        read_picture(path)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_and_reset(tmp_path: Path, suffix: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    exif[0x010F] = "A camera"
    path = tmp_path / f"turned.{suffix}"
    gradient = np.add.outer(np.arange(24) * 6, np.arange(40) * 2).astype(np.uint8)
    Image.fromarray(np.stack([gradient, gradient // 2, 255 - gradient], 2)).save(path, exif=exif)
    with Image.open(path) as opened:
        opened.load()
        expected = np.asarray(ImageOps.exif_transpose(opened))
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.pixels.shape == ((40, 24, 3) if turn > 4 else (24, 40, 3))
    info = picture_info(path)
    assert (info.height, info.width) == picture.pixels.shape[:2]
    if suffix != "tif":
        kept = Image.Exif()
        kept.load(picture.exif)
        assert kept[0x0112] == 1
        assert kept[0x010F] == "A camera"


def test_everything_but_the_orientation_is_kept_byte_for_byte(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x927C] = b"maker note \x00\x01\x02"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    with Image.open(path) as opened:
        before = opened.info["exif"].removeprefix(b"Exif\0\0")
    after = read_picture(path).exif
    assert after is not None
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [(6, 1)]


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=60), order=st.sampled_from([b"II*\0", b"MM\0*"]))
def test_damaged_exif_does_no_harm(tmp_path_factory, junk: bytes, order: bytes) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=b"Exif\0\0" + order + junk)
    path = tmp_path_factory.mktemp("exif") / "a.jpg"
    path.write_bytes(buffer.getvalue())
    assert read_picture(path).pixels.size == 8 * 6 * 3


def test_profile_and_dpi_are_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("png", "jpg", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.new("RGB", (8, 8)).save(path, icc_profile=profile, dpi=(300, 150))
        picture = read_picture(path)
        assert picture.icc_profile == profile
        if suffix != "webp":
            assert picture.dpi == pytest.approx((300, 150), rel=1e-3)
    Image.new("RGB", (8, 8)).save(tmp_path / "none.tif")
    bare = read_picture(tmp_path / "none.tif")
    assert (bare.dpi, bare.icc_profile, bare.exif) == (None, None, None)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(8, 8, 4), "CMYK").save(path, icc_profile=b"a profile of CMYK")
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(path).convert("RGB")))
    assert picture.icc_profile is None


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_need_a_chosen_frame(tmp_path: Path, suffix: str) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = (Image.new("RGB", (12, 9), colour) for colour in colours)
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=rest, duration=50, lossless=True)
    assert picture_info(path).frames == 3
    with pytest.raises(UnsupportedPictureError, match=r"3 frames.*from 0 to 2"):
        read_picture(path)
    for i, colour in enumerate(colours):
        found = read_picture(path, frame=i).pixels
        assert found.shape[:2] == (9, 12)
        assert (found[..., :3] == colour).all()
    for wrong in (-1, 3):
        with pytest.raises(UsageError, match=f"frame {wrong}: 0 to 2"):
            read_picture(path, frame=wrong)


def test_still_pictures_have_frame_0_only(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (3, 2), 9).save(path)
    assert (read_picture(path, frame=0).pixels == 9).all()
    with pytest.raises(UsageError, match="frame 1"):
        read_picture(path, frame=1)


def test_phone_pictures_with_a_second_picture_inside_are_still(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    image = Image.fromarray(noise(16, 16, 3))
    image.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    picture = read_picture(path)
    assert (picture.format, picture.pixels.shape) == ("JPEG", (16, 16, 3))


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_bmp.png"
    Image.new("RGB", (4, 4)).save(path, "BMP")
    assert read_picture(path).format == "BMP"


def test_real_pictures_equal_pillow(shared_data: Path) -> None:
    for folder, count in (("Set5/HR", 5), ("B100/HR", 8), ("train/T91", 8)):
        for path in list_pictures(shared_data / "sr" / folder)[:count]:
            expected = np.asarray(Image.open(path))
            found = read_picture(path).pixels
            np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_list_pictures(tmp_path: Path) -> None:
    for name in (
        "b.PNG",
        "a.jpg",
        "c.txt",
        ".hidden.png",
        "sub/d.webp",
        ".git/e.png",
        "sub/f.tiff",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_pictures(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [p.name for p in list_pictures(tmp_path, recursive=True)] == [
        "a.jpg",
        "b.PNG",
        "d.webp",
        "f.tiff",
    ]
    with pytest.raises(UsageError, match="no folder"):
        list_pictures(tmp_path / "nowhere")
