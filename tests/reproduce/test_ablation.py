"""The ablation: every variant trained by the one loop, kept, resumed, and compared by seed."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace

import pytest
import torch

from collapsible.errors import TrainingError, UsageError
from collapsible.models import create_model
from collapsible.reproduce import Request, reproduce, sesr_ablation
from collapsible.reproduce.sesr_ablation import GLOROT_GAIN, VARIANTS, Variant, plan


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def few(monkeypatch):
    """SESR and plain only, so that a test takes seconds."""
    names = ("SESR", "plain", "ExpandNet-like, Glorot")
    chosen = tuple(v for v in VARIANTS if v.name in names)
    monkeypatch.setattr(sesr_ablation, "VARIANTS", chosen)
    monkeypatch.setattr(sesr_ablation, "_checks", lambda *_: [])


def test_glorots_gain_is_what_glorot_draws() -> None:
    torch.manual_seed(0)
    narrow, wide = torch.empty(256, 16, 3, 3), torch.empty(16, 256, 1, 1)
    torch.nn.init.xavier_uniform_(narrow)
    torch.nn.init.xavier_uniform_(wide)
    kernel = torch.einsum("opxy,pikl->oikl", wide, narrow)
    assert float(kernel.std() * (16 * 9) ** 0.5) == pytest.approx(GLOROT_GAIN, rel=0.05)


def test_variants_differ_in_what_they_say_and_nothing_else() -> None:
    small = {}
    for variant in VARIANTS:
        network = create_model("sesr_m3", expansion=8, **variant.options)
        small[variant.name] = network
    assert not small["SESR, no input residual"].input_residual
    assert not small["SESR, no long residual"].long_residual
    assert all(len(n.blocks) == 3 and n.features == 16 for n in small.values())
    assert len({json.dumps(v.options) for v in VARIANTS}) == len(VARIANTS)


@pytest.mark.slow
def test_runs_are_kept_and_compared_by_seed(few, tmp_path) -> None:
    request = Request(runs=tmp_path, steps=4, seeds=2)
    result = reproduce("sesr/ablation", request)
    runs = sorted((tmp_path / "sesr-ablation").glob("*/result.json"))
    assert len(runs) == 6
    plain = [json.loads(p.read_text())["drawn"] for p in runs if "-plain-" in str(p)]
    wide = [json.loads(p.read_text())["drawn"] for p in runs if "-sesr-" in str(p)]
    row = result.row("plain")
    assert row.values["drawn"] == pytest.approx(statistics.mean(plain))
    differences = [a - b for a, b in zip(plain, wide, strict=True)]
    assert row.values["drawn over SESR"] == pytest.approx(statistics.mean(differences))
    assert row.values["drawn over SESR spread"] == pytest.approx(statistics.stdev(differences))
    assert row.values["params"] == 8912
    assert result.row("SESR").values["drawn over SESR"] == 0

    def refuse(*_, **__):
        raise AssertionError("trained again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sesr_ablation, "train", refuse)
        again = reproduce("sesr/ablation", request)
    assert again.json() == result.json()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_figures(few, tmp_path, monkeypatch) -> None:
    whole = reproduce("sesr/ablation", Request(runs=tmp_path / "whole", steps=6, seeds=1))
    original = sesr_ablation.plan
    monkeypatch.setattr(
        sesr_ablation, "plan", lambda request: replace(original(request), checkpoint_every=2)
    )

    class StopError(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 9:
            raise StopError

    request = Request(runs=tmp_path / "parts", steps=6, seeds=1, on_progress=stop)
    with pytest.raises(StopError):
        reproduce("sesr/ablation", request)
    seen: list[int] = []
    resumed = reproduce(
        "sesr/ablation", replace(request, on_progress=lambda done, *_: seen.append(done))
    )
    assert seen[0] == 6  # the first variant is not trained again
    assert 8 not in seen  # nor the second one's steps before its checkpoint
    assert [row.values for row in resumed.rows] == [row.values for row in whole.rows]


def test_a_run_that_diverged_has_no_figure(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        sesr_ablation, "VARIANTS", (VARIANTS[0], Variant("plain", {"block": "plain"}))
    )
    monkeypatch.setattr(sesr_ablation, "_checks", lambda *_: [])

    def diverge(*_, **__):
        raise TrainingError("the loss became nan")

    monkeypatch.setattr(sesr_ablation, "train", diverge)
    result = reproduce("sesr/ablation", Request(runs=tmp_path, steps=2, seeds=2))
    assert result.row("plain").values["drawn"] is None
    assert result.row("plain").values["seeds"] == 0
    assert "-" in result.table()


def test_checks_ask_for_more_than_the_spread() -> None:
    def rows(over: float | None, spread: float | None):
        values = {"S over SESR": over, "S over SESR spread": spread}
        return [sesr_ablation.Row(v.name, "measured", "x", values) for v in VARIANTS]

    def held(over: float | None, spread: float | None) -> set[bool]:
        return {check.holds for check in sesr_ablation._checks(rows(over, spread), "S")}

    assert held(-0.2, 0.1) == {True}
    assert held(-0.1, 0.2) == held(0.3, 0.1) == held(-0.2, None) == held(None, None) == {False}


def test_the_full_form_is_the_long_one() -> None:
    full = plan(Request(full=True))
    assert (full.network.name, full.steps, full.validate_every) == ("sesr_m11", 26_000, 26_000)
    assert plan(Request(full=True, steps=100)).steps == 100
    assert plan(Request()).steps <= 100


def test_data_without_its_folders_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="expected training pictures in train"):
        reproduce("sesr/ablation", Request(data=tmp_path, runs=tmp_path))


def test_a_damaged_result_is_named(tmp_path) -> None:
    recipe = replace(plan(Request()), seed=0)
    folder = (
        tmp_path / "sesr-ablation" / sesr_ablation._key(recipe, "pictures drawn by the command")
    )
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    with pytest.raises(UsageError, match="not a run's result"):
        reproduce("sesr/ablation", Request(runs=tmp_path))
