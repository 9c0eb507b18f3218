"""Low-resolution patches as pictures come from the web: blurred, noisy, compressed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.imaging import code_jpeg
from collapsible.training.recipes import DegradeSpec

# JPEG works in blocks of 8; with subsampled chroma its grid has a period of 16.
GRID = 16
# Studio-range luma: what BT.601 calls black, and white less black.
BLACK, SPAN = 16.0, 219.0


def margin(spec: DegradeSpec) -> int:
    """How many pixels around a patch change what it becomes; those of the JPEG grid among them."""
    blur = math.ceil(3 * max(spec.blur, default=0.0))
    return blur + (GRID if spec.jpeg else 0)


def degrade(
    patch: NDArray[np.uint8] | NDArray[np.uint16],
    spec: DegradeSpec,
    random: np.random.Generator,
    *,
    steps: float = 1.0,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A patch [H, W, C] with blur, noise and JPEG in this order, each drawn from its range.

    RGB is uint8 (``steps`` 1); one channel is studio-range luma in levels of ``1 / steps``, uint16.
    Luma is compressed at full range, as a JPEG file holds it. The result has the same type: luma
    that passed a JPEG lies on the levels such a file can give.
    """
    grey = patch.shape[2] == 1
    # Amounts are drawn whether they are used or not, so that one range leaves the others' draws.
    sigma, spread, quality = (
        _draw(bounds, random) for bounds in (spec.blur, spec.noise, spec.jpeg)
    )
    values: NDArray[Any] = patch.astype(np.float32) / np.float32(steps)
    if grey:
        values = (values - np.float32(BLACK)) * np.float32(255 / SPAN)
    if sigma:
        values = gaussian_blur(values, sigma)
    if spread:
        values = values + random.normal(0, spread, values.shape).astype(np.float32)
    levels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if quality:
        levels = code_jpeg(levels, round(quality))
    if not grey:
        return levels
    return np.rint((levels * (SPAN / 255) + BLACK) * steps).astype(np.uint16)


def _draw(bounds: tuple[float, ...], random: np.random.Generator) -> float:
    share = random.random()
    return bounds[0] + share * (bounds[1] - bounds[0]) if bounds else 0.0


def gaussian_blur(values: NDArray[Any], sigma: float) -> NDArray[Any]:
    """[H, W, C] blurred along both axes out to three ``sigma`` pixels; borders are mirrored."""
    radius = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(values, pad, mode="symmetric")
        length = values.shape[axis]
        values = np.zeros_like(values)
        for shift, weight in enumerate(weights):
            values += weight * padded.take(range(shift, shift + length), axis)
    return values
