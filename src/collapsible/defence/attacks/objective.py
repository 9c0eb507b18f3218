"""What an attack raises: a loss of the model's logits, its gradient, and who is fooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collapsible.defence.attacks.errors import AttackError, NonFiniteError
from collapsible.errors import UsageError

Model = Callable[[Tensor], Tensor]
LOSSES = ("ce", "dlr", "margin")
# How many logits each loss needs; the targeted DLR loss takes the fourth largest one.
_CLASSES = {"ce": 2, "dlr": 3, "margin": 2, "targeted dlr": 4}


@dataclass(frozen=True)
class Evaluation:
    """Per picture: the attacker's loss (N,), whether the model is fooled (N,), the gradient."""

    loss: Tensor
    fooled: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """The model as an attack sees it.

    ``labels`` (N,) are the true classes, ``targets`` (N,) the wanted ones or None. ``aims`` (N,)
    are classes that the loss leads to while any wrong answer counts as fooled. ``dtype`` is the
    one the model is called with. ``eot`` passes are averaged per evaluation: losses and
    gradients by their mean, the prediction by the mean of the logits (Athalye et al. 2018,
    section 4.2: expectation over transformation).
    """

    attack: str
    model: Model
    labels: Tensor
    targets: Tensor | None
    loss: str
    eot: int
    dtype: torch.dtype
    aims: Tensor | None = None

    def select(self, which: Tensor) -> Objective:
        """The same objective for some of the pictures (a mask or indices)."""
        targets = None if self.targets is None else self.targets[which]
        aims = None if self.aims is None else self.aims[which]
        return replace(self, labels=self.labels[which], targets=targets, aims=aims)

    @property
    def _wanted(self) -> Tensor | None:
        return self.targets if self.aims is None else self.aims

    def evaluate(self, x: Tensor) -> Evaluation:
        """Loss and outcome without a gradient."""
        with torch.no_grad():
            passes = [self._logits(x) for _ in range(self.eot)]
            loss = torch.stack([self._loss(logits) for logits in passes]).mean(0)
            return Evaluation(loss.to(x.dtype), self._fooled(torch.stack(passes).mean(0)))

    def logits(self, x: Tensor) -> Tensor:
        """The mean logits (N, classes), without a gradient."""
        with torch.no_grad():
            return torch.stack([self._logits(x) for _ in range(self.eot)]).mean(0)

    def gradient(self, x: Tensor, view: Model | None = None) -> Evaluation:
        """Loss, outcome, and the loss's gradient with respect to each picture.

        ``view`` is applied before the model in every pass (input diversity).
        Raises ``AttackError`` where the model is not differentiable in its pictures and
        ``NonFiniteError`` for gradients or logits that are not finite.
        """
        gradient, losses, mean = torch.zeros_like(x), [], None
        for _ in range(self.eot):
            point = x.detach().requires_grad_()
            logits = self._logits(view(point) if view else point)
            loss = self._loss(logits)
            if loss.requires_grad:
                (one,) = torch.autograd.grad(loss.sum(), point, allow_unused=True)
            else:
                one = None
            if one is None:
                raise AttackError(
                    f"{self.attack}: the model passes no gradient to its pictures; "
                    "replace the step that is not differentiable with bpda(forward, backward)"
                )
            gradient += one
            losses.append(loss.detach())
            logits = logits.detach()
            mean = logits if mean is None else mean + logits
        assert mean is not None
        gradient /= self.eot
        self._demand_finite(gradient.flatten(1).isfinite().all(dim=1), "gradient")
        loss = torch.stack(losses).mean(0).to(x.dtype)
        return Evaluation(loss, self._fooled(mean), gradient)

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.model(x.to(self.dtype))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(
                f"{self.attack}: the model must give logits ({len(x)}, classes), got {shape}"
            )
        classes = logits.shape[1]
        kind = "targeted dlr" if self.loss == "dlr" and self._wanted is not None else self.loss
        if classes < _CLASSES[kind]:
            raise UsageError(
                f"{self.attack}: the {kind} loss needs {_CLASSES[kind]} classes, "
                f"the model has {classes}"
            )
        for what, values in (("label", self.labels), ("target", self.targets)):
            if values is not None and int(values.max()) >= classes:
                raise UsageError(
                    f"{self.attack}: {what} {int(values.max())} given, "
                    f"but the model's classes are 0 to {classes - 1}"
                )
        # One class may be ruled out by -inf; not a number is never an answer.
        self._demand_finite(~(logits.isnan() | logits.isposinf()).any(dim=1), "logits")
        return logits if logits.dtype == torch.float64 else logits.float()

    def _demand_finite(self, good: Tensor, what: str) -> None:
        if not bool(good.all()):
            raise NonFiniteError(self.attack, what, int((~good).sum()), len(good))

    def _loss(self, logits: Tensor) -> Tensor:
        """(N,), larger is better for the attacker."""
        wanted = self._wanted
        if self.loss == "ce":
            chosen, sign = (self.labels, 1) if wanted is None else (wanted, -1)
            return sign * F.cross_entropy(logits, chosen, reduction="none")
        if self.loss == "margin":
            return margin(logits, self.labels, wanted)
        if wanted is None:
            return dlr_loss(logits, self.labels)
        return targeted_dlr_loss(logits, self.labels, wanted)

    def _fooled(self, logits: Tensor) -> Tensor:
        predicted = logits.argmax(dim=1)
        return predicted != self.labels if self.targets is None else predicted == self.targets


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """How far the attacker is past the boundary: positive where he has won, (N,).

    max over j != y of z_j, less z_y; with targets z_t less max over j != t of z_j.
    """
    chosen = labels if targets is None else targets
    own = _pick(logits, chosen)
    others = logits.scatter(1, chosen[:, None], -torch.inf).amax(dim=1)
    return others - own if targets is None else own - others


def dlr_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (N,) (Croce & Hein 2020, equation 6).

    -(z_y - max over i != y of z_i) / (z_pi1 - z_pi3), pi the order from the largest logit down:
    unchanged by shifting and scaling the logits, so confidence cannot make its gradient vanish.
    """
    ranked = logits.sort(dim=1, descending=True).values
    return margin(logits, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_dlr_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2), (N,) (Croce & Hein 2020, equation 7)."""
    ranked = logits.sort(dim=1, descending=True).values
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2
    return (_pick(logits, targets) - _pick(logits, labels)) / (spread + 1e-12)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """The model and its parts in eval mode, and gradients on whatever the caller chose.

    Afterwards every part has its own mode again. A plain function is taken as it is.
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
