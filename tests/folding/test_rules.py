"""Each rewrite against the network it came from, run in float64; and each refusal."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from branch_networks import (
    LayerScale,
    Residual,
    Sum,
    acnet,
    conv_bn,
    count,
    diverse,
    randomise,
    repvgg,
)
from torch import Tensor, nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.errors import CollapsibleError, UsageError
from collapsible.folding import CollapseReport, collapse

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d, nn.BatchNorm2d, nn.BatchNorm1d)


def checked(network: nn.Module, x: Tensor, **options: object) -> tuple[nn.Module, CollapseReport]:
    """Collapse in float64 and compare with the network itself on input of its own."""
    network = randomise(network).double().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    deployed, report = collapse(network, probe=x, **options)  # type: ignore[arg-type]
    fresh = torch.randn(x.shape, dtype=torch.float64)
    with torch.no_grad():
        expected = network(fresh.clone())
        torch.testing.assert_close(deployed(fresh.clone()), expected, rtol=1e-10, atol=1e-10)
    assert report.relative_error_float64 < 1e-12
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    return deployed, report


def rules(report: CollapseReport) -> list[str]:
    return [done.rule for done in report.rewrites]


def reasons(report: CollapseReport) -> str:
    return " | ".join(left.reason for left in report.left)


PICTURE = torch.randn(2, 6, 13, 12)

ONE_LAYER = {
    "batch norm after conv": conv_bn(6, 8, 3, padding=1, stride=2, groups=2),
    "batch norm after dilated conv with bias": conv_bn(6, 8, 3, dilation=2, bias=True),
    "batch norm after reflecting conv": conv_bn(6, 8, 3, padding=1, padding_mode="reflect"),
    "batch norm after transposed conv": nn.Sequential(
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.BatchNorm2d(4),
    ),
    "batch norm before unpadded conv": nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)),
    "two batch norms": nn.Sequential(
        nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
    ),
    "layer scale": nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), LayerScale(5)),
    "1x1 then 3x3": nn.Sequential(
        nn.Conv2d(6, 20, 1, bias=False), nn.Conv2d(20, 4, 3, padding=1, stride=2)
    ),
    "1x1 then reflecting 3x3": nn.Sequential(
        nn.Conv2d(6, 20, 1), nn.Conv2d(20, 4, 3, padding=1, padding_mode="reflect")
    ),
    "3x3 then 1x1": nn.Sequential(nn.Conv2d(6, 30, 3, padding=1), nn.Conv2d(30, 4, 1)),
    "3x3 then strided 1x1": nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.Conv2d(6, 4, 1, stride=2)
    ),
    "strided 3x3 then dilated 3x3": nn.Sequential(
        nn.Conv2d(6, 90, 3, stride=2, padding=3), nn.Conv2d(90, 2, 2, dilation=2)
    ),
    "grouped then grouped otherwise": nn.Sequential(
        nn.Conv2d(6, 12, 3, padding=1, groups=2, bias=False), nn.Conv2d(12, 3, 1, groups=3)
    ),
    "wide in the middle": nn.Sequential(
        nn.Conv2d(6, 48, 1, bias=False),
        nn.Conv2d(48, 48, 3, padding=1, groups=48),
        nn.Conv2d(48, 6, 1),
    ),
    "vertical then horizontal, padded between": nn.Sequential(
        nn.Conv2d(6, 90, (3, 1), padding=(1, 0), bias=False),
        nn.Conv2d(90, 5, (1, 3), padding=(0, 1)),
    ),
    "padded and strided 1x1 then padded 3x3": nn.Sequential(
        nn.Conv2d(6, 90, 1, stride=2, padding=1, bias=False), nn.Conv2d(90, 5, 3, padding=1)
    ),
    "zero padding ahead": nn.Sequential(
        nn.ZeroPad2d(2), nn.Conv2d(6, 4, 5), nn.BatchNorm2d(4)
    ),
    "3x3 then average": nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.AvgPool2d(2)),
    "RepVGG": repvgg(6),
    "grouped RepVGG": repvgg(6, groups=3),
    "ACNet": acnet(6, 8),
    "strided ACNet": acnet(6, 8, stride=2),
    "Diverse Branch Block": diverse(6, 8),
    "strided Diverse Branch Block": diverse(6, 8, stride=2),
    "residual over a linear body": Residual(
        nn.Conv2d(6, 40, 3, padding=1), nn.BatchNorm2d(40), nn.Conv2d(40, 6, 1), LayerScale(6)
    ),
    "nested sums": Sum(repvgg(6), Residual(nn.Conv2d(6, 6, 1))),
    "sum of average and conv": Sum(nn.Conv2d(6, 6, 3, padding=1), nn.AvgPool2d(3, 1, 1)),
    "dilated and plain branches": Sum(
        nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, 1, 1),
    ),
    "PReLU with slope 1": nn.Sequential(
        nn.Conv2d(6, 30, 1, bias=False), nn.PReLU(init=1.0), nn.Conv2d(30, 4, 3, padding=1)
    ),
    "dropout between": nn.Sequential(
        nn.Conv2d(6, 30, 1), nn.Dropout(0.5), nn.Identity(), nn.Conv2d(30, 4, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_LAYER)
def test_what_becomes_one_layer(name: str) -> None:
    # Dilated against plain taps grow the kernel from 9 + 9 + 1 to 25: exact, but not by default.
    policy = "always" if name == "dilated and plain branches" else "auto"
    deployed, report = checked(ONE_LAYER[name], PICTURE, policy=policy)
    assert count(deployed, *LAYERS) == 1, report.table()
    assert count(deployed, nn.AvgPool2d, nn.PReLU) == 0
    assert report.layers_after == 1
    assert report.left == ()


def test_linear_layers_of_either_rank() -> None:
    wide = nn.Sequential(nn.Linear(7, 50), nn.Linear(50, 4), nn.Dropout(), nn.Linear(4, 3))
    deployed, report = checked(wide, torch.randn(5, 7))
    # 4 is narrower than 7 to 3 needs, yet 7 * 3 is still fewer than 7 * 4 + 4 * 3.
    assert count(deployed, nn.Linear) == 1
    assert (report.macs_before, report.macs_after) == (7 * 50 + 50 * 4 + 4 * 3, 21)
    assert rules(report) == ["linear-linear"]
    normed = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU())
    assert count(checked(normed, torch.randn(5, 7))[0], *LAYERS) == 1


def test_batch_norm_over_another_axis_than_the_linear_layers_stays() -> None:
    # On [N, L, F] torch normalises L, the linear layer mixes F: folding one would be wrong.
    network = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    deployed, report = checked(network, torch.randn(3, 5, 7))
    assert count(deployed, *LAYERS) == 3
    assert rules(report) == []


class LastAxisScale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def test_a_scale_folds_along_the_layers_own_axis_only() -> None:
    # On [N, L, F] the last axis is the linear layer's; on [N, C, H, W] it is the width.
    linear = nn.Sequential(nn.Linear(7, 12), LastAxisScale(12), nn.ReLU())
    _, report = checked(linear, torch.randn(3, 5, 7))
    assert rules(report) == ["scale-after-layer"]
    picture = nn.Sequential(nn.Conv2d(6, 12, 1), LastAxisScale(12), nn.Conv2d(12, 2, 1))
    _, report = checked(nn.Sequential(picture, nn.ReLU(), conv_bn(2, 2, 1)), PICTURE)
    assert rules(report) == ["scale-after-layer"]
    assert report.rewrites[0].names == ("2.0", "2.1")


def test_one_dimensional_convolutions() -> None:
    network = nn.Sequential(
        nn.Conv1d(3, 40, 5, stride=2, padding=2),
        nn.BatchNorm1d(40),
        nn.Conv1d(40, 4, 1),
        nn.ReLU(),
        nn.BatchNorm1d(4),
        nn.Conv1d(4, 4, 3),
    )
    deployed, _ = checked(network, torch.randn(2, 3, 41))
    assert count(deployed, *LAYERS) == 2


def test_a_shift_under_zero_padding_is_left_by_default_and_padded_by_value_when_forced() -> None:
    network = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=(1, 2)))
    deployed, report = checked(network, PICTURE)
    assert count(deployed, *LAYERS) == 2
    assert "explicit padding by its value" in reasons(report)
    deployed, report = checked(network, PICTURE, policy="always")
    assert count(deployed, *LAYERS) == 1
    assert "padded explicitly" in report.rewrites[0].note


def test_a_bias_under_zero_padding_pads_once_where_a_value_exists() -> None:
    # 8 inputs reach any 3 values, minus the bias too; 3 inputs do not reach all of 40.
    solvable = nn.Sequential(nn.Conv2d(6, 3, 1), nn.Conv2d(3, 1, 3, padding=1))
    deployed, report = checked(solvable, PICTURE, policy="always")
    assert count(deployed, *LAYERS) == 1
    assert "value of the bias" in report.rewrites[0].note
    hopeless = nn.Sequential(nn.Conv2d(6, 40, 1), nn.Conv2d(40, 2, 3, padding=1))
    deployed, report = checked(hopeless, PICTURE, policy="always")
    assert count(deployed, *LAYERS) == 2
    assert "no input value makes the first layer put out zero" in reasons(report)


LEFT = {
    "MACs": (
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 12, 1)),
        "would cost 648 MACs for each output, apart 126",
    ),
    "a narrow middle": (
        nn.Sequential(nn.Conv2d(6, 1, 1), nn.Conv2d(1, 6, 1)),
        "would cost 36 MACs for each output, apart 12",
    ),
    "weights": (
        nn.Sequential(nn.Conv2d(6, 4, 1), nn.AvgPool2d(2)),
        "as many MACs and 96 weights for 24",
    ),
    "padding between": (
        nn.Sequential(nn.Conv2d(6, 90, 3, padding=1), nn.Conv2d(90, 1, 3, padding=1)),
        "zero padding between the two",
    ),
    "strides": (
        Sum(nn.Conv2d(6, 4, 2, stride=2), nn.Conv2d(6, 4, 2, stride=2, padding=0, dilation=1),
            nn.Sequential(nn.Conv2d(6, 4, 3, stride=1), nn.AdaptiveAvgPool2d((6, 6)))),
        "",
    ),
    "pooling that leaves out its padding": (
        Sum(nn.Conv2d(6, 6, 3, padding=1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        "leaves its padding out of the mean",
    ),
    "a bend before": (
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)),
        "no convolution or linear layer stands directly before or after",
    ),
    "padding modes": (
        Sum(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")),
        "the branches pad differently: zeros and reflect",
    ),
    "branches wider apart than they cost": (
        Sum(nn.Conv2d(6, 6, 3, padding=2, dilation=2), nn.Conv2d(6, 6, 3, padding=1)),
        "would cost 140,400 MACs, apart 101,088",
    ),
    "statistics of each batch": (
        nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)),
        "each batch's own statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_and_why(name: str) -> None:
    network, reason = LEFT[name]
    deployed, report = checked(network, PICTURE)
    assert reason in reasons(report)
    if reason:
        assert report.layers_after == report.layers_before
        assert count(deployed, *LAYERS) == count(network, *LAYERS)


def test_policy_always_forces_what_costs_more() -> None:
    network = LEFT["MACs"][0]
    deployed, report = checked(network, PICTURE, policy="always")
    assert count(deployed, *LAYERS) == 1
    assert report.macs_after > report.macs_before


class Branching(nn.Module):
    """A middle value that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return F.relu(self.norm(y)), self.b(y)


