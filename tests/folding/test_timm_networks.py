"""Real networks: timm's, with random weights and batch-norm statistics, held to timm's own."""

from __future__ import annotations

import json

import pytest
import torch
from branch_networks import count, randomise
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from collapsible.folding import collapse

timm = pytest.importorskip("timm")

NETWORKS = ("repvgg_a0", "mobileone_s0", "resnet18", "mobilenetv2_100", "efficientnet_lite0")


@pytest.mark.parametrize("name", NETWORKS)
def test_network_collapses_exactly(name: str) -> None:
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    network = randomise(timm.create_model(name)).double().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    deployed, report = collapse(network)
    assert network.training
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    network.eval()
    x = torch.randn(1, 3, 128, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, got = network(x), deployed(x)
        inner, inner_got = expected.abs().max(), (expected - got).abs().max()
    assert inner_got < 1e-9 * inner
    assert report.relative_error_float64 < 1e-9
    assert json.loads(report.json())["layers_after"] == report.layers_after
    # Nothing is left to normalise, and not a layer more than in timm's own deploy form.
    assert count(deployed, _BatchNorm) == 0
    own = reparameterize_model(network)
    layers = (nn.Conv2d, nn.Linear)
    assert count(deployed, *layers) == count(own, *layers) == report.layers_after
    if name in ("repvgg_a0", "mobileone_s0"):
        assert count(deployed, nn.Conv2d) < count(network, nn.Conv2d)
        assert count(own, _BatchNorm) == 0


def test_float32_error_stays_at_its_rounding() -> None:
    torch.manual_seed(0)
    _, report = collapse(randomise(timm.create_model("resnet18")))
    assert 0 < report.max_error_float32 < 1e-4 * report.output_range


@pytest.mark.parametrize("name", ["fastvit_t8", "densenet121", "convnext_atto", "levit_128s"])
def test_networks_of_other_shapes_are_never_broken(name: str) -> None:
    torch.manual_seed(0)
    network = randomise(timm.create_model(name)).double().eval()
    size = 224 if name == "levit_128s" else 64
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    # Layer scales start at 1e-6 or so, which would hide an error in what they scale.
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("gamma"):
                parameter.uniform_(0.5, 1.5)
        deployed, report = collapse(network, probe=x)
        expected = network(x)
        assert (deployed(x) - expected).abs().max() < 1e-9 * expected.abs().max()
    assert report.layers_after <= report.layers_before
    assert report.rewrites


def test_a_network_without_anything_linear_to_merge_is_named() -> None:
    from collapsible.errors import UsageError

    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(UsageError, match="VisionTransformer has no collapsible block"):
        collapse(network)
