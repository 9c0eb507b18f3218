"""Receptive fields of chains of convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ReceptiveField:
    """Which inputs one output depends on.

    ``size`` is in input pixels (height, width); ``before`` of them lie above and left of the
    output's own place, ``after`` below and right; ``stride`` is the step in input pixels.
    """

    size: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    stride: tuple[int, int]

    @property
    def radius(self) -> int:
        """The largest distance, in input pixels, from which anything reaches an output."""
        return max(*self.before, *self.after)


def receptive_field(
    layers: Iterable[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]],
) -> ReceptiveField:
    """The receptive field of convolutions run one after another.

    Each layer is (kernel, stride, dilation), each a pair (height, width), padded as
    ``same_padding`` pads: an even kernel reaches one pixel further down and right.
    """
    before, after, stride = [0, 0], [0, 0], [1, 1]
    for kernel, step, dilation in layers:
        for axis in (0, 1):
            reach_before = (kernel[axis] - 1) // 2 * dilation[axis]
            reach = (kernel[axis] - 1) * dilation[axis]
            before[axis] += reach_before * stride[axis]
            after[axis] += (reach - reach_before) * stride[axis]
            stride[axis] *= step[axis]
    return ReceptiveField(
        (before[0] + after[0] + 1, before[1] + after[1] + 1),
        (before[0], before[1]),
        (after[0], after[1]),
        (stride[0], stride[1]),
    )
