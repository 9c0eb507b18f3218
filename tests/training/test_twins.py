"""A network with PReLU starts from its twin with ReLU as the same function, and back."""

from __future__ import annotations

import pytest
import torch

from collapsible.errors import WeightsError
from collapsible.models import create_model
from collapsible.models.registry import save_weights
from collapsible.training import build_network
from collapsible.training.recipes import parse_recipe


def recipe(name: str, **options):
    network = {"name": name, "scale": 2, "options": {"block": "narrow", **options}}
    return parse_recipe(
        {"name": "n", "task": "super-resolution", "steps": 1, "network": network, "loss": "psnr"}
    )


@pytest.mark.parametrize(
    ("name", "twin", "options"),
    [("sesr_m3", "sesr_m3", {"act": "relu"}), ("sesr_m5", "sesr_m5_relu", {})],
)
def test_prelu_starts_where_relu_ended(tmp_path, name, twin, options):
    torch.manual_seed(5)
    relu = create_model(twin, block="narrow", **options)
    save_weights(relu, tmp_path / "relu.safetensors")
    prelu = build_network(recipe(name), tmp_path / "relu.safetensors")
    x = torch.rand(2, 1, 9, 11)
    with torch.no_grad():
        assert torch.equal(relu(x), prelu(x))
    known = relu.state_dict()
    slopes = [p for name, p in prelu.named_parameters() if name not in known]
    prelu(x).square().mean().backward()
    assert slopes
    assert all(bool(slope.grad.abs().sum() > 0) for slope in slopes)


def test_relu_takes_the_kernels_of_prelu(tmp_path):
    prelu = create_model("sesr_m3", block="narrow")
    save_weights(prelu, tmp_path / "prelu.safetensors")
    relu = build_network(recipe("sesr_m3", act="relu"), tmp_path / "prelu.safetensors")
    kernels = prelu.state_dict()
    assert all(torch.equal(v, kernels[k]) for k, v in relu.state_dict().items())
    with pytest.raises(WeightsError):
        build_network(recipe("sesr_xl"), tmp_path / "prelu.safetensors")
