"""Networks in int8 inside a defended classifier, beside their fp32 forms."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from collapsible.defence import ClassifierSpec, DefendedClassifier, Plan, evaluate_defence
from collapsible.defence.integers import IntegerForm, calibrate_integers
from collapsible.defence.laboratory import Laboratory
from collapsible.defence.plan import list_jobs
from collapsible.deploy.litert import run_litert
from collapsible.errors import UsageError

pytest.importorskip("litert_torch", reason="the extra 'edge' is not installed")
SIDE = 32
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def small_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


@pytest.fixture(scope="module")
def pictures(nette: tuple[Tensor, Tensor]) -> Tensor:
    return nette[0][:8, :, 8 : 8 + SIDE, 8 : 8 + SIDE].contiguous()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "int8"
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(folder))
    return folder


def test_values_are_the_files_and_gradients_those_of_fp32(pictures: Tensor, cache: Path) -> None:
    network = small_network()
    form = IntegerForm(copy.deepcopy(network))
    calibrate_integers(form, pictures)
    with torch.no_grad():
        wanted, found = network(pictures), form(pictures)
    files = list(cache.glob("int8-*.tflite"))
    assert files
    told = [run_litert(file, pictures.numpy()) for file in files]
    assert any(np.array_equal(found.numpy(), values) for values in told)
    # Eight bits for what the scores span, and a few roundings on the way.
    step = float(wanted.max() - wanted.min()) / 255
    assert 0 < float((found - wanted).abs().max()) < 8 * step

    x, y = (pictures.clone().requires_grad_() for _ in range(2))
    form(x).square().sum().backward()
    out = network(y)
    # The chain's last link is at the file's scores, those before it are fp32's.
    out.backward(2 * found)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)


def test_a_defended_classifier_in_integers(pictures: Tensor) -> None:
    defended = DefendedClassifier(small_network(), "bits:6+sesr-m2-rgb", **PLAIN)
    deployed = defended.integers(pictures)
    assert deployed.name == "bits:6+sesr-m2-rgb:int8"
    with torch.no_grad():
        sharp, coarse = defended.preprocess(pictures), deployed.preprocess(pictures)
    assert coarse.shape == (8, 3, 2 * SIDE, 2 * SIDE)
    mse = float((sharp - coarse).square().mean())
    # Eight bits: near fp32, and yet not the same.
    assert 0 < mse < 10**-3.5
    with torch.no_grad():
        torch.testing.assert_close(defended.preprocess(pictures), sharp, rtol=0, atol=0)
    with pytest.raises(UsageError, match="int8 already"):
        deployed.integers(pictures)
    with pytest.raises(UsageError, match=r"not been calibrated for inputs \[3, "):
        deployed(torch.rand(1, 3, 40, 40))
    exported = torch.export.export(deployed.exportable(), (pictures[:1],))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(pictures[:1]), defended(pictures[:1]))


@pytest.mark.slow
def test_a_laboratory_with_both_precisions(
    shared_data: Path, mobilenet: ClassifierSpec, small_plan: Plan, tmp_path: Path
) -> None:
    plan = replace(
        small_plan,
        classifiers=(mobilenet, replace(mobilenet, name="integers", precision="int8")),
        defences=("sesr-m2-rgb", "sesr-m2-rgb:int8"),
        attacks=small_plan.attacks[:1],
        epsilons=(4 / 255,),
        threats=("grey-box", "adaptive", "transfer"),
        calibration=str(shared_data / "cls" / "imagenet100"),
    )
    report = evaluate_defence(plan, tmp_path)
    cells = [cell for cell in report.cells if cell.outcome]
    assert {(c.classifier, c.defence) for c in cells} == {
        (name, defence)
        for name in ("mobilenet", "integers")
        for defence in ("none", "sesr-m2-rgb", "sesr-m2-rgb:int8")
    }
    laboratory = Laboratory(plan)
    with torch.no_grad():
        scores = laboratory.model("mobilenet", "none")(laboratory.clean)
        coarse = laboratory.model("integers", "none")(laboratory.clean)
    cosine = nn.functional.cosine_similarity(scores, coarse)
    # Small pictures, far from what the network was trained on: unrelated ones give below 0.5.
    assert float(cosine.min()) > 0.7
    assert not torch.equal(scores, coarse)
    # Other calibration pictures are another experiment.
    job = next(iter(list_jobs(plan)))
    other = replace(plan, calibration=str(shared_data / "cls" / "imagenette160" / "val"))
    assert Laboratory(other).key(job) != laboratory.key(job)


def test_calibration_leaves_out_what_is_attacked(
    shared_data: Path, mobilenet: ClassifierSpec, small_plan: Plan, tmp_path: Path
) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    plan = replace(small_plan, classifiers=(mobilenet,), defences=("sesr-m2-rgb:int8",))
    for file in Laboratory(replace(plan, defences=())).pictures.files:
        (folder / file.name).symlink_to(file)
    with pytest.raises(UsageError, match="not attacked too"):
        Laboratory(replace(plan, calibration=str(folder)))
