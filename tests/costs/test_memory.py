"""The lifetimes of tensors, by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.costs import cost

MAP = 4 * 8 * 8  # elements of one map with four channels


def wide(channels: int = 4, out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class Net(nn.Module):
    """A body of convolutions called ``a``, ``b``, ``c``, and the forward that is given."""

    def __init__(self, body) -> None:
        super().__init__()
        self.a, self.b, self.c = wide(), wide(), wide()
        self.wide, self.back = wide(4, 16), wide(16, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def stale(net: Net, x: Tensor) -> Tensor:
    """The last reader is early, though Python holds the name to the end."""
    first = net.a(x)
    second = net.b(first)
    return net.c(second)


def split(net: Net, x: Tensor) -> Tensor:
    """Both halves are views of one piece of memory."""
    left, right = net.wide(x).chunk(2, 1)
    return left * right


@pytest.mark.parametrize(
    ("body", "maps"),
    [
        # Input and output of each convolution: two maps.
        (lambda net, x: net.c(net.b(net.a(x))), 2),
        (stale, 2),
        # The kept input lives through the body: three at b, and at the sum two and the result.
        (lambda net, x: x + net.b(net.a(x)), 3),
        # Two branches from x: at b there are x, a's result and b's.
        (lambda net, x: net.a(x) + net.b(x), 3),
        # At the first sum c is still to come: x, both terms and the sum.
        (lambda net, x: net.a(x) + net.b(x) + net.c(x), 4),
        # All three at once before they are joined: 3 + the joined, as large as all three.
        (lambda net, x: torch.cat([net.a(x), net.b(x), net.c(x)], 1), 6),
        # Four times the channels in the middle.
        (lambda net, x: net.back(net.wide(x)), 5),
        # An activation takes a new map, in place it takes none.
        (lambda net, x: F.relu(net.a(x)), 2),
        (lambda net, x: net.back(F.relu(net.wide(x))), 8),
        (lambda net, x: net.back(F.relu_(net.wide(x))), 5),
        # Views take nothing.
        (lambda net, x: net.a(x.flatten(2).view(1, 4, 8, 8).transpose(2, 3)), 2),
        (split, 6),
        # A max pooling's indices are never made: x and a quarter of it.
        (lambda net, x: F.max_pool2d(x, 2), 1.25),
    ],
)
def test_peak_by_hand(body, maps):
    for width in (1, 4):
        report = cost(Net(body), (1, 4, 8, 8), element_bytes=width)
        assert report.peak_memory == maps * MAP * width


def test_default_width_is_that_of_the_parameters():
    network = Net(lambda net, x: net.a(x))
    assert cost(network, (1, 4, 8, 8)).peak_memory == 2 * MAP * 4
    report = cost(network.half(), (1, 4, 8, 8))
    assert (report.peak_memory, report.element_bytes) == (2 * MAP * 2, 2)
    assert report.weight_bytes == 2 * (4 * 4 * 9 + 4)


def test_where_the_peak_is():
    report = cost(Net(lambda net, x: net.back(net.wide(x))), (1, 4, 8, 8))
    assert report.peak_at == "wide"


def test_sesr_by_hand():
    """F0 is kept for the long residual, the picture for the input residual."""
    from collapsible.folding import collapse
    from collapsible.models import create_model

    network, _ = collapse(create_model("sesr_m5"))
    report = cost(network, (1, 1, 36, 64), element_bytes=1)
    assert report.peak_memory == 36 * 64 * (1 + 3 * 16)
    assert report.weight_bytes == report.params
