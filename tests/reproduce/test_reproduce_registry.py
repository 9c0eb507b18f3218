"""The list of tables, how one is asked for, and the report that comes back."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import pytest

from collapsible.errors import UnknownNameError, UsageError
from collapsible.reproduce import (
    Check,
    Column,
    Reproduction,
    Request,
    Row,
    Section,
    find_table,
    list_tables,
    reproduce,
)


@pytest.mark.parametrize("table", list_tables(), ids=lambda table: table.name)
def test_every_table_has_its_function(table) -> None:
    paper, _, name = table.name.partition("/")
    assert paper
    assert name
    assert table.about
    module, _, function = table.place.partition(":")
    assert callable(getattr(import_module(f"collapsible.reproduce.{module}"), function))


def test_a_request_has_its_command_without_a_path_of_this_machine(tmp_path) -> None:
    data = tmp_path / "sr"
    data.mkdir()
    request = Request(full=True, data=data, runs=tmp_path, steps=3, seeds=2)
    assert request.command("ran/x") == (
        "collapsible reproduce ran/x --full --data sr --steps 3 --seeds 2"
    )
    assert Request().command("ran/x") == "collapsible reproduce ran/x"


@pytest.mark.slow
def test_what_is_made_says_its_command() -> None:
    made = reproduce("sesr/updates")
    assert made.command == "collapsible reproduce sesr/updates"
    assert json.loads(made.json())["command"] == made.command
    assert made.table().endswith(f"made by: {made.command}")


def test_names_are_unique_and_found_however_they_are_spelt() -> None:
    names = [table.name for table in list_tables()]
    assert len(names) == len(set(names))
    assert find_table(" SESR/training_cost ").name == "sesr/training-cost"


def test_an_unknown_table_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sesr/training-cost'"):
        find_table("sesr/training-costs")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(steps=5), "trains nothing"),
        (Request(seeds=2), "trains nothing"),
        (Request(data=Path("nowhere")), "no folder of data at nowhere"),
    ],
)
def test_a_request_that_means_nothing_is_refused(request_, message) -> None:
    with pytest.raises(UsageError, match=message):
        reproduce("sesr/training-cost", request_)


def made() -> Reproduction:
    rows = (
        Row("first", "published", "the paper", {"x": 1.25, "n": 1200, "hidden": "h"}),
        Row("second", "measured", "a scale", {"x": math.inf, "n": None}),
    )
    columns = (Column("x", "X dB", ".1f"), Column("n", "N", ","))
    return Reproduction(
        "a/b",
        "title",
        "paper",
        "small",
        (Section("head", columns, rows),),
        (Check("it is so", False, "it is not"),),
        ("a note",),
        {"path": "p", "pair": (1, 2)},
    )


def test_the_table_shows_kind_source_and_failed_checks() -> None:
    text = made().table()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["first"] == ["first", "1.2", "1,200", "published", "the", "paper"]
    assert lines["second"][1:3] == ["inf", "-"]
    assert "FAILS  it is so: it is not" in text
    assert "a note" in text
    assert "hidden" not in text


def test_json_is_strict_and_whole() -> None:
    record = json.loads(made().json(), parse_constant=pytest.fail)
    rows = record["sections"][0]["rows"]
    assert rows[0]["values"] == {"x": 1.25, "n": 1200, "hidden": "h"}
    assert rows[1]["values"]["x"] is None
    assert record["checks"][0]["holds"] is False
    assert record["settings"]["pair"] == [1, 2]


def test_rows_are_found_by_name() -> None:
    assert made().row("second").values["n"] is None
    assert made().row("first", "published").values["n"] == 1200
    with pytest.raises(UsageError, match="no row 'third'"):
        made().row("third")


@pytest.mark.parametrize(("kind", "source"), [("guessed", "a hunch"), ("measured", "")])
def test_a_row_without_a_kind_or_source_is_refused(kind, source) -> None:
    with pytest.raises(UsageError):
        Row("x", kind, source, {})
