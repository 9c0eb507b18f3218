"""Which linear block and which residual buys what (SESR, section 5's ablation)."""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collapsible.errors import TrainingError, UsageError
from collapsible.folding import collapse
from collapsible.imaging import atomic_write, write_picture
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Reproduction, Row, Section
from collapsible.training import (
    Recipe,
    SuperResolution,
    build_network,
    read_recipe,
    start_fabric,
    train,
)

PAPER = "SESR (arXiv 2103.09404), section 5, ablation"
# Glorot's uniform rule on both layers (256 channels between 16 and 16, the default of the
# authors' framework) gives the collapsed kernel this gain: sqrt(256 * 16 * (2 / 272)^2).
GLOROT_GAIN = 16 * 4 * 2 / 272


@dataclass(frozen=True)
class Variant:
    """A network of the comparison: its name and what it changes in SESR's options."""

    name: str
    options: dict[str, Any]


VARIANTS = (
    Variant("SESR", {}),
    Variant("RepVGG-like", {"block": "repvgg"}),
    Variant("plain", {"block": "plain"}),
    Variant("ExpandNet-like", {"block": "expandnet"}),
    Variant("ExpandNet-like, Glorot", {"block": "expandnet", "block_gain": GLOROT_GAIN}),
    Variant("SESR, no long residual", {"long_residual": False}),
    Variant("SESR, no input residual", {"input_residual": False}),
    Variant(
        "ExpandNet-like, Glorot, no long residual",
        {"block": "expandnet", "block_gain": GLOROT_GAIN, "long_residual": False},
    ),
)
# DIV2K x2 at M11's size, dB.
PUBLISHED = {"SESR": 35.45, "RepVGG-like": 35.35, "plain": 35.34, "ExpandNet-like": 33.65}


def ablation(request: Request) -> Reproduction:
    """Train each variant from each seed by one recipe, and compare by seed.

    Every run is kept below ``request.runs``; one that is there already, whole or in part, is not
    done again. Raises ``UsageError`` for data without the folders it needs; a run whose loss is
    no longer finite has no figure, and its row says so.
    """
    seeds = request.seeds or (3 if request.full else 2)
    recipe = plan(request)
    if request.data is None:
        pictures, sets = draw_pictures(request.runs / "sesr-ablation" / "drawn")
        origin = "pictures drawn by the command"
    else:
        pictures, sets = _folders(request.data, request.full)
        origin = f"{pictures.name} of {request.data.name}, measured on {', '.join(sets)}"
    found = _train_all(request, recipe, pictures, sets, range(seeds), origin)
    return _report(request, recipe, found, sets, seeds, origin)


