"""Collapsing a network of wide blocks: exact, reported, and leaving the given one alone."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.errors import UsageError
from collapsible.folding import collapse


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    squeeze=st.sampled_from([None, 6]),
    bias=st.booleans(),
    groups=st.sampled_from([1, 3]),
)
def test_any_stack_of_blocks_collapses_exactly(kernel, squeeze, bias, groups):
    torch.manual_seed(0)
    options = {"squeeze": squeeze, "bias": bias, "groups": groups, "expansion": 24}
    network = nn.Sequential(
        CollapsibleConv2d(3, 6, kernel, **options),
        nn.PReLU(6),
        CollapsibleConv2d(6, 6, kernel, residual=True, **options),
    ).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    deployed, report = collapse(network)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    for block in network:
        if isinstance(block, CollapsibleConv2d):
            block.set_mode("expanded")
    torch.testing.assert_close(deployed(x), network(x), rtol=1e-9, atol=1e-9)
    assert report.replaced == ("0", "2")
    assert report.max_error_float64 <= 1e-9 * max(1.0, report.output_range)
    assert not any(isinstance(m, CollapsibleConv2d) for m in deployed.modules())


def test_the_given_network_is_untouched_and_the_result_narrow():
    network = nn.Sequential(CollapsibleConv2d(1, 4, 3), nn.ReLU())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    deployed, report = collapse(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert not deployed.training
    assert report.parameters_before == 256 * 9 + 256 + 4 * 256 + 4
    assert report.parameters_after == 4 * 9 + 4
    assert type(deployed[0]) is nn.Conv2d


def test_a_block_alone_collapses():
    block = CollapsibleConv2d(2, 2, (2, 4), residual=True)
    deployed, _ = collapse(block)
    x = torch.rand(1, 2, 6, 7)
    torch.testing.assert_close(deployed(x), block(x), rtol=0, atol=1e-5)


def test_the_report_speaks_to_people_and_programs():
    _, report = collapse(nn.Sequential(CollapsibleConv2d(1, 4, 3)))
    assert json.loads(report.json())["replaced"] == ["0"]
    assert "measured on random pictures" in report.table()


def test_what_cannot_be_collapsed_is_named():
    with pytest.raises(UsageError, match="Sequential has no collapsible block"):
        collapse(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(UsageError, match=r"does not accept a probe of shape \(1, 5, 8, 8\)"):
        collapse(nn.Sequential(CollapsibleConv2d(1, 4, 3)), probe=torch.rand(1, 5, 8, 8))
