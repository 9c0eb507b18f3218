"""Counts against PyTorch's own counter, published figures, and networks counted by hand."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import collapsible
from collapsible.costs import CostReport, cost
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.models import create_model

# Convolutional, attention, mixing and mobile networks; with the input side of each.
TIMM = {
    "resnet18": 224,
    "resnext26ts": 256,
    "repvgg_a0": 224,
    "mobileone_s0": 224,
    "mobilenetv2_100": 224,
    "mobilenetv3_small_100": 224,
    "efficientnet_lite0": 224,
    "efficientnet_b0": 224,
    "ghostnet_100": 224,
    "regnety_002": 224,
    "densenet121": 224,
    "vgg11": 224,
    "inception_v3": 299,
    "hrnet_w18_small": 224,
    "convnext_tiny": 224,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "mobilevit_xxs": 256,
    "xcit_nano_12_p16_224": 224,
    "poolformer_s12": 224,
    "levit_128s": 224,
}


@pytest.mark.parametrize("name", TIMM)
def test_macs_are_half_of_torchs_own_flops(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name).eval()
    size = (2, 3, TIMM[name], TIMM[name])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(size, device="meta"))
    report = cost(network, size)
    assert 2 * report.macs == counter.get_total_flops()
    assert report.macs == sum(layer.macs for layer in report.layers)
    assert report.params == sum(p.numel() for p in network.parameters())
    assert not report.unknown


# Parameters, GMACs and activations (millions) at 224 in timm's benchmark tables.
@pytest.mark.parametrize(
    ("name", "params", "gmacs", "mactivations"),
    [
        ("resnet18", 11.69, 1.82, 2.48),
        ("repvgg_a0", 9.11, 1.52, 3.59),
        ("efficientnet_lite0", 4.65, 0.40, 6.74),
        ("convnext_tiny", 28.59, 4.47, 13.44),
    ],
)
def test_timms_published_figures(name, params, gmacs, mactivations):
    report = cost(timm.create_model(name), (1, 3, 224, 224))
    assert round(report.params / 1e6, 2) == params
    assert round(report.activations / 1e6, 2) == mactivations
    # timm counts normalisation and pooling too, at most two MACs an element.
    assert 0 <= gmacs * 1e9 - report.macs < 0.03 * gmacs * 1e9 + 0.005e9


def test_efficientnet_lite0_has_the_385m_of_the_ran_paper():
    # Vela's count, arXiv 2208.08562.
    assert round(cost(timm.create_model("efficientnet_lite0"), (1, 3, 224, 224)).macs / 1e6) == 385


# SESR, tables 1 and 2: GMACs to a picture of 1280x720.
@pytest.mark.parametrize(
    ("name", "scale", "gmacs"),
    [
        ("sesr_m3", 2, 2.05),
        ("sesr_m5", 2, 3.11),
        ("sesr_m7", 2, 4.17),
        ("sesr_m11", 2, 6.30),
        ("sesr_xl", 2, 24.27),
        ("sesr_m3", 4, 0.79),
        ("sesr_m5", 4, 1.05),
        ("sesr_m7", 4, 1.32),
        ("sesr_m11", 4, 1.85),
        ("sesr_xl", 4, 6.62),
    ],
)
def test_sesrs_published_macs(name, scale, gmacs):
    network, _ = collapse(create_model(name, scale=scale))
    report = cost(network, (1, 1, 720 // scale, 1280 // scale))
    # Some of the paper's figures are rounded, some are cut: M5's 3.115 is its 3.11.
    assert abs(report.macs / 1e9 - gmacs) <= 0.0101
    assert report.macs == report.convolution_weights * (720 // scale) * (1280 // scale)
    assert report.receptive_field is not None
    assert report.receptive_field.before == (network.receptive_radius,) * 2


def test_sesr_m5_at_full_size_takes_28g_and_no_memory():
    network, _ = collapse(create_model("sesr_m5"))
    assert round(cost(network, (1, 1, 1080, 1920)).macs / 1e9, 1) == 28.0
    # 100,000 by 100,000 pixels would be 640 GB a map.
    assert cost(network, (1, 1, 100_000, 100_000)).macs == 13_520 * 10**10


def test_a_training_form_is_costed_as_what_it_is():
    wide = create_model("sesr_m5")
    narrow, _ = collapse(wide)
    size = (1, 1, 36, 64)
    training, deployed = cost(wide, size), cost(narrow, size)
    assert training.form.startswith("training form")
    assert not deployed.form.startswith("training form")
    # Composing k x k (i to p) with 1x1 (p to o) takes i * p * o * k * k, and p * o for the bias.
    composing = 256 * (1 * 16 * 25 + 5 * 16 * 16 * 9 + 16 * 4 * 25)
    composing += 256 * (16 + 5 * 16 + 4)
    assert training.weight_macs == composing
    assert training.macs - training.weight_macs == deployed.macs == 13_520 * 36 * 64
    assert training.convolution_weights == deployed.convolution_weights == 13_520
    assert deployed.weight_macs == 0
    assert training.params > 20 * deployed.params
    for block in wide.modules():
        if hasattr(block, "set_mode"):
            block.set_mode("expanded")
    expanded = cost(wide, size)
    # Every pixel meets the wide kernels; the pictures of the 1x1 keep their size.
    assert expanded.macs == 36 * 64 * 256 * (25 * 1 + 16 + 5 * (9 * 16 + 16) + 25 * 16 + 4)
    assert expanded.weight_macs == 0


def test_transposed_convolution_meets_every_input_once():
    layer = nn.ConvTranspose2d(6, 4, 9, stride=2, padding=4, output_padding=1, groups=2)
    assert cost(layer, (1, 6, 10, 12)).macs == 10 * 12 * 6 * 2 * 81
    assert cost(create_model("fsrcnn"), (1, 1, 360, 640)).macs == 12_464 * 360 * 640


@pytest.mark.parametrize(
    ("layer", "size", "macs", "non_linear"),
    [
        (nn.Conv2d(8, 12, (3, 5), stride=2, groups=4), (2, 8, 11, 13), 2 * 12 * 5 * 5 * 2 * 15, 0),
        (nn.Conv1d(4, 6, 3, dilation=2), (1, 4, 20), 6 * 16 * 4 * 3, 0),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6), 3 * 3 * 4 * 5 * 2 * 8, 0),
        (nn.Linear(5, 7), (3, 11, 5), 3 * 11 * 5 * 7, 0),
        (nn.ReLU(), (2, 3, 4, 4), 0, 96),
        (nn.PReLU(3), (2, 3, 4, 4), 0, 96),
        (nn.Softmax(1), (2, 3, 4, 4), 0, 96),
        (nn.MaxPool2d(2), (2, 3, 4, 4), 0, 24),
        (nn.GELU(), (7, 3), 0, 21),
        (nn.BatchNorm2d(3), (1, 3, 4, 4), 0, 0),
        (nn.AvgPool2d(2), (1, 3, 4, 4), 0, 0),
        # Four gates of each: 4 * 6 * (5 + 6) for each of 9 steps; 5 non-linearities each.
        (nn.LSTM(5, 6), (9, 1, 5), 9 * 4 * 6 * 11, 9 * 6 * 5),
    ],
)
def test_counts_by_hand(layer, size, macs, non_linear):
    report = cost(layer, size)
    assert (report.macs, report.non_linear) == (macs, non_linear)


class Attention(nn.Module):
    """Two heads over the tokens, with PyTorch's own product."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


