"""Property: whatever stack of blocks, bends and shared values, a collapse changes no pixel."""

from __future__ import annotations

import torch
from branch_networks import LayerScale, Residual, Sum, acnet, conv_bn, diverse, randomise, repvgg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from collapsible.folding import collapse
from collapsible.folding.merge import add_convs, compose_convs
from collapsible.folding.ops import Conv, NotExactError


class Shared(nn.Module):
    """A convolution's output read by two layers, and by the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = conv_bn(channels, channels, 3, padding=1)
        self.left, self.right = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.left(x) + self.act(self.right(x)) + x


C = 4
BLOCKS = {
    "repvgg": lambda: repvgg(C),
    "grouped repvgg": lambda: repvgg(C, groups=2),
    "acnet": lambda: acnet(C, C),
    "diverse": lambda: diverse(C, C),
    "shared": lambda: Shared(C),
    "residual": lambda: Residual(nn.Conv2d(C, 20, 3, padding=1), nn.Conv2d(20, C, 1)),
    "padded residual": lambda: Residual(nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3, padding=1)),
    "separable": lambda: nn.Sequential(
        conv_bn(C, C, 3, padding=1, groups=C), nn.Conv2d(C, C, 1, bias=False)
    ),
    "inverted": lambda: nn.Sequential(
        nn.Conv2d(C, 3 * C, 1, bias=False),
        nn.Conv2d(3 * C, 3 * C, 3, padding=1, groups=3 * C),
        nn.Conv2d(3 * C, C, 1),
    ),
    "padded twice": lambda: nn.Sequential(
        nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
    ),
    "reflect": lambda: Sum(
        nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"), nn.Conv2d(C, C, 1)
    ),
    "pool": lambda: Sum(nn.AvgPool2d(3, 1, 1), conv_bn(C, C, 1)),
    "norm": lambda: nn.BatchNorm2d(C),
    "scale": lambda: LayerScale(C),
    "linear prelu": lambda: nn.PReLU(C, init=1.0),
    "relu": lambda: nn.ReLU(inplace=True),
    "prelu": lambda: nn.PReLU(C),
    "strided": lambda: conv_bn(C, C, 3, padding=1, stride=2),
    "dilated": lambda: conv_bn(C, C, 3, padding=2, dilation=2),
    "up": lambda: nn.Sequential(nn.ConvTranspose2d(C, C, 2, stride=2), nn.BatchNorm2d(C)),
}


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=6),
    nest=st.booleans(),
    policy=st.sampled_from(["auto", "always"]),
    seed=st.integers(0, 1000),
)
def test_random_networks_of_blocks_collapse_exactly(names, nest, policy, seed):
    torch.manual_seed(seed)
    layers = [BLOCKS[name]() for name in names]
    network = nn.Sequential(conv_bn(3, C, 3, padding=1), *layers)
    if nest:
        network = nn.Sequential(network[0], Sum(nn.Identity(), nn.BatchNorm2d(C)), *layers)
    network = randomise(network, seed).double().eval()
    # Large enough that three strides leave an inside, odd so that strides meet both borders.
    x = torch.randn(1, 3, 23, 18, dtype=torch.float64)
    with torch.no_grad():
        expected = network(x)
        deployed, report = collapse(network, probe=x, policy=policy)
        error = (deployed(x) - expected).abs().max()
    assert error <= 1e-9 * expected.abs().max()
    assert report.relative_error_float64 < 1e-9
    assert report.layers_after < report.layers_before
    if policy == "auto":
        assert report.macs_after <= report.macs_before
    torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


axis = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2))


@st.composite
def convs(draw: st.DrawFn, inputs: int, outputs: int) -> nn.Conv2d:
    (kh, sh, dh, ph), (kw, sw, dw, pw) = draw(axis), draw(axis)
    return nn.Conv2d(
        inputs,
        outputs,
        (kh, kw),
        stride=(sh, sw),
        dilation=(dh, dw),
        padding=(ph, pw),
        groups=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    ).double()


def value_of(layer: nn.Conv2d) -> Conv:
    ph, pw = layer.padding
    return Conv(
        layer.weight.detach(),
        None if layer.bias is None else layer.bias.detach(),
        stride=layer.stride,
        dilation=layer.dilation,
        padding=(int(pw), int(pw), int(ph), int(ph)),
        groups=layer.groups,
    )


def run(conv: Conv, x: Tensor) -> Tensor:
    """A value on a picture, by torch's functions alone."""
    left, right, top, bottom = conv.padding
    fill = torch.zeros(conv.in_channels) if conv.fill is None else conv.fill
    height, width = x.shape[2] + top + bottom, x.shape[3] + left + right
    padded = fill.to(x).view(1, -1, 1, 1).expand(x.shape[0], -1, height, width).clone()
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    return nn.functional.conv2d(
        padded, conv.kernel, conv.bias, conv.stride, 0, conv.dilation, conv.groups
    )


@settings(max_examples=200, deadline=None)
@given(first=convs(4, 2), second=convs(2, 4), height=st.integers(14, 17))
def test_any_two_convolutions_compose_exactly_or_not_at_all(first, second, height):
    x = torch.randn(2, 4, height, 16, dtype=torch.float64)
    try:
        merged = compose_convs(value_of(first), value_of(second))
    except NotExactError:
        return
    with torch.no_grad():
        torch.testing.assert_close(run(merged, x), second(first(x)), rtol=1e-9, atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    first=convs(4, 2), second=convs(4, 2), size=st.tuples(st.integers(9, 12), st.integers(9, 12))
)
def test_any_two_branches_add_exactly_or_not_at_all(first, second, size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    try:
        merged = add_convs(value_of(first), value_of(second))
    except NotExactError:
        return
    with torch.no_grad():
        torch.testing.assert_close(run(merged, x), first(x) + second(x), rtol=1e-9, atol=1e-9)