def plan(request: Request) -> Recipe:
    """The recipe that all variants share: that of SESR-M5 x2, M11 at full size, M3 in small."""
    base = read_recipe("sesr-m5-x2")
    if request.full:
        recipe = replace(base, network=replace(base.network, name="sesr_m11"))
    else:
        recipe = replace(
            base,
            network=replace(base.network, name="sesr_m3"),
            steps=60,
            precision="fp32",
            average=0.9,
            data=replace(base.data, patch=24, batch=8, rescale=(1.0,)),
        )
    steps = request.steps or recipe.steps
    return replace(
        recipe,
        name="sesr-ablation",
        about="",
        steps=steps,
        validate_every=steps,
        log_every=max(1, steps // 20),
        checkpoint_every=min(steps, 500),
    )


def _folders(data: Path, full: bool) -> tuple[Path, dict[str, Path]]:
    """Where to learn and where to measure; the small form takes the 91 small pictures if there."""
    pictures = data / "train"
    if not full and (data / "train" / "T91").is_dir():
        pictures = data / "train" / "T91"
    wanted = ("Set5", "Set14", "B100") if full else ("Set5",)
    sets = {name: data / name / "HR" for name in wanted if (data / name / "HR").is_dir()}
    if not pictures.is_dir() or not sets:
        raise UsageError(
            f"{data}: expected training pictures in train and a test set such as Set5/HR"
        )
    return pictures, sets


def draw_pictures(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Discs, edges and waves of all sizes, for where no photographs are given; the same each time.

    Writes eight pictures to learn from and two others to measure on; returns their folders.
    """
    for part, seeds in (("train", range(8)), ("test", range(8, 10))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            path = folder / part / f"{seed}.png"
            # Those of an earlier run stay, and with them what was decoded from them.
            if not path.is_file():
                write_picture(path, _picture(seed)[..., None])
    return folder / "train", {"drawn": folder / "test"}


def _picture(seed: int, size: int = 128) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    canvas = np.full((size, size), 128.0)
    for _ in range(40):
        angle, period = random.uniform(0, np.pi), random.uniform(1.5, 30)
        along = x * np.cos(angle) + y * np.sin(angle)
        cy, cx = random.uniform(0, size, 2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < random.uniform(3, size / 3) ** 2
        canvas += inside * (random.normal(0, 40) + random.normal(0, 15) * np.sin(along / period))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _train_all(
    request: Request,
    recipe: Recipe,
    pictures: Path,
    sets: dict[str, Path],
    seeds: range,
    origin: str,
) -> dict[str, list[dict[str, float] | None]]:
    """PSNR in dB by variant, seed and set; None for a run that diverged."""
    total = len(VARIANTS) * len(seeds) * recipe.steps
    done = 0
    found: dict[str, list[dict[str, float] | None]] = {v.name: [] for v in VARIANTS}
    for seed in seeds:
        # Batches are functions of the recipe's seed and the step: one task serves all variants.
        task: SuperResolution | None = None
        for variant in VARIANTS:
            options = {**recipe.network.options, **variant.options}
            own = replace(recipe, seed=seed, network=replace(recipe.network, options=options))
            folder = request.runs / "sesr-ablation" / _key(own, origin)
            scores = _finished(folder)
            if scores is None:
                task = task or SuperResolution(own, [pictures], sets)
                label = f"{variant.name}, seed {seed}"
                scores = _train_one(own, task, folder, request, done, total, label)
            found[variant.name].append(scores or None)
            done += recipe.steps
            request.on_progress(done, total, variant.name)
    return found


def _key(recipe: Recipe, origin: str) -> str:
    """A folder's name for a run: what it is in short, and a digest of all that decides it."""
    described = json.dumps([asdict(recipe), origin], sort_keys=True)
    options = recipe.network.options
    left_out = [k.partition("_")[0] for k, v in sorted(options.items()) if v is False]
    parts = [recipe.network.name, str(options.get("block", "sesr")), *(f"no-{n}" for n in left_out)]
    return "-".join([*parts, f"s{recipe.seed}", hashlib.sha256(described.encode()).hexdigest()[:8]])


def _finished(folder: Path) -> dict[str, float] | None:
    """The figures of a run that is done: empty where it diverged, None where it is not done."""
    try:
        return json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'result.json'} is not a run's result: {error}") from None


def _train_one(
    recipe: Recipe,
    task: SuperResolution,
    folder: Path,
    request: Request,
    before: int,
    total: int,
    label: str,
) -> dict[str, float]:
    network = build_network(recipe)
    try:
        report = train(
            network,
            task,
            recipe,
            folder,
            fabric=start_fabric(recipe),
            resume=True,
            on_step=lambda now: request.on_progress(before + now.step, total, label),
        )
        # A run that was stopped between its last checkpoint and its result measures nothing.
        scores = report.metrics or task.validate(_averaged(recipe, report.weights))
    except TrainingError:
        scores = {}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "result.json") as file:
        file.write(json.dumps(scores).encode())
    return scores


def _averaged(recipe: Recipe, weights: Path) -> torch.nn.Module:
    return build_network(recipe, weights)


