"""The ConvNeXt block (Liu et al., arXiv 2201.03545, section 2 and appendix A).

    x -> depthwise 7x7 -> layer norm -> linear to 4C -> GELU -> linear to C -> scale -> + x

Its parts carry timm's names, so that weights go between the two without a key map. The block
works on [N, C, H, W]; norm and linear layers work on the last axis of [N, H, W, C], which is free
for maps in channels-last memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): drops whole examples in training.

    What stays is divided by the chance to stay, so the expected value is the input.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = 1.0 - self.rate
        return x * torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of [N, C, H, W]; eps 1e-6 as in ConvNeXt."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        y = input.permute(0, 2, 3, 1)
        y = F.layer_norm(y, self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear to ``hidden``, GELU, linear back, on the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    """One residual block; [N, C, H, W] to the same shape.

    ``kernel`` is odd; ``expansion`` times the channels pass the GELU; ``layer_scale`` is the
    start of the learned factor a channel (None: no such factor); ``drop_path`` in [0, 1).
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel: int = 7,
        expansion: int = 4,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-6,
    ) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, expansion * channels)
        self.gamma = (
            None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        y = self.mlp(self.norm(y))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))
