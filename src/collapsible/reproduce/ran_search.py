"""The RAN-e search (arXiv 2208.08562) from end to end; the paper's own was never published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import UsageError
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Kind, Reproduction, Row, Section

if TYPE_CHECKING:
    from collapsible.training import Recipe

PAPER = "RAN (arXiv 2208.08562), RAN-explicit"
EXACT = 1e-9
# (side of the pictures, width of the network, batch, steps of the base, target, budget)
SMALL = (32, 0.25, 24, 40, "npu-4tops", 0.9)
FULL = (160, 0.5, 64, 6000, "ethos-u55-256", 0.6)
CLASSES = ("checks", "rings", "stripes")
PICTURES = {"train": 40, "val": 16}


def search(request: Request) -> Reproduction:
    """Train a base, search under a budget, fine-tune, collapse; every step of it really done."""
    import torch

    from collapsible.models.registry import load_weights
    from collapsible.models.trained import create_classifier
    from collapsible.search.restructure import Restructuring
    from collapsible.search.restructure_report import RestructureSpec
    from collapsible.training import Classification, start_fabric, train

    side, width, batch, steps, target, budget = FULL if request.full else SMALL
    steps = request.steps or steps
    runs = request.runs / f"ran-search-{request.form}"
    if request.full and request.data is None:
        raise UsageError("--data is needed for the full size: a folder such as imagenette160")
    if request.seeds not in (None, 1):
        raise UsageError(
            f"seeds={request.seeds}: ran/search trains one; run it again in other --runs"
        )
    data = request.data or draw_pictures(runs / "pictures", side)
    recipe = _recipe(side, batch, steps, {"width": width})
    torch.manual_seed(recipe.seed)
    task = Classification(recipe, data)
    recipe, count = task.recipe, len(task.pictures.classes)
    network = create_classifier("ran_e_base", count, width=width, drop_rate=0.0)
    fabric = start_fabric(recipe, "auto" if request.full else "cpu")

    def show(phase: str, done: int, total: int, note: str) -> None:
        request.on_progress(done, total, f"{phase} {note}".strip())

    trained = train(
        network,
        task,
        recipe,
        runs / "base",
        fabric=fabric,
        resume=True,
        on_step=lambda now: show("base", now.step, now.steps, f"loss {now.loss:.3f}"),
    )
    load_weights(network, trained.weights)
    job = Restructuring(
        network.cpu(),
        task,
        target,
        folder=runs / "ran-e",
        spec=RestructureSpec(search_steps=max(1, steps // 2)),
        input_size=(1, 3, side, side),
        resume=True,
        fabric=fabric,
        on_progress=show,
    )
    plan = job.make_plan(budget)
    _, report = job.finish(plan)
    source = plan.source.partition(": ")[2] or plan.source
    kind: Kind = "measured" if plan.source.startswith("measured") else "estimated"
    rows = []
    for name, ms, macs, parameters, metrics in (
        (
            "base",
            report.before_ms,
            report.macs_before,
            report.parameters_before,
            report.metrics_before,
        ),
        ("searched", report.after_ms, report.macs_after, report.parameters_after, None),
    ):
        top = (report.metrics_after if metrics is None else metrics).get("val/top1")
        rows.append(
            Row(
                name,
                kind,
                f"latency: {source} for {target}; top-1 measured in fp32",
                {"ms": ms, "macs": macs / 1e6, "parameters": parameters / 1e3, "top1": top},
            )
        )
    blocks = [
        Row(
            block.name,
            kind,
            f"{block.shape}, {block.form}",
            {
                "keep": 1e3 * block.keep_ms,
                "dense": None if block.dense_ms is None else 1e3 * block.dense_ms,
                "importance": block.importance,
            },
        )
        for block in plan.blocks
    ]
    checks = (
        Check(
            "the plan keeps the budget",
            plan.after_ms <= plan.budget_ms * (1 + 1e-9),
            f"{plan.after_ms:.4g} ms of {plan.budget_ms:.4g} ms ({budget:g} of the base)",
        ),
        Check(
            "the collapsed network is the trained one, borders included",
            report.collapse_error < EXACT * max(1.0, report.output_range),
            f"they differ by {report.collapse_error:.1e} in float64",
        ),
        Check(
            "fewer blocks have inner activations, and the network is faster",
            bool(plan.dense) and (report.after_ms or 0) < (report.before_ms or 0),
            f"{len(plan.dense)} of {len(plan.blocks)} blocks dense",
        ),
    )
    notes = (
        "The small form shows that the chain runs; its accuracies say nothing of the method.",
        "Seconds spent: "
        + ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items()),
        f"Plan, checkpoints and the report: {runs / 'ran-e'}",
    )
    return Reproduction(
        "ran/search",
        "A base network and what the search makes of it",
        PAPER,
        request.form,
        (
            Section(
                f"Whole networks, {side}x{side}",
                (
                    Column("ms", "ms", ".4f"),
                    Column("macs", "MMACs", ".2f"),
                    Column("parameters", "kparams", ".1f"),
                    Column("top1", "top-1 %", ".2f"),
                ),
                tuple(rows),
            ),
            Section(
                "Blocks, each alone",
                (
                    Column("keep", "keep us", ".2f"),
                    Column("dense", "dense us", ".2f"),
                    Column("importance", "importance", ".5f"),
                ),
                tuple(blocks),
            ),
        ),
        checks=checks,
        notes=notes,
    )


def _recipe(side: int, batch: int, steps: int, options: dict[str, Any]) -> Recipe:
    from collapsible.search.restructure import default_recipe
    from collapsible.training.recipes import NetworkSpec

    recipe = default_recipe("ran_e_base", side, steps)
    return replace(
        recipe,
        network=NetworkSpec("ran_e_base", options={**options, "drop_rate": 0.0}),
        data=replace(recipe.data, batch=batch, test_crop=1.0),
        checkpoint_every=max(10, steps // 20),
        validate_every=steps,
    )


def draw_pictures(folder: Path, side: int) -> Path:
    """Noisy checks, rings and stripes in colour, train and val, the same each time."""
    import numpy as np

    from collapsible.imaging import write_picture

    done = folder / "done.json"
    if done.is_file():
        return folder
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for part, count in PICTURES.items():
        for label, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                period, angle = random.uniform(3, 6), random.uniform(0, np.pi)
                cy, cx = random.uniform(side / 4, 3 * side / 4, 2)
                turn = 2 * np.pi / period
                along = x * np.cos(angle) + y * np.sin(angle)
                across = y * np.cos(angle) - x * np.sin(angle)
                wave = (
                    np.sign(np.sin(turn * along) * np.sin(turn * across)),
                    np.sin(turn * np.hypot(x - cx, y - cy)),
                    np.sin(turn * along),
                )[label]
                colour = 128 + 60 * wave[..., None] * random.uniform(0.5, 1, 3)
                noisy = colour + random.normal(0, 20, (side, side, 3))
                write_picture(
                    folder / part / name / f"{number:03}.png",
                    np.clip(noisy, 0, 255).astype(np.uint8),
                )
    done.write_text(json.dumps(PICTURES))
    return folder
