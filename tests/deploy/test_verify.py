"""Tiles without seams, errors and quality beside NumPy's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsible.deploy.verify import Samples, compare, enlargement, refer, run_tiles
from collapsible.errors import ExportError, UsageError

RADIUS = 2
KERNEL = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def enlarge(inputs: np.ndarray) -> np.ndarray:
    """A convolution of radius 2 that doubles the picture."""
    wide = F.conv2d(torch.from_numpy(inputs), KERNEL, padding=RADIUS)
    return F.pixel_shuffle(wide, 2).numpy()


def whole(picture: np.ndarray) -> np.ndarray:
    """The same on a whole picture that is mirrored at its borders."""
    wide = torch.from_numpy(
        np.pad(picture, [(0, 0), *[(RADIUS, RADIUS)] * 2], mode="symmetric")[None]
    )
    return F.pixel_shuffle(F.conv2d(wide, KERNEL), 2)[0].numpy()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 30), width=st.integers(1, 30),
    rows=st.integers(5, 12), columns=st.integers(5, 12),
)  # fmt: skip
def test_tiles_equal_the_whole(height, width, rows, columns):
    picture = np.random.default_rng(height).random((1, height, width), dtype=np.float32)
    found = run_tiles(enlarge, picture, (1, 1, rows, columns), RADIUS)
    assert found.shape == (1, 2 * height, 2 * width)
    if (height, width) == (rows, columns):
        assert np.array_equal(found, enlarge(picture[None])[0])
    else:
        assert np.abs(found - whole(picture)).max() < 1e-5


def test_a_tile_that_is_all_border():
    with pytest.raises(UsageError, match="more than 4 are needed"):
        run_tiles(enlarge, np.zeros((1, 9, 9), np.float32), (1, 1, 4, 8), RADIUS)


def test_errors_and_psnr_by_hand():
    rng = np.random.default_rng(1)
    truth = rng.random((2, 1, 20, 24), dtype=np.float32)

    def double(x: np.ndarray) -> np.ndarray:
        return x.repeat(2, axis=2).repeat(2, axis=3)

    def shifted(x: np.ndarray) -> np.ndarray:
        return double(x) + np.float32(0.25)

    inputs = list(rng.random((2, 1, 10, 12), dtype=np.float32) * 0.5)
    samples = Samples(inputs, truth=list(truth))
    size = (1, 1, 10, 12)
    reference = refer(double, samples, size, double(np.zeros(size, np.float32)))
    check = compare("shifted", shifted, reference, 1)
    assert check.max_error == pytest.approx(0.25)
    assert check.rms_error == pytest.approx(0.25)
    assert check.relative_error == pytest.approx(0.25 / np.max(inputs))

    def by_hand(move: float) -> float:
        values = []
        for low, high in zip(inputs, truth, strict=True):
            cut = double(low[None])[0, 0, 2:-2, 2:-2].astype(float) + move
            values.append(10 * np.log10(1 / np.mean((cut - high[0, 2:-2, 2:-2]) ** 2)))
        return float(np.mean(values))

    assert check.torch == pytest.approx(by_hand(0), abs=1e-5)
    assert check.file == pytest.approx(by_hand(0.25), abs=1e-5)
    assert check.change == pytest.approx(by_hand(0.25) - by_hand(0), abs=1e-5)


def test_top_1_by_hand():
    def sums(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), 3, -1).sum(2)

    inputs = [np.eye(3, dtype=np.float32)[i].reshape(3, 1, 1) for i in (0, 1, 2, 2)]
    samples = Samples(inputs, labels=[0, 1, 2, 0])
    reference = refer(sums, samples, (2, 3, 1, 1), np.zeros((2, 3), np.float32))
    check = compare("turned", lambda x: np.roll(sums(x), 1, axis=1), reference, 2)
    assert (check.measure, check.torch, check.file) == ("top-1", 0.75, 0.25)
    assert check.change == -0.5


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (Samples([]), "no pictures"),
        (Samples([np.zeros((2, 10, 12))]), r"shape \[2, 10, 12\]"),
        (Samples([np.zeros((1, 10, 12))], truth=[np.zeros((1, 20, 23))]), r"\[1, 20, 24\] fits"),
        (Samples([np.zeros((1, 10, 12))], truth=[]), "0 truth for 1"),
        (Samples([np.zeros((1, 10, 12))], labels=[0]), "for classifiers"),
    ],
)
def test_samples_that_do_not_fit(samples, said):
    output = np.zeros((1, 1, 20, 24), np.float32)
    with pytest.raises(UsageError, match=said):
        refer(enlarge, samples, (1, 1, 10, 12), output)


def test_values_that_are_not_finite_or_of_another_shape():
    samples = Samples([np.zeros((1, 10, 12), np.float32)])
    reference = refer(enlarge, samples, (1, 1, 10, 12), enlarge(np.zeros((1, 1, 10, 12), "f4")))
    with pytest.raises(ExportError, match="not finite"):
        compare("bad", lambda x: enlarge(x) * np.float32(np.nan), reference, 1)
    with pytest.raises(ExportError, match=r"gives \[1, 4, 10, 12\]"):
        compare("bad", lambda x: x.repeat(4, axis=1), reference, 1)


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((1, 4, 20, 24), 2), ((1, 4, 10, 12), 1), ((1, 4, 20, 36), None), ((1, 1000), None),
     ((1, 4, 5, 6), None)],
)  # fmt: skip
def test_enlargement(shape, scale):
    assert enlargement((1, 1, 10, 12), np.zeros(shape, np.float32)) == scale
