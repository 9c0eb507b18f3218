"""The search from end to end on drawn pictures, and what it is made of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from collapsible.blocks.restructurable import (
    FusedBottleneck,
    GatedBottleneck,
    PreactivatedBottleneck,
)
from collapsible.deploy.estimate import estimate
from collapsible.errors import BudgetError, CollapsibleError, ExportError, UsageError
from collapsible.folding import collapse
from collapsible.models import RanE
from collapsible.models.ran_e import Site
from collapsible.reproduce.ran_search import draw_pictures
from collapsible.search import latency_table
from collapsible.search.distillation import DistilTask, teacher_beside
from collapsible.search.gates import (
    GatePressure,
    GateSpec,
    absorb,
    gate_network,
    gate_speeds,
    measure_importance,
    recalibrate,
)
from collapsible.search.inverted import require_bottlenecks
from collapsible.search.latency_table import FormLatency, build_latency_table, input_sizes
from collapsible.search.plan import CHANGED, FORMS, PlanError, read_plan
from collapsible.search.restructure import load_restructured, restructure
from collapsible.search.restructure_choice import choose_forms, read_budget
from collapsible.search.restructure_report import RestructureSpec
from collapsible.search.restructuring import Restructuring, default_recipe
from collapsible.training import Classification

SIZE, TARGET = (1, 3, 32, 32), "npu-4tops"
SITES = (
    (Site(False, 16, 3, 4, 2),),
    (Site(False, 16, 3, 4), Site(False, 16, 5, 4)),
    (Site(False, 24, 3, 4, 2),),
)
NAMES = ["stages.0.0", "stages.1.0", "stages.1.1", "stages.2.0"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.getbasetemp() / "ran-cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("drawn"), 32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return RanE(SITES, stem=8, top=24, num_classes=3, drop_rate=0.0).eval()


def recipe(steps: int = 6):
    made = default_recipe("tiny", 32, steps)
    data = dataclasses.replace(made.data, batch=16, test_crop=1.0)
    return dataclasses.replace(made, data=data, checkpoint_every=2, validate_every=steps)


@pytest.fixture(scope="module")
def task(tmp_path_factory, pictures, network):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.getbasetemp() / "ran-cache"))
        return Classification(recipe(), pictures, network=network)


@pytest.fixture(scope="module")
def table(network, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.getbasetemp() / "ran-cache"))
        return build_latency_table(network, require_bottlenecks(network), TARGET, SIZE)


def run(network, pictures, folder, budget=0.8, **options):
    given = {"recipe": recipe(), "spec": RestructureSpec(6), "input_size": SIZE, **options}
    return restructure(network, pictures, TARGET, budget, folder=folder, **given)


# --- the latency table ---


def test_the_table_is_the_estimate_of_every_form_and_is_kept(network, table, monkeypatch):
    blocks = require_bottlenecks(network)
    assert [row.name for row in table.blocks] == NAMES
    assert table.network_ms == estimate(network, TARGET, SIZE).latency_ms
    for row in table.blocks:
        given = network.get_submodule(row.name)
        assert row.keep.latency_ms == pytest.approx(
            estimate(given, TARGET, row.input_size).latency_ms
        )
    for form, kind in CHANGED.items():
        assert table.blocks[1].milliseconds[form] == pytest.approx(
            estimate(
                collapse(kind(blocks[1].parts), policy="always")[0],
                TARGET,
                table.blocks[1].input_size,
            ).latency_ms
        )
    assert table.rest_ms == pytest.approx(
        table.network_ms - sum(row.keep.latency_ms for row in table.blocks)
    )

    def never(kind, *_):
        raise AssertionError("estimated again")

    again = build_latency_table(network, blocks, TARGET, SIZE)
    assert again.compiled == 0
    assert again.blocks == table.blocks
    monkeypatch.setattr(latency_table, "_redrawn", never)
    build_latency_table(network, blocks, TARGET, SIZE)
    with pytest.raises(AssertionError, match="again"):
        build_latency_table(network, blocks, TARGET, (1, 3, 48, 48))


def test_blocks_that_measure_as_nothing_stay_where_others_reach_the_budget(network, table):
    """Of choices that four batches cannot tell apart, the most bends; else importance."""
    blocks = require_bottlenecks(network)
    gains = {
        row.name: {form: row.milliseconds["keep"] - ms for form, ms in row.milliseconds.items()}
        for row in table.blocks
    }
    order = sorted(gains, key=lambda name: -gains[name]["dense"])
    budget = table.network_ms - gains[order[0]]["dense"]
    assert choose_forms(table, blocks, budget, {}, {}).changed == {order[0]: "dense"}
    # The fused form does where it is quick enough: here, with half of the dense form's gain.
    half = table.network_ms - gains[order[0]]["dense"] / 2
    rows = [
        row
        if row.name != order[0]
        else dataclasses.replace(
            row,
            fused=FormLatency((row.keep.latency_ms + row.dense.latency_ms) / 2, "by hand"),
        )
        for row in table.blocks
    ]
    quick = dataclasses.replace(table, blocks=tuple(rows))
    assert choose_forms(quick, blocks, half, {}, {}).changed == {order[0]: "fused"}
    # One that does cost gives way to all others together, if they reach as far.
    budget = table.network_ms - sum(max(gains[name].values()) for name in order[1:])
    losses = {order[0]: {"fused": 1.0, "dense": 2.0}}
    found = choose_forms(table, blocks, budget, losses, {order[0]: (0.1, 0.7)})
    assert order[0] not in found.changed
    row = next(block for block in found.blocks if block.name == order[0])
    assert (row.fused_importance, row.importance, row.gates) == (1.0, 2.0, (0.1, 0.7))


def test_a_form_that_the_compiler_rejects_is_no_choice(network, monkeypatch, tmp_path):
    real = latency_table.estimate

    def rejecting(form, *arguments, **options):
        if isinstance(form, PreactivatedBottleneck) and form.conv.convs[1].kernel_size[0] == 5:
            raise ExportError("kernel 5 is not to its taste")
        return real(form, *arguments, **options)

    monkeypatch.setattr(latency_table, "estimate", rejecting)
    blocks = require_bottlenecks(network)
    table = build_latency_table(network, blocks, TARGET, SIZE, cache=tmp_path)
    assert table.blocks[2].dense.latency_ms is None
    assert "not to its taste" in table.blocks[2].dense.reason
    least = table.rest_ms + sum(min(row.milliseconds.values()) for row in table.blocks)
    plan = choose_forms(table, blocks, least, {}, {})
    assert plan.blocks[2].form in ("keep", "fused")
    assert plan.blocks[2].dense_ms is None


def test_a_block_that_the_target_cannot_run_at_all_is_named(network, monkeypatch, tmp_path):
    real = latency_table.estimate

    def rejecting(form, *arguments, **options):
        if type(form).__name__ == "KeptBottleneck":
            raise ExportError("no depthwise layers here")
        return real(form, *arguments, **options)

    monkeypatch.setattr(latency_table, "estimate", rejecting)
    with pytest.raises(CollapsibleError, match=r"does not run block stages\.0\.0 as it is: no dep"):
        build_latency_table(network, require_bottlenecks(network), TARGET, SIZE, cache=tmp_path)


def test_inputs_are_those_in_the_network_and_a_wrong_one_is_refused(network):
    sizes = input_sizes(network, NAMES, (2, 3, 32, 32))
    assert sizes == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 16, 8, 8), (2, 16, 8, 8)]
    with pytest.raises(UsageError, match="the network refuses"):
        input_sizes(network, NAMES, (1, 4, 32, 32))


# --- gates and losses ---


def test_pressure_ends_where_the_budget_is_met(network, table):
    blocks = require_bottlenecks(network)
    _, gates = gate_network(network, blocks, 1.0)
    zero = torch.tensor(0.0)
    roomy = GatePressure(gates, table, 2 * table.network_ms, GateSpec())
    assert float(roomy(zero).detach()) == 0
    tight = GatePressure(gates, table, 0.5 * table.network_ms, GateSpec(latency=1, decision=1))
    keep = [row.keep.latency_ms for row in table.blocks]
    dense = [row.dense.latency_ms for row in table.blocks]
    fused = [row.fused.latency_ms for row in table.blocks]
    expected = table.rest_ms + sum(
        0.95 * k + 0.025 * (f + d) for k, f, d in zip(keep, fused, dense, strict=True)
    )
    by_hand = expected / (0.5 * table.network_ms) - 1
    assert float(tight(zero).detach()) == pytest.approx(by_hand, rel=1e-5)
    late = float(tight(torch.tensor(1.0)).detach())
    undecided = 4 * (0.95 * 0.05 + 0.975 * 0.025) / 2
    assert late == pytest.approx(by_hand + undecided, rel=1e-5)
    tight(zero).backward()
    for gate, k, f, d in zip(gates.values(), keep, fused, dense, strict=True):
        # A gate is pushed towards the faster of what it chooses between.
        assert (float(gate.logits.grad[0]) > 0) == (k > (f + d) / 2)
        assert (float(gate.logits.grad[1]) > 0) == (f > d)


def test_gates_move_as_their_blocks_gain(network):
    given = {
        "a": {"keep": 1.0, "dense": 0.5},
        "b": {"keep": 1.0, "fused": 0.75, "dense": 1.25},
        "c": {"keep": 1.0, "fused": 1.0, "dense": 1.0},
        "d": {"keep": 1.0, "fused": 0.9, "dense": 0.875},
    }
    speeds = gate_speeds(given, 8.0)
    assert speeds["a"] == (8.0,)
    assert speeds["b"] == (4.0, 8.0)
    assert speeds["c"] == pytest.approx((0.16, 0.16))
    assert speeds["d"] == pytest.approx((2.0, 0.4))
    assert gate_speeds({"a": {"keep": 1.0, "dense": 1.0}}, 3.0) == {"a": (3.0,)}
    blocks = require_bottlenecks(network)
    pairs = dict(zip(NAMES, ((8.0, 1.0), (2.0, 3.0), (1.0,), (4.0, 4.0)), strict=True))
    _, gates = gate_network(network, blocks, pairs)
    optimiser = torch.optim.Adam([gate.logits for gate in gates.values()], 0.01)
    sum(gate.shares[0] - 0.1 * gate.shares[-1] for gate in gates.values()).backward()
    optimiser.step()
    # Adam's first step is the rate, whatever the gradient.
    for name, gate in gates.items():
        first = torch.tensor(0.95).logit() - 0.01 * pairs[name][0]
        assert float(gate.shares[0].detach()) == pytest.approx(float(first.sigmoid()), rel=1e-4)
        if len(pairs[name]) == 2:
            rest = 1 - float(first.sigmoid())
            second = torch.tensor(-0.01 * pairs[name][1]).sigmoid()
            assert float(gate.shares[1].detach()) == pytest.approx(rest * float(second), rel=1e-3)


def test_fine_tuning_starts_from_the_weights_that_lose_less(network, pictures, task, tmp_path):
    job = Restructuring(
        network, task, TARGET, folder=tmp_path, spec=RestructureSpec(1), input_size=SIZE
    )
    plan = job.make_plan(0.8)
    spoilt = job._searched(plan)
    with torch.no_grad():
        for parameter in spoilt.parameters():
            parameter.normal_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_searched", lambda _: spoilt)
        found = job._start(plan)
    assert torch.equal(found.state_dict()["stem.weight"], network.state_dict()["stem.weight"])


def test_absorbing_gives_back_the_gated_networks_weights(network):
    blocks = require_bottlenecks(network)
    gated, gates = gate_network(network, blocks, 1.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gated.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        for gate in gates.values():
            gate.norms[1].running_mean.fill_(0.3)
            gate.forced = "keep"
    torch.manual_seed(5)
    other = RanE(SITES, stem=8, top=24, num_classes=3, drop_rate=0.0).eval()
    absorb(other, require_bottlenecks(other), gated)
    x = torch.randn(2, 3, 32, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(other(x), gated.eval()(x), rtol=1e-5, atol=1e-5)


def test_importance_is_the_difference_of_two_losses_and_changes_nothing(network, task):
    gated, gates = gate_network(network, require_bottlenecks(network), 1.0)
    before = {key: value.clone() for key, value in gated.state_dict().items()}
    found = measure_importance(gated, gates, task, range(3, 5), 16)
    assert list(found) == NAMES
    assert all(list(ones) == ["fused", "dense"] for ones in found.values())
    assert all(value >= 0 for ones in found.values() for value in ones.values())
    after = gated.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    losses = {}
    gated.train()  # its dropout rate is 0, so only the norms differ
    with torch.no_grad():
        for form in FORMS:
            gates["stages.1.0"].forced = form
            losses[form] = sum(
                float(task.loss(gated(x), y)) for x, y in (task.batch(s, range(16)) for s in (3, 4))
            )
    for form, rise in found["stages.1.0"].items():
        by_hand = max(0.0, (losses[form] - losses["keep"]) / 2)
        assert rise == pytest.approx(by_hand, abs=1e-5)


def test_statistics_are_the_means_over_the_batches(network, task):
    gated, _ = gate_network(network, require_bottlenecks(network), 1.0)
    recalibrate(gated, task, range(2), 16)
    block = gated.get_submodule("stages.0.0")
    assert isinstance(block, GatedBottleneck)
    with torch.no_grad():
        means = []
        for step in range(2):
            x = gated.stem(task.batch(step, range(16))[0])
            g = block.gates[-1]
            y = block.convs[0](g * x + (1 - g) * nn.functional.hardswish(x))
            means.append(y.mean((0, 2, 3)))
    expected = torch.stack(means).mean(0)
    torch.testing.assert_close(block.norms[0].running_mean, expected, rtol=1e-4, atol=1e-5)
    assert block.norms[0].momentum == 0.01


def test_the_teachers_share_of_the_loss_by_hand(task):
    made = DistilTask(task, 10, 0.25, lambda progress: 100 * progress)
    inputs, target = made.batch(5, range(16))
    assert target.shape == (16, 4)
    scores, known = torch.randn(16, 3), torch.randn(16, 3)
    p, q = (known / 2).softmax(1), (scores / 2).softmax(1)
    distance = 4 * (p * (p.log() - q.log())).sum(1).mean()
    by_hand = 0.75 * task.loss(scores, target[:, :3]) + 0.25 * distance + 50
    found = made.loss(torch.cat([scores, known], 1), target)
    torch.testing.assert_close(found, by_hand)
    # Without a teacher there is the task's own loss.
    alone = made.loss(scores, target)
    torch.testing.assert_close(alone, task.loss(scores, target[:, :3]) + 50)
    with pytest.raises(UsageError, match="distil=2"):
        DistilTask(task, 10, 2)
    assert inputs.shape == (16, 3, 32, 32)


def test_the_teacher_stands_beside_in_training_alone(network):
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    x = torch.randn(2, 3, 32, 32)
    with teacher_beside(student, network):
        assert student.train()(x).shape == (2, 6)
        assert student.eval()(x).shape == (2, 3)
    assert student.train()(x).shape == (2, 3)
    assert set(student.state_dict()) == {"1.weight", "1.bias"}
    assert all(parameter.requires_grad for parameter in network.parameters())


# --- end to end ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures, network):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSIBLE_CACHE", str(tmp_path_factory.getbasetemp() / "ran-cache"))
        return folder, *run(network, pictures, folder)


def test_the_whole_chain(finished, network):
    folder, made, report = finished
    plan = report.plan
    assert plan.after_ms <= 0.8 * plan.before_ms * (1 + 1e-9)
    assert plan.changed
    assert plan == read_plan(folder / "plan.toml")
    kinds = {kind: form for form, kind in CHANGED.items()}
    forms = {n: kinds[type(m)] for n, m in made.named_modules() if type(m) in kinds}
    assert forms == plan.changed
    small, collapsed = collapse(made, probe=torch.randn(SIZE))
    assert collapsed.max_error_float64 < 1e-9
    assert not [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert report.after_ms == estimate(small, TARGET, SIZE).latency_ms
    assert report.after_ms < report.before_ms
    assert set(report.metrics_after) == {"val/top1", "val/top5"}
    record = json.loads((folder / "report.json").read_text())
    assert record["plan"]["changed"] == plan.changed
    assert {"search", "fine-tuning", "latency table"} <= set(report.seconds)
    text = report.table()
    assert all(name in text for name in NAMES)
    assert not any(type(m) in kinds for m in network.modules())


def test_a_finished_network_loads_again(finished, network):
    folder, made, _ = finished
    weights = folder / "finetune" / "weights.safetensors"
    again = load_restructured(network, folder / "plan.toml", weights)
    assert again.state_dict().keys() == made.state_dict().keys()
    for key, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Not to the bit: the order of a tensor's values in memory decides how a sum is rounded.
        torch.testing.assert_close(again(x), made(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["search", "fine-tuning"])
def test_killed_in_the_middle_it_ends_as_if_it_was_not(
    phase, finished, network, pictures, tmp_path
):
    _, made, report = finished

    def kill(name, done, total, note):
        if (name, done) == (phase, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network, pictures, tmp_path, on_progress=kill)
    with pytest.raises(UsageError, match="--resume"):
        run(network, pictures, tmp_path)
    again, second = run(network, pictures, tmp_path, resume=True)
    assert second.plan == report.plan
    assert second.metrics_after == report.metrics_after
    for key, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_killed_before_the_first_checkpoint_it_starts_where_it_did(
    finished, network, pictures, tmp_path
):
    """The folder is there then, but no weights: the search's are to be taken again."""
    folder, made, report = finished
    (tmp_path / "search").symlink_to(folder / "search")

    def kill(name, done, total, note):
        if (name, done) == ("fine-tuning", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network, pictures, tmp_path, budget=None, plan=report.plan, on_progress=kill)
    assert not list((tmp_path / "finetune").glob("step-*"))
    again, _ = run(network, pictures, tmp_path, budget=None, plan=report.plan, resume=True)
    for key, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    # And once it is under way, a plan that was edited since is refused in a line.
    bent = next(block.name for block in report.plan.blocks if block.form != "keep")
    other = report.plan.with_forms({bent: "keep"})
    with pytest.raises(PlanError, match=r"finetune holds the fine-tuning of another plan"):
        run(network, pictures, tmp_path, budget=None, plan=other, resume=True)


