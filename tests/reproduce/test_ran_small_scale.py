"""``reproduce ran/small-scale``: shapes of the arms, its small form, and what its checks say."""

from __future__ import annotations

import numpy as np
import pytest

from collapsible.errors import UsageError
from collapsible.reproduce import Request, ran_small_scale, ran_small_scale_arms, reproduce
from collapsible.reproduce.ran_search_measure import pack
from collapsible.reproduce.ran_small_scale_arms import ARMS, LARGE_PICTURES, Result, find_shape
from collapsible.search.scaling import effectiveness

PICTURES = 1000


def stopwatch(family, shape, kind, target) -> float:
    """A layer's start-up and nothing else."""
    assert kind == "latency_share"
    return sum(shape.depths) / sum(family.base.depths)


def test_arms_are_within_their_budget_and_caps(monkeypatch) -> None:
    monkeypatch.setattr("collapsible.search.scaling.measure", stopwatch)
    kind = ran_small_scale_arms.family(LARGE_PICTURES)
    base = kind.count(kind.base).macs
    for arm in ARMS:
        shape = find_shape(arm, LARGE_PICTURES, 0)
        # A step of the width at most is left over; a single block of depth is more.
        least = 0.85 if arm.rule == "depth" else 0.92
        share = kind.count(shape).macs * arm.fewer / base
        assert share <= 1
        assert share >= least
        if arm.rule == "mass":
            cap = 0.2 if arm.deeper is None else arm.deeper * effectiveness(kind.base)
            assert effectiveness(shape) <= cap
        if arm.quicker is not None:
            assert sum(shape.depths) <= sum(kind.base.depths) / arm.quicker
    random = next(arm for arm in ARMS if arm.rule == "random")
    assert find_shape(random, LARGE_PICTURES, 0) != find_shape(random, LARGE_PICTURES, 1)


def test_a_shape_found_with_a_stopwatch_is_kept_for_the_next_seed(tmp_path, monkeypatch) -> None:
    arm = next(arm for arm in ARMS if arm.quicker is not None)
    monkeypatch.setattr("collapsible.search.scaling.measure", stopwatch)
    first = ran_small_scale_arms.keep_shape(arm, LARGE_PICTURES, 0, tmp_path)

    def slower(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr("collapsible.search.scaling.measure", slower)
    assert ran_small_scale_arms.keep_shape(arm, LARGE_PICTURES, 1, tmp_path) == first


@pytest.mark.slow
def test_the_small_form_runs_and_nothing_is_trained_twice(tmp_path, monkeypatch) -> None:
    pytest.importorskip("timm")
    report = reproduce("ran/small-scale", Request(runs=tmp_path, steps=2))
    assert [row.name for row in report.sections[0].rows] == ["base", "mass", "mass-quick", "random"]
    assert all(check.holds for check in report.checks)
    assert report.settings["results"][0]["seed"] == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr("collapsible.training.train_classifier", refuse)
    again = reproduce("ran/small-scale", Request(runs=tmp_path, steps=2))
    assert again.sections[0] == report.sections[0]
    with pytest.raises(AssertionError, match="twice"):
        reproduce("ran/small-scale", Request(runs=tmp_path, steps=3))


def test_the_full_form_needs_data(tmp_path) -> None:
    with pytest.raises(UsageError, match="--data"):
        reproduce("ran/small-scale", Request(full=True, runs=tmp_path))


def decreed(name: str, *right: int) -> list[Result]:
    """An arm whose networks, a seed each, have the first so many pictures of 1,000 right."""
    macs = 1_000_000 if name in ("base", "mass-equal") else 550_000
    return [
        Result(
            arm=name,
            seed=seed,
            depths=(1,),
            dims=(4,),
            macs=macs,
            params=1,
            units=1,
            effectiveness=0.1,
            steps=1,
            pictures=PICTURES,
            hits=pack(np.arange(PICTURES) < count),
        )
        for seed, count in enumerate(right)
    ]


def test_differences_are_in_points_and_seed_by_seed() -> None:
    gap, low, high = ran_small_scale.compare(decreed("a", 710, 700), decreed("b", 700, 690))
    assert gap == pytest.approx(1.0)
    # Twenty pictures in a thousand are better by a half in the mean of two seeds.
    spread = 100 * np.sqrt(0.02 * 0.25 - 0.01**2) / np.sqrt(PICTURES)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


@pytest.mark.parametrize(("mass", "holds"), [(696, True), (694, False)])
def test_checks_follow_the_figures(mass: int, holds: bool) -> None:
    names = [arm.name for arm in ARMS]
    found = {name: decreed(name, 700, 700) for name in names}
    found["mass"] = decreed("mass", mass, mass)
    fps = {("torch", 1): 1.39, ("torch", 8): 1.5}
    speeds = {
        (160, engine, batch): dict.fromkeys(names, 10.0) | {"mass": 10.0 * ratio}
        for (engine, batch), ratio in fps.items()
    }
    request = Request(full=True)
    checks = ran_small_scale._checks(request, found, speeds, 2 * len(names))
    by_claim = {check.claim: check for check in checks}
    assert by_claim["every network was trained and measured"].holds
    loss = next(c for c in checks if c.claim.startswith("mass: at most 0.5 points"))
    assert loss.holds == holds
    assert "1.82 times fewer" in loss.claim
    assert by_claim["mass-equal: above the base at equal MACs"].holds
    speed = next(c for c in checks if c.claim.startswith("mass: at least 1.4"))
    assert not speed.holds
    assert "1.39 to 1.50" in speed.found
    assert not by_claim["mass is no worse than width at the same MACs"].holds
