"""Top-1 and top-5 against a plain loop over torchvision's folder and timm's transform."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision.datasets import ImageFolder

from collapsible.errors import PictureError, UnknownNameError, UsageError, WeightsError
from collapsible.evaluation import evaluate_classifier, is_classifier
from collapsible.models import (
    ClassifierCard,
    Preprocessing,
    create_classifier,
    load_classifier,
    save_classifier,
)
from collapsible.models.registry import save_weights

NAME = "timm:resnet10t"
SMALL = {"channels": [8, 8, 16, 16], "stem_width": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    random = np.random.default_rng(4)
    for name in "abcdefgh":
        (root / "val" / name).mkdir(parents=True)
        for number in range(8):
            height, width = random.integers(20, 60, 2)
            pixels = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
            picture = Image.fromarray(pixels).resize((int(width), int(height)))
            picture.save(root / "val" / name / f"{number}.png")
    return root


def by_hand(network: torch.nn.Module, folder: Path, **settings) -> tuple[float, float]:
    transform = create_transform(is_training=False, **settings)
    first = among = 0
    with torch.no_grad():
        data = ImageFolder(str(folder), transform)
        for picture, label in data:
            order = network(picture[None])[0].argsort(descending=True).tolist()
            first += order[0] == label
            among += label in order[:5]
    return 100 * first / len(data), 100 * among / len(data)


def trained(path: Path, classes: str = "abcdefgh", **options) -> Path:
    torch.manual_seed(1)
    network = create_classifier(NAME, len(classes), **SMALL).eval()
    steps = Preprocessing(size=24, crop=0.8, interpolation="bilinear", mean=(0.4,) * 3)
    save_classifier(network, ClassifierCard(NAME, tuple(classes), steps, SMALL, **options), path)
    return path


def test_a_trained_file_gives_the_figures_of_a_plain_loop(folder, tmp_path):
    path = trained(tmp_path / "net.safetensors")
    report = evaluate_classifier(path, folder)
    network, card = load_classifier(path)
    hand = by_hand(
        network,
        folder / "val",
        input_size=(3, 24, 24),
        crop_pct=0.8,
        interpolation="bilinear",
        mean=(0.4,) * 3,
        std=card.preprocessing.std,
    )
    assert (report.top1, report.top5) == pytest.approx(hand)
    assert 0 < report.top1 < report.top5 < 100
    assert report.pictures == 64
    assert sum(score.pictures for score in report.classes) == 64
    assert np.mean([score.top1 for score in report.classes]) == pytest.approx(report.top1)


def test_a_timm_name_has_timms_size_and_normalisation(folder, tmp_path):
    torch.manual_seed(2)
    network = timm.create_model("test_resnet", num_classes=8).eval()
    save_weights(network, tmp_path / "w.safetensors")
    torch.save(network.state_dict(), tmp_path / "w.pth")
    hand = by_hand(network, folder / "val", **resolve_model_data_config(network))
    for name in ("w.safetensors", "w.pth"):
        report = evaluate_classifier("timm:test_resnet", folder, weights=tmp_path / name)
        assert (report.top1, report.top5) == pytest.approx(hand)
    assert report.outputs == 8


def test_our_own_networks_go_by_their_name(folder, tmp_path):
    """The registry's RAN-i, of which the file alone says that it has eight classes."""
    torch.manual_seed(3)
    network = create_classifier("ran-i-pico", 8).eval()
    save_weights(network, tmp_path / "w.safetensors")
    report = evaluate_classifier("ran-i-pico", folder, weights=tmp_path / "w.safetensors")
    hand = by_hand(network, folder / "val", input_size=(3, 224, 224), interpolation="bicubic")
    assert (report.top1, report.top5) == pytest.approx(hand)


def test_imagenets_classes_are_found_by_their_wnid(tmp_path):
    """Two of ImageNet's thousand; the network's answer is read off by hand."""
    wnids = {"n03028079": 497, "n01440764": 0}
    random = np.random.default_rng(0)
    for name in wnids:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / "val" / name / "1.png"
        )
    network = timm.create_model("test_resnet").eval()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.zero_()
        network.fc.bias[497] = 2.0
        network.fc.bias[3] = 1.0
    save_weights(network, tmp_path / "w.safetensors")
    report = evaluate_classifier("timm:test_resnet", tmp_path, weights=tmp_path / "w.safetensors")
    assert report.outputs == 1000
    assert {c.name: c.top1 for c in report.classes} == {"n03028079": 100.0, "n01440764": 0.0}


def test_a_folder_of_fewer_classes_is_matched_by_name(folder, tmp_path):
    path = trained(tmp_path / "net.safetensors", classes="zhgfedcba")
    assert evaluate_classifier(path, folder).outputs == 9
    with pytest.raises(UsageError, match="does not know c, d, e, f, g"):
        evaluate_classifier(trained(tmp_path / "few.safetensors", classes="abxy"), folder)


def test_the_file_and_its_card_belong_together(folder, tmp_path):
    path = trained(tmp_path / "net.safetensors")
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["task"] == "classification"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(WeightsError, match="not the file that"):
        load_classifier(path)
    path = trained(path)
    for change, message in (
        ({"colour": 1}, "unknown keys"),
        ({"classes": 3}, "not a classifier's card"),
        ({"task": "x"}, "not a classifier's card"),
        ({"options": {"channels": [8, 8, 16, 24], "stem_width": 4}}, "does not fit"),
        ({"classes": ["a", "b"]}, "does not fit"),
    ):
        path.with_suffix(".json").write_text(json.dumps({**record, **change}))
        with pytest.raises(WeightsError, match=message):
            load_classifier(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="no card at"):
        load_classifier(path)
    with pytest.raises(WeightsError, match="no classifier at"):
        load_classifier(tmp_path / "none.safetensors")


def test_what_cannot_be_measured_is_said(folder, tmp_path):
    path = trained(tmp_path / "net.safetensors")
    network = timm.create_model("test_resnet", num_classes=3)
    save_weights(network, tmp_path / "three.safetensors")

    def measure(model, **options):
        return lambda: evaluate_classifier(model, folder, **options)

    cases = [
        (measure("timm:test_resnet"), UsageError, "no weights are shipped"),
        (measure(path, weights=path), UsageError, "--weights goes with a name"),
        (measure("timm:test_resnet", weights=tmp_path / "no.pt"), WeightsError, "no weights at"),
        (measure("timm:rezmet18", weights=path), UnknownNameError, "unknown timm network"),
        (measure("timm:test_convnext", weights=path), WeightsError, "does not fit"),
        (
            measure("timm:test_resnet", weights=tmp_path / "three.safetensors"),
            UsageError,
            "has 3 classes and .* has 8",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_bad_picture_is_named(tmp_path):
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / "data" / name / "1.png")
    (tmp_path / "data" / "b" / "2.png").write_text("no picture")
    path = trained(tmp_path / "net.safetensors", classes="ab")
    with pytest.raises(PictureError, match=r"2\.png"):
        evaluate_classifier(path, tmp_path / "data")


def test_classifiers_are_told_from_upscalers(tmp_path):
    assert is_classifier("timm:resnet18")
    assert is_classifier(trained(tmp_path / "net.safetensors"))
    assert is_classifier("ran-i-tiny")
    assert not any(is_classifier(name) for name in ("sesr-m5", "SESR_M11", "bicubic", "none"))
    assert not is_classifier(tmp_path / "other.safetensors")
