"""The defended classifier: normalisation, sizes, export, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from collapsible import DefendedClassifier
from collapsible.defence import create_defence
from collapsible.errors import UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_it_is_the_chain_done_by_hand(pictures: Tensor) -> None:
    net = small()
    defended = DefendedClassifier(net, "jpeg:75+nearest", mean=MEAN, std=STD)
    seen = create_defence("jpeg:75+nearest")(pictures)
    normalised = torchvision.transforms.functional.normalize(seen, list(MEAN), list(STD))
    torch.testing.assert_close(defended(pictures), net(normalised))
    torch.testing.assert_close(defended.preprocess(pictures), seen)
    assert defended.name == "jpeg:75+nearest"


def test_normalisation_comes_from_timm(pictures: Tensor) -> None:
    net = timm.create_model("resnet18", num_classes=5)
    config: Any = net.pretrained_cfg
    defended = DefendedClassifier(net)
    normalised = torchvision.transforms.functional.normalize(
        pictures, list(config["mean"]), list(config["std"])
    )
    torch.testing.assert_close(defended(pictures), net(normalised))


@pytest.mark.parametrize("as_enumeration", [True, False])
def test_normalisation_comes_from_torchvision(as_enumeration: bool) -> None:
    weights = torchvision.models.MobileNet_V2_Weights.DEFAULT
    given = weights if as_enumeration else weights.transforms()
    defended = DefendedClassifier(torchvision.models.mobilenet_v2(), transforms=given)
    assert defended.mean.flatten().tolist() == pytest.approx(list(MEAN))
    assert defended.std.flatten().tolist() == pytest.approx(list(STD))


def test_nothing_is_normalised_twice(pictures: Tensor) -> None:
    normalise = torchvision.transforms.Normalize(MEAN, STD)
    whole = nn.Sequential(normalise, small())
    with pytest.raises(UsageError, match="normalised twice"):
        DefendedClassifier(whole, mean=MEAN, std=STD)
    defended = DefendedClassifier(whole, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(defended(pictures), whole(pictures))
    with pytest.raises(UsageError, match="already"):
        DefendedClassifier(defended)


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(UsageError, match="give mean and std"):
        DefendedClassifier(small())
    with pytest.raises(UsageError, match="go together"):
        DefendedClassifier(small(), mean=MEAN)
    with pytest.raises(UsageError, match="three values"):
        DefendedClassifier(small(), mean=MEAN, std=(1, 0, 1))


@pytest.mark.parametrize("maker", ["timm", "torchvision"])
def test_a_fixed_size_is_named_and_can_be_met(maker: str) -> None:
    if maker == "timm":
        options: dict[str, Any] = {"img_size": 32, "patch_size": 16, "num_classes": 3}
        net = timm.create_model("vit_tiny_patch16_224", **options)
    else:
        net = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=3)
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(UsageError, match=r"64x64, its size is fixed at 32x32: give resize=32"):
        DefendedClassifier(net, "nearest", mean=MEAN, std=STD)(x)
    assert DefendedClassifier(net, "nearest", mean=MEAN, std=STD, resize=32)(x).shape == (1, 3)


def test_a_fixed_linear_layer_is_explained_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(UsageError, match="does not take pictures of 16x16: give resize=PIXELS"):
        DefendedClassifier(net, "nearest", mean=MEAN, std=STD)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("text", ["out of memory", "something else broke"])
def test_other_errors_stay_what_they_are(text: str) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(text)

    with pytest.raises(RuntimeError, match=text):
        DefendedClassifier(Broken(), mean=MEAN, std=STD)(torch.rand(1, 3, 8, 8))


def test_batches_equal_single_pictures(pictures: Tensor) -> None:
    defended = DefendedClassifier(small(), "jpeg:75+wavelet+sesr-m5", mean=MEAN, std=STD)
    with torch.no_grad():
        whole = defended(pictures)
        for i in range(len(pictures)):
            torch.testing.assert_close(defended(pictures[i : i + 1])[0], whole[i])


def test_it_stays_in_evaluation_mode_where_deployed() -> None:
    defended = DefendedClassifier(small(), "sesr-m5", mean=MEAN, std=STD)
    defended.train()
    stage: Any = defended.defence.stages[0]
    assert not stage.network.training
    assert not any(p.requires_grad for p in stage.network.parameters())


@pytest.mark.slow
def test_torch_export_and_onnx(tmp_path: Path, pictures: Tensor) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    import warnings

    defended = DefendedClassifier(small(), "jpeg:75+wavelet+sesr-m5", mean=MEAN, std=STD)
    twin = defended.exportable()
    with torch.no_grad():
        expected = twin(pictures)
        # The exact forms are near, and the original still computes them.
        torch.testing.assert_close(expected, defended(pictures), atol=0.02, rtol=0)
    program = torch.export.export(twin, (pictures,))
    torch.testing.assert_close(program.module()(pictures), expected)
    file = tmp_path / "defended.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), str(file), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})
    np.testing.assert_allclose(result, expected.numpy(), atol=2e-3)
