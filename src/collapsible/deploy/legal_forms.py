"""Exact rewrites into operators that micro-NPUs have: rearrangements and bends as convolutions.

Depth to space only moves values, so it is a transposed convolution whose weights are ones and
zeros; and a transposed convolution after a convolution is one transposed convolution. A PReLU is a
sum of two ReLUs. Nothing here knows a target; ``legalise`` chooses.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from collapsible.deploy.plain import phases_of_transposed


def shuffle_stages(scale: int, *, direct: bool) -> tuple[int, ...]:
    """The strides of the transposed convolutions that make a depth to space: x4 is two of x2."""
    stages: list[int] = []
    while not direct and scale % 2 == 0 and scale > 2:
        stages.append(2)
        scale //= 2
    return (*stages, scale)


def one_hot_stage(channels: int, scale: int, stride: int) -> nn.ConvTranspose2d:
    """One stage of the depth to space [C s s, H, W] -> [C, s H, s W] (``torch.pixel_shuffle``).

    It enlarges by ``stride`` and leaves C (s / stride)**2 channels for the stages to come, which
    are again in the order of a depth to space by ``scale // stride``.
    """
    rest = scale // stride
    layer = nn.ConvTranspose2d(
        channels * scale**2, channels * rest**2, stride, stride=stride, bias=False
    )
    # Row i of the finer grid is row i // rest of this stage and i % rest of the rest.
    eye = torch.eye(channels * scale**2).reshape(-1, channels, stride, rest, stride, rest)
    weight = eye.permute(0, 1, 3, 5, 2, 4).reshape(layer.weight.shape)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def depth_to_space(channels: int, scale: int, *, direct: bool) -> list[nn.ConvTranspose2d]:
    """The stages of ``torch.pixel_shuffle`` to ``channels`` channels, one after another."""
    layers = []
    for stride in shuffle_stages(scale, direct=direct):
        layers.append(one_hot_stage(channels, scale, stride))
        scale //= stride
    return layers


def fold_stage(conv: nn.Conv2d, stage: nn.ConvTranspose2d) -> nn.ConvTranspose2d | None:
    """A convolution and the one-hot stage after it as one transposed convolution, exactly.

    None where that cannot be: the convolution is grouped, strided, dilated, even-sized or does not
    keep the size, or its bias differs among the channels that become pixels of one channel, for a
    transposed convolution has one bias for all of them.
    """
    size, reach = conv.kernel_size[0], conv.kernel_size[0] // 2
    plain = (
        conv.groups == 1
        and conv.kernel_size == (size, size)
        and size % 2 == 1
        and tuple(conv.stride) == (1, 1)
        and tuple(conv.dilation) == (1, 1)
        and conv.padding in ((reach, reach), "same")
        and conv.padding_mode == "zeros"
    )
    if not plain:
        return None
    stride, channels = stage.stride[0], stage.out_channels
    places = stage.weight.detach().reshape(conv.out_channels, -1).argmax(1).numpy()
    target, row, column = np.unravel_index(places, (channels, stride, stride))
    bias = np.zeros(channels)
    if conv.bias is not None:
        given = conv.bias.detach().double().numpy()
        bias[target] = given
        if not np.array_equal(bias[target], given):
            return None
    folded = nn.ConvTranspose2d(
        conv.in_channels, channels, size * stride, stride=stride, padding=reach * stride
    ).to(conv.weight.dtype)
    weight = torch.zeros_like(folded.weight)
    kernel = conv.weight.detach().flip(2, 3)
    for m, (out, i, j) in enumerate(zip(target, row, column, strict=True)):
        weight[:, out, i::stride, j::stride] = kernel[m]
    with torch.no_grad():
        folded.weight.copy_(weight)
        assert folded.bias is not None
        folded.bias.copy_(torch.from_numpy(bias))
    return folded


def as_phases(deconv: nn.ConvTranspose2d) -> nn.Conv2d | None:
    """A transposed convolution that enlarges exactly by its stride, as a convolution to phases.

    Depth to space by the stride gives the same. None where it is grouped, dilated, not square, or
    its result is not stride times as large.
    """
    size, stride, padding = deconv.kernel_size[0], deconv.stride[0], deconv.padding[0]
    extra = deconv.output_padding[0]
    if isinstance(padding, str):
        return None
    plain = (
        deconv.groups == 1
        and deconv.kernel_size == (size, size)
        and tuple(deconv.stride) == (stride, stride)
        and tuple(deconv.padding) == (padding, padding)
        and tuple(deconv.output_padding) == (extra, extra)
        and tuple(deconv.dilation) == (1, 1)
        and size + extra == stride + 2 * padding
    )
    if not plain:
        return None
    kernel = deconv.weight.detach().double().numpy()
    weight = torch.from_numpy(phases_of_transposed(kernel, stride, padding=padding))
    phases = nn.Conv2d(
        deconv.in_channels, weight.shape[0], weight.shape[-1], padding=weight.shape[-1] // 2
    ).to(deconv.weight.dtype)
    with torch.no_grad():
        phases.weight.copy_(weight)
        assert phases.bias is not None
        bias = torch.zeros(deconv.out_channels) if deconv.bias is None else deconv.bias.detach()
        phases.bias.copy_(bias.repeat_interleave(stride**2))
    return phases


def repeat_channels(channels: int, times: int) -> nn.Conv2d:
    """``x.repeat_interleave(times, dim=1)`` as a 1x1 convolution with fixed weights."""
    layer = nn.Conv2d(channels, channels * times, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(channels).repeat_interleave(times, 0)[..., None, None])
    return layer


class ScaledMaximum(nn.Module):
    """``max(x, slope x)``: a PReLU whose slopes [C] are all at most 1."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.slope * x)


class TwoReLUs(nn.Module):
    """``relu(x) - slope relu(-x)``: a PReLU of any slopes [C]."""

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.slope = nn.Parameter(slope.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - self.slope * torch.relu(-x)


def widen(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that gives its result and, in as many more channels, the negative of it."""
    wide = nn.Conv2d(
        conv.in_channels,
        2 * conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    ).to(conv.weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([conv.weight, -conv.weight]))
        if conv.bias is not None and wide.bias is not None:
            wide.bias.copy_(torch.cat([conv.bias, -conv.bias]))
    return wide


def read_halves(conv: nn.Conv2d, slope: Tensor) -> nn.Conv2d:
    """A convolution of a PReLU's result that reads relu(x) and relu(-x), one after the other."""
    reads = nn.Conv2d(
        2 * conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    ).to(conv.weight.dtype)
    with torch.no_grad():
        scaled = -conv.weight * slope.reshape(1, -1, 1, 1)
        reads.weight.copy_(torch.cat([conv.weight, scaled], dim=1))
        if conv.bias is not None and reads.bias is not None:
            reads.bias.copy_(conv.bias)
    return reads


def join_halves(slope: Tensor) -> nn.Conv2d:
    """From relu(x) and relu(-x) to the PReLU of x: a 1x1 convolution."""
    channels = slope.numel()
    layer = nn.Conv2d(2 * channels, channels, 1, bias=False).to(slope.dtype)
    with torch.no_grad():
        eye = torch.eye(channels, dtype=slope.dtype)
        layer.weight.copy_(torch.cat([eye, -torch.diag(slope.detach())], 1)[..., None, None])
    return layer
