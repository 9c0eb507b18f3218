"""Cycles of one operator on an array of multipliers.

Counting follows Arm's open driver for Ethos-N78 (github.com/ARM-software/ethos-n-driver-stack,
driver/support_library/src/MceEstimationUtils.cpp): places are rounded up to the array's patch,
inputs and outputs to its channels. Winograd computes 2 x 2 outputs of a 3 x 3 kernel with 16
multiplications instead of 36, larger kernels as several of 3 x 3, and 8 outputs of a 3 x 1 kernel
with 16 instead of 24.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from collapsible.costs import operators
from collapsible.costs.targets import RooflineSettings
from collapsible.costs.trace import Step

WINOGRAD_MULTIPLICATIONS = 16
WINOGRAD_TAPS = 3


def cycles_of(step: Step, array: RooflineSettings) -> int:
    """Cycles of a step; 0 for one that does not multiply."""
    op = operators.plain(step.op)
    if op == operators.CONVOLUTION:
        return step.outputs[0].shape[0] * _convolution(step, array)
    if op == "aten.pixel_shuffle" and array.depth_to_space == "deconvolution":
        return _shuffle(step, array)
    if op in ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.linear"):
        shared = step.args[1 if op in ("aten.addmm", "aten.baddbmm") else 0].shape[-1]
        *batches, rows, columns = (1, *step.outputs[0].shape)
        return math.prod(batches) * _product(rows, shared, columns, array)
    return -(-operators.macs(step) // _width(array))


def _width(array: RooflineSettings) -> int:
    return array.input_channels * array.output_channels * array.rows * array.columns


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _product(rows: int, shared: int, columns: int, array: RooflineSettings) -> int:
    """A matrix product: rows in the patch's places, columns as outputs."""
    products = (
        _up(rows, array.rows * array.columns)
        * _up(shared, array.input_channels)
        * _up(columns, array.output_channels)
    )
    return products // _width(array)


def _convolution(step: Step, array: RooflineSettings) -> int:
    picture, kernel = step.args[0], step.args[1]
    transposed, groups = step.args[6], step.args[8]
    places, count = step.outputs[0].shape[2:], len(kernel.shape[2:])
    stride, dilation = _each(step.args[3], count), _each(step.args[5], count)
    inputs, outputs = picture.shape[1] // groups, step.outputs[0].shape[1] // groups
    sides = kernel.shape[2:]
    if transposed and array.deconvolution == "sub-pixel":
        outputs *= math.prod(stride)
        places = picture.shape[2:]
        sides = tuple(-(-side // by) for side, by in zip(sides, stride, strict=True))
    quick = max(dilation) == 1 and (transposed or max(stride) == 1)
    if inputs == 1 and groups > 1:
        # Depthwise: each output has an input of its own, so one row of inputs works at a time.
        products = (
            math.prod(sides) * _places(places, array) * _up(groups * outputs, array.output_channels)
        )
        return products // (array.output_channels * array.rows * array.columns)
    return groups * _dense(sides, places, inputs, outputs, array, quick)


def _dense(
    sides: Sequence[int],
    places: Sequence[int],
    inputs: int,
    outputs: int,
    array: RooflineSettings,
    quick: bool,
) -> int:
    """A convolution of all inputs with all outputs. ``quick``: Winograd may be used."""
    channels = _up(inputs, array.input_channels) * _up(outputs, array.output_channels)
    direct = math.prod(sides) * _places(places, array) * channels // _width(array)
    if array.algorithm != "winograd" or not quick or len(sides) != 2 or max(sides) == 1:
        return direct
    height, width = places
    if min(sides) > 1:
        blocks = -(-height // 2) * -(-width // 2)
    elif sides[0] == 1:
        blocks = -(-height // 4) * -(-width // 2)
    else:
        blocks = -(-height // 2) * -(-width // 4)
    parts = math.prod(-(-side // WINOGRAD_TAPS) for side in sides)
    quicker = blocks * parts * WINOGRAD_MULTIPLICATIONS * channels // _width(array)
    return min(direct, quicker)


def _places(places: Sequence[int], array: RooflineSettings) -> int:
    """Places rounded up to whole patches; with one axis or three, the others make up the rows."""
    return _up(math.prod(places[:-1]), array.rows) * _up(places[-1], array.columns)


def _each(value: Sequence[int], count: int) -> Sequence[int]:
    return list(value) * count if len(value) == 1 else value


def _shuffle(step: Step, array: RooflineSettings) -> int:
    """Depth to space as deconvolutions: by two as often as that goes, then by what is left."""
    batch, channels, height, width = (1, *step.args[0].shape)[-4:]
    factor, total = step.args[1], 0
    while factor > 1:
        by = 2 if factor % 2 == 0 else factor
        factor //= by
        channels_after, height, width = channels // by**2, height * by, width * by
        total += _dense((by, by), (height, width), channels, channels_after, array, True)
        channels = channels_after
    return batch * total
