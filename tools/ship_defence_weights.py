"""Put finished runs of networks on RGB among the defence laboratory's weights, each with a card.

    python tools/ship_defence_weights.py runs/sesr-m2-rgb runs/edsr-rgb --sets ../shared/data/sr

Each RUN followed one of the shipped recipes ``*-rgb-x2``. What is written is collapsed, EDSR in
half precision; --sets holds Set5, Set14 and B100, on whose Y the very files written are measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from collapsible.blocks import CollapsibleConv2d
from collapsible.deploy.ship import count_weights
from collapsible.evaluation.measure import evaluate_luma
from collapsible.evaluation.networks import luma_function
from collapsible.evaluation.pairs import find_pairs, read_pair
from collapsible.folding import collapse
from collapsible.imaging import atomic_write
from collapsible.models import create_model
from collapsible.models.registry import save_weights
from collapsible.training import read_recipe
from collapsible.weights import Card, sha256

FOLDER = Path(__file__).parents[1] / "src" / "collapsible" / "defence" / "weights"
SETS = ("Set5", "Set14", "B100")
TRAINED_ON = (
    "BSDS500 train and test (400 pictures; validation, which is B100, left out), T91, McMaster "
    "(18), RealSR (16): research-use photographs, not distributed with this package"
)
LICENCE = "weights: Apache-2.0; the training pictures have research-use terms of their own"
PROTOCOL = (
    "PSNR (dB, peak 255) on Y (BT.601 studio range, unrounded) of the network's RGB, borders "
    "cropped by the scale, mean over pictures"
)
# Above this many weights half precision: it halves the file and moves PSNR by less than 0.01 dB.
HALF_FROM = 1_000_000


def ship(run: Path, sets: Path) -> None:
    facts = json.loads(sorted(run.glob("step-*"))[-1].joinpath("facts.json").read_text())
    recipe = read_recipe(json.loads(facts["recipe"])["name"])
    if facts["step"] != recipe.steps:
        raise SystemExit(f"{run} stopped at {facts['step']} of {recipe.steps} steps")
    spec = recipe.network
    weights = run / "weights.safetensors"
    network = create_model(spec.name, scale=spec.scale, weights=weights, **spec.options)
    if any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    path = FOLDER / f"{spec.name}_rgb_x{spec.scale}.safetensors"
    FOLDER.mkdir(exist_ok=True)
    if count_weights(network) > HALF_FROM:
        network = network.half()
    save_weights(network, path)
    network = network.float()
    metrics = measure(network, sets, spec.scale)
    card = Card(
        architecture=spec.name,
        scale=spec.scale,
        parameters=count_weights(network),
        receptive_radius=int(network.receptive_radius),
        options={key: value for key, value in spec.options.items() if key != "expansion"},
        training_data=TRAINED_ON,
        recipe=f"{recipe.name}: {recipe.steps:,} steps",
        protocol=PROTOCOL,
        metrics=metrics,
        sha256={"safetensors": sha256(path)},
        licence=LICENCE,
        folder=FOLDER,
    )
    write(card, path.with_suffix(".json"))


def write(card: Card, path: Path) -> None:
    with atomic_write(path) as stream:
        stream.write(card.to_json().encode())
    print(path.stem, card.parameters, card.metrics)


def measure(network: torch.nn.Module, sets: Path, scale: int) -> dict[str, dict[str, float]]:
    """What a card says of each set of ``SETS`` below ``sets``."""
    metrics: dict[str, dict[str, float]] = {}
    for name in SETS:
        pairs = [read_pair(high, low, scale) for high, low in find_pairs(sets / name, scale)]
        scores = evaluate_luma(luma_function(network), pairs, scale)
        metrics[name] = {"psnr": round(float(np.mean([value for value, _ in scores])), 3)}
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--sets", type=Path, required=True)
    given = parser.parse_args()
    for run in given.runs:
        ship(run, given.sets)


if __name__ == "__main__":
    main()
