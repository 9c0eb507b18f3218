"""``collapsible models`` on cards made for the purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from collapsible.cli.app import app
from collapsible.weights import Card, list_cards


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Card]:
    made = [
        Card(
            "sesr_m5",
            2,
            13520,
            9,
            metrics={"Set5": {"psnr": 37.25}},
            metrics_int8={"Set5": {"psnr": 37.2}},
            folder=tmp_path,
        ),
        Card("fsrcnn", 2, 12464, 10, metrics={"Set14": {"psnr": 32.5}}, folder=tmp_path),
    ]
    for card in made:
        card.path.write_text(card.to_json())
        card.onnx_path.write_bytes(b"x" * 70_000)
    monkeypatch.setattr("collapsible.weights.list_cards", lambda: list_cards(tmp_path))
    return made


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["models", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("cards")
def test_table_and_json_tell_the_same() -> None:
    code, text, _ = run()
    assert code == 0
    assert text.splitlines()[0].split()[:2] == ["model", "scale"]
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["fsrcnn", "sesr-m5"]
    # 13,520 weights times 1920 x 1080 pixels.
    wanted = ["sesr-m5", "x2", "float", "13,520", "28.0", "70", "37.25", "-"]
    assert text.splitlines()[2].split() == wanted
    assert text.splitlines()[3].split() == [
        "sesr-m5",
        "x2",
        "int8",
        *wanted[3:5],
        "-",
        "37.20",
        "-",
    ]
    code, text, _ = run("--json")
    assert code == 0
    rows = json.loads(text)
    assert rows[1]["macs_1080p"] == 13520 * 1920 * 1080
    assert rows[0]["metrics"] == {"Set14": {"psnr": 32.5}}


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize("pattern", ["sesr-m5", "SESR_M?", "s*"])
def test_pattern(pattern: str) -> None:
    _, text, _ = run(pattern, "--json")
    assert [row["model"] for row in json.loads(text)] == ["sesr-m5"]


@pytest.mark.usefixtures("cards")
def test_unknown_pattern_is_wrong_use() -> None:
    code, text, complaint = run("sesr-m6")
    assert code == 2
    assert text == ""
    assert "sesr-m5" in complaint


def test_nothing_shipped_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collapsible.weights.list_cards", lambda: list_cards(tmp_path))
    assert run() == (0, "no models are shipped with this version\n", "")
    assert json.loads(run("--json")[1]) == []


def test_bench_measures_with_the_engine(
    graphs: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = graphs[2].parent
    monkeypatch.setattr("collapsible.weights.list_cards", lambda: list_cards(folder))
    monkeypatch.setattr("collapsible.cli.models.HEIGHT", 20)
    monkeypatch.setattr("collapsible.cli.models.WIDTH", 24)
    code, text, _ = run("--bench", "--json")
    assert code == 0
    rows = json.loads(text)
    assert [row["scale"] for row in rows] == [2, 3]
    assert all(0 < row["seconds_1080p"] < 60 for row in rows)
    assert {row["engine"] for row in rows} == {"openvino"}
    assert "s 1080p" in run("--bench")[1].splitlines()[0]
