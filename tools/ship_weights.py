"""Put a finished run's weights among the shipped ones, with a card of what they measure.

    python tools/ship_weights.py sesr-m5-x2 --run runs/m5-x2 --sets ../shared/data/sr

RECIPE names the shipped recipe that the run followed; --sets holds Set5, Set14 and B100, whose
figures are measured by ``collapsible.evaluation`` on the very files that are written.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from collapsible.deploy import ship
from collapsible.evaluation import PROTOCOL, evaluate
from collapsible.imaging import atomic_write
from collapsible.models import create_model
from collapsible.training import read_recipe
from collapsible.weights import FOLDER, normalise_name

SETS = ("Set5", "Set14", "B100")
TRAINED_ON = (
    "BSDS500 train and test (400 pictures; validation, which is B100, left out), T91, McMaster "
    "(18), RealSR (16): research-use photographs, not distributed with this package"
)
LICENCE = "weights: Apache-2.0; the training pictures have research-use terms of their own"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--started-from", default="")
    given = parser.parse_args()
    recipe = read_recipe(given.recipe)
    spec = recipe.network
    weights = given.run / "weights.safetensors"
    network = create_model(spec.name, scale=spec.scale, weights=weights, **spec.options)
    facts = json.loads(sorted(given.run.glob("step-*"))[-1].joinpath("facts.json").read_text())
    followed = json.loads(facts["recipe"])
    if followed["name"] != recipe.name or facts["step"] != recipe.steps:
        raise SystemExit(f"{given.run} did not follow {recipe.name} to its end: {facts['step']}")
    start = f", started from {given.started_from}" if given.started_from else ""
    card = ship(
        network,
        architecture=normalise_name(spec.name),
        scale=spec.scale,
        options={k: v for k, v in spec.options.items() if k != "expansion"},
        training_data=TRAINED_ON,
        recipe=f"{recipe.name}: {recipe.steps:,} steps{start}",
        protocol=PROTOCOL,
        licence=LICENCE,
    )
    metrics = {}
    for name in SETS:
        folder = given.sets / name
        report = evaluate(spec.name, folder, scale=spec.scale, precision="fp32")
        metrics[name] = {key: round(value, 4) for key, value in report.means.items()}
        print(name, metrics[name])
    card = replace(card, metrics=metrics)
    with atomic_write(FOLDER / f"{card.stem}.json") as stream:
        stream.write(card.to_json().encode())


if __name__ == "__main__":
    main()
