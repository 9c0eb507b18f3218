"""``collapsible estimate``: what it prints, its JSON, its drawing, and wrong use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tflite_networks import Writer
from typer.testing import CliRunner

from collapsible.cli.app import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["estimate", *arguments])
    return result.exit_code, result.stdout, result.stderr


M3 = ("sesr-m3", "--target", "npu-4tops", "--input-size", "1,1,90,160")


def test_a_roofline(tmp_path: Path):
    pytest.importorskip("matplotlib")
    drawing = tmp_path / "layers.png"
    code, text, _ = run(*M3, "--layers", "--plot", str(drawing))
    assert code == 0
    for part in ("frames a second", "estimated: roofline", "sesr-m3", "assumed", "compute"):
        assert part in text
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_json_and_assumptions():
    code, text, _ = run(*M3, "--json")
    base = json.loads(text)
    assert code == 0
    assert base["macs"] == 8_912 * 90 * 160
    _, text, _ = run(*M3, "--json", "--dram-bandwidth", "1e9", "--sram-bytes", "20000")
    slow = json.loads(text)
    assert slow["fps"] < base["fps"]
    assert slow["dram_traffic"] > base["dram_traffic"]
    assert any("1 GB/s" in line for line in slow["assumptions"])
    _, text, _ = run(*M3, "--json", "--tile", "45,80")
    assert json.loads(text)["tiles"] == 4


def test_a_file(tmp_path: Path, monkeypatch):
    pytest.importorskip("ethosu.vela")
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    path = Writer((1, 16, 16, 8)).convolution(16, 3).depth_to_space(2)
    code, text, _ = run(str(path.write(tmp_path / "net.tflite")), "--target", "ethos-u85-256")
    assert code == 0
    assert "none: DEPTH_TO_SPACE falls to the CPU" in text
    assert "what to do" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sesr-m3", "--target", "ethos-u56", "--input-size", "1,1,8,8"), "did you mean"),
        (("sesr-m33", "--target", "npu-4tops", "--input-size", "1,1,8,8"), "did you mean"),
        (("sesr-m3", "--target", "npu-4tops"), "--input-size is needed"),
        ((*M3, "--tile", "45"), "give height,width"),
        ((*M3, "--tile", "45,a"), "whole numbers"),
        ((*M3, "--plot", "layers.bmp"), ".png, .svg, .pdf"),
        ((*M3, "--deconvolution", "magic"), "zero-stuffed, sub-pixel"),
        ((*M3[:2], "ethos-u55-64", *M3[3:], "--algorithm", "direct"), "is no roofline"),
        (("none.tflite", "--target", "ethos-u55-64"), "cannot read none.tflite"),
        (("none.onnx", "--target", "host"), "no such file"),
    ],
)
def test_wrong_use(arguments, said):
    code, text, complaint = run(*arguments)
    assert (code, text) == (2, "")
    assert said in complaint
    assert complaint.count("\n") == 1
