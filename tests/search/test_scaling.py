"""``scale``: the published networks, every budget, the stop rule, and wrong use."""

from __future__ import annotations

import itertools
import json
import math
import time

import pytest
import torch

import collapsible
from collapsible.costs import cost
from collapsible.errors import BudgetError, UnknownNameError, UsageError
from collapsible.search import Shape, find_family, scale
from collapsible.search.scaling import effectiveness, entropy


def test_rule_paper_gives_the_published_networks():
    shapes = {c.shape: c for c in scale("convnext_tiny", rule="paper").candidates}
    published = {  # parameters (M), MACs (G), NN-Mass
        Shape((5, 5, 15, 5), (64, 128, 256, 511)): (20.76, 3.285, 14_710),
        Shape((5, 5, 15, 5), (76, 151, 303, 606)): (28.93, 4.577, 17_420),
        Shape((7, 7, 21, 7), (87, 175, 350, 699)): (52.89, 8.429, 28_154),
    }
    assert set(shapes) == set(published)
    for shape, (params, macs, mass) in published.items():
        found = shapes[shape]
        assert round(found.params / 1e6, 2) == params
        assert round(found.macs / 1e9, 3) == macs
        assert found.nn_mass == mass
    within = scale("ran-i", rule="paper", macs=4.6e9)
    assert [c.shape.dims[0] for c in within.candidates] == [76, 64]


@pytest.mark.parametrize(
    ("base", "budget"),
    [
        ("ran-i", {"macs": 4.5e9}),
        ("convnext", {"params": 20e6}),
        ("resnet18", {"macs": 1.8e9}),
        ("inverted-bottleneck", {"macs": 3e8}),
        ("sesr", {"params": 13_520}),
    ],
)
@pytest.mark.parametrize("rule", ["mass", "entropy", "width", "random"])
def test_candidates_meet_budget_step_and_cap(base, budget, rule):
    start = time.process_time()
    report = scale(base, rule=rule, **budget)
    assert time.process_time() - start < 5
    ((kind, limit),) = budget.items()
    family = find_family(base)
    for found in report.candidates:
        assert 0.5 * limit < getattr(found, kind) <= limit or base == "sesr"
        assert getattr(found, kind) <= limit
        assert all(width % family.step == 0 for width in found.shape.dims)
        if rule in ("mass", "entropy"):
            assert found.effectiveness <= family.cap
    if rule != "random":
        scores = [c.score for c in report.candidates]
        assert scores == sorted(scores, reverse=True)
    built = cost(report.build(), (1, *family.size))
    assert (built.params, built.macs) == (report.best.params, report.best.macs)


def test_it_beats_the_published_networks_at_their_own_budgets_and_under_their_own_cap():
    for published in scale("ran-i", rule="paper").candidates:
        ours = scale("ran-i", macs=published.macs, cap=0.191).best
        assert ours.non_linear_units >= published.non_linear_units
        assert ours.effectiveness <= 0.191


def test_small_spaces_are_searched_exhaustively_enough():
    """The best SESR under a budget, against all shapes there are."""
    family, limit = find_family("sesr"), 20_000
    shapes = (Shape((m,), (4 * f,)) for m in range(1, 40) for f in range(1, 20))
    best = max(
        family.count(s).non_linear_units
        for s in shapes
        if family.count(s).params <= limit and effectiveness(s) <= family.cap
    )
    assert scale("sesr", params=limit).best.non_linear_units == best


def test_without_the_cap_deeper_always_wins():
    """At fixed MACs the number of units has no optimum: why there must be a stop rule."""
    deep = [scale("ran-i", macs=4.5e9, cap=cap, freedom=0.0, step=1).best for cap in (0.1, 0.3, 1)]
    for less, more in itertools.pairwise(deep):
        assert more.non_linear_units > less.non_linear_units
        assert sum(more.shape.depths) > sum(less.shape.depths)
        assert more.shape.dims[0] < less.shape.dims[0]


def test_across_stages_units_alone_put_every_block_into_the_last():
    """Why depths are tied to the base's proportions: blocks cost alike, late ones are wider."""
    family = find_family("convnext")
    base = family.base
    gain = []
    for stage in range(4):
        depths = tuple(d + (i == stage) for i, d in enumerate(base.depths))
        more, less = family.count(Shape(depths, base.dims)), family.count(base)
        units = more.non_linear_units - less.non_linear_units
        gain.append(units / (more.macs - less.macs))
    assert gain == sorted(gain)
    assert gain[3] > 7 * gain[0]


