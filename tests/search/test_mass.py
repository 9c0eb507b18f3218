"""NN-Mass, degree, units, isometry: published values, formulas by hand, other libraries."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.costs import cost
from collapsible.errors import UsageError
from collapsible.models import SESR, ConvNeXt, create_model
from collapsible.search import measure_isometry, nn_mass, topology
from collapsible.search.isometry import singular_values
from collapsible.search.mass import Cell, dense_cell, possible_skips, residual_mass


@pytest.mark.parametrize(
    ("name", "mass"),
    [
        ("ran_i_tiny", 14_710),
        ("ran_i_small", 17_420),
        ("ran_i_base", 28_154),
        ("convnext_tiny", 13_248),
        ("convnext_small", 27_072),
        ("convnext_base", 36_096),
    ],
)
def test_published_masses(name, mass):
    with torch.device("meta"):
        network = timm.create_model(name)
    found = topology(network)
    assert found.nn_mass == mass
    # Proposition 2 for ConvNeXt: twice as many non-linear units, whatever the shape.
    assert found.non_linear_units == 2 * mass


@given(c=st.integers(1, 512), t=st.integers(1, 8), b=st.integers(1, 512))
def test_residuals_by_the_published_formulas(c, t, b):
    h = t * c
    assert residual_mass(c, (c,)) == pytest.approx(2 * c)  # basic block
    assert residual_mass(c, (h, h)) == pytest.approx(c * (c + 2 * h) / (2 * c + h))
    assert residual_mass(c, (b, b)) == pytest.approx(c * (c + 2 * b) / (2 * c + b))
    assert residual_mass(c, (c, 4 * c)) == pytest.approx(2 * c)  # ConvNeXt
    assert residual_mass(c, ()) == 0


@given(w=st.integers(1, 64), d=st.integers(3, 40), links=st.integers(0, 3000))
def test_dense_cells_by_the_papers_definition(w, d, links):
    """Density and mass written out again, layer by layer."""
    cell = dense_cell(w, d, links)
    present = sum(min(links, w * (i - 1)) for i in range(2, d))
    possible = sum(w * (i - 1) for i in range(2, d))
    assert cell.mass == pytest.approx(present / possible * w * d)
    assert 0 <= cell.mass <= w * d
    # All links: the mass is the number of channels.
    assert dense_cell(w, d, w * d).mass == pytest.approx(w * d)


@pytest.mark.parametrize(("width", "depth", "links"), [(16, 30, 100), (32, 60, 50), (8, 100, 300)])
def test_proposition_1_the_average_degree_tends_to_width_and_half_the_mass(width, depth, links):
    cell = dense_cell(width, depth, links)
    assert cell.average_degree == pytest.approx(width + cell.mass / 2, rel=3 / depth)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7))
def test_possible_skips_counts_every_pair(nodes):
    layers = len(nodes)
    pairs = ((j, i) for i in range(1, layers) for j in range(i))
    # Node j can skip to the layer that node i feeds directly, if it is before node i.
    assert possible_skips(nodes) == sum(nodes[j] for j, _ in pairs)


@pytest.mark.parametrize(
    ("build", "kinds", "mass"),
    [
        # Cin + C a basic block: 4 x 64, 64 + 128, 2 x 128, ...
        (torchvision.models.resnet18, {"residual"}, 256 + 448 + 896 + 1792),
        (lambda: timm.create_model("resnet18"), {"residual"}, 256 + 448 + 896 + 1792),
        # All skips there: the blocks' nodes, input and growth for each layer but the last.
        (
            torchvision.models.densenet121,
            {"densenet"},
            64 + 5 * 32 + 128 + 11 * 32 + 256 + 23 * 32 + 512 + 15 * 32,
        ),
        (
            lambda: timm.create_model("densenet121"),
            {"densenet"},
            64 + 5 * 32 + 128 + 11 * 32 + 256 + 23 * 32 + 512 + 15 * 32,
        ),
    ],
)
def test_networks_of_other_libraries(build, kinds, mass):
    with torch.device("meta"):
        found = topology(build())
    assert {cell.kind for cell in found.cells} == kinds
    assert found.nn_mass == pytest.approx(mass)


def test_inverted_residuals_of_three_libraries_agree():
    with torch.device("meta"):
        masses = [
            nn_mass(torchvision.models.mobilenet_v2()),
            nn_mass(timm.create_model("mobilenetv2_100")),
        ]
    widths = [24, 32, 32, 64, 64, 64, 96, 96, 160, 160]
    by_hand = sum(c * (c + 12 * c) / (2 * c + 6 * c) for c in widths)
    assert masses == pytest.approx([by_hand] * 2)
    ours = topology(create_model("ran_e_base"))
    residual = [cell.nodes[0] for cell in ours.cells if cell.present]
    assert residual == [80, 96, 176, 176, 224]


def test_sesr_has_one_cell_over_its_long_residual():
    cell = topology(SESR(5, 16, expansion=8)).cells[0]
    assert (cell.present, cell.possible, cell.units) == (16, 16 * (1 + 2 + 3 + 4), 80)
    assert nn_mass(SESR(5, 16, expansion=8, long_residual=False)) == 0


def test_units_are_the_channels_that_pass_an_activation():
    """At one pixel a block, non-linear elements of costs.cost are the units."""
    network = ConvNeXt((2, 3), (4, 8), patch_size=1, num_classes=2)
    elements = cost(network, (1, 3, 2, 2)).non_linear
    first, second = 2 * 4 * 4, 3 * 4 * 8
    assert elements == 4 * first + second
    assert topology(network).non_linear_units == first + second


def test_is_it_the_stage_ratio():
    """RAN-i Base and ConvNeXt Small: the same mass, MACs and parameters within 6 %.

    What differs is where the units are: the share of blocks in the third stage, and the stages
    that the units are in, the first two and the last.
    """
    with torch.device("meta"):
        base, small = (timm.create_model(name) for name in ("ran_i_base", "convnext_small"))
    counts = [(cost(net, (1, 3, 224, 224)), nn_mass(net)) for net in (base, small)]
    for one, other in zip(*[(c.macs, c.params, mass) for c, mass in counts], strict=True):
        assert abs(one / other - 1) < 0.06
    shares = []
    for depths, dims in (
        ((7, 7, 21, 7), (87, 175, 350, 699)),
        ((3, 3, 27, 3), (96, 192, 384, 768)),
    ):
        units = [d * w for d, w in zip(depths, dims, strict=True)]
        shares.append([u / sum(units) for u in units])
    (a, b, c, d), (e, f, g, h) = shares
    assert (a > 1.8 * e, b > 1.8 * f, c < 0.75 * g, d > 1.8 * h) == (True,) * 4


def test_json_table_and_refusal():
    found = topology(ConvNeXt((1, 1), (4, 8), num_classes=2))
    facts = json.loads(found.json())
    assert facts["nn_mass"] == 24
    assert facts["average_degree"] == found.average_degree
    assert "NN-Mass           24.0" in found.table()
    with pytest.raises(UsageError, match="no cell found; looked for"):
        nn_mass(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(UsageError, match="depth=1"):
        dense_cell(4, 1, 3)


def test_mass_never_exceeds_the_cells_channels():
    for nodes in itertools.product((1, 3, 8), repeat=3):
        cell = Cell("x", "x", nodes, nodes[0], possible_skips(nodes), 0)
        assert 0 < cell.density <= 1
        assert cell.mass <= sum(nodes)


# Layerwise isometry.


def test_singular_values_of_a_linear_layer_are_its_weights():
    torch.manual_seed(0)
    layer = nn.Linear(7, 5).double()
    found = singular_values(layer, torch.randn(1, 7, dtype=torch.float64))
    torch.testing.assert_close(found, torch.linalg.svdvals(layer.weight.detach()))
    q = torch.linalg.qr(torch.randn(6, 6))[0]
    rotation = nn.Linear(6, 6)
    rotation.weight.data = q
    report = measure_isometry(nn.Sequential(rotation), torch.randn(1, 6))
    assert report.mean == pytest.approx(1, abs=1e-5)
    assert report.layers[0].deviation == pytest.approx(0, abs=1e-5)


def test_the_slope_of_elu_is_right():
    """1 above 0 and exp(x) below: the published measuring code had it the other way round."""
    x = torch.tensor([[2.0, -1.0, 0.5]])
    found = singular_values(nn.ELU(), x)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, math.exp(-1)]))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(width=st.integers(20, 60), mass=st.integers(0, 200))
def test_proposition_3_the_mean_singular_value_is_set_by_width_and_mass_alone(width, mass):
    """Of a w x (w + m / 2) matrix of independent entries: Marchenko and Pastur's law."""
    torch.manual_seed(width)
    rows, columns = width, width + mass // 2
    deviation = 1 / math.sqrt(width)
    measured = torch.linalg.svdvals(torch.randn(rows, columns) * deviation)
    # Mean square is exact in expectation: the sum of squares of all entries over the rows.
    assert float(measured.square().mean()) == pytest.approx(columns / width, rel=0.15)
    # All lie in the law's interval, but for what vanishes with the size.
    low, high = (abs(math.sqrt(columns) + s * math.sqrt(rows)) * deviation for s in (-1, 1))
    assert low - 0.25 < float(measured.min())
    assert float(measured.max()) < high + 0.25


