"""``collapsible search``: networks that keep only the bends they need, for a target."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.cli.networks import read_size
from collapsible.errors import UsageError, require_packages

if TYPE_CHECKING:
    from torch import nn

    from collapsible.search.trials import TrialSetup
    from collapsible.training import Recipe


@example(
    "collapsible search ran-e runs/base/weights.safetensors --data imagenette160 "
    "--target ethos-u55-256 --budget 0.6 --plan plan.toml --out runs/ran-e; edit plan.toml and "
    "ask again with --resume to build what it says"
)
def ran_e(
    network: Annotated[
        str,
        typer.Argument(
            help="A trained classifier's weights with their card, or a network's name: "
            "ran-e-base, timm:NAME."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder of labelled pictures: CLASS/*.jpg, also below train, val.")
    ],
    target: Annotated[
        str, typer.Option(help="Chip, as ethos-u55-256; host measures this machine.")
    ] = "ethos-u55-256",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Share of the network's latency, as 0.6, or milliseconds, as 4.5ms. Several with "
            "commas are trials, each in a folder of its own in OUT."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trials of each budget, with seeds from 0.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Do the trials on the Ray cluster at hand.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="The plan: written there by the search [default: OUT/plan.toml]; one that is "
            "there already is followed, and nothing is searched."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/ran-e"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a network given by name.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Classification recipe: how to train (name or TOML file).")
    ] = None,
    search_steps: Annotated[int, typer.Option(help="Steps of the search.")] = 1000,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the fine-tuning [default: the recipe's, or 2000].")
    ] = None,
    distil: Annotated[
        float | None,
        typer.Option(help="Share of the loss that is learning from the original [default: 0.5]."),
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(help="What latencies are of, as 1,3,160,160.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="End once the plan is written.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Write OUT/network.tflite in int8 too, and measure its accuracy."
        ),
    ] = False,
    int8_steps: Annotated[
        int, typer.Option(help="Steps of training in int8 form before that file is written.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all).")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuse inverted bottlenecks or make them dense, where that costs little and the target gains.

    Latency of each block in its three forms, a search with gates, the exact choice under the
    budget, a plan to read and edit, fine-tuning with the original as teacher, an ONNX file. Safe to
    kill.
    """
    require_packages("search ran-e", "torch", "safetensors", "lightning", extra="train")
    import torch

    from collapsible.search.plan import read_plan, write_plan
    from collapsible.search.restructure_report import RestructureSpec
    from collapsible.search.restructuring import Restructuring
    from collapsible.training.loop import process_count

    file = plan or out / "plan.toml"
    follow = file.is_file() and (plan is not None or resume)
    if budget is None and not follow:
        raise UsageError("--budget is needed: a share as 0.6, or milliseconds as 4.5ms")
    if int8_steps and not int8:
        raise UsageError("--int8-steps goes with --int8")
    if int8_steps < 0 or int8_steps == 1:
        raise UsageError(f"--int8-steps {int8_steps}: 0, or 2 and more")
    if int8:
        require_packages(
            "--int8", "litert_torch", "ai_edge_quantizer", "ai_edge_litert", extra="edge"
        )
    if plan is not None and not plan.absolute().parent.is_dir():
        raise UsageError(f"--plan {plan}: give a file in a folder that exists")
    if int8 and process_count() > 1:
        raise UsageError("--int8 is for one process: ask again with --resume, without torchrun")
    if threads is not None:
        torch.set_num_threads(threads)
    size = None if input_size is None else read_size(input_size)
    if size is not None and (len(size) != 4 or size[1] != 3 or size[2] != size[3]):
        raise UsageError(f"--input-size {input_size}: square RGB pictures, as 1,3,160,160")
    base, name, trained, side = _load(network, weights, data)
    if distil is None:
        distil = 0.5 if trained else 0.0
    spec = RestructureSpec(search_steps, distil)
    budgets = [one.strip() for one in (budget or "").split(",")]
    if len(budgets) > 1 or seeds != 1 or ray:
        if plan is not None or plan_only or budget is None:
            raise UsageError("several budgets, --seeds and --ray: without --plan and --plan-only")
        if process_count() > 1:
            raise UsageError("several budgets, --seeds and --ray: without torchrun")
        from collapsible.search.trials import TrialSetup

        setup = TrialSetup(
            base,
            # A cluster's workers have another working folder.
            data.absolute(),
            _recipe(name, recipe, steps, size[-1] if size else side),
            target,
            spec,
            input_size=size,
            int8=int8,
            int8_steps=int8_steps,
            resume=resume,
        )
        _run_trials(setup, budgets, seeds, out, ray=ray, cpus=threads or 1, json=json)
        return
    chosen = read_plan(file) if follow else None
    done: tuple[Any, Any] | None = None
    with progress("restructuring") as update:
        job = Restructuring(
            base,
            _task(data, base, name, recipe, steps, size[-1] if size else side),
            target,
            folder=out,
            spec=spec,
            input_size=size,
            resume=resume,
            on_progress=lambda phase, done, total, note: update(
                done=done, total=total, description=f"{phase} {note}".strip()
            ),
        )
        alone = job.fabric.is_global_zero
        if alone and not trained:
            complain(f"note: {network} comes without weights, so it is searched from newly drawn")
        if chosen is None:
            chosen = job.make_plan(budget)
            if alone and file != out / "plan.toml":
                write_plan(chosen, file)
        elif alone:
            complain(f"note: {file} is followed; nothing is searched")
        if not plan_only:
            done = job.finish(chosen)
            if int8:
                done = done[0], job.write_int8(*done, steps=int8_steps)
            if alone:
                _write_onnx(done[0], out, job.size)
    if not alone:
        return
    result = chosen if done is None else done[1]
    print_json(result.json()) if json else print(result.table())


