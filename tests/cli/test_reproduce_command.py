"""``collapsible reproduce`` as people type it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import collapsible.reproduce.training_step as training_step
from collapsible.cli.app import app
from collapsible.reproduce import list_tables
from collapsible.reproduce.training_step import StepCost


def call(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


@pytest.fixture
def quick(monkeypatch):
    """The timed step stands still, so that the command itself is what is tested."""
    import collapsible.reproduce.sesr_training_cost as table

    costs = {"expanded": StepCost(2.0, 80.0, None), "collapsed": StepCost(0.5, 10.0, None)}
    monkeypatch.setattr(table, "measure_alone", lambda mode, *_: costs[mode])
    assert training_step.measure_alone is not table.measure_alone


def test_without_a_name_it_lists() -> None:
    listed = call()
    assert listed.exit_code == 0
    record = json.loads(call("--json").stdout)
    assert [one["name"] for one in record] == [table.name for table in list_tables()]
    assert all(one["name"] in listed.stdout for one in record)


def test_help_ends_with_an_example() -> None:
    assert "collapsible reproduce sesr/table-x2" in call("--help").stdout


def test_text_json_and_file_agree(quick, tmp_path) -> None:
    target = tmp_path / "cost.json"
    text = call("sesr/training-cost", "-o", target)
    assert text.exit_code == 0, text.stderr
    assert "41.770" in text.stdout
    written = json.loads(target.read_text())
    assert written == json.loads(call("sesr/training-cost", "--json").stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sesr/training-kost"], "did you mean 'sesr/training-cost'?"),
        (["sesr/training-cost", "--data", "nowhere"], "no folder of data at nowhere"),
        (["sesr/training-cost", "--steps", "3"], "trains nothing"),
        (["sesr/training-cost", "-o", "no/such/folder/x.json"], "in a folder that exists"),
        (["sesr/training-cost", "-o", "."], "in a folder that exists"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(quick, arguments, message) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_failed_work_is_one_line_and_exit_code_1(monkeypatch) -> None:
    monkeypatch.setattr(training_step.sys, "executable", "/bin/false")
    result = call("sesr/training-cost")
    assert result.exit_code == 1
    assert "the expanded step could not be measured" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
