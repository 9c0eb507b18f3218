"""Rewrites of graphs as people write them: shared modules, names for arguments, odd additions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.deploy.legal_graph import BENDS, TAILS, Draft


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class AddsNarrow(nn.Module):
    """The repeated channels meet one channel: the sum has four only because they are repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x.repeat_interleave(4, dim=1) + self.conv(x), 2)


class AddsNumber(AddsNarrow):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).repeat_interleave(4, dim=1) + 1.0


class AddsItself(AddsNarrow):
    def forward(self, x: Tensor) -> Tensor:
        repeated = self.conv(x).repeat_interleave(4, dim=1)
        return repeated + repeated


class AddsWide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x) + x.repeat_interleave(4, dim=1), 2)


class NamedArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(input=self.conv(x), negative_slope=0.2)
        return F.pixel_shuffle(input=y, upscale_factor=2)


class Shared(nn.Module):
    """One bend and one depth to space at two places each, the bend in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(1, 16), conv(4, 8)
        self.bend, self.shuffle = nn.LeakyReLU(0.2, inplace=True), nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.bend(self.first(x)))
        return self.shuffle(self.bend(self.second(y)))


CASES = {
    "narrow": (AddsNarrow, 1),
    "number": (AddsNumber, 1),
    "itself": (AddsItself, 1),
    "wide": (AddsWide, 1),
    "named": (NamedArguments, 1),
    "shared": (Shared, 1),
    "no parameters, shuffle": (lambda: nn.PixelShuffle(2), 4),
    "no parameters, bend": (lambda: nn.Sequential(nn.LeakyReLU(0.01), nn.PixelShuffle(2)), 4),
}


def drafts(network: nn.Module, x: Tensor):
    """A draft in every form that applies, beside the form's name."""
    start = Draft.of(network, x)
    for tail in TAILS:
        for bend in BENDS:
            draft = start.copy()
            done = draft.rewrite_bends(bend) and draft.rewrite_repeats("broadcast")
            if done and draft.rewrite_shuffles(tail):
                yield f"{tail}, {bend}", draft


@pytest.mark.parametrize("case", CASES)
def test_every_form_that_applies_is_the_network(case):
    make, channels = CASES[case]
    torch.manual_seed(0)
    network = make().double().eval()
    x = torch.randn(1, channels, 6, 7, dtype=torch.float64)
    wanted = network(x)
    tried = 0
    for form, draft in drafts(network, x):
        given = draft.finish()(x)
        assert given.shape == wanted.shape, form
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-13, msg=form)
        tried += 1
    assert tried >= 2


def test_a_module_at_two_places_is_rewritten_at_both():
    draft = Draft.of(Shared().double().eval(), torch.zeros(1, 1, 6, 7, dtype=torch.float64))
    assert draft.rewrite_bends("two relus")
    assert draft.rewrite_shuffles("stages")
    kinds = [type(module) for module in draft.finish().modules()]
    assert nn.LeakyReLU not in kinds
    assert nn.PixelShuffle not in kinds


def test_only_a_sum_that_stays_as_wide_broadcasts():
    for kind, form in ((AddsNarrow, "1x1"), (AddsNumber, "1x1"), (AddsWide, "broadcast")):
        draft = Draft.of(kind().double().eval(), torch.zeros(1, 1, 6, 7, dtype=torch.float64))
        assert draft.rewrite_repeats("broadcast")
        assert form in draft.rewrites[0].form
