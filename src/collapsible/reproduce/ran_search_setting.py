"""How large ``reproduce ran/search`` is: its two forms, and the recipes of every training in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collapsible.training import Recipe


@dataclass(frozen=True)
class Setting:
    """One form of the table.

    Networks are trained at ``side`` pixels and measured at ``test_side``; latencies are of that
    size. ``steps`` train the base, ``extra`` more train everything made of it: the searched network
    spends ``search`` of them on the search. The arms in ``every`` are made of each of ``seeds``
    bases, those in ``arms`` of the first alone. ``int8_steps`` are trained in int8 form where an
    int8 file loses more than ``worth`` points. ``calibration`` counts training pictures.
    ``targets`` are those of the int8 files; none takes ``target`` for the networks.
    """

    side: int
    test_side: int
    width: float
    batch: int
    steps: int
    search: int
    extra: int
    target: str
    targets: tuple[str, ...]
    budget: float
    seeds: int
    every: tuple[str, ...]
    arms: tuple[str, ...]
    int8_steps: int
    calibration: int
    worth: float = 0.3


SMALL = Setting(
    side=32,
    test_side=32,
    width=0.25,
    batch=24,
    steps=40,
    search=20,
    extra=40,
    target="npu-4tops",
    targets=(),
    budget=0.9,
    seeds=1,
    every=("base", "searched"),
    arms=("random-1",),
    int8_steps=4,
    calibration=8,
    worth=-100.0,
)
FULL = Setting(
    side=80,
    test_side=96,
    width=0.35,
    batch=64,
    steps=1000,
    search=100,
    extra=900,
    target="ethos-u55-256",
    targets=("ethos-u55-256", "ethos-u65-256"),
    budget=0.65,
    seeds=3,
    every=("base", "searched", "continued"),
    arms=("earliest", "random-1", "pattern-c", "pattern-gt", "from-scratch", "mobilenetv2"),
    int8_steps=60,
    calibration=32,
)
NETWORK = "ran_e_base"
RATE, TUNING_RATE, DISTIL = 3e-3, 2e-3, 0.5


def base_recipe(setting: Setting, seed: int) -> Recipe:
    """How the base is trained, and what is trained from nothing."""
    from collapsible.search.restructuring import default_recipe

    recipe = default_recipe(NETWORK, setting.side, setting.steps)
    return replace(
        recipe,
        name="base",
        network=replace(recipe.network, options={"width": setting.width, "drop_rate": 0.0}),
        data=replace(recipe.data, batch=setting.batch, test_size=setting.test_side, test_crop=1.0),
        optimiser=replace(recipe.optimiser, learning_rate=RATE),
        average=0.99,
        seed=seed,
        checkpoint_every=max(10, setting.steps // 10),
        validate_every=setting.steps,
    )


def tuning_recipe(setting: Setting, seed: int, steps: int) -> Recipe:
    """How everything is trained on that is made of a trained base."""
    recipe = base_recipe(setting, seed)
    return replace(
        recipe,
        name="tuning",
        steps=steps,
        optimiser=replace(recipe.optimiser, learning_rate=TUNING_RATE),
        average=0.98,
        checkpoint_every=max(10, steps // 4),
        validate_every=steps,
    )
