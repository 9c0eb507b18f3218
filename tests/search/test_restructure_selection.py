"""The selection against every other choice, and plans that are written, edited and refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsible.blocks.restructurable import PreactivatedBottleneck
from collapsible.errors import BudgetError, UnknownNameError, UsageError
from collapsible.models import create_model
from collapsible.search import selection
from collapsible.search.inverted import require_bottlenecks
from collapsible.search.plan import (
    Plan,
    PlanError,
    PlannedBlock,
    apply_plan,
    check_plan,
    read_plan,
    write_plan,
)
from collapsible.search.selection import Option, select

option = st.builds(
    Option,
    form=st.sampled_from(("keep", "dense", "gone")),
    latency_ms=st.floats(-1, 10, allow_nan=False).map(lambda v: round(v, 3)),
    loss=st.floats(0, 5, allow_nan=False).map(lambda v: round(v, 2)),
)


@settings(max_examples=100, deadline=None)
@given(
    blocks=st.lists(st.lists(option, min_size=1, max_size=3), min_size=1, max_size=6),
    share=st.floats(-0.2, 1.2),
    fixed=st.floats(0, 5),
)
def test_no_other_choice_is_better(blocks, share, fixed):
    every = [
        (fixed + sum(o.latency_ms for o in choice), sum(o.loss for o in choice))
        for choice in itertools.product(*blocks)
    ]
    low, high = min(t for t, _ in every), max(t for t, _ in every)
    budget = low + share * (high - low)
    within = [loss for latency, loss in every if latency <= budget + 1e-9]
    if not within:
        with pytest.raises(BudgetError, match="the least is"):
            select(blocks, budget, fixed)
        return
    found = select(blocks, budget, fixed)
    assert found.exact
    assert found.latency_ms <= budget + 1e-7
    assert found.loss == pytest.approx(min(within), abs=1e-7)
    # The forms are those that the sums are of.
    sums = [
        [o for o in options if o.form == form]
        for options, form in zip(blocks, found.forms, strict=True)
    ]
    assert all(sums)
    assert any(
        sum(o.loss for o in c) == pytest.approx(found.loss, abs=1e-9)
        and fixed + sum(o.latency_ms for o in c) == pytest.approx(found.latency_ms, abs=1e-9)
        for c in itertools.product(*sums)
    )


def test_a_thinned_front_keeps_the_budget_and_comes_near(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(14, 2, generator=generator).tolist()
    blocks = [[Option("keep", t, 0.0), Option("dense", 0.1 * t, loss)] for t, loss in numbers]
    exact = select(blocks, 4.0)
    assert exact.exact
    monkeypatch.setattr(selection, "LONGEST_FRONT", 40)
    monkeypatch.setattr(selection, "STEPS", 200)
    thinned = select(blocks, 4.0)
    assert not thinned.exact
    assert thinned.latency_ms <= 4.0 + 1e-9
    assert exact.loss <= thinned.loss < 1.1 * exact.loss


def test_hundreds_of_blocks_are_chosen_in_seconds():
    blocks = [[Option("keep", 1.0, 0.0), Option("dense", 0.5, 0.1)] for _ in range(300)]
    found = select(blocks, 200.0)
    assert found.forms.count("dense") == 200
    assert found.loss == pytest.approx(20.0)


@pytest.mark.parametrize(
    "blocks", [[[]], [[Option("keep", float("nan"), 0)]], [[Option("keep", 1, -0.1)]]]
)
def test_options_that_are_none_are_refused(blocks):
    with pytest.raises(UsageError, match="block 0"):
        select(blocks, 1.0)


def plan_of(network, forms=None):
    forms = forms or {}
    blocks = tuple(
        PlannedBlock(
            b.name, forms.get(b.name, "keep"), b.shape, 2.0, 0.75, 0.5, 0.125, 0.25, (0.9, 0.95)
        )
        for b in require_bottlenecks(network)
    )
    return Plan("tiny", "host", (1, 3, 32, 32), "estimated: test", 1.5, 20.0, blocks)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_model("ran_e_base", width=0.25, num_classes=3).eval()


def test_a_plan_comes_back_as_it_was_written(tiny, tmp_path):
    forms = {"stages.0.0": "dense", "stages.5.0": "fused", "stages.8.2": "dense"}
    plan = plan_of(tiny, forms)
    odd = dataclasses.replace(plan.blocks[3], dense_ms=None)
    odd_blocks = (*plan.blocks[:3], odd, *plan.blocks[4:])
    plan = dataclasses.replace(plan, network='a "quoted"\\ näme', blocks=odd_blocks)
    write_plan(plan, tmp_path / "plan.toml")
    assert read_plan(tmp_path / "plan.toml") == plan
    assert plan.before_ms == pytest.approx(1.5 + 2 * 17)
    assert plan.after_ms == pytest.approx(plan.before_ms - 2 * 1.5 - 1.25)
    assert plan.changed == forms
    assert plan.summary == "1 fused and 2 dense of 17 blocks"
    assert plan_of(tiny).summary == "none of 17 blocks"


def test_a_hand_edited_plan_is_what_is_built(tiny, tmp_path):
    path = tmp_path / "plan.toml"
    write_plan(plan_of(tiny), path)
    text = path.read_text()
    place = text.index('name = "stages.1.0"')
    path.write_text(text[:place] + text[place:].replace('"keep"', '"dense"', 1))
    made = apply_plan(tiny, read_plan(path))
    dense = [n for n, m in made.named_modules() if isinstance(m, PreactivatedBottleneck)]
    assert dense == ["stages.1.0"]
    assert not any(isinstance(m, PreactivatedBottleneck) for m in tiny.modules())


def test_a_plan_that_changes_nothing_changes_nothing(tiny):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(apply_plan(tiny, plan_of(tiny))(x), tiny(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('form = "keep"', 'form = "densse"', "did you mean 'dense'"),
        ("rest_ms = 1.5", "rest_ms = 'much'", "rest_ms"),
        ("keep_ms = 2.0", "keep_ms = nan", "finite"),
        ("keep_ms = 2.0", "keep = 2.0", "unknown key"),
        ("gates = [0.9, 0.95]", "gates = [0.9, 'x']", "finite numbers"),
        ('name = "stages.1.0"', 'name = "stages.0.0"', "twice"),
        ("[[blocks]]", "[[block]]", "blocks"),
        ("target =", "target ==", "not a TOML plan"),
        ("input_size = [1, 3, 32, 32]", "input_size = [1, 'x']", "input_size"),
        ("input_size = [1, 3, 32, 32]", "input_size = [1, 3.5, 32, 32]", "input_size.*whole"),
        ('source = "estimated: test"', "", "missing key source"),
    ],
)
def test_a_broken_plan_is_named(tiny, tmp_path, old, new, said):
    path = tmp_path / "plan.toml"
    write_plan(plan_of(tiny), path)
    text = path.read_text()
    assert old in text
    count = -1 if old == "[[blocks]]" else 1
    path.write_text(text.replace(old, new, count))
    with pytest.raises(PlanError, match=said) as error:
        read_plan(path)
    assert "\n" not in str(error.value)


def test_no_plan_at_all_is_named(tmp_path):
    with pytest.raises(PlanError, match="cannot read"):
        read_plan(tmp_path / "none.toml")


def test_a_plan_of_another_network_is_refused(tiny):
    plan = plan_of(tiny)
    with pytest.raises(PlanError, match="another network: unknown block"):
        check_plan(plan, timm.create_model("mobilenetv2_050"))
    wider = create_model("ran_e_base", width=0.5, num_classes=3)
    with pytest.raises(PlanError, match="the plan says"):
        check_plan(plan, wider)
    short = dataclasses.replace(plan, blocks=plan.blocks[:-2])
    with pytest.raises(PlanError, match=r"nothing of block .* \(2 missing\)"):
        check_plan(short, tiny)


def test_forms_are_changed_by_name(tiny):
    plan = plan_of(tiny)
    for form in ("fused", "dense"):
        assert plan.with_forms({"stages.2.0": form}).changed == {"stages.2.0": form}
    with pytest.raises(UnknownNameError, match=r"did you mean 'stages\.2\.0'"):
        plan.with_forms({"stage.2.0": "dense"})
    with pytest.raises(PlanError, match="form"):
        plan.with_forms({"stages.2.0": "gone"})


def test_an_unwritable_place_leaves_nothing(tiny, tmp_path: Path):
    with pytest.raises(Exception, match="cannot write"):
        write_plan(plan_of(tiny), tmp_path / "none" / "plan.toml")
    assert not list(tmp_path.iterdir())