def test_a_value_used_elsewhere_is_never_merged_over() -> None:
    deployed, report = checked(Branching(), PICTURE)
    assert count(deployed, *LAYERS) == 3
    assert reasons(report).count("the output of a is used elsewhere") == 2
    assert rules(report) == []


class Overwriting(nn.Module):
    """ReLU in place: ``x + ...`` at the end reads what it overwrote."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        self.act(x)
        return x + y


def test_a_value_overwritten_in_place_is_what_later_readers_see() -> None:
    network = Overwriting()
    deployed, report = checked(network, PICTURE)
    # Reading the unclipped value, the sum would have merged into one convolution.
    assert count(deployed, nn.Conv2d) == 2
    assert rules(report) == []
    assert network.act.inplace


class Hidden(nn.Module):
    """``+=`` also changes ``kept``, which a trace cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        kept = y
        y += x
        return y * kept


def test_a_trace_that_is_another_network_is_refused() -> None:
    with pytest.raises(CollapsibleError, match="overwritten in place under another name"):
        collapse(randomise(Hidden()), probe=PICTURE)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x
        return -x


def test_data_dependent_flow_is_refused_by_place_or_left_alone_on_request() -> None:
    network = nn.Sequential(conv_bn(6, 6, 1), nn.Sequential(nn.ReLU(), Deciding()))
    with pytest.raises(UsageError) as caught:
        collapse(network, probe=PICTURE)
    for part in ("module '1.1'", "test_rules.py:", "if x.mean() > 0", "opaque=['1.1']"):
        assert part in str(caught.value)
    deployed, _ = checked(network, PICTURE, opaque=["1.1"])
    assert count(deployed, *LAYERS) == 1
    assert count(deployed, Deciding) == 1