def test_spread_of_gradients_grows_with_the_sum_of_one_over_width():
    """Hanin's theorem, on random ReLU chains: log-norms spread by about 5 / width a layer."""
    torch.manual_seed(0)

    def spread(depth: int, width: int) -> float:
        logs = []
        for _ in range(400):
            v = torch.randn(width, dtype=torch.float64)
            for _ in range(depth):
                weight = torch.randn(width, width, dtype=torch.float64) * math.sqrt(2 / width)
                # Given the layer's input, each unit of a random ReLU layer is on with chance 1/2.
                v = (weight @ v) * (torch.rand(width) < 0.5)
            logs.append(float((v @ v).log()))
        return float(torch.tensor(logs).var())

    # Same sum of 1 / width, very different depths: alike.
    thin, wide = spread(10, 20), spread(40, 80)
    assert thin == pytest.approx(wide, rel=0.35)
    assert wide == pytest.approx(5 * 40 / 80, rel=0.35)
    # Twice the sum: about twice the spread.
    assert spread(20, 20) / thin == pytest.approx(2, rel=0.4)


def test_entropy_rule_is_the_formula():
    """By hand for one ConvNeXt of one block a stage, at 32 pixels with patches of 2."""
    family = find_family("convnext", size=(3, 32, 32), patch_size=2, num_classes=10)
    shape, path, values = Shape((1, 2), (4, 8)), 0.0, []
    path += math.log(12) + math.log(49) + math.log(4) + math.log(16)
    values.append(math.log(256 * 4) * path)
    path += math.log(16) + 2 * (math.log(49) + math.log(8) + math.log(32))
    values.append(math.log(64 * 8) * path)
    assert entropy(family, shape) == pytest.approx(values[0] + 8 * values[1])


SMALL = {"size": (3, 32, 32), "step": 8, "num_classes": 10, "patch_size": 2}


def test_peak_memory_budget():
    report = scale("convnext", peak_memory=300_000, **SMALL)
    assert report.best.measured is not None
    assert report.best.measured <= 300_000
    assert cost(report.build(), (1, 3, 32, 32)).peak_memory == report.best.measured


@pytest.mark.parametrize("kind", ["latency_ms", "npu_latency_ms", "latency_share"])
def test_budgets_of_latency_close_in_on_the_limit(kind, monkeypatch):
    """With a stopwatch that is exact: a million MACs a millisecond and 3 ms besides."""

    def stopwatch(family, shape, asked, target):
        assert (asked, target) == (kind, "ethos-u55-128")
        return 3 + family.count(shape).macs / 1e6

    monkeypatch.setattr("collapsible.search.scaling.measure", stopwatch)
    report = scale("convnext", target="ethos-u55-128", **{kind: 100}, **SMALL)
    assert 85 < report.best.measured <= 100
    assert report.best.measured == 3 + report.best.macs / 1e6
    with pytest.raises(BudgetError, match="smallest has 3"):
        scale("convnext", target="ethos-u55-128", **{kind: 3}, **SMALL)


def test_a_counted_and_a_measured_budget_hold_together(monkeypatch):
    """A millisecond a block: best ranked of few enough blocks, though deeper score more."""
    monkeypatch.setattr(
        "collapsible.search.scaling.measure", lambda f, shape, *_: 1.0 * sum(shape.depths)
    )
    budget = {"macs": 5e6, **SMALL}
    free = scale("convnext", top=1000, **budget)
    for most in (sum(free.best.shape.depths) - 1, 6):
        report = scale("convnext", latency_ms=most, **budget)
        allowed = [one for one in free.candidates if sum(one.shape.depths) <= most]
        assert report.best.shape == max(allowed, key=lambda one: one.score).shape
        assert report.best.measured == sum(report.best.shape.depths)
    assert json.loads(report.json())["budget"] == {"macs": 5e6, "latency_ms": 6}
    assert "latency_ms" in report.table()
    # Milliseconds by MACs: no number of blocks helps, a smaller budget does.
    monkeypatch.setattr(
        "collapsible.search.scaling.measure", lambda f, shape, *_: f.count(shape).macs / 1e6
    )
    report = scale("convnext", latency_ms=3, **budget)
    assert 2.5e6 < report.best.macs <= 3e6
    report = scale("convnext", latency_ms=30, **budget)
    assert report.best.shape == free.best.shape
    # Whatever is counted, its budget holds too where the other one asks for less.
    report = scale("convnext", latency_ms=3, params=200_000, **SMALL)
    assert report.best.params <= 200_000
    assert report.best.macs <= 3e6


