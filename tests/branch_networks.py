"""Networks of the shapes that structural re-parameterisation knows, statistics randomised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm statistics and affine parts as training would leave them: nothing is trivial."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            size = layer.num_features
            layer.running_mean.copy_(draw(size) - 0.5)
            layer.running_var.copy_(draw(size) + 0.5)
            if layer.affine:
                layer.weight.copy_(draw(size) + 0.5)
                layer.bias.copy_(draw(size) - 0.5)
    return network


def conv_bn(
    inputs: int, outputs: int, kernel: int | tuple[int, int], **options: object
) -> nn.Module:
    options.setdefault("bias", False)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, **options),  # type: ignore[arg-type]
        nn.BatchNorm2d(outputs),
    )


class Sum(nn.Module):
    """The sum of what its branches make of the input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


def repvgg(channels: int, groups: int = 1) -> nn.Module:
    return Sum(
        conv_bn(channels, channels, 3, padding=1, groups=groups),
        conv_bn(channels, channels, 1, groups=groups),
        nn.BatchNorm2d(channels),
    )


def acnet(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """Square, vertical and horizontal kernels (ACNet, arXiv 1908.03930)."""
    return Sum(
        conv_bn(inputs, outputs, 3, padding=1, stride=stride),
        conv_bn(inputs, outputs, (3, 1), padding=(1, 0), stride=stride),
        conv_bn(inputs, outputs, (1, 3), padding=(0, 1), stride=stride),
    )


def diverse(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """k x k, 1x1, 1x1 then k x k, 1x1 then average (Diverse Branch Block, arXiv 2103.13425).

    Padded once, ahead of the 1x1, which gives the border the value of the paper's own padding.
    """
    return Sum(
        conv_bn(inputs, outputs, 3, padding=1, stride=stride),
        conv_bn(inputs, outputs, 1, stride=stride),
        nn.Sequential(
            conv_bn(inputs, inputs, 1, padding=1), conv_bn(inputs, outputs, 3, stride=stride)
        ),
        nn.Sequential(
            conv_bn(inputs, outputs, 1, padding=1),
            nn.AvgPool2d(3, stride),
            nn.BatchNorm2d(outputs),
        ),
    )


class Residual(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


def count(network: nn.Module, *kinds: type[nn.Module]) -> int:
    """How many layers of these kinds a network holds."""
    return sum(isinstance(m, kinds) for m in network.modules())
