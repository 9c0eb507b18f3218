"""``collapsible search ran-e`` as people type it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.reproduce.ran_search import draw_pictures

RECIPE = """
name = "tiny"
task = "classification"
steps = 3
[network]
name = "ignored"
[data]
size = 32
test_crop = 1.0
batch = 8
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    draw_pictures(tmp_path / "data", 32)
    return tmp_path


BASE = ("search", "ran-e", "timm:mobilenetv2_035", "--data", "data", "--recipe", "tiny.toml")
BASE = (*BASE, "--target", "npu-4tops", "--input-size", "1,3,32,32", "--out", "run")


@pytest.mark.slow
def test_search_edit_and_follow(work):
    done = call(*BASE, "--search-steps", 3, "--budget", "0.95", "--plan", "p.toml", "--plan-only")
    assert done.exit_code == 0, done.stderr
    assert "budget" in done.stdout
    assert not (work / "run" / "finetune").exists()
    text = (work / "p.toml").read_text()
    place = text.index('name = "blocks.6.0"')
    line = text[place:].splitlines()[1]
    other = 'form = "dense"' if "keep" in line else 'form = "keep"'
    (work / "p.toml").write_text(text[:place] + text[place:].replace(line, other, 1))
    done = call(*BASE, "--plan", "p.toml", "--int8", "--json")
    assert done.exit_code == 0, done.stderr
    assert "is followed" in done.stderr
    record = json.loads(done.stdout)
    assert ("blocks.6.0" in record["plan"]["dense"]) == ("dense" in other)
    assert record["collapse_error"] < 1e-9
    assert (work / "run" / "network.onnx").stat().st_size > 10_000
    assert (work / "run" / "network.tflite").read_bytes()[4:8] == b"TFL3"
    assert 0 <= record["int8"]["after"] <= 100
    assert record["int8"]["pictures"] == 48
    assert json.loads((work / "run" / "report.json").read_text())["int8"] == record["int8"]
    again = call(*BASE, "--plan", "p.toml")
    assert again.exit_code == 2
    assert "--resume" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--budget is needed"),
        (("--budget", "fast"), "budget 'fast'"),
        (("--budget", "1.5"), "at most 1"),
        (("--budget", "0.5", "--target", "ethos-u99"), "unknown target"),
        (("--budget", "0.5", "--steps", "0"), "--steps 0"),
        (("--budget", "0.5", "--search-steps", "0"), "search_steps=0"),
        (("--budget", "0.5", "--distil", "2"), "distil=2"),
        (("--budget", "0.5", "--input-size", "1,3,32"), "--input-size"),
        (("--budget", "0.5", "--plan", "none/p.toml"), "--plan"),
        (("--budget", "0.000001ms"), "the least is"),
        (("--budget", "0.5", "--int8-steps", "4"), "goes with --int8"),
        (("--budget", "0.5", "--int8", "--int8-steps", "1"), "0, or 2 and more"),
    ],
)
def test_wrong_use_is_one_line(work, arguments, said):
    done = call(*BASE, *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (work / "run" / "search").exists()


def test_a_network_without_bottlenecks_and_one_that_is_not_there(work):
    arguments = [*BASE, "--budget", "0.5"]
    arguments[2] = "timm:resnet10t"
    done = call(*arguments)
    assert done.exit_code == 2
    assert "Looked for" in done.stderr
    arguments[2] = "none.safetensors"
    done = call(*arguments)
    assert done.exit_code == 1
    assert "no classifier at" in done.stderr


def test_help_has_an_example():
    done = call("search", "ran-e", "--help")
    assert done.exit_code == 0
    assert "Example: collapsible search ran-e" in " ".join(done.stdout.split())
