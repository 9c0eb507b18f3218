"""``search_sesr``: a SESR whose kernels, width and depth suit a target (arXiv 2103.09404, 3.4).

latency table -> supernet trained with the expected latency in its loss -> exact choice -> recipe,
by which the found network is trained from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from collapsible.costs import cost
from collapsible.costs.targets import Target, find_target
from collapsible.deploy.estimate import estimate
from collapsible.errors import UsageError
from collapsible.folding import collapse
from collapsible.imaging import atomic_write
from collapsible.models.registry import load_state, read_state
from collapsible.search.restructure_choice import read_budget
from collapsible.search.sesr_space import (
    M5,
    SesrLatencies,
    SesrShape,
    SesrSpace,
    kernel_name,
    measure_shapes,
    read_latencies,
    rounds_of,
)
from collapsible.search.sesr_supernet import SesrSupernet, ShapePressure, ShapeTask, choose_shape
from collapsible.training.loop import start_fabric, train
from collapsible.training.recipes import NetworkSpec, Recipe, write_recipe
from collapsible.training.super_resolution import SuperResolution

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class SesrSearchReport:
    """What was found. ``planned_ms`` is the sum of the table's parts, ``found_ms`` the whole
    network's, ``base_ms`` M5's, all on ``target`` by ``source``; ``macs`` and ``base_macs`` are of
    ``input_size``. The choices are the supernet's probabilities at the end.
    """

    kernels: tuple[tuple[int, int], ...]
    features: int
    first: tuple[int, int]
    last: tuple[int, int]
    scale: int
    target: str
    input_size: tuple[int, ...]
    source: str
    budget_ms: float
    planned_ms: float
    found_ms: float | None
    base_ms: float
    parameters: int
    macs: int
    base_macs: int
    choices: Mapping[str, Any]
    recipe: str

    @property
    def shape(self) -> SesrShape:
        return SesrShape(self.kernels, self.features, self.first, self.last)

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        found = "no figure" if self.found_ms is None else f"{self.found_ms:.4f} ms"
        times = "" if not self.found_ms else f", {self.base_ms / self.found_ms:.2f} times as fast"
        lines = [
            f"found        {self.shape} (x{self.scale})",
            f"latency      M5 {self.base_ms:.4f} ms -> {found}{times} "
            f"(planned {self.planned_ms:.4f}, budget {self.budget_ms:.4f}; {self.source})",
            f"parameters   {self.parameters:,} (collapsed)",
            f"MACs         M5 {self.base_macs:,} -> {self.macs:,}",
            f"train it     collapsible train {self.recipe} --data PICTURES",
        ]
        return "\n".join(lines)


def default_recipe(scale: int, steps: int) -> Recipe:
    """How the supernet is trained: as the small networks are, on smaller batches."""
    from collapsible.training.recipes import DataSpec, OptimiserSpec, ScheduleSpec

    return Recipe(
        name="sesr-search",
        task="super-resolution",
        network=NetworkSpec("sesr_nas", scale),
        steps=steps,
        precision="bf16",
        data=DataSpec(patch=48, batch=16, rescale=(1.0, 0.6), crop=2),
        optimiser=OptimiserSpec("adam", 1e-3),
        schedule=ScheduleSpec("cosine", 0.03),
        average=0.99,
        validate_every=steps,
        checkpoint_every=max(50, steps // 20),
    )


def search_sesr(
    data: Sequence[str | Path],
    target: Target | str,
    budget: float | str,
    *,
    input_size: Sequence[int] = (1, 1, 540, 960),
    scale: int = 2,
    tile: tuple[int, int] | None = None,
    act: str = "prelu",
    space: SesrSpace | None = None,
    recipe: Recipe | None = None,
    train_steps: int = 16_000,
    folder: str | Path = "runs/sesr-search",
    resume: bool = False,
    fabric: Fabric | None = None,
    on_progress: Callable[[str, int, int, str], None] | None = None,
) -> SesrSearchReport:
    """Find a SESR for a target and a budget, and write the recipe that trains it.

    ``data`` are folders of pictures. ``budget`` is a share of SESR-M5's latency on the target
    (0.85) or a latency ("4.5ms"), for an input of ``input_size`` (1, 1, H, W), in tiles of ``tile``
    (H, W) where it is given. ``act`` is the activation of what is deployed. ``recipe`` trains the
    supernet, the found network gets ``train_steps``. In ``folder``: ``latency.json``, ``search/``,
    ``found.toml`` (the recipe) and ``report.json``; with ``resume`` a stopped search goes on.

    Raises ``UsageError`` for values out of range, ``BudgetError`` for a budget that no network of
    the space meets, ``UnknownNameError`` for an unknown target, ``CollapsibleError`` where a tool
    fails.
    """
    space, folder, show = space or SesrSpace(), Path(folder), on_progress or (lambda *_: None)
    target = find_target(target)
    size = tuple(input_size)
    if len(size) != 4 or size[:2] != (1, 1) or min(size) < 1:
        raise UsageError(f"input_size={size}: one luma picture is accepted, as (1, 1, 540, 960)")
    if scale < 2 or train_steps < 1:
        raise UsageError(f"scale={scale} starts at 2, train_steps={train_steps} at 1")
    recipe = recipe or default_recipe(scale, 4000)
    if recipe.task != "super-resolution" or recipe.network.scale != scale:
        raise UsageError(f"{recipe.name}: a recipe of super-resolution at x{scale} is accepted")
    if not resume and any((folder / "search").glob("step-*")):
        raise UsageError(f"{folder / 'search'} holds a run already: --resume goes on with it")
    fabric = fabric or start_fabric(recipe)
    table = None
    if fabric.is_global_zero:
        # One process measures, and all have the same figures; so has a search that goes on.
        path = folder / "latency.json"
        table = read_latencies(path) if resume and path.is_file() else None
        if table is not None and not table.covers(space, target.name, size):
            raise UsageError(f"{path} is of another target, size or space: give another folder")
        table = table or measure_shapes(
            space,
            target,
            size,
            scale,
            tile=tile,
            act=act,
            on_done=lambda done, total: show("latency table", done, total, ""),
        )
        _write(path, table.json())
    table = fabric.broadcast(table)
    assert table is not None
    budget_ms = read_budget(budget, table.base_ms)
    torch.manual_seed(recipe.seed)
    network = SesrSupernet(space, scale=scale)
    # Out of reach ends here, before anything is trained.
    choose_shape(network, table, budget_ms)
    task = SuperResolution(recipe, [Path(one) for one in data], {})
    report = train(
        network,
        ShapeTask(task, recipe.steps, ShapePressure(network, table, budget_ms)),
        recipe,
        folder / "search",
        fabric=fabric,
        resume=resume,
        on_step=lambda now: show("search", now.step, now.steps, f"loss {now.loss:.4f}"),
    )
    load_state(network, read_state(report.weights), str(report.weights))
    network = network.cpu()
    shape = choose_shape(network, table, budget_ms)
    made = None
    if fabric.is_global_zero:
        path = folder / "found.toml"
        write_recipe(_found_recipe(shape, scale, act, train_steps), path)
        made = _report(shape, network, table, budget_ms, target, scale, tile, act, path)
        _write(folder / "report.json", made.json())
    made = fabric.broadcast(made)
    assert made is not None
    return made


def _found_recipe(shape: SesrShape, scale: int, act: str, steps: int) -> Recipe:
    """The recipe by which SOAP trains M5 in its small form, with the found network."""
    from collapsible.training.recipes import read_recipe

    options = {**shape.options, "block": "narrow"}
    if act != "prelu":
        options["act"] = act
    return replace(
        read_recipe("sesr-m5-x2-soap"),
        name=f"sesr-found-x{scale}",
        about=f"Found by collapsible search sesr: {shape}.",
        steps=steps,
        network=NetworkSpec("sesr_nas", scale, options),
    )


def _report(
    shape: SesrShape,
    network: SesrSupernet,
    table: SesrLatencies,
    budget_ms: float,
    target: Target,
    scale: int,
    tile: tuple[int, int] | None,
    act: str,
    path: Path,
) -> SesrSearchReport:
    size = table.input_size
    deployed, base = (
        collapse(one.build(scale, expansion=1, act=act).eval())[0] for one in (shape, M5)
    )
    whole = min(
        (
            estimate(deployed, target, size, tile=tile, legalise=target.kind == "vela")
            for _ in range(rounds_of(target))
        ),
        key=lambda one: one.latency_ms or 0.0,
    )
    counts, base_counts = cost(deployed, size), cost(base, size)
    kernels, keeps, widths, first, last = (share.tolist() for share in network.choices())
    names = [kernel_name(kernel) for kernel in network.space.kernels]
    ends = [kernel_name(kernel) for kernel in network.space.ends]
    choices = {
        "kernels": [dict(zip(names, row, strict=True)) for row in kernels],
        "keep": keeps,
        "widths": dict(zip(map(str, network.space.widths), widths, strict=True)),
        "first": dict(zip(ends, first, strict=True)),
        "last": dict(zip(ends, last, strict=True)),
    }
    return SesrSearchReport(
        kernels=shape.kernels,
        features=shape.features,
        first=shape.first,
        last=shape.last,
        scale=scale,
        target=target.name,
        input_size=size,
        source=whole.source,
        budget_ms=budget_ms,
        planned_ms=table.total(shape),
        found_ms=whole.latency_ms,
        base_ms=table.base_ms,
        parameters=counts.params,
        macs=counts.macs,
        base_macs=base_counts.macs,
        choices=choices,
        recipe=str(path),
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())