def _run_trials(
    setup: TrialSetup,
    budgets: list[str],
    seeds: int,
    out: Path,
    *,
    ray: bool,
    cpus: int,
    json: bool,
) -> None:
    from collapsible.search.trials import list_trials, run_trials, write_trials

    trials = list_trials(budgets, seeds, out.absolute())
    with progress("trials", len(trials)) as update:
        count = itertools.count(1)
        report = run_trials(
            setup,
            trials,
            ray=ray,
            cpus=cpus,
            on_done=lambda one: update(
                done=next(count),
                total=len(trials),
                description=f"{one.trial.budget}-{one.trial.seed} {one.top1:.2f} %",
            ),
        )
    write_trials(report, out / "trials.json")
    print_json(report.json()) if json else print(report.table())


def _load(network: str, weights: Path | None, data: Path) -> tuple[nn.Module, str, bool, int]:
    """The network, its name, whether it has weights, and the side of its pictures."""
    import torch

    from collapsible.evaluation.labelled import find_labelled, find_part
    from collapsible.models.trained import (
        create_classifier,
        load_classifier,
        load_named_classifier,
        preprocessing_of,
    )

    path = Path(network)
    if path.suffix == ".safetensors":
        if weights is not None:
            raise UsageError(f"{network} holds weights already: --weights is for a name")
        loaded, card = load_classifier(path)
        return loaded, card.architecture, True, card.preprocessing.size
    if weights is not None:
        loaded, steps, _ = load_named_classifier(network, weights)
        return loaded, network, True, steps.size
    classes = len(find_labelled(find_part(data, "train") or data).classes)
    # Every process, and every run that is resumed, has to draw the same weights.
    torch.manual_seed(0)
    made = create_classifier(network, classes)
    return made, network, False, preprocessing_of(made).size


def _task(
    data: Path, network: nn.Module, name: str, recipe: str | None, steps: int | None, size: int
) -> Any:
    from collapsible.training import Classification

    task = Classification(_recipe(name, recipe, steps, size), data, network=network)
    for path, reason in task.skipped:
        complain(f"left out: {path}: {reason}")
    return task


def _recipe(name: str, recipe: str | None, steps: int | None, size: int) -> Recipe:
    from dataclasses import replace

    from collapsible.search.restructuring import default_recipe
    from collapsible.training import read_recipe
    from collapsible.training.recipes import NetworkSpec

    chosen = default_recipe(name, size) if recipe is None else read_recipe(recipe)
    if chosen.task != "classification":
        raise UsageError(f"--recipe {recipe}: it is of {chosen.task}, not of classification")
    chosen = replace(chosen, network=NetworkSpec(name))
    if steps is not None:
        if steps < 1:
            raise UsageError(f"--steps {steps}: the least is 1")
        chosen = replace(chosen, steps=steps)
    return chosen