def test_attention_by_hand():
    report = cost(Attention(), (3, 10, 8))
    assert report.macs == 3 * 10 * 8 * 24 + 2 * (3 * 2 * 10 * 10 * 4)
    assert report.non_linear == 3 * 2 * 10 * 10


class Shared(nn.Module):
    """One layer used twice; one parameter never."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.unused = nn.Parameter(torch.zeros(1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def test_shared_weights_count_once_and_unused_ones_are_not_shipped():
    report = cost(Shared(), (1, 4, 5, 5))
    assert report.params == 144 + 1000
    assert report.convolution_weights == 144
    assert report.weight_bytes == 4 * 144
    assert report.macs == 2 * 144 * 25
    assert [layer.params for layer in report.layers] == [144, 0]


def test_layers_name_functions_too():
    network, _ = collapse(create_model("sesr_m3"))
    report = cost(network, (1, 1, 8, 8), element_bytes=1)
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["blocks.0.conv"].kind == "Conv2d"
    assert by_name["blocks.0.conv"].output == (1, 16, 8, 8)
    assert by_name["blocks.0.conv"].params == 16 * 16 * 9 + 16
    assert by_name["blocks.0.conv"].bytes_in == by_name["blocks.0.conv"].bytes_out == 16 * 64
    assert by_name["pixel_shuffle"].output == (1, 1, 16, 16)
    assert by_name["pixel_shuffle"].bytes_in == by_name["pixel_shuffle"].bytes_out == 4 * 64


def test_the_network_is_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cost(network, (1, 3, 8, 8))
    assert network.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    for name, value in network.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name])


class Capricious(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "size", "said"),
    [
        (Capricious(), (1, 3), "control flow must not depend on data"),
        (nn.Conv2d(3, 4, 3), (1, 2, 8, 8), "does not run on shapes alone"),
        (nn.Conv2d(3, 4, 3), (1, 3, 0, 8), "positive whole numbers"),
        (nn.Conv2d(3, 4, 3), (1, 3, 8.5, 8), "positive whole numbers"),
        (nn.Conv2d(3, 4, 3), (), "positive whole numbers"),
        (nn.Conv2d(3, 4, 3), 8, "positive whole numbers"),
    ],
)
def test_wrong_use_is_said(network, size, said):
    with pytest.raises(UsageError, match=said):
        cost(network, size)
    with pytest.raises(UsageError, match="element_bytes"):
        cost(nn.ReLU(), (1,), element_bytes=0)


def test_report_as_json_and_table():
    assert collapsible.cost is cost
    assert collapsible.CostReport is CostReport
    report = cost(timm.create_model("resnet18"), (1, 3, 224, 224))
    facts = json.loads(report.json())
    assert facts["macs"] == report.macs
    assert facts["receptive_field"] is None
    assert facts["receptive_field_reason"].startswith("global")
    assert facts["source"] == "counted from one traced run without data"
    assert len(facts["layers"]) == len(report.layers)
    text = report.table(layers=True)
    assert "11,689,512" in text
    assert "layer4.1.conv2" in text