def _report(
    request: Request,
    recipe: Recipe,
    found: dict[str, list[dict[str, float] | None]],
    sets: dict[str, Path],
    seeds: int,
    origin: str,
) -> Reproduction:
    rows = []
    for variant in VARIANTS:
        values: dict[str, float | int | None] = {
            **_parameters(recipe, variant),
            "seeds": sum(scores is not None for scores in found[variant.name]),
        }
        for name in sets:
            own, reference = (
                [None if scores is None else scores[name] for scores in found[which]]
                for which in (variant.name, "SESR")
            )
            values |= _summary(name, own, reference)
        rows.append(Row(variant.name, "measured", f"{seeds} seeds", values))
    columns = [Column("params", "weights", ","), Column("trained", "trained", ",")]
    for name in sets:
        columns += [
            Column(name, f"{name} dB", ".3f"),
            Column(f"{name} spread", "spread", ".3f"),
            Column(f"{name} over SESR", "over SESR", "+.3f"),
            Column(f"{name} over SESR spread", "spread", ".3f"),
        ]
    published = tuple(
        Row(
            name,
            "published",
            "as recalled, not verified",
            {"DIV2K": value, "over": value - PUBLISHED["SESR"]},
        )
        for name, value in PUBLISHED.items()
    )
    about = f"{recipe.network.name.replace('_', '-')} x2, {recipe.steps:,} steps, {origin}"
    return Reproduction(
        "sesr/ablation",
        "linear blocks and residuals, same recipe and seeds",
        PAPER,
        request.form,
        (
            Section(f"Ours: {about}", tuple(columns), tuple(rows)),
            Section(
                "The paper's: M11's size, DIV2K x2",
                (Column("DIV2K", "DIV2K dB", ".2f"), Column("over", "over SESR", "+.2f")),
                published,
            ),
        ),
        tuple(_checks(rows, next(iter(sets)))),
        (
            "spread: standard deviation over the seeds (n - 1); 'over SESR' is the mean difference "
            "to SESR of the same seed, which saw the same batches, with the spread of that.",
            "weights: convolution kernels once collapsed, equal for all; trained: all parameters.",
            f"Glorot: the m blocks start with the gain {GLOROT_GAIN:.2f} that Glorot's rule gives "
            "two layers of 16-256-16 channels, so that signals shrink from block to block.",
        ),
        {"seeds": seeds, "recipe": asdict(recipe), "data": origin},
    )


def _parameters(recipe: Recipe, variant: Variant) -> dict[str, int]:
    options = {**recipe.network.options, **variant.options}
    network = build_network(replace(recipe, network=replace(recipe.network, options=options)))
    narrow, _ = collapse(network)
    return {
        "params": sum(p.numel() for p in narrow.parameters() if p.ndim == 4),
        "trained": sum(p.numel() for p in network.parameters()),
    }


def _summary(
    name: str, own: list[float | None], reference: list[float | None]
) -> dict[str, float | None]:
    """Mean and spread over the seeds, and of the differences to the reference's same seeds."""
    there = [value for value in own if value is not None]
    over = [a - b for a, b in zip(own, reference, strict=True) if a is not None and b is not None]
    return {
        name: statistics.mean(there) if there else None,
        f"{name} spread": statistics.stdev(there) if len(there) > 1 else None,
        f"{name} over SESR": statistics.mean(over) if over else None,
        f"{name} over SESR spread": statistics.stdev(over) if len(over) > 1 else None,
    }


def _checks(rows: list[Row], name: str) -> list[Check]:
    """The paper's order, on the first test set; a difference within its spread proves nothing."""
    values = {row.name: row.values for row in rows}
    claims = [
        ("SESR is better than the RepVGG-like network", "RepVGG-like"),
        ("SESR is better than the plain network", "plain"),
        ("SESR is better than the ExpandNet-like one", "ExpandNet-like"),
        (
            "SESR is better than the ExpandNet-like one from Glorot's start",
            "ExpandNet-like, Glorot",
        ),
        ("The long residual helps SESR", "SESR, no long residual"),
        ("The input residual helps SESR", "SESR, no input residual"),
    ]
    checks = []
    for claim, other in claims:
        over, spread = (values[other][f"{name} over SESR{end}"] for end in ("", " spread"))
        if not isinstance(over, float):
            checks.append(Check(claim, False, "no run of both came to an end"))
        elif not isinstance(spread, float):
            checks.append(Check(claim, False, f"{over:+.3f} dB on {name}; one seed tells nothing"))
        else:
            found = f"{over:+.3f} dB over SESR on {name}, spread {spread:.3f}"
            checks.append(Check(claim, over < -spread, found))
    return checks
