"""Closed forms of the families, held to the costs of the networks that they build."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsible.costs import cost
from collapsible.errors import UnknownNameError, UsageError
from collapsible.search import Shape, find_family, topology

STAGES = {"convnext": 4, "inverted-bottleneck": 5, "resnet": 4, "sesr": 1}


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_closed_forms_equal_the_built_networks_costs(name, data):
    stages = STAGES[name]
    depths = data.draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))
    dims = data.draw(st.lists(st.integers(2, 40), min_size=stages, max_size=stages))
    size = (
        (data.draw(st.sampled_from([1, 3])), 20, 33)
        if name == "sesr"
        else (3, *data.draw(st.tuples(st.integers(64, 130), st.integers(64, 130))))
    )
    family, shape = find_family(name, size=size), Shape(tuple(depths), tuple(dims))
    counted = family.count(shape)
    network = family.build(shape)
    report = cost(network, (1, *size))
    assert (counted.params, counted.macs) == (report.params, report.macs)
    if name != "sesr":  # what is built of SESR is its collapsed form
        found = topology(network)
        assert counted.nn_mass == pytest.approx(found.nn_mass)
        assert counted.non_linear_units == found.non_linear_units


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_small_pictures(patch):
    family = find_family("convnext", size=(3, 32, 40), patch_size=patch, num_classes=10)
    shape = Shape((1, 2, 1, 1), (8, 12, 16, 24))
    counted, report = family.count(shape), cost(family.build(shape), (1, 3, 32, 40))
    assert (counted.params, counted.macs) == (report.params, report.macs)


def test_names_and_their_errors():
    assert find_family("RAN-i").base == find_family("convnext_tiny").base
    assert find_family("resnet34").base.depths == (3, 4, 6, 3)
    with pytest.raises(UnknownNameError, match="did you mean 'convnext_tiny'"):
        find_family("convnext_tinny")
    with pytest.raises(UsageError, match="has no option 'scale'"):
        find_family("resnet", scale=2)
    with pytest.raises(UsageError, match="at least 32 x 32"):
        find_family("convnext", size=(3, 16, 16))
    with pytest.raises(UsageError, match="1 channel"):
        find_family("sesr", size=(2, 16, 16))
    with pytest.raises(UsageError, match="as many depths"):
        Shape((1, 2), (3,))
    with pytest.raises(UsageError, match="at least 1"):
        Shape((1, 0), (3, 4))
