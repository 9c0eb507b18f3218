"""Trainable forms: wide in training, narrow once collapsed (floor 1, torch)."""

from collapsible.blocks.activations import FastPReLU
from collapsible.blocks.collapsible_conv import CollapsibleConv2d, SameConv2d, set_mode

__all__ = ["CollapsibleConv2d", "FastPReLU", "SameConv2d", "set_mode"]
