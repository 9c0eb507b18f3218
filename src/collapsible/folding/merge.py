"""Exact merges of linear operations: pure functions from operations to operations.

Each raises ``NotExactError`` where no single operation equals the two, borders included.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from collapsible.algebra import compose, densify
from collapsible.folding.ops import (
    NO_PADDING,
    Borders,
    Conv,
    NotExactError,
    Pair,
    Scale,
    Transposed,
    as_conv,
    common_step,
    inflate,
    regroup,
)

# Largest error allowed when solving for the value of a padding, of the bias it must cancel.
SOLVED = 1e-12


def scale_after(op: Conv | Transposed | Scale, scale: Scale) -> Conv | Transposed | Scale:
    """``scale`` applied to what ``op`` puts out. Always exact."""
    if isinstance(op, Scale):
        return Scale(
            op.gain * scale.gain,
            op.shift * scale.gain + scale.shift,
            op.axis if scale.axis is None else scale.axis,
            op.norm or scale.norm,
        )
    gain, shift = scale.gain.expand(op.out_channels), scale.shift.expand(op.out_channels)
    bias = shift if op.bias is None else op.bias * gain + shift
    if isinstance(op, Conv):
        kernel = op.kernel * gain[:, None, None, None]
        return replace(op, kernel=kernel, bias=bias, weightless=False)
    # [in, out / groups, h, w]: the outputs of one group stand along the second axis.
    per_group = gain.reshape(op.groups, 1, -1, 1, 1)
    grouped = op.kernel.reshape(op.groups, -1, *op.kernel.shape[1:])
    return replace(op, kernel=(grouped * per_group).reshape(op.kernel.shape), bias=bias)


def scale_before(scale: Scale, op: Conv | Transposed) -> Conv | Transposed:
    """``op`` applied to scaled input; a shift under zero padding becomes a padding value."""
    if isinstance(op, Conv):
        return compose_convs(as_conv(scale, op.in_channels, op.kind), op)
    if scale.shifts:
        raise NotExactError(
            "the shift reaches the border of a transposed convolution through fewer taps"
        )
    gain = scale.gain.expand(op.kernel.shape[0])
    return replace(op, kernel=op.kernel * gain[:, None, None, None])


def _axes(padding: Borders) -> tuple[tuple[int, int], tuple[int, int]]:
    """(before, after) along the height and along the width."""
    left, right, top, bottom = padding
    return (top, bottom), (left, right)


def _fill_value(first: Conv) -> Tensor:
    """The input v with W v + b = 0: padding with it equals padding the output with zeros."""
    assert first.bias is not None
    weight = densify(first.kernel, first.groups)[:, :, 0, 0]
    if first.groups == first.in_channels == first.out_channels:
        gain = first.kernel[:, 0, 0, 0]
        value = torch.where(gain != 0, -first.bias / gain, torch.zeros_like(gain))
    else:
        value = torch.linalg.lstsq(weight, -first.bias[:, None], driver="gelsd").solution[:, 0]
    left = (weight @ value + first.bias).abs().max()
    if not bool(torch.isfinite(value).all()) or left > SOLVED * first.bias.abs().max():
        raise NotExactError(
            "zero padding follows a bias, and no input value makes the first layer put out zero"
        )
    return value


def _padding_before(first: Conv, second: Conv) -> tuple[Borders, str, Tensor | None]:
    """How to pad ahead of ``first`` so that ``second`` need not pad between the two."""
    if not any(second.padding):
        return first.padding, first.mode, first.fill
    if second.fill is not None:
        raise NotExactError("the second layer pads with values of its own")
    if second.mode != "zeros":
        if not first.pointwise or any(first.padding) or first.stride != (1, 1):
            raise NotExactError(f"padding by {second.mode} stands between the two")
        return second.padding, second.mode, None
    moved = []
    for axis, ((own_0, own_1), (pad_0, pad_1)) in enumerate(
        zip(_axes(first.padding), _axes(second.padding), strict=True)
    ):
        step = first.stride[axis]
        if (pad_0 or pad_1) and first.size[axis] > 1:
            raise NotExactError(
                "zero padding between the two: outside the picture the second sees zeros, "
                "one kernel would see what the first computes there"
            )
        moved.append((own_0 + step * pad_0, own_1 + step * pad_1))
    padding = (moved[1][0], moved[1][1], moved[0][0], moved[0][1])
    if any(first.padding) and (first.mode != "zeros" or first.fill is not None):
        raise NotExactError("the two layers pad with different values")
    if not first.shifts:
        return padding, "zeros", None
    if not first.pointwise or any(first.padding):
        raise NotExactError("zero padding follows a bias: its border is neither zero nor constant")
    return padding, "zeros", _fill_value(first)


def _steps(first: Conv, second: Conv) -> Pair:
    """The dilation of the composition."""
    found = []
    for axis in (0, 1):
        steps = [first.dilation[axis]] if first.size[axis] > 1 else []
        if second.size[axis] > 1:
            steps.append(first.stride[axis] * second.dilation[axis])
        found.append(common_step(steps))
    return found[0], found[1]


def _inflated(conv: Conv, stride: Pair, steps: Pair) -> Tensor:
    ratio = [conv.dilation[a] * stride[a] // steps[a] if conv.size[a] > 1 else 1 for a in (0, 1)]
    return inflate(conv.kernel, (ratio[0], ratio[1]))


def compose_convs(first: Conv, second: Conv) -> Conv:
    """One convolution that equals ``second`` after ``first``, borders included."""
    if first.kind != second.kind:
        raise NotExactError(f"a {second.kind} after a {first.kind} works on another axis")
    padding, mode, fill = _padding_before(first, second)
    steps = _steps(first, second)
    groups = math.gcd(first.groups, second.groups)
    kernel, bias, _ = compose(
        regroup(_inflated(first, (1, 1), steps), first.groups, groups),
        regroup(_inflated(second, first.stride, steps), second.groups, groups),
        first_bias=first.bias,
        second_bias=second.bias,
        first_groups=groups,
        second_groups=groups,
    )
    return Conv(
        kernel,
        bias,
        stride=(first.stride[0] * second.stride[0], first.stride[1] * second.stride[1]),
        dilation=steps,
        padding=padding,
        groups=groups,
        kind=first.kind,
        mode=mode,
        fill=fill,
    )


def _frame(a: Conv, b: Conv, axis: int) -> tuple[int, int, int, int, int, int]:
    """Step, taps, padding before and after, and the places of a's and b's first taps."""
    (a_0, a_1), (b_0, b_1) = _axes(a.padding)[axis], _axes(b.padding)[axis]
    a_reach = (a.size[axis] - 1) * a.dilation[axis]
    b_reach = (b.size[axis] - 1) * b.dilation[axis]
    if a_0 + a_1 - a_reach != b_0 + b_1 - b_reach:
        raise NotExactError("the branches' output sizes differ, as kernels and paddings have it")
    before = max(a_0, b_0)
    last = max(a_reach - a_0, b_reach - b_0)
    steps = [before - a_0, before - b_0]
    steps += [c.dilation[axis] for c in (a, b) if c.size[axis] > 1]
    step = common_step(steps)
    after = a_0 + a_1 - a_reach + last
    return (
        step,
        (before + last) // step + 1,
        before,
        after,
        (before - a_0) // step,
        (before - b_0) // step,
    )


def add_convs(a: Conv, b: Conv) -> Conv:
    """One convolution that equals the sum of two of the same input, borders included."""
    if a.kind != b.kind:
        raise NotExactError(f"a {a.kind} and a {b.kind} work on different axes")
    if a.stride != b.stride:
        raise NotExactError(f"the branches' strides differ: {a.stride} and {b.stride}")
    if (a.out_channels, a.in_channels) != (b.out_channels, b.in_channels):
        raise NotExactError("the branches' channels differ")
    if a.fill is not None or b.fill is not None:
        raise NotExactError("a branch pads with values of its own")
    if any(a.padding) and any(b.padding) and a.mode != b.mode:
        raise NotExactError(f"the branches pad differently: {a.mode} and {b.mode}")
    step_h, height, top, bottom, a_top, b_top = _frame(a, b, 0)
    step_w, width, left, right, a_left, b_left = _frame(a, b, 1)
    groups = math.gcd(a.groups, b.groups)
    kernel = a.kernel.new_zeros(a.out_channels, a.in_channels // groups, height, width)
    for conv, down, along in ((a, a_top, a_left), (b, b_top, b_left)):
        part = regroup(_inflated(conv, (1, 1), (step_h, step_w)), conv.groups, groups)
        kernel[:, :, down : down + part.shape[2], along : along + part.shape[3]] += part
    bias = a.bias if b.bias is None else b.bias if a.bias is None else a.bias + b.bias
    return Conv(
        kernel,
        bias,
        stride=a.stride,
        dilation=(step_h, step_w),
        padding=(left, right, top, bottom) if any((left, right, top, bottom)) else NO_PADDING,
        groups=groups,
        kind=a.kind,
        mode=a.mode if any(a.padding) else b.mode,
    )


def composed_shape(first: Conv, second: Conv) -> Conv:
    """The geometry of ``compose_convs``: a convolution whose kernel has no storage."""
    steps, size = _steps(first, second), []
    for axis in (0, 1):
        reach = (first.size[axis] - 1) * first.dilation[axis]
        reach += (second.size[axis] - 1) * second.dilation[axis] * first.stride[axis]
        size.append(reach // steps[axis] + 1)
    groups = math.gcd(first.groups, second.groups)
    kernel = torch.empty(
        second.out_channels, first.in_channels // groups, size[0], size[1], device="meta"
    )
    stride = (first.stride[0] * second.stride[0], first.stride[1] * second.stride[1])
    return Conv(kernel, stride=stride, dilation=steps, groups=groups, kind=first.kind)