def test_wrong_use_is_named() -> None:
    network = conv_bn(6, 6, 1)
    with pytest.raises(UsageError, match="policy 'never': known are auto, always"):
        collapse(network, policy="never")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"does not accept a probe of shape \(1, 5, 8, 8\)"):
        collapse(network, probe=torch.rand(1, 5, 8, 8))
    with pytest.raises(UsageError, match="no such submodules of Sequential"):
        collapse(network, opaque=["9"])
    with pytest.raises(UsageError, match="it has no weights"):
        collapse(nn.ReLU())
    with pytest.raises(UsageError, match="nothing to collapse"):
        collapse(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_a_weight_that_is_computed_at_every_call_is_not_read_once() -> None:
    network = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)), nn.BatchNorm2d(6)
    )
    deployed, report = checked(network, PICTURE)
    assert "forward pass of its own" in reasons(report)
    assert count(deployed, nn.BatchNorm2d) == 1


def test_half_networks_and_frozen_ones_keep_their_kind() -> None:
    network = randomise(conv_bn(6, 6, 3, padding=1)).to(torch.bfloat16).requires_grad_(False)
    deployed, _ = collapse(network, probe=PICTURE)
    parameters = list(deployed.parameters())
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert not any(p.requires_grad for p in parameters)
    assert not deployed.training


