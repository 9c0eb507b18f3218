"""Intervals for accuracies: how much a figure from so many pictures says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The standard normal's 97.5 % point: intervals here are of 95 %.
NORMAL_975 = 1.959963984540054
DRAWS = 10_000


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``pictures``, with Wilson's 95 % interval; all as fractions in [0, 1]."""

    correct: int
    pictures: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def wilson(correct: int, pictures: int) -> Accuracy:
    """The share and Wilson's score interval (Wilson, JASA 22, 1927), 95 %.

    Of no pictures at all, the share is NaN and the interval [0, 1].
    """
    if pictures == 0:
        return Accuracy(0, 0, math.nan, 0.0, 1.0)
    z, share = NORMAL_975, correct / pictures
    scale = 1 + z * z / pictures
    centre = (share + z * z / (2 * pictures)) / scale
    spread = share * (1 - share) / pictures + z * z / (4 * pictures * pictures)
    half = z * math.sqrt(spread) / scale
    return Accuracy(correct, pictures, share, max(0.0, centre - half), min(1.0, centre + half))


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``first - second`` over the same pictures, and its 95 % bootstrap interval.

    Percentiles of ``DRAWS`` resamples of pictures; both figures of a picture stay together, for
    they are of one picture.
    """
    difference = np.asarray(first, np.int64) - np.asarray(second, np.int64)
    n = len(difference)
    if n == 0:
        return math.nan, -1.0, 1.0
    # A resample of n pictures is a draw of how often each of -1, 0 and 1 occurs.
    shares = np.array([(difference == v).mean() for v in (-1, 0, 1)])
    counts = np.random.default_rng(seed).multinomial(n, shares, size=DRAWS)
    means = (counts[:, 2] - counts[:, 0]) / n
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
