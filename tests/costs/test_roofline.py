"""The roofline, against numbers worked out by hand and bounds that always hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collapsible.costs import cost
from collapsible.costs.roofline import roofline
from collapsible.costs.targets import Target, assume, parse_target
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.models import create_model

CLOCK, BANDWIDTH = 5e8, 1e9


def chip(sram: int = 65536, **roofline_settings: object) -> Target:
    """4 inputs x 4 outputs x 2 x 2 places, 0.5 GHz, 1 GB/s, one byte a number, no Winograd."""
    return parse_target(
        {
            "name": "chip",
            "source": "this test",
            "kind": "roofline",
            "clock_hz": CLOCK,
            "macs_per_cycle": 64,
            "sram_bytes": sram,
            "roofline": {
                "dram_bandwidth": BANDWIDTH,
                "input_channels": 4,
                "output_channels": 4,
                "rows": 2,
                "columns": 2,
                **roofline_settings,
            },
        }
    )


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1))


SIZE = (1, 3, 8, 10)
# Bytes: maps of 80 places, weights with biases.
INPUT, MIDDLE, OUTPUT = 240, 400, 320
WEIGHTS = (3 * 5 * 9 + 5, 5 * 4 + 4)
# 3 inputs fill one group of 4, 5 features two: 9 taps x 80 places x 4 x 8 products; 80 x 8 x 4.
CYCLES = (9 * 80 * 4 * 8 // 64, 80 * 8 * 4 // 64)


def test_two_layers_with_everything_on_the_chip():
    report = roofline(two_layers(), SIZE, chip())
    assert [layer.cycles for layer in report.layers] == list(CYCLES)
    assert [layer.fused for layer in report.layers] == [("1",), ()]
    assert [layer.read for layer in report.layers] == [INPUT + WEIGHTS[0], WEIGHTS[1]]
    assert [layer.written for layer in report.layers] == [0, OUTPUT]
    # 720 ns of arithmetic against 380 of traffic; 80 against 344.
    assert [layer.bound for layer in report.layers] == ["compute", "memory"]
    assert report.latency_ms == pytest.approx(1e3 * (360 / CLOCK + 344 / BANDWIDTH))
    assert report.fps == pytest.approx(1e3 / report.latency_ms)
    assert report.macs == 80 * (9 * 3 * 5 + 5 * 4) == cost(two_layers(), SIZE).macs
    # Input, middle and the first layer's weights lie there at once.
    assert report.sram_bytes == max(INPUT + MIDDLE + WEIGHTS[0], MIDDLE + OUTPUT + WEIGHTS[1])
    peak = 64 * CLOCK * report.latency_ms * 1e-3
    assert report.utilisation == pytest.approx(report.macs / peak)


def test_two_layers_with_nothing_on_the_chip():
    report = roofline(two_layers(), SIZE, chip(sram=200))
    assert [layer.read for layer in report.layers] == [INPUT + WEIGHTS[0], MIDDLE + WEIGHTS[1]]
    assert [layer.written for layer in report.layers] == [MIDDLE, OUTPUT]
    assert report.dram_traffic == INPUT + 2 * MIDDLE + OUTPUT + sum(WEIGHTS)
    assert report.dram_bytes == max(INPUT + MIDDLE, MIDDLE + OUTPUT) + sum(WEIGHTS)
    assert report.latency_ms == pytest.approx(1e3 * (780 + 744) / BANDWIDTH)
    one_by_one = roofline(two_layers(), SIZE, chip(sram=200, overlap=False))
    both = (780 + 744) / BANDWIDTH + sum(CYCLES) / CLOCK
    assert one_by_one.latency_ms == pytest.approx(1e3 * both)


def test_wider_numbers_move_more():
    narrow, wide = (roofline(two_layers(), SIZE, chip(200, element_bytes=n)) for n in (1, 2))
    assert wide.dram_traffic == 2 * narrow.dram_traffic
    assert wide.cycles == narrow.cycles


def test_a_residual_is_read_again_and_added_on_the_way():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(4, 4, 1, bias=False) for _ in range(2))

        def forward(self, x):
            first = self.one(x)
            return self.two(first.relu()) + first

    report = roofline(Residual(), (1, 4, 4, 4), chip(sram=1))
    # relu(first) cannot be fused with what makes first, which is kept for the addition: it is
    # the way into the second convolution. first is read twice there, but fetched once.
    assert [layer.name for layer in report.layers] == ["one", "two"]
    assert [layer.read for layer in report.layers] == [64 + 16, 64 + 16]
    assert [layer.written for layer in report.layers] == [64, 64]


def test_activations_in_place_are_the_same_as_others():
    def network(inplace: bool) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace), nn.Conv2d(5, 4, 1))

    one, other = (roofline(network(inplace), SIZE, chip(sram=9)) for inplace in (True, False))
    assert replace(one, layers=()) == replace(other, layers=())


def test_depthwise_uses_one_input_at_a_time():
    report = roofline(nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 4), chip())
    # 9 taps x 16 places x 8 outputs; 16 products a cycle.
    assert report.cycles == 9 * 16 * 8 // 16
    grouped = roofline(nn.Conv2d(8, 8, 3, padding=1, groups=2), (1, 8, 4, 4), chip())
    assert grouped.cycles == 2 * (9 * 16 * 4 * 4 // 64)


def test_places_are_rounded_to_the_patch_and_stride_counts_outputs():
    report = roofline(nn.Conv2d(4, 4, 3, stride=2, padding=1), (1, 4, 9, 9), chip())
    # 5 x 5 outputs run as 6 x 6.
    assert report.cycles == 9 * 36 * 16 // 64


def test_linear_layers_are_products():
    report = roofline(nn.Linear(30, 10), (3, 30), chip())
    # 3 rows fill 4 places, 30 inputs 32, 10 outputs 12.
    assert report.cycles == 4 * 32 * 12 // 64
    assert report.dram_traffic == 90 + 310 + 30


@pytest.mark.parametrize(
    ("way", "cycles"),
    [
        # 4 x 4 kernel at 16 x 16 places, one of four outputs.
        ("zero-stuffed", 16 * 256 * 4 * 4 // 64),
        # Four phases of 2 x 2 at 8 x 8 places fill the outputs.
        ("sub-pixel", 4 * 64 * 4 * 4 // 64),
    ],
)
def test_a_deconvolution_both_ways(way, cycles):
    layer = nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)
    assert roofline(layer, (1, 4, 8, 8), chip(deconvolution=way)).cycles == cycles


def test_depth_to_space_both_ways():
    shuffle = nn.Sequential(nn.Conv2d(4, 16, 1), nn.PixelShuffle(4))
    free = roofline(shuffle, (1, 4, 4, 4), chip(depth_to_space="addressing"))
    assert free.cycles == 16 * 4 * 16 // 64
    assert free.layers[0].fused == ("1",)
    paid = roofline(shuffle, (1, 4, 4, 4), chip(depth_to_space="deconvolution"))
    # By two, twice: 16 to 4 channels at 8 x 8, then 4 to 1 at 16 x 16, 4 taps each.
    assert paid.cycles == free.cycles + 4 * 64 * 16 * 4 // 64 + 4 * 256 * 4 * 4 // 64


@pytest.mark.parametrize(
    ("kernel", "size", "times"),
    [
        # 16 multiplications for 2 x 2 outputs, times the parts of 3 x 3 in the kernel.
        ((3, 3), (8, 8), 16 * 16),
        ((5, 5), (8, 8), 16 * 16 * 4),
        ((9, 9), (8, 8), 16 * 16 * 9),
        # 16 for 8 outputs along one axis.
        ((3, 1), (8, 8), 8 * 16),
        # Direct is quicker: no saving at 1 x 1.
        ((1, 1), (8, 8), 64),
    ],
)
def test_winograd(kernel, size, times):
    padding = tuple(side // 2 for side in kernel)
    layer = nn.Conv2d(4, 4, kernel, padding=padding)
    report = roofline(layer, (1, 4, *size), chip(algorithm="winograd"))
    assert report.cycles == times * 4 * 4 // 64
    strided = nn.Conv2d(4, 4, kernel, stride=2, padding=padding)
    direct = roofline(strided, (1, 4, *size), chip(algorithm="direct"))
    assert roofline(strided, (1, 4, *size), chip(algorithm="winograd")) == replace(
        direct,
        assumptions=roofline(strided, (1, 4, *size), chip(algorithm="winograd")).assumptions,
    )


def test_the_four_tops_array_on_fsrcnns_deconvolution():
    """56 inputs fill 4 groups of 16; one output of 16: pen and paper of 1080p to 4K."""
    layer = nn.ConvTranspose2d(56, 1, 9, stride=2, padding=4, output_padding=1)
    size = (1, 56, 1080, 1920)
    for way, algorithm, cycles in (
        ("zero-stuffed", "direct", 81 * 2160 * 3840 * 64 * 16 // 2048),
        ("zero-stuffed", "winograd", 9 * 16 * 1080 * 1920 * 64 * 16 // 2048),
        ("sub-pixel", "direct", 25 * 1080 * 1920 * 64 * 16 // 2048),
    ):
        target = assume("npu-4tops", deconvolution=way, algorithm=algorithm)
        assert roofline(layer, size, target).cycles == cycles


def test_tiles_carry_the_receptive_field_and_are_counted():
    network, _ = collapse(create_model("sesr-m3"))
    whole = roofline(network, (1, 1, 100, 90), "npu-4tops")
    report = roofline(network, (1, 1, 100, 90), "npu-4tops", tile=(40, 32))
    # SESR-M3 sees 2 + 3 + 2 pixels on every side; 3 x 3 tiles.
    assert report.tile_input == (54, 46)
    assert report.tiles == 9
    one = roofline(network, (1, 1, 54, 46), "npu-4tops")
    assert report.layers == one.layers
    assert report.macs == 9 * one.macs
    assert report.latency_ms == pytest.approx(9 * one.latency_ms)
    assert report.dram_traffic == 9 * one.dram_traffic
    # A tile is never larger than the picture.
    assert roofline(network, (1, 1, 100, 90), "npu-4tops", tile=(100, 90)).macs == whole.macs
    assert roofline(network, (1, 1, 100, 90), "npu-4tops", tile=(50, 90)).tile_input == (64, 90)


def test_tiles_keep_maps_on_the_chip():
    """A frame whose maps do not fit moves each; a tile's stay, and only the picture moves."""
    network, _ = collapse(create_model("sesr-m3", act="relu"))
    size = (1, 1, 1080, 1920)
    whole = roofline(network, size, "npu-4tops")
    tiled = roofline(network, size, "npu-4tops", tile=(100, 100))
    # Two convolutions of 16 features write and read a map of 33 MB each at least.
    assert whole.dram_traffic > 4 * 16 * 1080 * 1920
    assert tiled.dram_traffic < whole.dram_traffic / 10


