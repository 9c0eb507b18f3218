"""Our own wide blocks as small convolutions, in place of the blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d, SameConv2d
from collapsible.blocks.restructurable import BottleneckConv2d

_BENDS = (nn.PReLU,)
WIDE = (CollapsibleConv2d, BottleneckConv2d)
"""Blocks that know their one convolution themselves."""


def block_names(network: nn.Module) -> tuple[str, ...]:
    """The paths of the collapsible blocks of a network."""
    return tuple(n for n, m in network.named_modules() if isinstance(m, WIDE))


def has_only_blocks(network: nn.Module) -> bool:
    """Whether every parameter lies in a collapsible block or an activation."""
    owners = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))]
    owners += [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return all(isinstance(m, (CollapsibleConv2d, *_BENDS)) for m in owners)


def _narrow(block: CollapsibleConv2d) -> nn.Conv2d:
    """The small convolution of a block, composed in float64 and rounded once."""
    dtype = block.expand_weight.dtype
    kernel, bias = copy.deepcopy(block).double().kernel_and_bias()
    left, top = (block.kernel_size[1] - 1) // 2, (block.kernel_size[0] - 1) // 2
    has_bias = bias is not None
    if all(k % 2 for k in block.kernel_size):
        # A plain convolution wherever one will do: every exporter and tool knows it.
        conv = nn.Conv2d(
            block.in_channels,
            block.out_channels,
            block.kernel_size,
            padding=(top, left),
            groups=block.groups,
            bias=has_bias,
        )
    else:
        conv = SameConv2d(
            block.in_channels,
            block.out_channels,
            block.kernel_size,
            groups=block.groups,
            bias=has_bias,
        )
    conv = conv.to(device=kernel.device, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    for parameter in conv.parameters():
        parameter.requires_grad_(block.expand_weight.requires_grad)
    return conv


def replace_blocks(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of a network, of another dtype if given, with its blocks narrowed."""
    result = copy.deepcopy(network)
    if dtype is not None:
        result = result.to(dtype)
    for name in block_names(result):
        block = result.get_submodule(name)
        assert isinstance(block, WIDE)
        small = block.narrow() if isinstance(block, BottleneckConv2d) else _narrow(block)
        if name == "":
            return small
        parent, _, child = name.rpartition(".")
        setattr(result.get_submodule(parent), child, small)
    return result


def expand_blocks(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network whose blocks run wide, layer by layer: what a collapse is held to."""
    result = copy.deepcopy(network).to(dtype)
    for block in result.modules():
        if isinstance(block, CollapsibleConv2d):
            block.set_mode("expanded")
    return result


def block_macs(block: nn.Module, inputs: Tensor, output: Tensor) -> tuple[int, int]:
    """MACs of a block for one example, wide and narrow."""
    pixels = output.shape[-2] * output.shape[-1]
    if isinstance(block, BottleneckConv2d):
        layers, place = block.layers(), block.place
        padding = layers[0].padding
        assert not isinstance(padding, str)
        # Layers in front of the one that looks around run on the padded map.
        before = (inputs.shape[-2] + 2 * padding[0]) * (inputs.shape[-1] + 2 * padding[1])
        wide = before * sum(layer.weight.numel() for layer in layers[:place])
        wide += pixels * sum(layer.weight.numel() for layer in layers[place:])
        taps = layers[place].kernel_size[0] * layers[place].kernel_size[1]
        return wide, pixels * taps * layers[0].in_channels * layers[-1].out_channels
    assert isinstance(block, CollapsibleConv2d)
    layers = [block.squeeze_weight, block.expand_weight, block.project_weight]
    taps = block.kernel_size[0] * block.kernel_size[1]
    narrow = block.out_channels * (block.in_channels // block.groups) * taps
    return pixels * sum(w.numel() for w in layers if w is not None), pixels * narrow
