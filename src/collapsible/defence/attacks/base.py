"""What every attack has in common: its settings, its checks, and the best picture kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from collapsible.defence.attacks.balls import NORMS, per_picture
from collapsible.defence.attacks.objective import Evaluation, Model, Objective, evaluation_mode
from collapsible.errors import UnknownNameError, UsageError


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Settings of an attack; calling it makes adversarial pictures.

    ``epsilon`` is the radius of the ball around each picture, in pixel values of [0, 1] for
    ``norm="linf"`` and as a Euclidean length over all the picture's pixels for ``"l2"`` (where the
    default is very small; 0.5 is usual for 32x32, 3 for 224x224). ``eot`` is the number of passes
    that each evaluation of the model averages, for models that draw random numbers. ``restarts``
    runs that find nothing are followed by others up to this number; only pictures that have held
    so far are attacked again.
    """

    name: str
    norm: str = "linf"
    epsilon: float = 8 / 255
    eot: int = 1
    restarts: int = 1

    def __post_init__(self) -> None:
        self._choose("norm", self.norm, NORMS)
        self._number("epsilon", self.epsilon, 0.0)
        self._count("eot", self.eot)
        self._count("restarts", self.restarts)

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial pictures (N, C, H, W) in [0, 1], within ``epsilon`` of ``images``.

        ``model`` maps pictures in [0, 1] to logits (N, classes); a module is set to eval mode for
        the duration, and neither its parameters nor their gradients change. ``images`` are
        floating point, (N, C, H, W) in [0, 1], ``labels`` (N,) integers; ``targets`` (N,), where
        given, are the classes to be reached instead. Type and device of ``images`` are kept, and
        the distance is within ``epsilon`` to the rounding of that type (half-precision pictures
        are searched in float32, and the model is called in half precision). ``epsilon=0`` and an
        empty batch give the pictures themselves. Random numbers come from ``generator`` alone, or
        from torch's global one without it.

        Raises ``UsageError`` for inputs of the wrong shape, type or range; ``NonFiniteError``,
        which counts the pictures, where gradients or logits are not finite; ``AttackError`` where
        the model passes no gradient back.
        """
        images, labels = images.detach(), labels.detach()
        targets = None if targets is None else targets.detach()
        self._check_inputs(images, labels, targets)
        if self.epsilon == 0 or images.numel() == 0:
            return images.clone()
        with evaluation_mode(model):
            # A fresh tensor: one made in inference mode cannot take part in a gradient.
            dtype = images.dtype if images.dtype == torch.float64 else torch.float32
            x = torch.empty_like(images, dtype=dtype).copy_(images)
            labels = labels.to(device=x.device, dtype=torch.long, copy=True)
            if targets is not None:
                targets = targets.to(device=x.device, dtype=torch.long, copy=True)
            objective = Objective(
                self.name, model, labels, targets, self._loss_for(targets), self.eot, images.dtype
            )
            result = self._attack(objective, x, generator)
            return result.detach().to(images.dtype)

    @abstractmethod
    def _attack(
        self, objective: Objective, x: Tensor, generator: torch.Generator | None
    ) -> Tensor: ...

    def _loss_for(self, targets: Tensor | None) -> str:
        return "ce"

    def _check_inputs(self, images: Tensor, labels: Tensor, targets: Tensor | None) -> None:
        if images.ndim != 4 or not images.is_floating_point():
            raise UsageError(
                f"{self.name}: pictures must be floating point (N, C, H, W) in [0, 1], "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        for what, values in (("labels", labels), ("targets", targets)):
            if values is None:
                continue
            if values.shape != images.shape[:1]:
                raise UsageError(
                    f"{self.name}: {len(images)} pictures need {what} of shape "
                    f"({len(images)},), got {tuple(values.shape)}"
                )
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise UsageError(f"{self.name}: {what} must be integers, got {values.dtype}")
            if values.numel() and int(values.min()) < 0:
                raise UsageError(f"{self.name}: {what} must not be negative: {int(values.min())}")
        # Written so that NaN fails too.
        if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
            low, high = float(images.min()), float(images.max())
            raise UsageError(
                f"{self.name}: pictures must lie in [0, 1], got values from {low:g} to {high:g}"
            )

    def _choose(self, setting: str, given: str, known: tuple[str, ...]) -> None:
        if given not in known:
            raise UnknownNameError(f"{setting} of {self.name}", str(given), known)

    def _number(self, setting: str, given: float, least: float, most: float = math.inf) -> None:
        ok = isinstance(given, int | float) and not isinstance(given, bool)
        if not ok or not math.isfinite(given) or not least <= given <= most:
            limits = f"at least {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
            raise UsageError(f"{self.name}: {setting} must be a number, {limits}; got {given!r}")

    def _count(self, setting: str, given: int, least: int = 1) -> None:
        if not isinstance(given, int) or isinstance(given, bool) or given < least:
            raise UsageError(
                f"{self.name}: {setting} must be a whole number, at least {least}; got {given!r}"
            )


class Best:
    """The worst picture for the model seen so far, for each picture of a batch.

    One that fools the model beats one that does not; between two alike the larger loss wins.
    """

    def __init__(self, x: Tensor) -> None:
        self.images = x.clone()
        self.loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, z: Tensor, seen: Evaluation, where: Tensor | None = None) -> None:
        """Candidates for all the pictures, or for those at the indices ``where``."""
        if where is None:
            where = torch.arange(len(self.images), device=z.device)
        loss, fooled = self.loss[where], self.fooled[where]
        better = (seen.fooled & ~fooled) | ((seen.fooled == fooled) & (seen.loss > loss))
        self.images[where] = torch.where(per_picture(better), z, self.images[where])
        self.loss[where] = torch.where(better, seen.loss, loss)
        self.fooled[where] = fooled | seen.fooled

    def merge(self, other: Best, where: Tensor) -> None:
        """The best of another search for the pictures at ``where``."""
        self.offer(other.images, Evaluation(other.loss, other.fooled), where)