def test_tiles_that_cannot_be():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(UsageError, match="cannot run in tiles: global"):
        roofline(network, (1, 3, 32, 32), chip(), tile=(8, 8))
    with pytest.raises(UsageError, match="two sides in pixels"):
        roofline(two_layers(), SIZE, chip(), tile=(0, 8))


def test_wrong_targets_and_assumptions():
    with pytest.raises(UsageError, match="is no roofline"):
        roofline(two_layers(), SIZE, "ethos-u55-64")
    with pytest.raises(UsageError, match=r"did you mean roofline\.dram_bandwidth"):
        assume("npu-4tops", dram_bandwith=1e9)
    with pytest.raises(UsageError, match="above zero"):
        assume("npu-4tops", dram_bandwidth=0.0)
    with pytest.raises(UsageError, match="zero-stuffed, sub-pixel"):
        assume("npu-4tops", deconvolution="magic")


def test_assumptions_are_said():
    target = assume("npu-4tops", dram_bandwidth=2e9, sram_bytes=2**22, algorithm="direct")
    said = " ".join(roofline(two_layers(), SIZE, target).assumptions)
    for part in ("2,048 MACs", "1 GHz", "4 MiB", "2 GB/s", "zero-stuffed", "multiplied", "Arm"):
        assert part in said