def test_an_edited_plan_is_followed_with_the_searchs_weights(finished, network, pictures, tmp_path):
    folder, _, report = finished
    (tmp_path / "search").symlink_to(folder / "search")
    wanted = {"stages.0.0": "fused", "stages.1.0": "dense"}
    plan = report.plan.with_forms({name: wanted.get(name, "keep") for name in NAMES})
    made, second = run(network, pictures, tmp_path, budget=None, plan=plan)
    assert second.plan.changed == wanted
    assert isinstance(made.get_submodule("stages.0.0"), FusedBottleneck)
    assert isinstance(made.get_submodule("stages.1.0"), PreactivatedBottleneck)
    assert "search" not in second.seconds


# --- hostile ---


def test_budgets():
    assert read_budget(0.6, 10) == pytest.approx(6)
    assert read_budget("0.6", 10) == pytest.approx(6)
    assert read_budget(" 4.5ms ", 10) == pytest.approx(4.5)
    for wrong in ("fast", "", 0, -1, "nan", "inf", "ms", 1.5, "60%"):
        with pytest.raises(UsageError, match="budget"):
            read_budget(wrong, 10)


def test_a_budget_below_full_collapse_ends_before_anything_is_trained(
    network, pictures, tmp_path, table
):
    least = table.rest_ms + sum(min(row.milliseconds.values()) for row in table.blocks)
    whole = f"the least is {least:.4g} ms; the network as it is takes {table.network_ms:.4g} ms"
    with pytest.raises(BudgetError, match=f"budget 0.000001ms: .*{whole}"):
        run(network, pictures, tmp_path, budget="0.000001ms")
    assert not (tmp_path / "search").exists()
    with pytest.raises(UsageError, match="a budget is needed"):
        run(network, pictures, tmp_path, budget=None)


