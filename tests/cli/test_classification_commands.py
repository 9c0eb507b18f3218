"""Training and measuring a classifier as people type it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from collapsible.cli.app import app

RECIPE = """
name = "tiny"
task = "classification"
steps = 3
[network]
name = "timm:resnet10t"
options = { channels = [8, 8, 8, 8], stem_width = 4 }
[data]
size = 32
batch = 4
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a recipe and two classes; the cache is its own."""
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("one", "two"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(3):
                noise = random.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / "data" / part / name / f"{number}.png")
    return tmp_path


def test_train_then_evaluate(work):
    run = ("train", work / "tiny.toml", "--data", work / "data", "--out", work / "run")
    done = call(*run, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["unit"] == "%"
    weights = work / "run" / "weights.safetensors"
    measured = call("evaluate", weights, "--data", work / "data", "--json")
    assert measured.exit_code == 0, measured.stderr
    record = json.loads(measured.stdout)
    assert record["top1"] == report["metrics"]["val/top1"]
    assert {"top5", "pictures", "classes", "protocol", "outputs"} <= set(record)
    text = call("evaluate", weights, "--data", work / "data")
    assert f"top-1  {record['top1']:6.2f} %" in text.stdout.splitlines()
    resumed = call(*run, "--resume")
    assert resumed.exit_code == 0
    assert "steps       3 to 3" in resumed.stdout


def test_a_name_needs_weights_that_fit(work):
    call("train", work / "tiny.toml", "--data", work / "data", "--out", work / "run")
    weights = work / "run" / "weights.safetensors"
    base = ("evaluate", "timm:resnet10t", "--data", work / "data")
    none = call(*base)
    assert none.exit_code == 2
    assert "give a file of them (--weights)" in none.stderr
    other = call(*base, "--weights", weights)
    assert other.exit_code == 1
    assert "does not fit ResNet" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1
    upscaler = call("evaluate", "sesr-m5", "--data", work / "data", "--weights", weights)
    assert upscaler.exit_code == 2
    assert "is no classifier" in upscaler.stderr


def test_bad_pictures_are_skipped_with_a_count_or_refused(work):
    for number in (7, 8):
        (work / "data" / "train" / "one" / f"{number}.png").write_text("nothing")
    run = ("train", work / "tiny.toml", "--data", work / "data", "--out", work / "run")
    refused = call(*run, "--strict")
    assert refused.exit_code == 1
    assert "2 of 8 pictures cannot be read" in refused.stderr
    done = call(*run)
    assert done.exit_code == 0
    assert "7.png" in done.stderr
    assert "left out: 2 pictures" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data", "elsewhere"], "trained on one folder, not 2"),
        (["--workers", "-1"], "--workers -1: the least is 0"),
        (["--validate", "own=nowhere"], "no folder of labelled pictures at nowhere"),
        (["--start", "none.safetensors"], "no weights to start from"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(work, change, message):
    base = ["train", work / "tiny.toml", "--data", work / "data", "--out", work / "run"]
    result = call(*base, *change)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
