"""``collapsible export --picture``: what it writes is what ``upscale`` and ``evaluate`` take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from deploy.test_quantise import scene
from PIL import Image
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.deploy.samples import read_crops
from collapsible.upscaler import upscale
from collapsible.weights import find_card


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(4):
        Image.fromarray(scene(150, 140, seed)).save(folder / f"{seed}.png")
    return folder


def test_the_float_graph_is_the_shipped_one(tmp_path, pictures):
    path = tmp_path / "m5.onnx"
    code, text, complaint = run("sesr-m5", "--picture", "-o", str(path), "--data", str(pictures))
    assert (code, complaint) == (0, "")
    assert "collapsible upscale PICTURE --model" in text
    # The weights went through the training form and were collapsed again, which rounds.
    picture = scene(40, 30)
    error = upscale(picture, 2, path).astype(int) - upscale(picture, 2, "sesr-m5").astype(int)
    assert np.abs(error).max() <= 1


def test_trained_weights_become_a_graph(tmp_path):
    """Weights of another network show that those of the file are taken."""
    weights = find_card("sesr-m11-web", 2).safetensors_path
    path = tmp_path / "mine.onnx"
    code, _, complaint = run("sesr-m11", "--weights", str(weights), "--picture", "-o", str(path))
    assert (code, complaint) == (0, "")
    picture = scene(40, 30)
    got, wanted, other = (
        upscale(picture, 2, model).astype(int) for model in (path, "sesr-m11-web", "sesr-m11")
    )
    assert np.abs(got - wanted).max() <= 1
    assert np.abs(got - other).max() > 3


@pytest.mark.slow
def test_int8_after_training_and_trained_in_int8_form(tmp_path, pictures):
    names = ["sesr-m2", "--picture", "--int8", "--calibration", str(pictures), "--json"]
    data = ["--data", str(pictures)]
    after, trained = tmp_path / "after.onnx", tmp_path / "trained.onnx"
    code, text, complaint = run(*names, *data, "-o", str(after))
    assert (code, complaint) == (0, "")
    plain = json.loads(text)
    assert plain["precision"] == "int8"
    assert plain["trained_steps"] == 0
    arguments = [*names, *data, "--int8-steps", "160", "-o", str(trained)]
    code, text, complaint = run(*arguments)
    assert (code, complaint) == (0, "")
    made = json.loads(text)
    assert made["trained_steps"] == 160
    # It comes nearer to what the float graph makes, here on one of the pictures trained on.
    picture = read_crops(pictures, 2)[0]
    wanted = upscale(picture, 2, "sesr-m2", precision="fp32").astype(float)
    error = [((upscale(picture, 2, one) - wanted) ** 2).mean() for one in (after, trained)]
    assert error[1] < 0.9 * error[0]
    # The same command goes on with the run, which is done, and writes the same file.
    first = trained.read_bytes()
    trained.unlink()
    assert run(*arguments)[0] == 0
    assert trained.read_bytes() == first
    assert "another" in run(*names, "--int8-steps", "161", "-o", str(trained))[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sesr-m2", "--picture", "-o", "x.tflite"], ".onnx"),
        (["sesr-m2", "--picture", "--tile", "32", "-o", "x.onnx"], "any size"),
        (["sesr-m2", "--tile", "32", "--int8-steps", "4", "-o", "x.onnx"], "--picture --int8"),
        (["timm:resnet18", "--picture", "-o", "x.onnx"], "super-resolution"),
        (["sesr-m2", "--picture", "--int8", "-o", "x.onnx"], "--calibration"),
        (
            ["sesr-m2", "--picture", "--int8", "--calibration", "nowhere", "-o", "x.onnx"],
            "nowhere",
        ),
    ],
)
def test_wrong_use_is_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, complaint = run(*arguments)
    assert code == 2
    assert said in complaint
    assert complaint.count("\n") == 1
    assert text == ""
    assert not list(tmp_path.iterdir())


def test_pictures_too_small_to_calibrate_on_are_said(tmp_path):
    Image.fromarray(scene(40, 40)).save(tmp_path / "small.png")
    path = tmp_path / "x.onnx"
    code, _, complaint = run(
        "sesr-m2", "--picture", "--int8", "--calibration", str(tmp_path), "-o", str(path)
    )
    assert code == 2
    assert "at least 96 pixels a side among 1" in complaint
    assert not path.exists()
