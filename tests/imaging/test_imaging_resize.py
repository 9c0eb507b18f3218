"""MATLAB's bicubic, against the field's own pictures, a direct definition, and Pillow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from collapsible.errors import UsageError
from collapsible.imaging import crop_to_multiple, extend, resize

SCALES = [1 / 2, 1 / 3, 1 / 4, 2, 3, 4]


@pytest.mark.parametrize("name", ["Set5", "Set14"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_reproduces_the_published_lr_pictures(shared_data: Path, name: str, factor: int) -> None:
    folder = shared_data / "sr" / name
    files = sorted((folder / "HR").iterdir())
    assert len(files) == {"Set5": 5, "Set14": 14}[name]
    for path in files:
        high = np.asarray(Image.open(path))
        expected = np.asarray(Image.open(folder / f"LRx{factor}" / path.name))
        low = resize(crop_to_multiple(high, factor), scale=1 / factor, border="clamp")
        assert low.shape == expected.shape
        assert np.count_nonzero(low != expected) == 0, path.name


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def direct_matrix(length: int, new: int, scale: float, border: str) -> np.ndarray:
    """MATLAB's definition, one weight at a time, over far more taps than are needed."""
    shrink = min(scale, 1.0)
    matrix = np.zeros((new, length))
    reach = math.ceil(2 / shrink) + 2
    for i in range(new):
        centre = (i + 0.5) / scale - 0.5
        for j in range(math.floor(centre) - reach, math.ceil(centre) + reach + 1):
            source = j
            if border == "clamp":
                source = min(max(j, 0), length - 1)
            else:
                while not 0 <= source < length:
                    source = -1 - source if source < 0 else 2 * length - 1 - source
            matrix[i, source] += cubic((centre - j) * shrink)
        matrix[i] /= matrix[i].sum()
    return matrix


def direct(image: np.ndarray, size: tuple[int, int], scale: float, border: str) -> np.ndarray:
    top = np.iinfo(image.dtype).max if image.dtype.kind == "u" else None

    def rounded(values: np.ndarray) -> np.ndarray:
        return values if top is None else np.clip(np.floor(values + 0.5), 0, top)

    down = direct_matrix(image.shape[0], size[0], scale, border)
    across = direct_matrix(image.shape[1], size[1], scale, border)
    rows = rounded(np.einsum("ih,hwc->iwc", down, image.astype(np.float64)))
    return rounded(np.einsum("jw,iwc->ijc", across, rows)).astype(image.dtype)


pictures = st.tuples(st.integers(1, 29), st.integers(1, 29), st.sampled_from([1, 2, 3, 4]))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=pictures,
    scale=st.sampled_from(SCALES),
    border=st.sampled_from(["mirror", "clamp"]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float64]),
)
def test_equals_the_direct_definition(data, shape, scale, border, dtype) -> None:
    if dtype is np.float64:
        values = hnp.arrays(dtype, shape, elements=st.floats(-10, 300))
    else:
        values = hnp.arrays(dtype, shape)
    image = data.draw(values)
    found = resize(image, scale=scale, border=border)
    expected = direct(image, found.shape[:2], scale, border)
    assert found.dtype == dtype
    assert found.shape == (math.ceil(shape[0] * scale), math.ceil(shape[1] * scale), shape[2])
    if dtype is np.uint8:
        np.testing.assert_array_equal(found, expected)
    elif dtype is np.uint16:
        # A float64 sum may fall on either side of an exact tie in the direct form too.
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        assert np.count_nonzero(found != expected) <= found.size // 50
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 0.25, 0.4, 2.0, 1.7])
def test_interior_equals_pillow(scale: float) -> None:
    """Pillow's bicubic has the same kernel and antialiasing; only its borders differ."""
    image = np.random.default_rng(3).uniform(0, 255, (80, 120)).astype(np.float32)
    size = (round(80 * scale), round(120 * scale))
    peer = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    found = resize(image, size=size)
    edge = math.ceil(4 * max(scale, 1) + 2)
    np.testing.assert_allclose(
        found[edge:-edge, edge:-edge], np.asarray(peer)[edge:-edge, edge:-edge], atol=1e-3
    )
    assert found.dtype == np.float32


