"""A small classifier of real pictures, trained on the spot, for comparing attacks on it."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

STEPS = 250
BATCH = 128


class Classifier(nn.Module):
    """Ten classes of 32x32 pictures in [0, 1]; the normalisation is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, stride=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(1024, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - 0.47) / 0.25)


def read_pictures(archive: Path, train: int, test: int) -> list[tuple[Tensor, Tensor]]:
    """The first pictures of each class, (N, 3, 32, 32) in [0, 1] with labels: training, test."""
    wanted = {"train": train, "test": test}
    found: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {"train": {}, "test": {}}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")
            if not member.isfile() or len(parts) < 4:
                continue
            split, kind, name = parts[-3:]
            if split not in found or int(Path(name).stem) > wanted[split]:
                continue
            file = tar.extractfile(member)
            assert file is not None
            pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
            found[split].setdefault(kind, []).append((name, pixels))
    sets = []
    for kinds in found.values():
        images, labels = [], []
        for label, kind in enumerate(sorted(kinds)):
            for _, pixels in sorted(kinds[kind], key=lambda one: one[0]):
                images.append(pixels)
                labels.append(label)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        sets.append((stacked.contiguous(), torch.tensor(labels)))
    return sets


def train(images: Tensor, labels: Tensor) -> Classifier:
    """A few hundred steps from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier()
        optimiser = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=STEPS)
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (BATCH,))
            x = images[chosen]
            x = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x.flip(3), x)
            loss = nn.functional.cross_entropy(network(x), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def load(archive: Path) -> tuple[Classifier, Tensor, Tensor]:
    """The network, and test pictures that it gets right, in an order that mixes the classes.

    The weights and pictures stay in the temporary folder under a name that changes with this
    file, the archive and torch.
    """
    stamp = f"{torch.__version__} {archive.stat().st_size} {Path(__file__).read_text()}"
    key = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"collapsible-attack-network-{key}.pt"
    if not cache.exists():
        (images, labels), (test_images, test_labels) = read_pictures(archive, 1000, 250)
        network = train(images, labels)
        order = torch.randperm(len(test_labels), generator=torch.Generator().manual_seed(0))
        test_images, test_labels = test_images[order], test_labels[order]
        right = network(test_images).argmax(1) == test_labels
        state = {
            "network": network.state_dict(),
            "images": test_images[right],
            "labels": test_labels[right],
        }
        beside = cache.with_suffix(f".{os.getpid()}")
        torch.save(state, beside)
        beside.replace(cache)
    state = torch.load(cache, weights_only=True)
    network = Classifier()
    network.load_state_dict(state["network"])
    return network.eval().requires_grad_(False), state["images"], state["labels"]
