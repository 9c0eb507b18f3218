"""Small pictures with structure at every scale, made here, for the training tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Overlapping soft and hard shapes in colour, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    canvas = np.full((height, width, 3), 128.0)
    for _ in range(30):
        angle, period = random.uniform(0, np.pi), random.uniform(3, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / period)
        cy, cx, radius = random.uniform(0, height), random.uniform(0, width), random.uniform(5, 40)
        disc = ((y - cy) ** 2 + (x - cx) ** 2 < radius**2)[..., None]
        canvas += disc * random.normal(0, 40, 3) + wave[..., None] * random.normal(0, 5, 3)
    return np.clip(canvas, 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a PNG, a JPEG, a grey PNG with alpha, and a subfolder."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(picture(96, 120, 1)).save(folder / "a.png")
    Image.fromarray(picture(101, 90, 2)).save(folder / "b.jpg", quality=95)
    grey = picture(80, 88, 3)[..., :2]
    Image.fromarray(grey, mode="LA").save(folder / "c.png")
    (folder / "more").mkdir()
    Image.fromarray(picture(130, 64, 4)).save(folder / "more" / "d.bmp")
    return folder


RECIPE = """
name = "tiny"
task = "super-resolution"
steps = {steps}
checkpoint_every = {every}
validate_every = {steps}
log_every = 1
average = 0.9
[network]
name = "sesr_m2"
options = {{ features = 8, expansion = 16 }}
[data]
patch = 16
batch = 4
[optimiser]
learning_rate = {rate}
"""


@pytest.fixture
def recipe_file(tmp_path: Path):
    """Writes a tiny recipe and returns its path."""

    def write(*, steps: int = 12, every: int = 4, rate: float = 1e-3, extra: str = "") -> Path:
        path = tmp_path / "tiny.toml"
        path.write_text(RECIPE.format(steps=steps, every=every, rate=rate) + extra)
        return path

    return write


CLASS_RECIPE = """
name = "tiny-classes"
task = "classification"
steps = {steps}
checkpoint_every = {every}
validate_every = {steps}
log_every = 1
average = 0.9
[network]
name = "timm:convnext_atto"
options = {{ depths = [1, 1, 2, 1], dims = [8, 16, 24, 32], drop_path_rate = 0.3 }}
[data]
size = 32
batch = 8
[augment]
scale = [0.5, 1.0]
rand_augment = "rand-m9-mstd0.5-inc1"
mixup = 0.8
cutmix = 1.0
smoothing = 0.1
erasing = 0.25
[optimiser]
kind = "adamw"
weight_decay = 0.05
learning_rate = 2e-3
"""


@pytest.fixture
def class_recipe(tmp_path: Path):
    """Writes a tiny recipe of a classifier, with every augmentation on, and returns its path."""

    def write(*, steps: int = 8, every: int = 2, **changes: str) -> Path:
        text = CLASS_RECIPE.format(steps=steps, every=every)
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny-classes.toml"
        path.write_text(text)
        return path

    return write


def draw_classes(folder: Path, count: int, seed: int) -> None:
    """Three classes that a colour tells apart, PNG, JPEG and grey, of several sizes."""
    random = np.random.default_rng(seed)
    for place, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = random.integers(30, 50, 2)
            pixels = random.integers(0, 100, (height, width, 3), np.uint8)
            pixels[..., place] += 120
            kind = "png" if number % 2 else "jpg"
            Image.fromarray(pixels).save(folder / name / f"{number}.{kind}")


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` and ``val`` of three classes."""
    folder = tmp_path_factory.mktemp("classes")
    draw_classes(folder / "train", 6, 1)
    draw_classes(folder / "val", 4, 2)
    return folder
