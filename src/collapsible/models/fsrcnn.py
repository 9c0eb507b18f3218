"""FSRCNN (Dong et al., arXiv 1608.00367, section 3), the baseline of the SESR papers.

Feature extraction 5x5 to d, shrink 1x1 to s, m mappings 3x3, expand 1x1 to d, each with a PReLU,
then a transposed convolution 9x9 by the scale. (d, s, m) = (56, 12, 4): 12,464 weights at x2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError
from collapsible.models.registry import register
from collapsible.models.sesr import COLOUR_CHANNELS, Colour, activation


class FSRCNN(nn.Module):
    """Maps [N, C, H, W] to [N, C, scale * H, scale * W] in [0, 1]; C as for ``SESR``."""

    def __init__(
        self,
        *,
        scale: int = 2,
        colour: Colour = "y",
        features: int = 56,
        shrunk: int = 12,
        mappings: int = 4,
        act: str = "prelu",
    ) -> None:
        super().__init__()
        if colour not in COLOUR_CHANNELS:
            raise UsageError(f"colour {colour!r}: known are {', '.join(COLOUR_CHANNELS)}")
        if not 2 <= scale <= 4:
            raise UsageError(f"scale={scale}: FSRCNN has 2, 3 and 4")
        self.scale, self.colour = scale, colour
        channels = COLOUR_CHANNELS[colour]
        layers: list[nn.Module] = []
        widths = [(channels, features, 5), (features, shrunk, 1)]
        widths += [(shrunk, shrunk, 3)] * mappings + [(shrunk, features, 1)]
        for inputs, outputs, kernel in widths:
            layers += [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
                activation(act, outputs),
            ]
        self.body = nn.Sequential(*layers)
        self.deconv = nn.ConvTranspose2d(
            features, channels, 9, stride=scale, padding=4, output_padding=scale - 1
        )
        self.reset_parameters()

    @property
    def receptive_radius(self) -> int:
        """How far, in input pixels, an output looks: 5x5, the mappings, the 9x9's reach."""
        return 2 + sum(layer.kernel_size == (3, 3) for layer in self.convolutions()) + 4

    def convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.body if isinstance(layer, nn.Conv2d)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """He initialisation for PReLU; the deconvolution starts small (FSRCNN, section 3.2)."""
        for layer in self.convolutions():
            nn.init.kaiming_normal_(layer.weight, a=0.25)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.deconv.weight, std=1e-3)
        if self.deconv.bias is not None:
            nn.init.zeros_(self.deconv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge [N, C, H, W] to [N, C, scale * H, scale * W]."""
        return self.deconv(self.body(x))


@register
def fsrcnn(**options: object) -> FSRCNN:
    return FSRCNN(**options)  # type: ignore[arg-type]
