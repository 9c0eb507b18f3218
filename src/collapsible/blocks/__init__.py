"""Trainable forms: wide in training, narrow once collapsed (floor 1, torch)."""

from collapsible.blocks.activations import FastPReLU
from collapsible.blocks.collapsible_conv import CollapsibleConv2d, SameConv2d, set_mode
from collapsible.blocks.linear import LINEAR_BLOCKS, linear_block
from collapsible.blocks.parallel_conv import ParallelConv2d
from collapsible.blocks.restructurable import (
    BottleneckConv2d,
    BottleneckParts,
    FusedBottleneck,
    GatedBottleneck,
    PreactivatedBottleneck,
)

__all__ = [
    "LINEAR_BLOCKS",
    "BottleneckConv2d",
    "BottleneckParts",
    "CollapsibleConv2d",
    "FastPReLU",
    "FusedBottleneck",
    "GatedBottleneck",
    "ParallelConv2d",
    "PreactivatedBottleneck",
    "SameConv2d",
    "linear_block",
    "set_mode",
]
