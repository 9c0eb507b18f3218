"""BPDA: the forward of one function, the gradient of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError

Function = Callable[[Tensor], Tensor]


class _Borrowed(torch.autograd.Function):
    """Calls ``forward`` on the way there and differentiates ``backward`` on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Function, backward: Function) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stand_in = backward
        # Never the input itself, which autograd would take for a change in place.
        return forward(x.detach()).detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            y = ctx.stand_in(point)
        if y.shape != grads[0].shape:
            raise UsageError(
                f"bpda: the forward function gives {tuple(grads[0].shape)}, its stand-in for the "
                f"gradient {tuple(y.shape)}; they must agree"
            )
        (gradient,) = torch.autograd.grad(y, point, grads[0].to(y.dtype))
        return gradient, None, None


class BPDA(nn.Module):
    """See ``bpda``."""

    def __init__(self, exact: Function, stand_in: Function) -> None:
        super().__init__()
        self.exact = exact
        self.stand_in = stand_in

    def forward(self, x: Tensor) -> Tensor:
        result = _Borrowed.apply(x, self.exact, self.stand_in)
        assert isinstance(result, Tensor)
        return result


def _same(x: Tensor) -> Tensor:
    return x.view_as(x)


def bpda(forward: Function, backward: Function = _same) -> BPDA:
    """A module with the values of ``forward`` and the gradient of ``backward``.

    Backward pass differentiable approximation (Athalye et al. 2018, section 4.1): a step that
    cannot be differentiated is computed exactly, and its gradient is that of a similar function
    at the same point; without one, that of the identity (their section 4.1.1). Both functions take
    and give tensors of the same shapes; where they do not agree, the backward pass raises
    ``UsageError``. Modules among the two move and switch mode with the result; their parameters
    get no gradient.
    """
    return BPDA(forward, backward)