def test_same_width_and_mass_have_the_same_isometry_at_different_depth():
    """Two dense cells of equal width and mass, 12 and 24 layers deep, of random weights."""
    width = 24

    def mean_value(depth: int, links: int) -> float:
        torch.manual_seed(depth)
        values = []
        for i in range(2, depth):
            fed = width + min(links, width * (i - 1))
            weight = torch.randn(width, fed) / math.sqrt(width)
            values.append(torch.linalg.svdvals(weight).mean())
        return float(torch.stack(values).mean())

    shallow = dense_cell(width, 12, 100)
    links = min(range(400), key=lambda t: abs(dense_cell(width, 24, t).mass - shallow.mass))
    assert dense_cell(width, 24, links).mass == pytest.approx(shallow.mass, rel=0.02)
    alike = mean_value(24, links) / mean_value(12, 100)
    other = mean_value(24, 100) / mean_value(12, 100)
    assert alike == pytest.approx(1, abs=0.08)
    assert abs(other - 1) > abs(alike - 1)


def test_isometry_of_a_convnext_and_refusals():
    torch.manual_seed(0)
    network = ConvNeXt((1, 1), (4, 8), patch_size=2, num_classes=2).eval()
    report = measure_isometry(network, torch.randn(1, 3, 8, 8))
    # A layer scale of 1e-6 leaves each block the identity, all of whose singular values are 1.
    assert len(report.layers) == 2
    assert all(layer.least > 0.999 and layer.most < 1.001 for layer in report.layers)
    assert "mean" in report.table()
    assert json.loads(report.json())["layers"][0]["name"] == "stages.0.blocks.0"
    with pytest.raises(UsageError, match="up to 4096"):
        measure_isometry(network, torch.randn(1, 3, 128, 128))
    with pytest.raises(UsageError, match="no layer 'x'"):
        measure_isometry(network, torch.randn(1, 3, 8, 8), ["x"])
