"""``collapsible cost``: names, forms, JSON and wrong use."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["cost", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_sesr_is_costed_collapsed():
    code, text, _ = run("sesr-m5", "--scale", "2", "--input-size", "1,1,360,640", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["macs"] == 13_520 * 360 * 640
    assert facts["receptive_field"]["size"] == [19, 19]
    code, text, _ = run("sesr-m5", "--input-size", "1,1,36,64", "--training-form", "--json")
    assert json.loads(text)["form"].startswith("training form")
    assert json.loads(text)["params"] > 300_000


def test_timm_networks_and_layers():
    arguments = ("timm:repvgg_a0", "--input-size", "1,3,224,224")
    code, text, _ = run(*arguments)
    assert code == 0
    assert "9,108,968" in text
    assert "global" in text
    assert "stages.0.0" not in text
    _, text, _ = run(*arguments, "--layers", "--element-bytes", "1")
    assert "stages.0.0" in text
    assert "1 bytes an element" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sesr-m6", "--input-size", "1,1,8,8"), "did you mean"),
        (("timm:resnet19", "--input-size", "1,3,8,8"), "did you mean 'resnet18'"),
        (("sesr-m5", "--input-size", "1,1,8,y"), "1,3,224,224"),
        (("sesr-m5", "--input-size", "1,1,0,8"), "positive whole numbers"),
        (("sesr-m5", "--input-size", "1,3,8,8"), "does not run on shapes alone"),
    ],
)
def test_wrong_use(arguments, said):
    code, text, complaint = run(*arguments)
    assert (code, text) == (2, "")
    assert said in complaint
    assert complaint.count("\n") == 1
