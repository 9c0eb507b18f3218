"""The linear operations that collapsing knows, as values (float64 tensors and geometry).

A network's layers are lifted to these, merged by the functions of ``merge``, and lowered to
``torch.nn`` layers again. ``Conv`` holds one- and two-dimensional convolutions and linear layers
alike: a linear layer is a 1x1 convolution whose channels lie on the last axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["linear", "conv1d", "conv2d"]
Pair = tuple[int, int]
Borders = tuple[int, int, int, int]
"""Left, right, top, bottom, as ``torch.nn.functional.pad`` orders them."""

NO_PADDING: Borders = (0, 0, 0, 0)


class NotExactError(Exception):
    """Two operations that no single one equals; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution: kernel [out, in / groups, height, width] and bias [out] or None.

    ``mode`` is torch's padding mode; ``fill`` [in] are the values that stand outside the picture
    where those are not zero (mode "zeros" only). ``weightless`` marks an average pooling or a
    padding, which has no weights to store and stays what it is unless it is merged.
    """

    kernel: Tensor
    bias: Tensor | None = None
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Borders = NO_PADDING
    groups: int = 1
    kind: Kind = "conv2d"
    mode: str = "zeros"
    fill: Tensor | None = None
    weightless: bool = False

    @property
    def out_channels(self) -> int:
        return self.kernel.shape[0]

    @property
    def in_channels(self) -> int:
        return self.kernel.shape[1] * self.groups

    @property
    def size(self) -> Pair:
        return self.kernel.shape[2], self.kernel.shape[3]

    @property
    def pointwise(self) -> bool:
        return self.size == (1, 1)

    @property
    def shifts(self) -> bool:
        """Whether a zero input gives anything but zero."""
        return self.bias is not None and bool(self.bias.any())

    def channel_axis(self, rank: int) -> int:
        return rank - 1 if self.kind == "linear" else 1


@dataclass(frozen=True, eq=False)
class Transposed:
    """A transposed convolution: kernel [in, out / groups, h, w]; ``options`` are torch's."""

    kernel: Tensor
    bias: Tensor | None
    groups: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def out_channels(self) -> int:
        return self.kernel.shape[1] * self.groups

    def channel_axis(self, rank: int) -> int:
        return 1


@dataclass(frozen=True, eq=False)
class Scale:
    """x * gain + shift along one axis; gain and shift are [channels], or [1] with axis None."""

    gain: Tensor
    shift: Tensor
    axis: int | None
    norm: bool = False

    @property
    def shifts(self) -> bool:
        return bool(self.shift.any())

    def channel_axis(self, rank: int) -> int | None:
        return self.axis


@dataclass(frozen=True, eq=False)
class Identity:
    """An operation that returns its input's values; ``why`` says how that is known."""

    why: str


Op = Conv | Transposed | Scale | Identity


def as_conv(op: Conv | Scale, channels: int, kind: Kind) -> Conv:
    """A scale as a depthwise 1x1 convolution of that many channels; a convolution as it is."""
    if isinstance(op, Conv):
        return op
    gain, shift = op.gain.expand(channels), op.shift.expand(channels)
    bias = shift.clone() if op.shifts else None
    return Conv(gain.reshape(channels, 1, 1, 1).clone(), bias, groups=channels, kind=kind)


def identity_conv(channels: int, kind: Kind) -> Conv:
    """The convolution that returns its input."""
    ones = torch.ones(channels, 1, 1, 1, dtype=torch.float64)
    return Conv(ones, groups=channels, kind=kind)


def regroup(kernel: Tensor, groups: int, fewer: int) -> Tensor:
    """The same map written with fewer groups (a divisor): block diagonal within each."""
    if groups == fewer:
        return kernel
    out, within, height, width = kernel.shape
    ratio, rows = groups // fewer, out // groups
    blocks = kernel.reshape(fewer, ratio, rows, within, height, width)
    wide = kernel.new_zeros(fewer, ratio, rows, ratio, within, height, width)
    index = torch.arange(ratio)
    wide[:, index, :, index] = blocks.transpose(0, 1)
    return wide.reshape(out, ratio * within, height, width)


def inflate(kernel: Tensor, steps: Pair) -> Tensor:
    """Zeros between the taps, so that dilation by ``steps`` becomes part of the kernel."""
    if steps == (1, 1):
        return kernel
    height, width = kernel.shape[2:]
    size = ((height - 1) * steps[0] + 1, (width - 1) * steps[1] + 1)
    wide = kernel.new_zeros(*kernel.shape[:2], *size)
    wide[:, :, :: steps[0], :: steps[1]] = kernel
    return wide


def common_step(steps: list[int]) -> int:
    """The greatest common divisor, 1 where there is nothing to divide."""
    return math.gcd(*steps) or 1
