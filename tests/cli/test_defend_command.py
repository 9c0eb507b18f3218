"""``collapsible defend evaluate`` as people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app


@pytest.fixture
def arguments(shared_data: Path, tmp_path: Path) -> list[str]:
    weights = shared_data / "cls" / "weights" / "mobilenet_v2_imagenet.safetensors"
    (tmp_path / "net.toml").write_text(
        f'network = "torchvision:mobilenet_v2"\nweights = {json.dumps(str(weights))}\n'
        f"mean = {[128 / 255] * 3}\nstd = {[128 / 255] * 3}\npadding = 'same'\n"
    )
    found = ["defend", "evaluate", str(shared_data / "cls" / "imagenet100")]
    found += ["--classifier", str(tmp_path / "net.toml"), "-o", str(tmp_path / "out")]
    return [*found, "--size", "96", "--limit", "3", "--attack", "fgsm", "--audit", "0"]


def test_json_table_and_page(arguments: list[str], tmp_path: Path) -> None:
    more = ["--defence", "jpeg:75+wavelet+sesr-m5", "--epsilon", "2/255"]
    result = CliRunner().invoke(app, [*arguments, *more, "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert {"plan", "pictures", "headlines", "cells", "audits"} == set(record)
    assert len(record["headlines"]) == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == record
    # Again: nothing is left to do, and the table says the same.
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0
    assert "jpeg:75+wavelet:0.01+sesr-m5" in result.stdout or "jpeg:75+wavelet+sesr-m5" in (
        result.stdout
    )
    assert "report.html" in result.stdout


@pytest.mark.slow
def test_the_audit_stands_in_the_report(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--epsilon", "2/255", "--audit", "3", "--json"])
    assert result.exit_code == 0, result.stderr
    (audit,) = json.loads(result.stdout)["audits"]
    assert audit["passed"] is True
    assert len(audit["checks"]) == 6


def test_a_pair_that_gets_nothing_right_still_has_its_report(arguments: list[str]) -> None:
    more = ["--defence", "bits:1+resize:8", "--epsilon", "0", "--epsilon", "2/255"]
    result = CliRunner().invoke(app, [*arguments, *more, "--audit", "1", "--limit", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    audit = next(a for a in record["audits"] if "resize" in a["subject"])
    assert audit["passed"] is False
    assert audit["checks"][0]["figures"] == {"right": 0, "of": 1}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--attack", "fgms"], "unknown attack 'fgms': did you mean 'fgsm'"),
        (["--epsilon", "lots"], "budget 'lots'"),
        (["--defence", "wavlet"], "did you mean 'wavelet'"),
        (["--weights", "sesr-m2"], "NAME=FILE"),
        (["--threat", "black"], "known are grey-box"),
        (["--classes", "none.json"], "none.json"),
        (["--classifier", "timm:resnet18"], "NETWORK@WEIGHTS"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], more: list[str], text: str) -> None:
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_labels_that_do_not_match(arguments: list[str], shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    result = CliRunner().invoke(app, [*arguments, "--classes", str(tmp_path / "classes.txt")])
    assert result.exit_code == 2
    assert "labels do not match" in result.stderr


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["defend", "evaluate", "--help"])
    assert result.exit_code == 0
    assert "Example: collapsible defend evaluate" in result.stdout
