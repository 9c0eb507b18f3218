"""The robustness table: its figures against attacks made by hand, and what it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from collapsible.defence import DefendedClassifier, create_defence
from collapsible.defence.attacks import create_attack
from collapsible.defence.networks import load_classifier
from collapsible.defence.pictures import find_labelled_pictures, match_labels, read_batch
from collapsible.errors import UsageError
from collapsible.reproduce import Request, defence_robustness, reproduce
from collapsible.reproduce.defence_robustness import BUDGET
from collapsible.reproduce.defence_sections import FIRST


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> defence_robustness.Size:
    size = replace(
        defence_robustness.SMALL,
        nette=6,
        sweep=2,
        budgets=(0.0, BUDGET),
        adaptive=2,
        side=48,
        tiny=("sesr-m2-rgb",),
        baselines=("nearest",),
        large="sesr-m5-rgb",
        grey_box=("fgsm",),
        attacks=("fgsm",),
        integers=4,
    )
    monkeypatch.setattr(defence_robustness, "SMALL", size)
    return size


def test_figures_are_those_of_attacks_made_by_hand(
    shared_data: Path, tmp_path: Path, tiny: defence_robustness.Size
) -> None:
    result = reproduce("defence/robustness", Request(data=shared_data, runs=tmp_path))
    grey, unmoved, adaptive, integers, through_integers = result.sections
    for row in unmoved.rows:  # a budget of 0 moves nothing
        assert row.values["worst"] == row.values["clean"]
    assert [row.name for row in grey.rows] == ["none", "nearest", "sesr-m2-rgb", "sesr-m5-rgb"]
    assert {row.name for row in adaptive.rows} == {"none", "sesr-m2-rgb"}

    cls = shared_data / "cls"
    loaded = load_classifier(
        replace(
            defence_robustness.MOBILENET,
            weights=str(cls / defence_robustness.MOBILENET.weights),
        )
    )
    pictures = find_labelled_pictures(cls / "imagenette160" / "val").take(tiny.nette)
    clean = read_batch(pictures.files, 48, 48 / 160)
    labels = torch.tensor(match_labels(pictures.names, 1000))
    options = {"mean": loaded.mean, "std": loaded.std}
    bare = DefendedClassifier(loaded.network, create_defence("none"), **options)
    attacked = create_attack("fgsm", epsilon=8 / 255)(bare, clean, labels).detach()
    for row in grey.rows:
        name = "none" if row.name == "none" else FIRST + row.name
        model = DefendedClassifier(loaded.network, create_defence(name), **options)
        with torch.no_grad():
            right = model(clean).argmax(1) == labels
            held = model(attacked).argmax(1) == labels
        assert row.values["clean"] == pytest.approx(100 * right.double().mean().item())
        assert row.values["fgsm"] == pytest.approx(100 * held.double().mean().item())
    first, last = integers.rows[0], integers.rows[-1]
    assert (first.name, last.name) == ("none", "sesr-m2-rgb")
    # The first four of the pictures are others: fewer are spread wider. Both forms see the same.
    assert last.values["difference"] == pytest.approx(
        last.values["worst int8"] - last.values["worst"]  # type: ignore[operator]
    )
    assert through_integers.rows[-1].name == "sesr-m2-rgb:int8"
    assert result.checks[-1].holds == (last.values["difference"] >= -2)  # type: ignore[operator]
    check = result.checks[0]
    loss = grey.rows[2].values["worst"] - grey.rows[3].values["worst"]  # type: ignore[operator]
    assert check.holds == (loss >= -2)

    cells = sorted((tmp_path / "defence-robustness").rglob("cells/*.json"))
    times = [path.stat().st_mtime_ns for path in cells]
    again = reproduce("defence/robustness", Request(data=shared_data, runs=tmp_path))
    assert again.table() == result.table()
    assert [path.stat().st_mtime_ns for path in cells] == times, "finished work was done again"


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data"):
        reproduce("defence/robustness")
    with pytest.raises(UsageError, match="imagenette160"):
        reproduce("defence/robustness", Request(data=tmp_path))
