"""``collapsible train``: a recipe, pictures, and a folder that the run can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.errors import require_packages

if TYPE_CHECKING:
    from collapsible.training import Progress


@example(
    "collapsible train sesr-m5-x2 --data pictures/train --validate Set5=pictures/Set5/HR "
    "--out runs/m5-x2; the same with --resume goes on after a stop"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Annotated[
        list[Path], typer.Option(help="Folder of training pictures, searched in depth; repeatable.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/RECIPE).")
    ] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of pictures to measure PSNR on; repeatable."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights to start from, also of a smaller scale.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all).")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a network. Safe to kill: --resume goes on from the newest checkpoint."""
    from dataclasses import replace

    require_packages("training", "torch", "safetensors", extra="train")
    import torch

    from collapsible.errors import UsageError
    from collapsible.training import (
        SuperResolution,
        build_network,
        read_recipe,
        start_fabric,
    )
    from collapsible.training import train as run

    chosen = read_recipe(recipe)
    if steps is not None:
        if steps < 1:
            raise UsageError(f"--steps {steps}: the least is 1")
        chosen = replace(chosen, steps=steps)
    if threads is not None:
        torch.set_num_threads(threads)
    sets: dict[str, Path] = {}
    for item in validate or ():
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise UsageError(f"--validate {item!r}: expected NAME=FOLDER")
        sets[name] = Path(folder)
    fabric = start_fabric(chosen)
    with progress("decoding pictures") as update:
        task = SuperResolution(
            chosen, data, sets, on_picture=lambda done, total: update(done=done, total=total)
        )
    if fabric.is_global_zero:
        for path, reason in task.skipped:
            complain(f"left out: {path}: {reason}")
    network = build_network(chosen, start)
    with progress("training", chosen.steps) as update:

        def show(now: Progress) -> None:
            measured = " ".join(f"{name} {value:.2f} dB" for name, value in now.metrics.items())
            update(done=now.step, description=f"loss {now.loss:.5f} {measured}")

        folder = out or Path("runs") / chosen.name
        report = run(network, task, chosen, folder, fabric=fabric, resume=resume, on_step=show)
    if fabric.is_global_zero:
        print_json(report.json()) if json else print(report.table())
