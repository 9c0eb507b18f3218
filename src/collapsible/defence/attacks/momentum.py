"""MI-FGSM: steps along an average of gradients, which carries over to other models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from collapsible.defence.attacks.balls import per_picture
from collapsible.defence.attacks.iterative import Iterative


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Iterative):
    """The momentum iterative method (Dong et al. 2018, algorithm 1).

    g <- decay g + grad / ||grad||_1, then a step of epsilon / steps along sign(g) (equations 6
    and 7), or along g / ||g||_2 for L2 (equation 9). A gradient of zeros adds nothing.
    """

    name: str = "mi-fgsm"
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("decay", self.decay, 0.0)

    def _velocity(self, velocity: Tensor, gradient: Tensor) -> Tensor:
        # Dividing by the largest first keeps sums of very small gradients from underflowing.
        largest = per_picture(gradient.flatten(1).abs().amax(dim=1))
        gradient = gradient / largest.where(largest > 0, 1.0)
        total = per_picture(gradient.flatten(1).abs().sum(dim=1))
        return self.decay * velocity + gradient / total.where(total > 0, 1.0)
