"""Put a finished run's weights among the shipped ones, with a card of what they measure.

    python tools/ship_weights.py sesr-m5-x2 --run runs/m5-x2 --sets ../shared/data/sr

RECIPE names the shipped recipe that the run followed; --sets holds Set5, Set14 and B100, whose
figures are measured by ``collapsible.evaluation`` on the very files that are written. With
--mean-with FILE what ships is the mean of the run's weights and that file's (training form). With
--calibrate FOLDER an int8 graph is made too, its ranges taken from pictures of that folder. With
--teacher-to FOLDER nothing ships: weights and card alone go there, for ``train --teacher``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from collapsible.deploy import ship, write_card
from collapsible.deploy.samples import read_crops
from collapsible.evaluation import PROTOCOL, evaluate
from collapsible.models import create_model
from collapsible.training import read_recipe
from collapsible.weights import FOLDER, Card, normalise_name

SETS = ("Set5", "Set14", "B100")
# Of how it is trained; nothing of them is left once it is collapsed.
TRAINING_OPTIONS = ("expansion", "block")
TRAINED_ON = (
    "BSDS500 train and test (400 pictures; validation, which is B100, left out), T91, McMaster "
    "(18), RealSR (16)"
)
TERMS = ": research-use photographs, not distributed with this package"
LICENCE = "weights: Apache-2.0; the training pictures have research-use terms of their own"


CARD_PROTOCOL = (
    f"{PROTOCOL}; psnr_luma: as psnr, where the picture's 8-bit luma was reduced and not rounded, "
    "as for the published tables"
)


def measure(
    model: str | Path, sets: Path, scale: int, precision: str
) -> dict[str, dict[str, float]]:
    """What a card says of each set of ``SETS`` below ``sets``."""
    figures = {}
    # ONNX Runtime computes int8 graphs as they state on every CPU (``upscaler/int8.py``).
    engine = "onnxruntime" if precision == "int8" else "auto"
    for name in SETS:
        report = evaluate(model, sets / name, scale=scale, precision=precision, engine=engine)
        figures[name] = {key: round(value, 4) for key, value in report.means.items()}
        if precision == "fp32":
            luma = evaluate(model, sets / name, scale=scale, precision=precision, low="luma")
            assert luma.psnr is not None
            figures[name]["psnr_luma"] = round(luma.psnr, 4)
        print(precision, name, figures[name])
    return figures


def measured(card: Card, sets: Path) -> Card:
    """The card with figures of the files it stands for, the int8 graph's too where there is one."""
    model = card.architecture if card.folder == FOLDER else card.safetensors_path
    figures = measure(model, sets, card.scale, "fp32")
    card = replace(card, protocol=CARD_PROTOCOL, metrics=figures)
    if not card.has_int8:
        return card
    return replace(card, metrics_int8=measure(card.architecture, sets, card.scale, "int8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--started-from", default="")
    parser.add_argument("--mean-with", type=Path, help="weights to take the mean with")
    parser.add_argument("--half", action="store_true", help="round to fp16: half the bytes")
    parser.add_argument("--also", default="", help="further training pictures, in words")
    parser.add_argument("--taught-by", default="", help="the teacher, in words")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--calibrate", type=Path)
    kind.add_argument("--teacher-to", type=Path)
    given = parser.parse_args()
    recipe = read_recipe(given.recipe)
    spec = recipe.network
    weights = given.run / "weights.safetensors"
    network = create_model(spec.name, scale=spec.scale, weights=weights, **spec.options)
    if given.mean_with is not None:
        other = create_model(spec.name, scale=spec.scale, weights=given.mean_with, **spec.options)
        with torch.no_grad():
            for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
                mine.lerp_(theirs, 0.5)
    facts = json.loads(sorted(given.run.glob("step-*"))[-1].joinpath("facts.json").read_text())
    followed = json.loads(facts["recipe"])
    # The run's own number of steps: ``train --steps`` may have given another than the recipe's.
    steps = followed["steps"]
    if followed["name"] != recipe.name or facts["step"] != steps:
        raise SystemExit(f"{given.run} did not follow {recipe.name} to its end: {facts['step']}")
    mean = ", mean of start and end" if given.mean_with else ""
    start = f", started from {given.started_from}" if given.started_from else ""
    # ``train --teacher`` may have given another than the recipe's.
    teacher = given.taught_by or followed["teacher"]["model"]
    taught = f", taught by {teacher}" if teacher else ""
    card = ship(
        network,
        architecture=normalise_name(spec.name),
        scale=spec.scale,
        folder=given.teacher_to or FOLDER,
        options={k: v for k, v in spec.options.items() if k not in TRAINING_OPTIONS},
        training_data=TRAINED_ON + (f", {given.also}" if given.also else "") + TERMS,
        recipe=f"{recipe.name}: {steps:,} steps{start}{taught}{mean}",
        licence=LICENCE,
        half=given.half,
        calibration=None if given.calibrate is None else read_crops(given.calibrate, spec.scale),
    )
    if given.teacher_to is not None:
        card.onnx_path.unlink()
        card = replace(card, sha256={"safetensors": card.sha256["safetensors"]})
    write_card(measured(card, given.sets))


if __name__ == "__main__":
    main()
