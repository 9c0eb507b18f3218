"""Parallel linear branches as in RepVGG (Ding et al., arXiv 2101.03697, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError


class ParallelConv2d(nn.Module):
    """k x k convolution beside a 1x1 one, and the input itself where the widths agree; summed.

    Maps [N, in_channels, H, W] to [N, out_channels, H, W] (k odd, zero padding that keeps the
    size). Without RepVGG's batch normalisation, which super-resolution networks do without (and
    SESR's analysis, section 4, leaves out). Made of plain layers: ``collapse`` merges the
    branches into one convolution.

    Both convolutions start normal, the sum with variance ``gain`` squared over the fan-in
    beside the identity (0.3 unless told, 1 where there is no identity), as in
    ``CollapsibleConv2d``; biases start at zero. Raises ``UsageError`` for an even k.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        identity: bool | None = None,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"kernel_size={kernel_size}: branches add up for odd sizes only")
        self.identity = in_channels == out_channels if identity is None else identity
        if self.identity and in_channels != out_channels:
            raise UsageError(
                f"an identity needs as many inputs as outputs, not {in_channels} and {out_channels}"
            )
        self.gain = (0.3 if self.identity else 1.0) if gain is None else gain
        self.full = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.point = nn.Conv2d(in_channels, out_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; see the class's note on initialisation."""
        for branch in (self.full, self.point):
            draw(branch, self.gain / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H, W]."""
        y = self.full(x) + self.point(x)
        return y + x if self.identity else y


@torch.no_grad()
def draw(conv: nn.Conv2d, gain: float) -> nn.Conv2d:
    """Draw a convolution's kernel with variance gain squared over the fan-in; bias zero."""
    nn.init.normal_(conv.weight, std=gain / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
