"""SOAP against its paper's algorithm, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from collapsible import errors
from collapsible.errors import MissingExtraError
from collapsible.training.optimisers import build_optimiser
from collapsible.training.recipes import OptimiserSpec

RATE, BETAS = 0.01, (0.95, 0.99)
SIDE = 16 * 3 * 3


class Kernel(nn.Module):
    """A kernel that is a square matrix once its last three axes are joined, so of full rank."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIDE, 16, 3, 3))
        self.small = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.bias = nn.Parameter(torch.zeros(3))


def by_hand(start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Algorithm 3 of arXiv 2409.11321 with two-sided bases, none of them turned yet."""
    first = gradients[0]
    left = (1 - BETAS[1]) * first @ first.T
    right = (1 - BETAS[1]) * first.T @ first
    ql, qr = (np.linalg.eigh(m)[1][:, ::-1] for m in (left, right))
    mean, square, kernel = np.zeros_like(first), np.zeros_like(first), start.copy()
    # The first gradient makes the bases alone.
    for step, gradient in enumerate(gradients[1:], start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        turned = ql.T @ gradient @ qr
        square = BETAS[1] * square + (1 - BETAS[1]) * turned**2
        size = np.sqrt(square / (1 - BETAS[1] ** step))
        update = (ql.T @ mean @ qr) / (1 - BETAS[0] ** step) / (size + 1e-8)
        kernel -= RATE * ql @ update @ qr.T
    return kernel


def test_soap_is_adam_in_the_gradients_eigenbasis() -> None:
    torch.manual_seed(0)
    network = Kernel().double()
    start, before = (
        network.weight.detach().numpy().reshape(SIDE, SIDE).copy(),
        network.small.clone(),
    )
    optimiser = build_optimiser(network, OptimiserSpec("soap", RATE, BETAS))
    random = np.random.default_rng(0)
    gradients = [random.normal(size=(SIDE, SIDE)) for _ in range(6)]
    for gradient in gradients:
        network.weight.grad = torch.from_numpy(gradient).reshape(SIDE, 16, 3, 3)
        network.small.grad = torch.ones_like(network.small)
        network.bias.grad = torch.ones(3, dtype=torch.float64)
        optimiser.step()
    np.testing.assert_allclose(
        network.weight.detach().numpy().reshape(SIDE, SIDE),
        by_hand(start, gradients),
        rtol=0,
        atol=3e-5,  # of steps of a hundredth: the package adds its epsilon before the correction
    )
    assert bool((network.small < before).all())
    # A vector takes Adam's steps: five of the rate, after the one that starts the bases.
    np.testing.assert_allclose(network.bias.detach().numpy(), -5 * RATE, rtol=1e-6)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pytorch_optimizer"):
        build_optimiser(Kernel(), OptimiserSpec("soap"))
