"""``collapsible train``: a recipe, pictures, and a folder that the run can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.errors import require_packages

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from collapsible.training import Classification, Detection, Progress, Recipe, SuperResolution


@example(
    "collapsible train sesr-m5-x2 --data pictures/train --validate Set5=pictures/Set5/HR "
    "--out runs/m5-x2; the same with --resume goes on after a stop; "
    "collapsible train classify-imagenette160 --data imagenette160; "
    "collapsible train detect/bccd-ran-i-fpn --data BCCD --start classifier/weights.safetensors"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[
        list[Path],
        typer.Option(
            help="Folder of training pictures, searched in depth; repeatable. For a classifier "
            "one folder: class sub-folders or tar shards, also below train and val. For a "
            "detector one folder: Pascal VOC, or COCO (or its JSON file)."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/RECIPE).")
    ] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of pictures to measure on; repeatable."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from, also of a smaller scale, another depth or "
            "half the width; a detector also starts from a classifier's."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The network whose output is mixed into the targets, instead of the recipe's: a "
            "shipped one's name, or weights of a run."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unreadable pictures instead of skipping them.")
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that draw batches ahead (0: a thread).")
    ] = 0,
    cache_gb: Annotated[
        float, typer.Option(help="Decoded pictures of a classifier kept on disk, in GB.")
    ] = 4.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all).")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a network. Safe to kill: --resume goes on from the newest checkpoint."""
    from dataclasses import replace

    require_packages("training", "torch", "safetensors", "lightning", extra="train")
    import torch

    from collapsible.errors import UsageError
    from collapsible.training import Classification, Detection, read_recipe, start_fabric
    from collapsible.training import train as run
    from collapsible.training.precision import usable_precision
    from collapsible.training.recipes import UNITS

    chosen = read_recipe(recipe)
    if steps is not None:
        if steps < 1:
            raise UsageError(f"--steps {steps}: the least is 1")
        chosen = replace(chosen, steps=steps)
    if teacher is not None:
        if chosen.task != "super-resolution":
            raise UsageError(f"--teacher is for super-resolution; {chosen.name} is {chosen.task}")
        chosen = replace(chosen, teacher=replace(chosen.teacher, model=teacher))
    if workers < 0:
        raise UsageError(f"--workers {workers}: the least is 0")
    if threads is not None:
        torch.set_num_threads(threads)
    sets: dict[str, Path] = {}
    for item in validate or ():
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"--validate {item!r}: expected NAME=FOLDER")
        sets[name] = Path(folder)
    fabric = start_fabric(chosen)
    if (
        fabric.is_global_zero
        and usable_precision(chosen.precision, fabric.device.type) != chosen.precision
    ):
        complain(f"this CPU has no {chosen.precision} arithmetic: the run computes in fp32")
    with progress("decoding pictures") as update:
        task, network = _prepare(
            chosen,
            data,
            sets,
            start,
            strict=strict,
            bound=int(cache_gb * 1e9),
            on_picture=lambda done, total: update(done=done, total=total),
        )
    if fabric.is_global_zero:
        for path, reason in task.skipped:
            complain(f"left out: {path}: {reason}")
        if len(task.skipped) > 1:
            what = "pictures or boxes" if isinstance(task, Detection) else "pictures"
            complain(f"left out: {len(task.skipped)} {what} that cannot be read or used")
    unit = UNITS[chosen.task]
    with progress("training", chosen.steps) as update:

        def show(now: Progress) -> None:
            measured = "".join(f" {name} {value:.2f} {unit}" for name, value in now.metrics.items())
            state = f"loss {now.loss:.5f}{measured}"
            milestone = f"step {now.step:,} of {now.steps:,}: {state}" if now.validated else None
            update(done=now.step, description=state, milestone=milestone)

        report = run(
            network,
            task,
            task.recipe,
            out or Path("runs") / chosen.name,
            fabric=fabric,
            resume=resume,
            workers=workers,
            on_step=show,
        )
    if fabric.is_global_zero:
        if isinstance(task, Classification | Detection):
            task.describe(network, report)
        print_json(report.json()) if json else print(report.table())


def _prepare(
    recipe: Recipe,
    data: list[Path],
    sets: dict[str, Path],
    start: Path | None,
    *,
    strict: bool,
    bound: int,
    on_picture: Callable[[int, int], None],
) -> tuple[SuperResolution | Classification | Detection, nn.Module]:
    """The recipe's task on these folders, and its network."""
    from collapsible.errors import PictureError, UsageError
    from collapsible.training import (
        Classification,
        Detection,
        SuperResolution,
        build_classifier,
        build_detector,
        build_network,
    )

    if recipe.task == "detection":
        if len(data) != 1:
            raise UsageError(f"a detector is trained on one folder, not {len(data)} (--data)")
        boxed = Detection(recipe, data[0], sets, strict=strict)
        return boxed, build_detector(boxed.recipe, start)
    if recipe.task == "classification":
        if len(data) != 1:
            raise UsageError(f"a classifier is trained on one folder, not {len(data)} (--data)")
        task = Classification(
            recipe, data[0], sets, strict=strict, bound=bound, on_picture=on_picture
        )
        return task, build_classifier(task.recipe, start)
    pairs = SuperResolution(recipe, data, sets, on_picture=on_picture)
    if strict and pairs.skipped:
        raise PictureError(
            f"{len(pairs.skipped)} pictures cannot be read; the first: {pairs.skipped[0][1]}"
        )
    return pairs, build_network(recipe, start)
