"""Trainable forms: wide in training, narrow once collapsed (floor 1, torch)."""

from collapsible.blocks.activations import FastPReLU
from collapsible.blocks.collapsible_conv import CollapsibleConv2d, SameConv2d, set_mode
from collapsible.blocks.linear import LINEAR_BLOCKS, linear_block
from collapsible.blocks.parallel_conv import ParallelConv2d

__all__ = [
    "LINEAR_BLOCKS",
    "CollapsibleConv2d",
    "FastPReLU",
    "ParallelConv2d",
    "SameConv2d",
    "linear_block",
    "set_mode",
]