def test_a_budget_far_off_stops_at_four_times_the_base():
    """A network that fills the memory must not be built to measure it."""
    family = find_family("convnext", size=(3, 32, 32), patch_size=2, num_classes=10)
    report = scale("convnext", peak_memory=1e15, **SMALL)
    assert report.best.macs <= 4 * family.count(family.base).macs


def test_shares_are_of_the_base():
    from collapsible.search.measure import measure

    family = find_family("convnext", size=(3, 64, 64), patch_size=2, num_classes=10)
    ones = Shape((1, 1, 1, 1), (8, 8, 8, 8))
    assert 0 < measure(family, ones, "latency_share", "") < 1
    assert 0.3 < measure(family, family.base, "latency_share", "") < 3


def test_the_stopwatch_gives_milliseconds():
    from collapsible.search.measure import measure

    family = find_family("convnext", size=(3, 32, 32), patch_size=2, num_classes=10)
    assert 0 < measure(family, Shape((1, 1, 1, 1), (8, 8, 8, 8)), "latency_ms", "") < 60_000


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_budgets_that_no_network_meets_name_the_smallest(kind):
    with pytest.raises(BudgetError, match="the smallest has") as caught:
        scale("ran-i", **{kind: 1e4})
    family = find_family("ran-i")
    least = getattr(family.count(Shape((1,) * 4, (16,) * 4)), kind)
    assert f"{least:,}" in str(caught.value)
    assert getattr(scale("ran-i", **{kind: least}).best, kind) <= least
    with pytest.raises(BudgetError, match="smallest"):
        scale("ran-i", latency_ms=1e-6, **SMALL)
    with pytest.raises(BudgetError, match="depth alone"):
        scale("ran-i", rule="depth", macs=1e8)
    with pytest.raises(BudgetError, match="published"):
        scale("ran-i", rule="paper", macs=1e9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "given: none"),
        ({"macs": 1e9, "params": 1e6}, "given: macs, params"),
        ({"latency_ms": 1, "peak_memory": 1e6}, "given: latency_ms, peak_memory"),
        ({"macs": -1}, "above 0"),
        ({"macs": math.nan}, "above 0"),
        ({"macs": 1e9, "step": 0}, "from 1"),
        ({"macs": 1e9, "freedom": 1.0}, "freedom"),
        ({"macs": 1e9, "rule": "masss"}, "did you mean 'mass'"),
        ({"macs": 1e9, "num_clases": 3}, "no option"),
    ],
)
def test_wrong_use(arguments, said):
    with pytest.raises(UsageError, match=said):
        scale("ran-i", **arguments)
    with pytest.raises(UnknownNameError, match="ran_i"):
        scale("ran-ii", macs=1e9)
    with pytest.raises(UsageError, match="ran-i"):
        scale("resnet", rule="paper")


def test_report_and_plot(tmp_path):
    report = collapsible.scale("convnext_tiny", macs=1e9, size=(3, 160, 160))
    facts = json.loads(report.json())
    assert facts["candidates"][0]["dims"] == list(report.best.shape.dims)
    assert facts["budget"] == {"macs": 1e9}
    assert "NN-Mass" in report.table()
    front = report.pareto()
    assert report.best in front
    for one, other in itertools.combinations(front, 2):
        assert (one.score - other.score) * (one.effectiveness - other.effectiveness) >= 0
    report.plot(tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(collapsible.CollapsibleError, match="cannot write"):
        report.plot(tmp_path / "no" / "pareto.png")
    assert collapsible.nn_mass(report.build()) == pytest.approx(report.best.nn_mass)


def test_one_seed_draws_the_same_and_another_does_not():
    first, again = (scale("ran-i", rule="random", macs=1e9, seed=3) for _ in range(2))
    assert first.candidates == again.candidates
    assert scale("ran-i", rule="random", macs=1e9, seed=4).candidates != first.candidates
