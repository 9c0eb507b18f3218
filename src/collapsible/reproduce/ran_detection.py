"""RAN-i behind a detector (arXiv 2208.08562): average precision and frames a second, two forms."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import UsageError
from collapsible.reproduce.drawn_boxes import draw_discs
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section

if TYPE_CHECKING:
    from torch import nn

    from collapsible.evaluation.boxed import BoxedPictures
    from collapsible.training import Recipe

PAPER = "RAN (arXiv 2208.08562), RAN-implicit: detection, up to 33 % more frames a second"
FORMS = ("single", "fpn")
NETWORKS = ("ran-i", "convnext")
# Side, steps and forms of the small size, whose anchors are for discs of 96 pixels.
SIDE, STEPS, SMALL_FORMS = 96, 4, ("fpn",)
ANCHORS = (12, 20, 28, 40, 60)
RATIO, LEAST = 1.33, 80.0
MEASURES = ("map", "map50", "small", "medium", "large")


def detection(request: Request) -> Reproduction:
    """Train a detector of each backbone and form, measure on the part kept for testing.

    In the full size a backbone starts from ``RUNS/classify-ran-i/weights.safetensors`` and
    ``RUNS/classify-convnext/weights.safetensors``, which have to be there.
    """
    from collapsible.evaluation.boxed import find_boxed, has_part
    from collapsible.evaluation.detection import detect_all, score_boxes
    from collapsible.models.detector import load_detector
    from collapsible.training import start_fabric, train_detector

    if request.full and request.data is None:
        raise UsageError("--data is needed for the full size: a folder such as BCCD")
    seeds = request.seeds or 1
    runs = request.runs / f"ran-detection-{request.form}"
    data = (request.full and request.data) or draw_discs(runs / "pictures", SIDE)
    part = "test" if has_part(data, "test") else "val"
    rows, ratios, maps = [], {}, {}
    best = 0.0
    for form in FORMS if request.full else SMALL_FORMS:
        pair: dict[str, nn.Module] = {}
        held: dict[str, BoxedPictures] = {}
        scores: dict[str, list[dict[str, float | None]]] = {}
        for name, seed in product(NETWORKS, range(seeds)):
            recipe = replace(_recipe(name, form, request), seed=seed)
            what = f"{name} {form}"
            report, _ = train_detector(
                recipe,
                data,
                runs / f"{name}-{form}-{seed}",
                start=_start(request, name),
                resume=True,
                fabric=start_fabric(recipe, "auto" if request.full else "cpu"),
                on_step=lambda now, what=f"{what} {seed}": request.on_progress(
                    now.step, now.steps, f"{what} loss {now.loss:.3f}"
                ),
            )
            # Seeds are as quick as each other: the last one is timed.
            pair[what], card = load_detector(report.weights)
            held[what] = find_boxed(data, part, card.classes)
            found = score_boxes(held[what], detect_all(pair[what], held[what]))
            scores.setdefault(what, []).append({key: getattr(found, key) for key in MEASURES})
        seconds = time_pair(pair, next(iter(held.values())), rounds=15 if request.full else 1)
        for what, network in pair.items():
            values = {key: _mean([one[key] for one in scores[what]]) for key in MEASURES}
            maps[what] = values["map"] or 0.0
            best = max(best, values["map50"] or 0.0)
            each = ", ".join(f"{one['map'] or 0:.2f}" for one in scores[what])
            rows.append(
                Row(
                    what,
                    "measured",
                    f"{len(held[what])} pictures of {part}; {seeds} seed(s): {each}; "
                    "pairs timed in turn, torch fp32",
                    {
                        **values,
                        "parameters": sum(p.numel() for p in network.parameters()) / 1e6,
                        "fps": 1 / seconds[what],
                    },
                )
            )
        ratios[form] = seconds[f"convnext {form}"] / seconds[f"ran-i {form}"]
    return Reproduction(
        "ran/detection",
        "Faster R-CNN behind RAN-i and behind a ConvNeXt",
        PAPER,
        request.form,
        (
            Section(
                f"Detectors, {part} pictures, means over seeds",
                (
                    Column("map", "mAP %", ".2f"),
                    Column("map50", "mAP50 %", ".2f"),
                    Column("small", "small", ".2f"),
                    Column("medium", "medium", ".2f"),
                    Column("large", "large", ".2f"),
                    Column("parameters", "Mparams", ".2f"),
                    Column("fps", "frames/s", ".2f"),
                ),
                tuple(rows),
            ),
        ),
        checks=_checks(request, maps, ratios, best),
        notes=(
            "The small form shows that the chain runs; its figures say nothing of the networks."
            if not request.full
            else "Backbones start from classifiers, one for all seeds; same recipe for both.",
        ),
        settings={"ratios": ratios, "seeds": seeds, "runs": str(runs)},
    )


def _checks(
    request: Request, maps: dict[str, float], ratios: dict[str, float], best: float
) -> tuple[Check, ...]:
    if not request.full:
        count = len(maps)
        return (Check("every detector was trained and measured", count == 2, f"{count} of 2"),)
    found = [
        Check(
            f"{form}: mAP at least the ConvNeXt's at {RATIO} times the frames a second",
            maps[f"ran-i {form}"] >= maps[f"convnext {form}"] and ratio >= RATIO,
            f"{maps[f'ran-i {form}']:.2f} and {maps[f'convnext {form}']:.2f} %, {ratio:.2f} times",
        )
        for form, ratio in ratios.items()
    ]
    return (
        *found,
        Check(f"mAP50 of the best is at least {LEAST:g} %", best >= LEAST, f"{best:.2f} %"),
    )


def _recipe(name: str, form: str, request: Request) -> Recipe:
    from collapsible.training import read_recipe

    recipe = read_recipe(f"detect/bccd-{name}-{form}")
    if request.full:
        return replace(recipe, steps=request.steps or recipe.steps)
    steps = request.steps or STEPS
    options: dict[str, Any] = {**recipe.network.options, "max_size": SIDE, "anchors": list(ANCHORS)}
    return replace(
        recipe,
        steps=steps,
        validate_every=steps,
        network=replace(recipe.network, options=options),
        data=replace(recipe.data, size=SIDE, batch=2),
    )


def _start(request: Request, name: str) -> Path | None:
    if not request.full:
        return None
    path = request.runs / f"classify-{name}" / "weights.safetensors"
    if not path.is_file():
        raise UsageError(f"the backbone starts from a classifier: no weights at {path}")
    return path


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def time_pair(
    networks: dict[str, nn.Module], pictures: BoxedPictures, rounds: int, count: int = 4
) -> dict[str, float]:
    """Median seconds a picture of each network, measured in turn so that load meets all alike."""
    import torch

    from collapsible.models.detector import to_input

    inputs = [to_input(picture.read()) for picture in pictures.pictures[:count]]
    taken: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode():
        for network in networks.values():
            network([inputs[0]])
        for _ in range(rounds):
            for picture in inputs:
                for name, network in networks.items():
                    begin = time.perf_counter()
                    network([picture])
                    taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}
