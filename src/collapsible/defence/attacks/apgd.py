"""Auto-PGD: projected steps with momentum that choose their own length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from collapsible.defence.attacks.balls import (
    ascent,
    per_picture,
    project,
    sphere,
    uniform,
)
from collapsible.defence.attacks.base import Attack, Best
from collapsible.defence.attacks.objective import Objective

_MOMENTUM = 0.75  # alpha of the paper's algorithm 1


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1), per picture.

    ``loss`` is ``"ce"`` or ``"dlr"`` (equation 6; with targets given, equation 7).
    ``classes_tried`` > 0 attacks towards each of that many likeliest wrong classes in turn, with
    the targeted loss: the paper's APGD-T with 9. ``rho`` is the share of steps that must have
    raised the loss for the step to keep its length. Pictures that the model already gets wrong (or
    at the target) come back as they are; of the others the worst point found comes back, whether
    or not it fools the model.
    """

    name: str = "apgd-ce"
    loss: str = "ce"
    steps: int = 100
    rho: float = 0.75
    classes_tried: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choose("loss", self.loss, ("ce", "dlr"))
        self._count("steps", self.steps)
        self._number("rho", self.rho, 0.0, 1.0)
        self._count("classes_tried", self.classes_tried, 0)

    def _loss_for(self, targets: Tensor | None) -> str:
        return self.loss

    def _attack(self, objective: Objective, x: Tensor, generator: torch.Generator | None) -> Tensor:
        # Losses towards different classes cannot be compared: what is kept is ranked by the margin.
        judge = replace(objective, loss="margin")
        best = Best(x)
        best.offer(x, judge.evaluate(x))
        aims: list[Tensor | None] = [None]
        if self.classes_tried and objective.targets is None:
            aims = list(self._likeliest(objective, x))
        for _ in range(self.restarts):
            for aim in aims:
                left = (~best.fooled).nonzero().flatten()
                if len(left) == 0:
                    return best.images
                part = objective.select(left)
                if aim is not None:
                    part = replace(part, aims=aim[left])
                found = self._run(part, x[left], generator)
                best.offer(found, judge.select(left).evaluate(found), left)
        return best.images

    def _likeliest(self, objective: Objective, x: Tensor) -> Tensor:
        """The wrong classes in order of their logits on the clean pictures, (tried, N)."""
        logits = objective.logits(x)
        order = logits.scatter(1, objective.labels[:, None], -torch.inf).argsort(
            dim=1, descending=True
        )
        return order[:, : min(self.classes_tried, logits.shape[1] - 1)].T

    def _run(
        self,
        objective: Objective,
        x: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """One run: the last point that fooled the model, or else the one with the largest loss."""
        z = self._start(x, generator)
        seen = objective.gradient(z)
        assert seen.gradient is not None
        gradient, previous = seen.gradient, z
        top, top_z, top_gradient = seen.loss, z, seen.gradient
        fooling, fooled = z, seen.fooled
        step = torch.full((len(x),), 2 * self.epsilon, dtype=x.dtype, device=x.device)
        rises = torch.zeros(len(x), dtype=torch.long, device=x.device)
        halved, last_top = torch.zeros_like(fooled), top
        checks, checked = checkpoints(self.steps), 0
        last_loss = seen.loss
        for k in range(1, self.steps + 1):
            target = project(
                z + per_picture(step) * ascent(gradient, self.norm), x, self.epsilon, self.norm
            )
            if k > 1:
                target = z + _MOMENTUM * (target - z) + (1 - _MOMENTUM) * (z - previous)
                target = project(target, x, self.epsilon, self.norm)
            previous, z = z, target
            seen = objective.gradient(z)
            assert seen.gradient is not None
            gradient = seen.gradient
            fooling = torch.where(per_picture(seen.fooled), z, fooling)
            fooled = fooled | seen.fooled
            rises += seen.loss > last_loss
            last_loss = seen.loss
            risen = seen.loss > top
            top = torch.where(risen, seen.loss, top)
            top_z = torch.where(per_picture(risen), z, top_z)
            top_gradient = torch.where(per_picture(risen), gradient, top_gradient)
            if k in checks:
                # Condition 1: too few steps helped. Condition 2: nothing changed in the interval.
                too_few = rises < self.rho * (k - checked)
                stuck = ~halved & (top <= last_top)
                halved = too_few | stuck
                step = torch.where(halved, step / 2, step)
                z = torch.where(per_picture(halved), top_z, z)
                gradient = torch.where(per_picture(halved), top_gradient, gradient)
                rises, last_top, checked = torch.zeros_like(rises), top, k
        return torch.where(per_picture(fooled), fooling, top_z)

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """A random point on the ball's surface, clipped to [0, 1]."""
        if self.norm == "linf":
            drawn = 2 * uniform(x.shape, x, generator) - 1
            delta = drawn / per_picture(drawn.flatten(1).abs().amax(dim=1)).clamp(min=1e-12)
        else:
            delta = sphere(x, generator)
        return (x + self.epsilon * delta).clamp(0, 1)


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps at which lengths are reconsidered (Croce & Hein 2020, section 3.2).

    p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06); w_j = ceil(p_j steps).
    Counted in hundredths, so that no rounding moves one.
    """
    found, last, here = [], 0, 22
    while here <= 100:
        found.append(math.ceil(here * steps / 100))
        last, here = here, here + max(here - last - 3, 6)
    return tuple(dict.fromkeys(found))
