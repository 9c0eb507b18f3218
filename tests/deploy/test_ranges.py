"""Ranges with tails left out, beside NumPy's sort, and the measure that chooses between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from collapsible.deploy.ranges import TAILS, distance, spans, widen

VALUES = arrays(np.float32, st.integers(1, 4000), elements=st.floats(-1e3, 1e3, width=32))


@given(VALUES)
def test_spans_are_of_the_sorted_values(values):
    found = spans(values, values.size)
    ordered = np.sort(values)
    for tail, (low, high) in zip(TAILS, found, strict=True):
        beyond = int(values.size * tail)
        assert (low, high) == (ordered[beyond], ordered[values.size - 1 - beyond])
        assert (values < low).sum() <= beyond
        assert (values > high).sum() <= beyond
    assert found[0] == (values.min(), values.max())


@given(VALUES)
def test_ends_keep_every_value(values):
    assert set(spans(values, 0)) == {(values.min(), values.max())}


def test_widen():
    ranges = {}
    widen(ranges, "a", 1.0, 2.0)
    widen(ranges, "a", -1.0, 1.5)
    widen(ranges, "b", 0.0, 0.5)
    assert ranges == {"a": (-1.0, 2.0), "b": (0.0, 0.5)}


def test_distance_is_the_difference_in_psnr():
    rng = np.random.default_rng(0)
    wanted = rng.random((3, 1, 4, 5))
    near, far = (wanted + rng.normal(size=wanted.shape) * s for s in (0.01, 0.03))

    def psnr(found: np.ndarray) -> float:
        errors = ((found - wanted) ** 2).reshape(3, -1).mean(1)
        return float(np.mean(-10 * np.log10(errors)))

    gain = 10 / np.log(10) * (distance(far, wanted) - distance(near, wanted))
    assert gain == pytest.approx(psnr(near) - psnr(far))
