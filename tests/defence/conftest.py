"""Small classifiers on real pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from collapsible.defence import AttackSpec, ClassifierSpec, Plan
from collapsible.defence.pictures import find_labelled_pictures, read_batch

SIDE = 12


class Thumbnails(nn.Module):
    """Pictures of any size, shrunk to 12x12, random ReLU features, and a fitted linear layer."""

    def __init__(self, classes: int, features: int = 400) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(3 * SIDE * SIDE, features)
        self.head = nn.Linear(features, classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(x, SIDE).flatten(1)
        return torch.relu(self.hidden(4 * (small - 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    @torch.no_grad()
    def fit(self, x: Tensor, labels: Tensor) -> None:
        """Ridge regression to one-hot targets."""
        a = self.features(x).double()
        wanted = nn.functional.one_hot(labels).double()
        gram = a.T @ a + 0.1 * torch.eye(a.shape[1], dtype=torch.float64)
        self.head.weight.copy_(torch.linalg.solve(gram, a.T @ wanted).T)


@pytest.fixture(scope="session")
def nette(shared_data: Path) -> tuple[Tensor, Tensor]:
    """60 pictures of Imagenette, 48 pixels, and their classes 0 to 9."""
    found = find_labelled_pictures(shared_data / "cls" / "imagenette160" / "val").take(60)
    places = {name: i for i, name in enumerate(sorted(set(found.names)))}
    labels = torch.tensor([places[name] for name in found.names])
    return read_batch(found.files, 48), labels


@pytest.fixture(scope="session")
def thumbnails(nette: tuple[Tensor, Tensor]) -> Thumbnails:
    """A classifier that gets most of those pictures right, undefended."""
    network = Thumbnails(10).eval()
    network.fit(*nette)
    return network.requires_grad_(False)


@pytest.fixture(scope="session")
def mobilenet(shared_data: Path) -> ClassifierSpec:
    """MobileNetV2 with ImageNet weights, as its data's README says."""
    value = (128 / 255,) * 3
    return ClassifierSpec(
        "mobilenet",
        "torchvision:mobilenet_v2",
        str(shared_data / "cls" / "weights" / "mobilenet_v2_imagenet.safetensors"),
        mean=value,
        std=value,
        padding="same",
    )


@pytest.fixture(scope="session")
def small_plan(shared_data: Path, mobilenet: ClassifierSpec) -> Plan:
    """Two classifiers (the same weights, padded in two ways), two defences, two budgets."""
    return Plan(
        data=str(shared_data / "cls" / "imagenet100"),
        classifiers=(mobilenet, replace(mobilenet, name="plain", padding="torch")),
        defences=("bits:4+nearest",),
        attacks=(AttackSpec("fgsm"), AttackSpec("pgd", (("steps", 2),))),
        epsilons=(0.0, 4 / 255),
        size=64,
        limit=4,
        batch=4,
    )
