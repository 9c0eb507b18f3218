"""Shipping: three files that agree with each other and with the network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from collapsible.deploy import ship
from collapsible.errors import UsageError
from collapsible.evaluation.networks import load_network
from collapsible.folding import collapse
from collapsible.models import create_model
from collapsible.upscaler import upscale
from collapsible.weights import find_card, read_card


def test_the_three_files_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("sesr_m3", scale=2, act="relu")
    card = ship(
        network,
        architecture="sesr-m3",
        scale=2,
        folder=tmp_path,
        options={"act": "relu"},
        metrics={"Set5": {"psnr": 1.0}},
        licence="Apache-2.0",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sesr_m3_x2.json",
        "sesr_m3_x2.onnx",
        "sesr_m3_x2.safetensors",
    ]
    # The SESR paper's table 1: 8,912 weights for M3 at x2.
    assert card.parameters == 8912
    assert find_card("sesr-m3", 2, tmp_path) == card == read_card(card.path)
    for kind, path in (("onnx", card.onnx_path), ("safetensors", card.safetensors_path)):
        assert card.sha256[kind] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(card.path.read_text())["metrics"] == {"Set5": {"psnr": 1.0}}

    expected, _ = collapse(network)
    loaded = load_network(card.safetensors_path, card.architecture, 2, card.options)
    for name, value in expected.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def enlarge_grey(network: torch.nn.Module, grey: np.ndarray) -> np.ndarray:
    """The network's own Y of a grey picture, in float64, brought back to grey."""
    radius, scale = network.receptive_radius, network.scale
    y = np.pad(16 + grey.astype(np.float64) * 219 / 255, radius, mode="symmetric") / 255
    with torch.no_grad():
        large = network.double()(torch.from_numpy(y)[None, None])[0, 0].numpy()
    edge = slice(scale * radius, -scale * radius)
    return np.clip(np.rint((large[edge, edge] * 255 - 16) * 255 / 219), 0, 255)


def test_the_shipped_graph_is_the_network(tmp_path: Path) -> None:
    """A grey picture: the upscaler's result is the network's own Y, brought back to grey."""
    torch.manual_seed(0)
    network = create_model("sesr_m2", scale=3)
    card = ship(network, architecture="sesr_m2", scale=3, folder=tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (17, 12), dtype=np.uint8)
    got = upscale(grey, 3, card, precision="fp32")

    deployed = load_network(card.safetensors_path, "sesr_m2", 3, {})
    assert card.receptive_radius == deployed.receptive_radius
    expected = enlarge_grey(deployed, grey)
    assert got.shape == expected.shape
    assert np.abs(expected - got).max() <= 1
    assert np.mean(expected == got) > 0.999


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_in_half_the_bytes_graph_and_weights_are_still_one_network(tmp_path: Path, engine) -> None:
    torch.manual_seed(0)
    network, _ = collapse(create_model("sesr_m7", scale=2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    full, half = (
        ship(network, architecture="sesr_m7", scale=2, folder=tmp_path / str(h), half=h)
        for h in (False, True)
    )
    # What is given is not touched.
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for path in ("safetensors_path", "onnx_path"):
        small, large = (getattr(card, path).stat().st_size for card in (half, full))
        assert small < 0.72 * large
    loaded = load_network(half.safetensors_path, "sesr_m7", 2, {})
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, before[name], rtol=2**-11, atol=1e-7)
    grey = np.random.default_rng(0).integers(0, 256, (17, 12), dtype=np.uint8)
    got = upscale(grey, 2, half, precision="fp32", engine=engine)
    expected = enlarge_grey(loaded, grey)
    assert np.abs(expected - got).max() <= 1
    assert np.mean(expected == got) > 0.995


def test_the_wrong_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="x2"):
        ship(create_model("sesr_m2", scale=2), architecture="sesr_m2", scale=4, folder=tmp_path)
    assert not list(tmp_path.iterdir())
