"""``collapsible scale`` and ``collapsible bench``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.cli.scale import read_amount


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_scale_to_macs(tmp_path):
    plot = tmp_path / "pareto.svg"
    code, text, note = run(
        "scale", "ran-i", "--macs", "4.5G", "--top", "3", "--json", "--plot", str(plot)
    )
    facts = json.loads(text)
    assert code == 0
    assert len(facts["candidates"]) == 3
    assert facts["candidates"][0]["macs"] <= 4.5e9
    assert plot.read_text().startswith("<?xml")
    assert "wrote" in note


def test_paper_rule_and_other_families():
    code, text, _ = run("scale", "ran-i", "--rule", "paper")
    assert code == 0
    assert "28,154" in text
    assert "17,420" in text
    assert "14,710" in text
    code, text, _ = run("scale", "sesr", "--macs", "3.2G", "--input-size", "1,360,640")
    assert code == 0
    assert "sesr, input 1 x 360 x 640" in text
    code, text, _ = run("scale", "resnet", "--help")
    assert code == 0
    assert "Example" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scale", "ran-i", "--macs", "4.5X"), "with K, M or G"),
        (("scale", "ran-i", "--macs", "0"), "above 0"),
        (("scale", "ran-i", "--macs", "1K"), "the smallest has"),
        (("scale", "ran-i"), "give one budget"),
        (("scale", "ran-i", "--macs", "1G", "--input-size", "224,224"), "channels, height"),
        (("scale", "correlate", "--train", "x.tar"), "--file"),
        (("bench", "ran-i", "--engines", "tensorrt"), "unknown engine"),
        (("bench", "ran-i", "--networks", "ran_i_tinny"), "did you mean 'ran_i_tiny'"),
    ],
)
def test_wrong_use(arguments, said):
    code, text, complaint = run(*arguments)
    assert (code, text) == (2, "")
    assert said in complaint
    assert complaint.count("\n") == 1


def test_a_file_that_is_none_is_failed_work(tmp_path):
    code, _, complaint = run("scale", "correlate", "--file", str(tmp_path / "none.json"))
    assert code == 1
    assert "not a file of benchmark results" in complaint


def test_amounts():
    assert read_amount("4.5G", "--x") == 4.5e9
    assert read_amount("20m", "--x") == 20e6
    assert read_amount("13520", "--x") == 13520


@pytest.mark.slow
def test_bench_at_a_tiny_size():
    code, text, _ = run(
        "bench", "ran-i", "--networks", "ran_i_pico,ran_i_nano", "--engines", "torch,openvino-fp32",
        "--input-size", "32", "--rounds", "2", "--json",
    )  # fmt: skip
    assert code == 0, text
    rows = json.loads(text)["rows"]
    assert {(r["network"], r["engine"]) for r in rows} == {
        (n, e) for n in ("ran_i_pico", "ran_i_nano") for e in ("torch", "openvino-fp32")
    }
    for row in rows:
        assert row["fps"] > 0
        assert row["low"] <= row["fps"] <= row["high"]
