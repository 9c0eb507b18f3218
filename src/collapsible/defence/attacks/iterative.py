"""One step and many along the gradient: FGSM, BIM and PGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from collapsible.defence.attacks.balls import ascent, project, random_start
from collapsible.defence.attacks.base import Attack, Best
from collapsible.defence.attacks.objective import Model, Objective

KEEPS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """The fast gradient sign method (Goodfellow et al. 2015, section 4).

    x + epsilon sign(grad loss(x, y)), clipped to [0, 1]; with targets, down the gradient of the
    target's loss. ``norm="l2"`` is its Euclidean form, x + epsilon g / ||g||_2. Optimal for a
    linear model with two classes. There is nothing random in it, so further restarts change
    nothing unless the model is random.
    """

    name: str = "fgsm"

    def _attack(self, objective: Objective, x: Tensor, generator: torch.Generator | None) -> Tensor:
        gradient = objective.gradient(x).gradient
        assert gradient is not None
        step = self.epsilon * ascent(gradient, self.norm)
        return project(x + step, x, self.epsilon, self.norm)


@dataclass(frozen=True, kw_only=True)
class Iterative(Attack):
    """Projected steps along a direction made of gradients.

    ``step_size`` is in the units of epsilon (None: the attack's own rule). ``keep`` is ``"last"``
    for the last point, as the older papers have it, or ``"best"`` for the worst one for the model
    among all that were visited.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = False
    keep: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("steps", self.steps)
        if self.step_size is not None:
            self._number("step_size", self.step_size, 0.0)
        self._choose("keep", self.keep, KEEPS)

    @property
    def alpha(self) -> float:
        """The length of a step."""
        return self.epsilon / self.steps if self.step_size is None else self.step_size

    def _attack(self, objective: Objective, x: Tensor, generator: torch.Generator | None) -> Tensor:
        best, left = Best(x), torch.arange(len(x), device=x.device)
        for _ in range(self.restarts):
            self._run(objective.select(left), x[left], left, best, generator)
            left = (~best.fooled).nonzero().flatten()
            if len(left) == 0:
                break
        return best.images

    def _run(
        self,
        objective: Objective,
        x: Tensor,
        where: Tensor,
        best: Best,
        generator: torch.Generator | None,
    ) -> None:
        z = random_start(x, self.epsilon, self.norm, generator) if self.random_start else x
        velocity = torch.zeros_like(x)
        for _ in range(self.steps):
            seen = objective.gradient(z, self._view(x, generator))
            assert seen.gradient is not None
            if self.keep == "best":
                best.offer(z, seen, where)
            velocity = self._velocity(velocity, seen.gradient)
            z = z + self.alpha * ascent(velocity, self.norm)
            z = project(z, x, self.epsilon, self.norm)
        best.offer(z, objective.evaluate(z), where)

    def _velocity(self, velocity: Tensor, gradient: Tensor) -> Tensor:
        """The direction to go, from the one before and the gradient here."""
        return gradient

    def _view(self, x: Tensor, generator: torch.Generator | None) -> Model | None:
        """A transformation to put before the model in this step."""
        return None


@dataclass(frozen=True, kw_only=True)
class BIM(Iterative):
    """The basic iterative method (Kurakin et al. 2017, section 2.2): FGSM in small steps.

    From the picture itself, steps of epsilon / steps unless ``step_size`` is given.
    """

    name: str = "bim"


@dataclass(frozen=True, kw_only=True)
class PGD(Iterative):
    """Projected gradient descent from a random point of the ball (Madry et al. 2018, section 2.1).

    Steps of 2.5 epsilon / steps unless ``step_size`` is given, so that every point of the ball can
    be reached from every start. ``restarts`` keeps each picture's worst.
    """

    name: str = "pgd"
    steps: int = 20
    random_start: bool = True
    keep: str = "best"

    @property
    def alpha(self) -> float:
        """The length of a step."""
        return 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
