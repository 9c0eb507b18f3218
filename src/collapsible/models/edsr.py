"""EDSR-baseline (Lim et al., arXiv 1707.02921, section 3.2): the large end of a comparison.

A 3x3 to ``features``, ``blocks`` residual blocks (3x3, ReLU, 3x3), a 3x3 with a long residual, then
the enlargement by pixel shuffle and a 3x3 to the colours. 64 features and 16 blocks at x2 on RGB:
1.37 million weights, 12 times SESR-XL. Nothing in it collapses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.errors import UsageError
from collapsible.models.registry import register
from collapsible.models.sesr import COLOUR_CHANNELS, Colour


class EDSR(nn.Module):
    """Maps [N, C, H, W] to [N, C, scale * H, scale * W] in [0, 1]; C as for ``SESR``.

    The paper's is on RGB.

    ``input_residual`` adds the picture enlarged by nearest neighbour, as SESR does and the paper
    does not: short trainings get further with it. Raises ``UsageError`` for unknown options.
    """

    def __init__(
        self,
        *,
        scale: int = 2,
        colour: Colour = "y",
        features: int = 64,
        blocks: int = 16,
        input_residual: bool = True,
    ) -> None:
        super().__init__()
        if colour not in COLOUR_CHANNELS:
            raise UsageError(f"colour {colour!r}: known are {', '.join(COLOUR_CHANNELS)}")
        if scale not in (2, 3, 4):
            raise UsageError(f"scale={scale}: EDSR has 2, 3 and 4")
        self.scale, self.colour, self.input_residual = scale, colour, input_residual
        channels = COLOUR_CHANNELS[colour]

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.first = conv(channels, features)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(features, features), nn.ReLU(), conv(features, features))
            for _ in range(blocks)
        )
        self.gather = conv(features, features)
        # x4 enlarges twice by 2, as the paper does.
        self.steps = (2, 2) if scale == 4 else (scale,)
        self.enlarge = nn.ModuleList(conv(features, features * s * s) for s in self.steps)
        self.last = conv(features, channels)
        self.reset_parameters()

    @property
    def receptive_radius(self) -> int:
        """How far, in input pixels, an output looks, rounded up."""
        reach, size = len(self.blocks) * 2 + 2.0, 1
        for step in self.steps:
            reach += 1 / size
            size *= step
        return math.ceil(reach + 1 / size)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """He initialisation; the residuals and the last layer start small."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=1 if name == "first" else 0)
                if name.endswith(".2") or name == "last":
                    layer.weight *= 0.1
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge [N, C, H, W] to [N, C, scale * H, scale * W]."""
        first = self.first(x)
        y = first
        for block in self.blocks:
            y = y + block(y)
        y = self.gather(y) + first
        for conv, step in zip(self.enlarge, self.steps, strict=True):
            y = F.pixel_shuffle(conv(y), step)
        y = self.last(y)
        if self.input_residual:
            y = y + F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return y


@register
def edsr_base(**options: object) -> EDSR:
    return EDSR(**options)  # type: ignore[arg-type]