def test_too_few_pictures_and_other_classes(network, pictures, tmp_path):
    greedy = dataclasses.replace(recipe(), data=dataclasses.replace(recipe().data, batch=500))
    with pytest.raises(UsageError, match="120 pictures are fewer than one batch of 500"):
        run(network, pictures, tmp_path, recipe=greedy)
    with pytest.raises(UsageError, match="no folder of labelled pictures"):
        run(network, tmp_path / "none", tmp_path)
    other = RanE(SITES, stem=8, top=24, num_classes=7).eval()
    with pytest.raises(UsageError, match="no classifier of 3 classes"):
        run(other, pictures, tmp_path)


def test_a_plan_for_another_chip_or_size(finished, network, pictures, tmp_path):
    plan = finished[2].plan
    with pytest.raises(UsageError, match="the plan is for ethos-u55-256"):
        run(network, pictures, tmp_path, plan=dataclasses.replace(plan, target="ethos-u55-256"))
    with pytest.raises(UsageError, match=r"at \[1, 3, 64, 64\]"):
        run(network, pictures, tmp_path, plan=dataclasses.replace(plan, input_size=(1, 3, 64, 64)))
    short = dataclasses.replace(plan, blocks=plan.blocks[1:])
    with pytest.raises(PlanError, match="says nothing of block"):
        run(network, pictures, tmp_path, plan=short)


def test_a_job_for_a_network_without_bottlenecks(pictures, tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    plain(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UsageError, match=r"no inverted bottleneck to restructure\. Looked for"):
        Restructuring(plain, pictures, TARGET, folder=tmp_path)
