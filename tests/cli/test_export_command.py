"""``collapsible export``: files, reports, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from collapsible.cli.app import app

pytest.importorskip("litert_torch", reason="the edge extra is not installed")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 50), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def test_sesr_by_tiles_with_its_shipped_weights(tmp_path, pictures):
    path = tmp_path / "m5.onnx"
    code, text, complaint = run(
        "sesr-m5", "--tile", "32", "-o", str(path), "--data", str(pictures), "--json"
    )
    assert (code, complaint) == (0, "")
    facts = json.loads(text)
    assert facts["input_size"] == [1, 1, 32, 32]
    # 2 + 5 + 2: a 5x5, five 3x3 and a 5x5.
    assert facts["overlap"] == 9
    assert facts["notes"] == []
    assert [check["runtime"] for check in facts["checks"]] == ["ONNX Runtime", "OpenVINO"]
    for check in facts["checks"]:
        assert check["relative_error"] < 1e-5
        assert abs(check["change"]) < 1e-3
        assert 10 < check["torch"] < 60
    assert path.is_file()


def test_int8_with_calibration_pictures_and_drawn_weights_are_said(tmp_path, pictures):
    path = tmp_path / "m2.tflite"
    # No weights are shipped at this scale.
    code, text, complaint = run(
        *("sesr-m2", "--scale", "3", "--tile", "24", "-o", str(path)),
        *("--int8", "--calibration", str(pictures), "--limit", "2"),
    )
    assert (code, complaint) == (0, "")
    assert "LiteRT int8" in text
    assert "calibrated on       2 pictures" in text
    assert "newly drawn" in text


class Code:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_a_pickle_with_code_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Code()}, tmp_path / "bad.pth")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"weight": Code()}))
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("bad.pth", "raw.pt", "text.safetensors"):
        code, text, complaint = run(
            *("timm:resnet18", "--weights", name),
            *("-o", "net.onnx", "--input-size", "1,3,64,64"),
        )
        assert (code, text) == (1, "")
        assert name in complaint
        assert complaint.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sesr-m5", "-o", "a.onnx"), "--tile"),
        (("sesr-m5", "-o", "a.onnx", "--tile", "9", "--input-size", "1,1,9,9"), "--tile"),
        (("sesr-m5", "-o", "a.onnx", "--input-size", "1,1,?,9"), "--input-size"),
        (("sesr-m5", "-o", "a.onnx", "--input-size", "1,1,-1,9"), "one fixed size"),
        (("sesr-m5", "-o", "a.onnx", "--input-size", "1,3,9,9"), "does not take input"),
        (("sesr-m5", "-o", "a.txt", "--tile", "32"), ".tflite"),
        (("sesr-m55", "-o", "a.onnx", "--tile", "32"), "did you mean 'sesr_m5'"),
        (("timm:resnet18", "-o", "a.onnx", "--tile", "32"), "super-resolution"),
        (("sesr-m5", "-o", "a.tflite", "--tile", "32", "--int8"), "--calibration"),
        (("sesr-m5", "-o", "a.tflite", "--tile", "32", "--calibration", "."), "--int8"),
        (("sesr-m5", "-o", "a.tflite", "--tile", "32", "--data", "none"), "no folder"),
        (("sesr-m5", "-o", "a.tflite", "--tile", "32", "--target", "ethos"), "ethos-u"),
        (("timm:resnet18", "-o", "a.onnx", "--input-size", "1,3,9,9", "--mean", "x"), "--mean"),
    ],
)
def test_wrong_use(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, text, complaint = run(*arguments)
    assert (code, text) == (2, "")
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_converter_the_extra_is_named(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "collapsible.errors.find_spec",
        lambda name: None if name == "litert_torch" else found(name),
    )
    code, _, complaint = run("sesr-m5", "--tile", "32", "-o", str(tmp_path / "a.tflite"))
    assert code == 1
    assert "pip install 'collapsible[edge]'" in complaint
    assert complaint.count("\n") == 1
