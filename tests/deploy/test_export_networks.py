"""Real networks through the whole chain: what int8 costs on pictures it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import collapsible
from collapsible.deploy.samples import Preparation, choose, prepare_picture, read_labelled
from collapsible.evaluation.pairs import read_pairs
from collapsible.imaging import list_pictures, read_picture
from collapsible.models import create_model
from collapsible.weights import find_card

pytest.importorskip("litert_torch", reason="the edge extra is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def set5(shared_data: Path) -> dict[str, list[np.ndarray]]:
    luma = Preparation(1)
    pairs = read_pairs(shared_data / "sr" / "Set5", 2)
    return {
        "pictures": [prepare_picture(pair.low, luma) for pair in pairs],
        "truth": [prepare_picture(pair.high, luma) for pair in pairs],
    }


@pytest.fixture(scope="module")
def calibration(shared_data: Path) -> list[np.ndarray]:
    paths = choose(list_pictures(shared_data / "sr" / "train" / "T91"), 30)
    return [prepare_picture(read_picture(path).pixels, Preparation(1), (64, 64)) for path in paths]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_sesr_m5_on_set5(set5, calibration, tmp_path, suffix):
    network = create_model("sesr_m5", scale=2, weights="default")
    options = {"input_size": (1, 1, 64, 64), "int8": calibration, **set5}
    report = collapsible.export(network, tmp_path / f"m5{suffix}", **options)
    for check in report.checks:
        # Through tiles the network is what it is on whole pictures, borders and all.
        card = find_card("sesr_m5", 2)
        assert check.torch == pytest.approx(card.metrics["Set5"]["psnr"], abs=0.002)
        assert check.change is not None
        # Published losses of int8 after training are 0.1 to 0.5 dB for networks of this size.
        assert -0.25 < check.change < 0
    assert report.overlap == 9


def test_a_whole_frame_equals_the_protocol_s_psnr(set5, tmp_path):
    """fp32, on a frame of just the file's size: the card's own protocol on that picture."""
    network = create_model("sesr_m5", scale=2, weights="default").eval()
    low, high = set5["pictures"][0], set5["truth"][0]
    report = collapsible.export(
        network, tmp_path / "baby.onnx", input_size=(1, *low.shape), pictures=[low], truth=[high]
    )
    with torch.no_grad():
        found = network(torch.from_numpy(low[None]))[0, 0].clamp(0, 1).numpy().astype(float)
    square = np.mean((found - high[0])[2:-2, 2:-2] ** 2)
    for check in report.checks:
        assert check.file == pytest.approx(10 * np.log10(1 / square), abs=1e-3)


def asymmetric(network: nn.Module) -> nn.Module:
    """TensorFlow's SAME borders, with which these weights were trained (see the data's README)."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            parent, _, own = name.rpartition(".")
            bare = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                groups=layer.groups,
                bias=layer.bias is not None,
            )
            bare.load_state_dict(layer.state_dict())
            padded = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), bare)
            setattr(network.get_submodule(parent), own, padded)
    return network


def test_mobilenet_v2_top_1(shared_data, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    from safetensors.torch import load_file

    network = torchvision.models.mobilenet_v2()
    state = load_file(shared_data / "cls" / "weights" / "mobilenet_v2_imagenet.safetensors")
    network.load_state_dict({name: value.float() for name, value in state.items()})
    preparation = Preparation(3, mean=(128 / 255,) * 3, std=(128 / 255,) * 3, crop=0.875)
    pictures, labels = read_labelled(
        shared_data / "cls" / "imagenet100", preparation, (224, 224), 1000, limit=50
    )
    calibration, _ = read_labelled(
        shared_data / "cls" / "imagenette160" / "train", preparation, (224, 224), 1000, limit=10
    )
    report = collapsible.export(
        asymmetric(network),
        tmp_path / "net.tflite",
        input_size=(1, 3, 224, 224),
        int8=calibration,
        pictures=pictures,
        labels=labels,
    )
    (check,) = report.checks
    # 84 % of the hundred by the data's README.
    assert check.torch is not None
    assert 0.7 < check.torch < 0.95
    assert check.file is not None
    assert check.file > check.torch - 0.12
    assert report.notes == ()


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])
def test_timm_networks_keep_their_map(name, tmp_path):
    torch.manual_seed(0)
    network = create_model(f"timm:{name}").eval()
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    report = collapsible.export(network, tmp_path / "net.tflite", input_size=(1, 3, 64, 64))
    (check,) = report.checks
    assert check.relative_error < 1e-4
    assert report.collapsed is not None
    layers = {"resnet18": 21, "repvgg_a0": 23}[name]
    assert report.collapsed.layers_after == layers