def _write_onnx(network: nn.Module, out: Path, size: tuple[int, ...]) -> None:
    """The collapsed network beside the report, where the converter is installed."""
    from importlib.util import find_spec

    from collapsible.folding import collapse

    if find_spec("onnxscript") is None:
        complain("note: no network.onnx is written: pip install 'collapsible[edge]'")
        return
    from collapsible.deploy.onnx_files import save_onnx

    batch, channels, height, width = size
    save_onnx(collapse(network)[0], out / "network.onnx", (batch, channels, height, width))


@example(
    "collapsible search sesr --data pictures/train --target host --input-size 1,1,540,960 "
    "--budget 0.85 --out runs/sesr; collapsible train runs/sesr/found.toml --data pictures/train"
)
def sesr(
    data: Annotated[list[Path], typer.Option(help="Folder of pictures; give it again for more.")],
    budget: Annotated[
        str, typer.Option(help="Share of SESR-M5's latency, as 0.85, or milliseconds, as 4.5ms.")
    ],
    target: Annotated[
        str, typer.Option(help="Chip, as ethos-u55-256; host measures this machine.")
    ] = "host",
    scale: Annotated[int, typer.Option(help="Enlargement.")] = 2,
    input_size: Annotated[
        str, typer.Option(help="What latencies are of: 1,1,HEIGHT,WIDTH of the small picture.")
    ] = "1,1,540,960",
    tile: Annotated[str | None, typer.Option(help="Run in tiles of HEIGHT,WIDTH.")] = None,
    kernels: Annotated[
        str | None, typer.Option(help="To choose among, as 3x3,2x2,3x1 (height x width).")
    ] = None,
    widths: Annotated[str | None, typer.Option(help="Channels to choose among, as 8,16.")] = None,
    ends: Annotated[
        str | None, typer.Option(help="Of the first and the last layer, as 5x5,3x3.")
    ] = None,
    blocks: Annotated[int, typer.Option(help="The most blocks.")] = 8,
    act: Annotated[str, typer.Option(help="Activation: prelu or relu.")] = "prelu",
    steps: Annotated[int, typer.Option(help="Steps of the search.")] = 4000,
    train_steps: Annotated[int, typer.Option(help="Steps that found.toml trains.")] = 16_000,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/sesr-search"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all).")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find a SESR whose kernels, width and depth suit a target.

    Latency of every kernel at every width, a network that learns its own shape under the budget,
    the exact choice, and a recipe that trains the found network from nothing. Safe to kill.
    """
    require_packages("search sesr", "torch", "safetensors", "lightning", extra="train")
    import torch

    from collapsible.search.sesr_search import default_recipe, search_sesr
    from collapsible.search.sesr_space import SesrSpace

    if steps < 1:
        raise UsageError(f"--steps {steps}: the least is 1")
    if threads is not None:
        torch.set_num_threads(threads)
    size = read_size(input_size)
    cut = None if tile is None else read_size(tile)
    if cut is not None and len(cut) != 2:
        raise UsageError(f"--tile {tile}: HEIGHT,WIDTH, as 120,160")
    usual = SesrSpace()
    space = SesrSpace(
        usual.kernels if kernels is None else _kernels("--kernels", kernels),
        usual.widths if widths is None else tuple(read_size(widths)),
        blocks,
        usual.ends if ends is None else _kernels("--ends", ends),
    )
    with progress("searching") as update:
        report = search_sesr(
            data,
            target,
            budget,
            input_size=size,
            scale=scale,
            tile=None if cut is None else (cut[0], cut[1]),
            act=act,
            space=space,
            recipe=default_recipe(scale, steps),
            train_steps=train_steps,
            folder=out,
            resume=resume,
            on_progress=lambda phase, done, total, note: update(
                done=done, total=total, description=f"{phase} {note}".strip()
            ),
        )
    print_json(report.json()) if json else print(report.table())


def _kernels(option: str, text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for one in text.split(","):
        sides = one.strip().lower().split("x")
        if len(sides) != 2 or not all(side.isdigit() for side in sides):
            raise UsageError(f"{option} {text}: heights and widths, as 3x3,2x2,3x1")
        found.append((int(sides[0]), int(sides[1])))
    return tuple(found)
