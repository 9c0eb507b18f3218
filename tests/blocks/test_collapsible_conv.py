"""Both modes of the collapsible block are one function, with one gradient, borders included."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.algebra import same_padding
from collapsible.blocks import CollapsibleConv2d, SameConv2d, set_mode
from collapsible.errors import UsageError

shapes = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "squeeze": st.sampled_from([None, 4, 8]),
        "residual": st.booleans(),
        "bias": st.booleans(),
        "groups": st.sampled_from([1, 2, 4]),
        "expansion": st.sampled_from([4, 12, 64]),
    }
)


def block_of(options: dict, out: int = 4) -> CollapsibleConv2d:
    torch.manual_seed(0)
    block = CollapsibleConv2d(4, out, **options).double()
    for parameter in block.parameters():  # biases start at zero: give them something to do
        nn.init.normal_(parameter, std=0.3)
    return block


@settings(max_examples=80, deadline=None)
@given(options=shapes)
def test_modes_agree_in_output_and_gradients(options):
    block = block_of(options)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    outcomes = []
    for mode in ("collapsed", "expanded"):
        block.set_mode(mode)
        y = block(x)
        assert y.shape == x.shape
        grads = torch.autograd.grad((y * weight).sum(), [x, *block.parameters()])
        outcomes.append((y, *grads))
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(options=shapes)
def test_expanded_is_the_plain_chain_of_torch_layers(options):
    """The block against torch modules put together by hand, where padding cannot matter."""
    block = block_of(options)
    groups = block.groups
    x = torch.randn(1, 4, 11, 12, dtype=torch.float64)
    y = x
    if block.squeeze_weight is not None:
        y = F.conv2d(y, block.squeeze_weight, block.squeeze_bias, groups=groups)
    y = F.conv2d(y, block.expand_weight, block.expand_bias, groups=groups)
    y = F.conv2d(y, block.project_weight, block.project_bias, groups=groups)
    left, right, top, bottom = same_padding(block.kernel_size)
    inside = (..., slice(top, 11 - bottom), slice(left, 12 - right))
    if block.residual:
        y = y + x[inside]
    block.set_mode("collapsed")
    torch.testing.assert_close(block(x)[inside], y, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(options=shapes, out=st.sampled_from([4, 8]))
def test_a_kernel_survives_the_round_trip(options, out):
    options = {**options, "squeeze": None, "expansion": 16}
    if out != 4:
        options["residual"] = False
    block = block_of(options, out)
    kernel = torch.randn(out, 4 // block.groups, *block.kernel_size, dtype=torch.float64)
    bias = torch.randn(out, dtype=torch.float64) if options["bias"] else None
    block.load_kernel(kernel, bias)
    got_kernel, got_bias = block.kernel_and_bias()
    torch.testing.assert_close(got_kernel, kernel, rtol=0, atol=1e-12)
    if bias is not None:
        torch.testing.assert_close(got_bias, bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("expansion", [16, 64, 256])
@pytest.mark.parametrize("squeeze", [None, 32])
def test_initial_kernels_have_the_stated_size(expansion, squeeze):
    torch.manual_seed(1)
    block = CollapsibleConv2d(16, 64, 5, expansion=expansion, squeeze=squeeze)
    kernel, _ = block.kernel_and_bias()
    assert float(kernel.detach().std()) == pytest.approx(1 / math.sqrt(16 * 25), rel=0.15)


def test_autocast_does_not_round_the_factors():
    block = CollapsibleConv2d(8, 8, 3)
    wanted, _ = block.kernel_and_bias()
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = block.kernel_and_bias()
    assert torch.equal(got, wanted)


def test_set_mode_reaches_every_block():
    network = nn.Sequential(CollapsibleConv2d(1, 4, 3), nn.Sequential(CollapsibleConv2d(4, 4, 3)))
    set_mode(network, "expanded")
    modes = [m.mode for m in network.modules() if isinstance(m, CollapsibleConv2d)]
    assert modes == ["expanded", "expanded"]


def test_same_conv_keeps_the_size_of_even_kernels():
    conv = SameConv2d(2, 3, (4, 2))
    assert conv(torch.rand(1, 2, 9, 8)).shape == (1, 3, 9, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 6, 3), {"groups": 4}), "out_channels=6 must be a positive multiple of 4 groups"),
        (((4, 6, 3), {"residual": True}), "as many inputs as outputs, not 4 and 6"),
        (((4, 4, 0), {}), "kernel sizes start at 1"),
        (((4, 4, 3), {"mode": "wide"}), "'wide': known modes are collapsed, expanded"),
    ],
)
def test_impossible_blocks_are_refused(arguments, message):
    positional, named = arguments
    with pytest.raises(UsageError, match=message):
        CollapsibleConv2d(*positional, **named)
