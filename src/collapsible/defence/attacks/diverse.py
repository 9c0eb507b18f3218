"""DI2-FGSM: gradients through random resizing and padding, which carry over to other models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from collapsible.defence.attacks.balls import uniform
from collapsible.defence.attacks.momentum import MIFGSM
from collapsible.defence.attacks.objective import Model


@dataclass(frozen=True, kw_only=True)
class DI2FGSM(MIFGSM):
    """The diverse inputs iterative method (Xie et al. 2019, section 3.3).

    Before each gradient, with ``probability``, the pictures are resized to a random side between
    their own and ``resize`` times it, and padded with zeros at a random place to the larger of the
    two. The paper enlarges 299 to at most 330 (``resize=330 / 299``, for models that take any
    size); the default shrinks by up to a tenth and pads back, so the model sees its own size.
    ``decay=1`` is the paper's M-DI2-FGSM. One draw a step serves the whole batch, so that a step
    is one call of the model whatever the sizes.
    """

    name: str = "di2-fgsm"
    decay: float = 0.0
    probability: float = 0.5
    resize: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("probability", self.probability, 0.0, 1.0)
        self._number("resize", self.resize, 0.1, 10.0)

    def _view(self, x: Tensor, generator: torch.Generator | None) -> Model | None:
        coin, part, top, left = uniform((4,), x, generator).tolist()
        if coin >= self.probability:
            return None
        own = (x.shape[2], x.shape[3])
        other = tuple(max(1, int(side * self.resize)) for side in own)
        whole = [max(pair) for pair in zip(own, other, strict=True)]
        small = [min(pair) for pair in zip(own, other, strict=True)]
        # The sides from the smaller up to but without the larger, as in the paper.
        size = [s + int(part * (w - s)) for s, w in zip(small, whole, strict=True)]
        above = int(top * (whole[0] - size[0] + 1))
        before = int(left * (whole[1] - size[1] + 1))
        pad = (before, whole[1] - size[1] - before, above, whole[0] - size[0] - above)

        def resize_and_pad(z: Tensor) -> Tensor:
            return F.pad(F.interpolate(z, size, mode="bilinear", align_corners=False), pad)

        return resize_and_pad
