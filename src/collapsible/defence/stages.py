"""What a stage of a defence is: an exact function, and a torch form for gradients and export."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError

Form = Literal["exact", "torch"]
Surrogate = Literal["smooth", "identity", "none"]


class Stage(nn.Module):
    """One step of pre-processing: float [N, 3, H, W] in [0, 1] to the same, perhaps larger.

    ``exact`` is the function that is deployed, by the library that defines it; it has no gradient.
    ``smooth`` is the same function in torch alone: its values agree to the tolerance that the
    stage states, and its gradient is useful. Calling the stage gives, by ``form``,

    * ``"exact"``: the value of ``exact``, and in the backward pass a stand-in for the gradient
      (backward pass differentiable approximation, BPDA: Athalye et al., arXiv 1802.00420,
      section 4.1). ``surrogate`` says which: ``"smooth"`` is that of ``smooth``, ``"identity"``
      passes it on as it is, ``"none"`` gives zeros, which is a masked gradient: it exists to show
      what an attacker who does not look further would see.
    * ``"torch"``: ``smooth`` in both directions; what is exported.

    ``name`` is the stage's name in the registry, with its setting.
    """

    name = ""
    keeps_size = True

    def __init__(self) -> None:
        super().__init__()
        self.form: Form = "exact"
        self.surrogate: Surrogate = "smooth"

    def exact(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def smooth(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "torch":
            return self.smooth(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            with torch.no_grad():
                return self.exact(x)
        return _Substitute.apply(x, self)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return self.name


class DifferentiableStage(Stage):
    """A stage that torch computes exactly and differentiates: both forms are the same."""

    def exact(self, x: Tensor) -> Tensor:
        return self.smooth(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "exact" and self.surrogate == "none":
            return super().forward(x)
        return self.smooth(x)


class _Substitute(torch.autograd.Function):
    """Forward the exact form, backward the surrogate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Stage) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stage = stage
        return stage.exact(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        stage: Stage = ctx.stage
        if stage.surrogate == "none":
            return torch.zeros_like(x), None
        if stage.surrogate == "identity" and stage.keeps_size:
            return gradient, None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = stage.smooth(x)
        return torch.autograd.grad(y, x, gradient)[0], None


class _Passing(torch.autograd.Function):
    """Any rounding or clipping forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def passing_round(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes as if nothing were done."""
    return _pass(x, torch.round(x.detach()))


def passing_clamp(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Clip; the gradient passes even where something was clipped.

    A saturated pixel would otherwise hide its gradient from an attack on the whole pipeline,
    although a step the other way would be felt.
    """
    return _pass(x, x.detach().clamp(low, high))


def _pass(x: Tensor, y: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return y
    return _Passing.apply(x, y)  # type: ignore[return-value]


class Pipeline(nn.Module):
    """Stages one after another; the identity if there are none.

    ``name`` is how ``create_defence`` makes it again. Raises ``UsageError`` for pictures that are
    not float [N, 3, H, W].
    """

    def __init__(self, stages: list[Stage], name: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        check_pictures(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def set_form(self, form: Form, surrogate: Surrogate = "smooth") -> Pipeline:
        """Set how every stage computes (see ``Stage``); returns the pipeline."""
        for value, kind in ((form, Form), (surrogate, Surrogate)):
            if value not in get_args(kind):
                raise UsageError(f"{value!r}: accepted are {', '.join(get_args(kind))}")
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.form, stage.surrogate = form, surrogate
        return self


def check_pictures(x: Tensor) -> None:
    """Raise ``UsageError`` unless ``x`` is a batch of float RGB pictures."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise UsageError(
            f"pictures {x.dtype} {list(x.shape)}: float [N, 3, H, W] in [0, 1] are accepted"
        )
