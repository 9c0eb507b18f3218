"""Intervals against SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from collapsible.defence.statistics import paired_difference, wilson


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_is_scipys(pictures: int, share: float) -> None:
    correct = round(share * pictures)
    found = wilson(correct, pictures)
    expected = stats.binomtest(correct, pictures).proportion_ci(0.95, method="wilson")
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert found.value == correct / pictures


def test_of_no_pictures_nothing_is_known() -> None:
    found = wilson(0, 0)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0, 1)


def test_paired_difference_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    first = rng.random(80) < 0.7
    second = first & (rng.random(80) < 0.6)
    mean, low, high = paired_difference(first.tolist(), second.tolist())
    difference = first.astype(int) - second.astype(int)
    expected = stats.bootstrap(
        (difference,), np.mean, n_resamples=20_000, method="percentile", rng=rng
    ).confidence_interval
    assert mean == pytest.approx(difference.mean())
    assert low == pytest.approx(expected.low, abs=0.015)
    assert high == pytest.approx(expected.high, abs=0.015)


def test_equal_outcomes_differ_by_nothing() -> None:
    assert paired_difference([True, False, True], [True, False, True]) == (0, 0, 0)