def test_the_report_tells_borders_inputs_and_dtypes_apart() -> None:
    network = randomise(nn.Sequential(repvgg(6), nn.ReLU(), conv_bn(6, 3, 3, padding=1)))
    _, report = collapse(network, probe=PICTURE)
    assert [(e.input, e.dtype) for e in report.errors] == [
        ("the given input", "float64"),
        ("the given input", "float32"),
        ("random input [2, 6, 13, 12]", "float64"),
        ("random input [2, 6, 13, 12]", "float32"),
    ]
    for error in report.errors:
        assert error.border is not None
        assert error.inside is not None
        assert error.absolute == max(error.border, error.inside)
        assert error.relative == error.absolute / error.output_range
    # 6 * 6 * (9 + 1) and 6 * 3 * 9, norms 2 each; then 3x3 with bias.
    assert report.parameters_before == 360 + 162 + 2 * (6 * 3 + 3)
    assert report.parameters_after == 6 * 6 * 9 + 6 + 6 * 3 * 9 + 3
    assert report.macs_before == 13 * 12 * (360 + 162)
    assert (report.layers_before, report.layers_after) == (7, 2)
    data = json.loads(report.json())
    assert data["rewrites"][0] == {
        "rule": "scale-after-layer",
        "names": ["0.branches.0.0", "0.branches.0.1"],
        "note": "",
    }
    assert "parallel            1" in report.table()
    assert "border" in report.table()


def test_names_of_layers_survive() -> None:
    network = nn.Sequential(conv_bn(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    deployed, _ = collapse(randomise(network))
    assert set(deployed.state_dict()) == {"0.0.weight", "0.0.bias", "2.weight", "2.bias"}
    # Untouched layers hold the very same numbers.
    assert torch.equal(deployed.state_dict()["2.weight"], network.state_dict()["2.weight"])


def test_our_own_blocks_among_other_layers() -> None:
    network = nn.Sequential(CollapsibleConv2d(6, 4, 3, expansion=32), nn.BatchNorm2d(4), nn.ReLU())
    deployed, report = checked(network, PICTURE)
    assert count(deployed, *LAYERS) == 1
    assert report.replaced == ("0",)
    assert rules(report) == ["scale-after-layer"]
    assert report.macs_before == 13 * 12 * (6 * 32 * 9 + 32 * 4)
    assert report.macs_after == 13 * 12 * 6 * 4 * 9
    assert (report.layers_before, report.layers_after) == (3, 1)