def test_json():
    facts = json.loads(roofline(two_layers(), SIZE, chip()).json())
    assert facts["dram_traffic"] == INPUT + OUTPUT + sum(WEIGHTS)
    assert facts["layers"][0]["cycles"] == CYCLES[0]


@st.composite
def networks(draw):
    """Chains with branches: convolutions of all kinds, activations, additions, pooling."""
    channels = draw(st.sampled_from([1, 3, 4, 8]))

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = channels
            self.parts = nn.ModuleList()
            self.kinds = draw(
                st.lists(st.sampled_from(["conv", "deep", "add", "relu", "pool"]), max_size=6)
            )
            for kind in self.kinds:
                part: nn.Module = nn.Identity()
                if kind == "conv":
                    after = draw(st.sampled_from([2, 4, 5, 16]))
                    part = nn.Conv2d(width, after, draw(st.sampled_from([1, 3, 5])), padding=2)
                    width = after
                elif kind == "deep":
                    part = nn.Conv2d(width, width, 3, padding=1, groups=width)
                elif kind == "add":
                    part = nn.Conv2d(width, width, 1)
                elif kind == "relu":
                    part = nn.ReLU(inplace=draw(st.booleans()))
                elif kind == "pool":
                    part = nn.MaxPool2d(3, 1, 1)
                self.parts.append(part)

        def forward(self, x):
            x = x * 1
            for kind, part in zip(self.kinds, self.parts, strict=True):
                x = x + part(x) if kind == "add" else part(x)
            return x

    return Chain(), (1, channels, draw(st.integers(4, 9)), draw(st.integers(4, 9)))


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([16, 300, 2000, 10**6]))
def test_bounds_that_always_hold(drawn, sram):
    """Nothing beats the array's peak or the memory's: at least input, output, weights move."""
    network, size = drawn
    report = roofline(network, size, chip(sram))
    counted = cost(network, size, element_bytes=1)
    with torch.no_grad():
        output = network(torch.zeros(size))
    assert report.macs == counted.macs
    assert 64 * report.cycles >= report.macs
    least = torch.zeros(size).numel() + output.numel() + counted.weight_bytes
    assert report.dram_traffic >= least
    assert report.latency_ms >= 1e3 * report.dram_traffic / BANDWIDTH * (1 - 1e-9)
    assert report.latency_ms >= 1e3 * report.cycles / CLOCK * (1 - 1e-9)
    assert report.sram_bytes <= sram
    # With room for everything, nothing moves but that.
    if sram == 10**6:
        assert report.dram_traffic == least