def test_without_antialiasing_equals_interpolation() -> None:
    image = np.random.default_rng(4).uniform(0, 255, (31, 40))
    halved = resize(image, scale=0.5, antialias=False)
    # Half-way between two samples the kernel is (-1, 9, 9, -1) / 16.
    taps = np.array([-1, 9, 9, -1]) / 16
    rows = sum(t * image[2 * 2 - 1 + k : 2 * 12 + k : 2] for k, t in enumerate(taps))
    expected = sum(t * rows[:, 3 + k : 33 + k : 2] for k, t in enumerate(taps))
    np.testing.assert_allclose(halved[2:13, 2:17], expected[: 13 - 2, : 17 - 2], atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    value=st.integers(0, 255),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_a_flat_picture_stays_flat_at_any_size(value, size, shape) -> None:
    found = resize(np.full(shape, value, np.uint8), size=size)
    assert found.shape == size
    assert (found == value).all()


def test_large_bands_equal_small_pictures() -> None:
    """A picture that spans many bands equals the sum of what its columns give alone."""
    image = np.random.default_rng(5).integers(0, 256, (700, 333, 3), dtype=np.uint8)
    whole = resize(image, scale=1 / 3)
    for channel in range(3):
        np.testing.assert_array_equal(
            whole[:, :, channel], resize(image[:, :, channel], scale=1 / 3)
        )
    np.testing.assert_array_equal(whole[:60], resize(image[:300], scale=1 / 3)[:60])


def test_does_not_touch_its_input_or_need_contiguous_memory() -> None:
    image = np.random.default_rng(6).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    view = image[::-1, 4:44:2, ::-1]
    before = image.copy()
    np.testing.assert_array_equal(resize(view, scale=2), resize(view.copy(), scale=2))
    np.testing.assert_array_equal(image, before)


def test_length_is_not_lifted_by_rounding() -> None:
    assert resize(np.zeros((49, 98)), scale=1 / 49).shape == (1, 2)
    assert resize(np.zeros((5, 7)), scale=0.5).shape == (3, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 2, "size": (4, 4)},
        {"scale": 0},
        {"scale": float("nan")},
        {"scale": -1.0},
        {"size": (0, 4)},
        {"scale": 2, "border": "wrap"},
    ],
)
def test_wrong_requests_are_named(arguments) -> None:
    with pytest.raises(UsageError, match="resize"):
        resize(np.zeros((4, 4), np.uint8), **arguments)


@pytest.mark.parametrize(
    "image", [np.zeros(4), np.zeros((0, 4)), np.zeros((4, 4), int), np.zeros((1, 4, 4, 3))]
)
def test_wrong_pictures_are_named(image) -> None:
    with pytest.raises(UsageError, match="accepted"):
        resize(image, scale=2)


def test_crop_to_multiple() -> None:
    image = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    assert crop_to_multiple(image, 4).shape == (4, 8, 3)
    np.testing.assert_array_equal(crop_to_multiple(image, 3), image[:6, :9])
    for wrong in (0, 8):
        with pytest.raises(UsageError, match="crop_to_multiple"):
            crop_to_multiple(image, wrong)


@pytest.mark.parametrize("around", [0, 3, 5, 23])
def test_extend_is_numpys_symmetric_padding(around):
    """Also far beyond the border, where the mirror is mirrored again."""
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    wanted = np.pad(image, ((around, around), (around, around), (0, 0)), mode="symmetric")
    assert np.array_equal(extend(image, around), wanted)
    assert np.array_equal(extend(image[..., 0], around), wanted[..., 0])
