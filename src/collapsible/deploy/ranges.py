"""Which values int8 steps are spread over: ranges of maps, with the farthest values left out or in.

One range holds a whole map, so a few far values make the steps coarse for all others. How many to
leave out is a matter of the network, so every one of ``TAILS`` is tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TAILS = (0.0, 1e-4, 1e-3)
"""Shares of a map's values that may lie beyond its range, on either side."""
TRIED = 8
"""On how many calibration batches files with different ranges are compared."""

Ranges = dict[str, tuple[float, float]]


def spans(values: NDArray[Any], size: int) -> list[tuple[float, float]]:
    """For each of ``TAILS`` the lowest and highest of values, that share of ``size`` left out."""
    flat = values.ravel()
    beyond = [min(int(size * tail), (flat.size - 1) // 2) for tail in TAILS]
    places = sorted({place for n in beyond for place in (n, flat.size - 1 - n)})
    ordered = np.partition(flat, places)
    return [(float(ordered[n]), float(ordered[flat.size - 1 - n])) for n in beyond]


def widen(ranges: Ranges, name: str, low: float, high: float) -> None:
    """Let a range hold two more values, in place."""
    old = ranges.get(name, (low, high))
    ranges[name] = min(low, old[0]), max(high, old[1])


def distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """How far outputs [batches, ...] are from the wanted ones: the mean over batches of the
    logarithm of the mean square error, as PSNR counts, so that no one batch decides."""
    axes = tuple(range(1, found.ndim))
    squares = np.square(found.astype(np.float64) - wanted).mean(axis=axes)
    return float(np.mean(np.log(squares + 1e-30)))
