"""Activations for training: torch's own values, in less time and memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Elements worked on at a time: with their companions they stay in a core's cache.
_PIECE = 1 << 18


def _rows(x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """A view of x as rows in memory order, and the slopes along (or of) them.

    torch walks a broadcast along the innermost axis; with channels last that axis has a handful of
    elements and most of the time goes into starting over. Whole picture rows with the slopes
    repeated along them take a third to a sixth of the time (measured: benchmarks/prelu.py).
    """
    slope = slope.to(x.dtype).expand(x.shape[1])
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
        return rows, slope.repeat(width)
    return x.reshape(x.shape[0], x.shape[1], -1), slope[:, None]


def _like(grad: Tensor, x: Tensor) -> Tensor:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return grad.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


class _PReLUFunction(torch.autograd.Function):
    """y = max(x, 0) + slope * min(x, 0), piece by piece, each pass over memory a fast one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        x = _like(x, x)
        ctx.save_for_backward(x, slope)
        if x.dtype != torch.bfloat16:
            return torch.prelu(x, slope)  # torch's kernel is slow in bf16 alone
        y = torch.empty_like(x)
        (rows, along), (out, _) = _rows(x, slope), _rows(y, slope)
        step = max(1, _PIECE // max(1, rows[0].numel())) if len(rows) else 1
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            positive = part.clamp(min=0)
            torch.addcmul(positive, part - positive, along, out=out[start : start + step])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        grad = _like(grads[0], x)
        result = torch.empty_like(x)
        rows, along = _rows(x, slope)
        given, out = _rows(grad, slope)[0], _rows(result, slope)[0]
        total = torch.zeros(rows.shape[1:], dtype=slope.dtype, device=x.device)
        step = max(1, _PIECE // max(1, rows[0].numel())) if len(rows) else 1
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            # Zero where x is not positive: the same test as torch's PReLU.
            positive = torch.ops.aten.threshold_backward(given[part], rows[part], 0)
            negative = given[part] - positive
            torch.addcmul(positive, negative, along, out=out[part])
            total += negative.mul_(rows[part]).sum(0, dtype=slope.dtype)
        per_channel = total.view(-1, x.shape[1]).sum(0) if total.ndim == 1 else total.sum(1)
        return result, per_channel if slope.numel() > 1 else per_channel.sum().reshape(1)


class FastPReLU(nn.PReLU):
    """``torch.nn.PReLU`` with the same values and gradients, in less time and memory.

    Outside training it is torch's own, so exporters and tools see what they know.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, ...] to the same shape."""
        if self.training and torch.is_grad_enabled():
            return _PReLUFunction.apply(input, self.weight)  # type: ignore[return-value]
        return super().forward(input)
