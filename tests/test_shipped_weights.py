"""What ships is what its card says, at the bars that the project set itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.evaluation import evaluate
from collapsible.evaluation.measure import evaluate_luma
from collapsible.evaluation.networks import shipped
from collapsible.evaluation.pairs import read_pairs
from collapsible.folding import collapse
from collapsible.imaging import code_jpeg, rgb_to_y, ycbcr_to_rgb
from collapsible.models import create_model
from collapsible.upscaler import Upscaler
from collapsible.upscaler.int8 import int8_saturates
from collapsible.weights import DEFAULT_MODEL, FOLDER, find_card, list_cards, sha256

CARDS = list_cards()
# The least PSNR of the network's own Y, in dB.
# Published (arXiv 2103.09404): M5 x2 37.39, 32.84, 31.70; x4 30.99, 27.81, 27.11; no x3;
# M11 x2 37.58, 33.03, 31.85; x4 31.27, 27.94, 27.20; M3 x2 37.21, 32.70, 31.56; x4 30.75, 27.62,
# 27.00; M7 x2 37.47, 32.91, 31.77; x4 31.14, 27.88, 27.13; XL x2 37.77, 33.24, 31.99; x4 31.54,
# 28.12, 27.31. All reach them but XL x2 on Set5.
BARS = {
    ("sesr_m5", 2): {"Set5": 37.39, "Set14": 32.87, "B100": 31.71},
    ("sesr_m5", 3): {"Set5": 33.36, "Set14": 29.59, "B100": 28.65},
    ("sesr_m5", 4): {"Set5": 31.02, "Set14": 27.80, "B100": 27.13},
    ("sesr_m3", 2): {"Set5": 37.21, "Set14": 32.71, "B100": 31.58},
    ("sesr_m3", 4): {"Set5": 30.75, "Set14": 27.63, "B100": 27.02},
    ("sesr_m7", 2): {"Set5": 37.48, "Set14": 32.93, "B100": 31.77},
    ("sesr_m7", 4): {"Set5": 31.15, "Set14": 27.88, "B100": 27.17},
    ("sesr_m11", 3): {"Set5": 33.47, "Set14": 29.65, "B100": 28.72},
    ("sesr_xl", 2): {"Set5": 37.71, "Set14": 33.27, "B100": 31.98},
    ("sesr_xl", 4): {"Set5": 31.55, "Set14": 28.13, "B100": 27.33},
    ("sesr_m2", 2): {"Set5": 36.85, "Set14": 32.48, "B100": 31.39},
    ("sesr_m2", 4): {"Set5": 30.42, "Set14": 27.44, "B100": 26.91},
    ("sesr_cpu", 2): {"Set5": 37.42, "Set14": 32.85, "B100": 31.71},
    ("sesr_cpu", 3): {"Set5": 33.40, "Set14": 29.59, "B100": 28.65},
    ("sesr_cpu", 4): {"Set5": 31.10, "Set14": 27.84, "B100": 27.15},
    ("sesr_m11_relu", 2): {"Set5": 37.54, "Set14": 32.99, "B100": 31.82},
    ("sesr_m11_relu", 4): {"Set5": 31.22, "Set14": 27.92, "B100": 27.20},
    ("sesr_m5_relu", 2): {"Set5": 37.38, "Set14": 32.85, "B100": 31.70},
    ("sesr_m5_relu", 3): {"Set5": 33.31, "Set14": 29.58, "B100": 28.64},
    ("sesr_m5_relu", 4): {"Set5": 30.99, "Set14": 27.78, "B100": 27.12},
    ("sesr_m11", 2): {"Set5": 37.58, "Set14": 33.03, "B100": 31.86},
    ("sesr_m11", 4): {"Set5": 31.30, "Set14": 27.97, "B100": 27.24},
}


def identify(card):
    return card.stem


def test_the_networks_that_must_ship_do():
    assert {(card.architecture, card.scale) for card in CARDS} >= set(BARS)


@pytest.mark.parametrize("card", CARDS, ids=identify)
def test_files_are_those_the_card_describes(card):
    assert card.sha256["onnx"] == sha256(card.onnx_path)
    assert card.sha256["safetensors"] == sha256(card.safetensors_path)
    assert bool(card.metrics_int8) == card.has_int8
    assert not card.has_int8 or card.sha256["int8"] == sha256(card.int8_path)
    for field in ("training_data", "recipe", "protocol", "licence", "metrics"):
        assert getattr(card, field), field
    network = create_model(card.architecture, scale=card.scale, weights="default")
    deployed, _ = collapse(network)
    weights = sum(p.numel() for p in deployed.parameters() if p.ndim == 4)
    assert card.parameters == weights
    assert card.receptive_radius == network.receptive_radius


def test_the_folder_holds_nothing_else_and_is_small():
    files = [path for path in FOLDER.iterdir() if path.suffix in {".onnx", ".safetensors", ".json"}]
    assert {path.stem.removesuffix("_int8") for path in files} == {card.stem for card in CARDS}
    quantised = {path.stem for path in files if path.stem.endswith("_int8")}
    assert quantised == {f"{card.stem}_int8" for card in CARDS if card.has_int8}
    assert sum(path.stat().st_size for path in files) < 6_000_000


@pytest.mark.parametrize("card", CARDS, ids=identify)
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_graph_and_weights_are_one_network(card, engine):
    """The uint8 graph against the network in float64 with colour done step by step."""
    random = np.random.default_rng(4)
    grey = random.integers(0, 256, (40, 52, 1), np.uint8)
    picture = np.repeat(grey, 3, axis=2)
    network = create_model(card.architecture, scale=card.scale, weights="default").double()
    pad = card.receptive_radius
    y = np.pad(rgb_to_y(picture.astype(np.float64)), pad, mode="symmetric") / 255
    with torch.no_grad():
        large = network(torch.from_numpy(y)[None, None])[0, 0].numpy() * 255
    edge = pad * card.scale
    large = large[edge:-edge, edge:-edge]
    # Without colour the chroma stays 128, whatever enlarges it.
    ycbcr = np.stack([large, np.full_like(large, 128), np.full_like(large, 128)], -1)
    wanted = np.clip(np.rint(ycbcr_to_rgb(ycbcr)), 0, 255)
    got = Upscaler(card, scale=card.scale, engine=engine, precision="fp32")(picture)
    difference = np.abs(got.astype(np.int64) - wanted)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.005


@pytest.mark.parametrize("key", BARS, ids=lambda key: f"{key[0]}_x{key[1]}")
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_quality_is_at_the_bar_and_as_the_card_says(shared_data, key, name):
    architecture, scale = key
    card = find_card(architecture, scale)
    data = shared_data / "sr" / name
    result = CliRunner().invoke(
        app, ["evaluate", architecture, "--scale", str(scale), "--data", str(data), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["psnr"] >= BARS[key][name]
    assert report["psnr_picture"] >= report["psnr"] - 0.06
    for measure, tolerance in (("psnr", 0.002), ("ssim", 0.0002), ("psnr_picture", 0.02)):
        assert report[measure] == pytest.approx(card.metrics[name][measure], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("key", BARS, ids=lambda key: f"{key[0]}_x{key[1]}")
def test_quality_on_b100(shared_data, key):
    """Of the network's own Y: finished pictures are measured on the other sets."""
    architecture, scale = key
    card = find_card(architecture, scale)
    own = shipped(card.name, scale, "auto", "auto").luma
    scores = evaluate_luma(own, read_pairs(shared_data / "sr" / "B100", scale), scale)
    psnr, ssim = np.mean(scores, axis=0)
    assert psnr >= BARS[key]["B100"]
    assert psnr == pytest.approx(card.metrics["B100"]["psnr"], abs=0.002)
    assert ssim == pytest.approx(card.metrics["B100"]["ssim"], abs=0.0002)


