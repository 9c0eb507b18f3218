"""Attacks by name, and networks and pictures to try them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Each name, with fewer steps where the number does not matter, and the norms.
SHORT: dict[str, dict[str, Any]] = {
    "fgsm": {},
    "bim": {"steps": 4},
    "pgd": {"steps": 4},
    "mi-fgsm": {"steps": 4},
    "di2-fgsm": {"steps": 4, "probability": 1.0},
    "apgd-ce": {"steps": 8},
    "apgd-dlr": {"steps": 8},
    "apgd-t": {"steps": 8, "classes_tried": 2},
    "square": {"queries": 20},
}
GRADIENT = sorted(set(SHORT) - {"square"})
EVERY = [(name, norm) for name in SHORT for norm in ("linf", "l2")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Small(nn.Module):
    """Four classes, with batch norm and dropout, which show whether eval mode was set."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Sequential(
                nn.Conv2d(channels, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.Tanh(),
                nn.Dropout(0.5),
                nn.AdaptiveAvgPool2d(2),
                nn.Flatten(),
                nn.Linear(32, classes),
            )
        # Centred, so that random pictures fall into all the classes.
        with torch.no_grad():
            some = torch.rand(64, channels, 8, 8, generator=seeded(2))
            self.body[6].bias -= self.body.eval()(some).mean(0)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * 10


class Line(nn.Module):
    """Two classes parted by a plane: logits (-m, m) / 2 with m = w . x + b."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        m = x.flatten(1) @ self.weight.to(x) + self.bias
        return torch.stack([-m, m], dim=1) / 2


def batch(n: int = 5, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    images = torch.rand(n, 3, size, size, generator=seeded(1), dtype=torch.float64)
    # Some pixels at the bounds, so that clipping has work to do.
    images = ((images - 0.5) * 1.5 + 0.5).clamp(0, 1).to(dtype)
    with torch.no_grad():
        labels = Small().eval()(images.float()).argmax(1)
    return images, labels


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    delta = (a.double() - b.double()).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
