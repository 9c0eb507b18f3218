"""The fast PReLU is torch's PReLU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from collapsible.blocks import FastPReLU


@pytest.mark.parametrize("batch", [1, 4, 11])
@pytest.mark.parametrize("slopes", [1, 6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs(batch, slopes, layout):
    torch.manual_seed(0)
    ours, theirs = FastPReLU(slopes).double(), nn.PReLU(slopes).double()
    with torch.no_grad():
        ours.weight.copy_(torch.linspace(-0.3, 0.9, slopes))
        theirs.weight.copy_(ours.weight)
    x = torch.randn(batch, 6, 5, 4, dtype=torch.float64).to(memory_format=layout)
    weight = torch.randn_like(x)
    results = []
    for act in (ours, theirs):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = act(given)
        (y * weight).sum().backward()
        results.append((y, given.grad, act.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    act = FastPReLU(3).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: act(v), (x,))


def test_bf16_under_autocast():
    act = FastPReLU(4)
    x = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = act(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert act.weight.grad is not None
    assert act.weight.grad.dtype == torch.float32
    wanted = (x.detach().float().clamp(max=0)).sum((0, 2, 3))
    torch.testing.assert_close(act.weight.grad, wanted, rtol=2e-2, atol=0.2)


def test_out_of_training_it_is_torchs_own():
    act = FastPReLU(2).eval()
    assert "PreluKernel" in type(act(torch.rand(1, 2, requires_grad=True)).grad_fn).__name__