def test_the_default_is_there_at_every_scale_and_as_good_as_slower_ones():
    for scale in (2, 3, 4):
        default = find_card(DEFAULT_MODEL, scale)
        for other in (find_card("sesr-m5", scale), find_card("sesr-m5-relu", scale)):
            cost = [
                other.metrics[name]["psnr"] - default.metrics[name]["psnr"]
                for name in ("Set5", "Set14", "B100")
            ]
            assert sum(cost) / 3 <= 0.03
            assert default.parameters < other.parameters


@pytest.mark.parametrize("scale", [2, 4])
def test_the_network_for_the_web_is_better_where_pictures_are_compressed(shared_data, scale):
    pairs = read_pairs(shared_data / "sr" / "Set14", scale)
    networks = [shipped(name, scale, "auto", "auto") for name in ("sesr-m11", "sesr-m11-web")]
    gains = []
    for quality in (40, 60, 75, 90):
        files = [replace(pair, low=code_jpeg(pair.low, quality)) for pair in pairs]
        plain, web = (
            np.mean([psnr for psnr, _ in evaluate_luma(network.luma, files, scale)])
            for network in networks
        )
        gains.append(web - plain)
    assert sum(gains) / len(gains) >= 0.3
    assert min(gains[:3]) >= 0.3
    # At quality 90 there is little to mend, and the other network is better on clean pictures.
    assert gains[3] >= -0.15


@pytest.mark.parametrize("card", CARDS, ids=identify)
def test_engines_agree_in_fp32(shared_data, card):
    figures = [
        evaluate(
            card.name,
            shared_data / "sr" / "Set5",
            scale=card.scale,
            engine=engine,
            precision="fp32",
        ).psnr_picture
        for engine in ("openvino", "onnxruntime")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.005)


@pytest.mark.parametrize("card", [card for card in CARDS if card.has_int8], ids=identify)
def test_int8_costs_at_most_a_tenth_of_a_decibel(shared_data, card):
    losses = [
        card.metrics[name]["psnr"] - card.metrics_int8[name]["psnr"]
        for name in ("Set5", "Set14", "B100")
    ]
    assert sum(losses) / 3 <= 0.10
    stated = card.metrics_int8["Set5"]["psnr"]
    for engine in ("onnxruntime", "openvino"):
        report = evaluate(
            card.name,
            shared_data / "sr" / "Set5",
            scale=card.scale,
            precision="int8",
            engine=engine,
        )
        assert report.precision == "int8"
        # Where int8 saturates, OpenVINO's weights are rounded more coarsely.
        coarser = engine == "openvino" and int8_saturates()
        assert stated - report.psnr <= (0.06 if coarser else 0.01)
        assert report.psnr - stated <= 0.01
