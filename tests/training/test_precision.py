"""Recipes in bf16, on CPUs with bf16 arithmetic and without."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.training import precision, read_recipe, start_fabric


def in_bf16(recipe_file) -> Path:
    file = recipe_file(steps=2, every=2)
    file.write_text(file.read_text().replace("steps = 2", 'steps = 2\nprecision = "bf16"', 1))
    return file


def computing_type(file: Path) -> torch.dtype:
    """What a convolution gives in a run of this recipe on the CPU."""
    fabric = start_fabric(read_recipe(file), "cpu")
    layer = fabric.setup_module(torch.nn.Conv2d(1, 1, 3))
    with fabric.autocast():
        return torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), layer.weight).dtype


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_that_would_imitate_bf16_computes_in_fp32(recipe_file, monkeypatch, able, expected):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: able)
    assert computing_type(in_bf16(recipe_file)) == expected
    assert computing_type(recipe_file(steps=2, every=2)) == torch.float32


def test_a_gpu_takes_what_the_recipe_says(monkeypatch):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    assert precision.usable_precision("bf16", "cuda") == "bf16"
    assert precision.usable_precision("fp32", "cuda") == "fp32"


@pytest.mark.parametrize(("able", "told"), [(True, False), (False, True)])
def test_the_command_says_so(recipe_file, pictures, tmp_path, monkeypatch, able, told):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: able)
    arguments = ["train", str(in_bf16(recipe_file)), "--data", str(pictures)]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    assert ("no bf16 arithmetic: the run computes in fp32" in done.stderr) == told


def test_what_the_cpu_has_is_what_the_system_says(cpu_flags):
    if "avx512bw" not in cpu_flags:
        assert not precision.cpu_computes_bf16()
    if "avx512_bf16" in cpu_flags:
        assert precision.cpu_computes_bf16()
