"""Recipes are read strictly: what nobody knows is an error that names the nearest."""

from __future__ import annotations

import itertools

import pytest

from collapsible.errors import UnknownNameError, UsageError
from collapsible.models import create_detector, create_model
from collapsible.training.loop import learning_rate
from collapsible.training.recipes import ScheduleSpec, list_recipes, parse_recipe, read_recipe

LEAST = {
    "name": "n",
    "task": "super-resolution",
    "steps": 10,
    "network": {"name": "sesr_m5"},
}


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_reads_and_builds(name):
    recipe = read_recipe(name)
    network = recipe.network
    if recipe.task == "detection":
        options = {**network.options, "classes": 3}
        assert create_detector(network.name, size=recipe.data.size, **options) is not None
    else:
        assert create_model(network.name, scale=network.scale, **network.options) is not None
    assert recipe.name == name


def test_defaults_and_numbers():
    recipe = parse_recipe({**LEAST, "average": 0, "data": {"rescale": [1, 0.5]}})
    assert recipe.average == 0.0
    assert recipe.data.rescale == (1.0, 0.5)
    assert recipe.optimiser.kind == "adam"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "unknown key stepz: did you mean steps"),
        ({"data": {"pach": 3}}, r"unknown key data\.pach: did you mean data\.patch"),
        ({"steps": "many"}, "steps: expected int, got 'many'"),
        ({"steps": True}, "steps: expected int, got True"),
        ({"steps": 0}, "steps = 0: the least is 1"),
        ({"data": 3}, "data: expected a table"),
        ({"data": {"rescale": 1.0}}, r"data\.rescale: expected a list"),
        ({"data": {"rescale": [1.5]}}, r"factors in \(0, 1\]"),
        ({"data": {"crop": 40}}, "leaves nothing"),
        ({"loss": "l3"}, "loss = 'l3': known are l1, l2, charbonnier, psnr"),
        ({"precision": "fp8"}, "known are fp32, bf16"),
        ({"optimiser": {"kind": "sgdd"}}, "known are adam, adamw"),
        ({"optimiser": {"kind": "soap", "amsgrad": True}}, "not for soap"),
        ({"average": 1.0}, "it must be below 1"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe({**LEAST, **change})


def test_missing_keys_are_named():
    with pytest.raises(UsageError, match="missing key steps"):
        parse_recipe({k: v for k, v in LEAST.items() if k != "steps"})


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'sesr-m5-x2'"):
        read_recipe("sesr-m5-x2b")
    with pytest.raises(UsageError, match="cannot read recipe"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(UsageError, match=r"bad\.toml is not a TOML recipe"):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_schedules_warm_up_to_the_peak_and_end_where_told(kind):
    schedule = ScheduleSpec(kind=kind, warmup=0.1, final=0.05)
    rates = [learning_rate(step, 1000, 2.0, schedule) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) <= 100
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
    assert rates[-1] == pytest.approx(2.0 if kind == "constant" else 0.1, abs=0.01)
