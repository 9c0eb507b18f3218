"""The training loop, on Lightning Fabric: one for every task."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from collapsible.errors import TrainingError, UsageError, WeightsError
from collapsible.models.registry import save_weights
from collapsible.training.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from collapsible.training.optimisers import build_optimiser
from collapsible.training.precision import usable_precision
from collapsible.training.recipes import (
    UNITS,
    Recipe,
    ScheduleSpec,
    differences,
    parse_recipe,
)


class Task(Protocol):
    """What the loop asks of a task; batches are functions of the step, so nothing is carried.

    A task with a true ``feeds_targets`` has a network that takes the targets too, as detectors
    do, whose losses arise inside; ``loss`` then gets what it returned.
    """

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]: ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor: ...

    def validate(self, network: nn.Module) -> dict[str, float]: ...


@dataclass(frozen=True)
class Progress:
    """Where a run is, for whoever shows it: after ``step`` of ``steps``.

    ``metrics`` are those of the last validation, which was at this step if ``validated``.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    metrics: Mapping[str, float]
    validated: bool


@dataclass(frozen=True)
class TrainingReport:
    """What a run did: the last losses and metrics are measured, on the averaged weights."""

    steps: int
    started_at: int
    loss: float
    metrics: dict[str, float]
    checkpoint: Path
    weights: Path
    unit: str = "dB"

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2, default=str)

    def table(self) -> str:
        """The report as lines of text for people."""
        lines = [
            f"steps       {self.started_at:,} to {self.steps:,}",
            f"loss        {self.loss:.6f}",
        ]
        lines += [
            f"{name:<11} {value:.3f} {self.unit} (measured)" for name, value in self.metrics.items()
        ]
        return "\n".join([*lines, f"weights     {self.weights}"])


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSpec) -> float:
    """The rate of one step, a function of the step alone, so that nothing needs resuming."""
    warm = math.ceil(schedule.warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    if schedule.kind == "constant":
        return peak
    done = (step - warm) / max(1, steps - warm)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if schedule.kind == "cosine" else 1 - done
    return peak * (schedule.final + (1 - schedule.final) * shape)


class _Log:
    """CSV and TensorBoard side by side; rows past the resumed step are dropped first."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.csv"
        rows: list[list[str]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [r for r in csv.reader(file) if r and r[0].isdigit() and int(r[0]) <= start]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([["step", "name", "value"], *rows])
        self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([step, n, repr(v)] for n, v in values.items())
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()


def process_count() -> int:
    """How many processes train together: torchrun's number, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_fabric(recipe: Recipe, accelerator: str = "auto") -> Fabric:
    """Fabric for this process; under torchrun it joins the other processes (gloo on CPUs).

    A CPU without bf16 arithmetic computes in fp32 whatever the recipe says (``usable_precision``).
    """
    world = process_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    kind = accelerator
    if kind == "auto":
        kind = "gpu" if torch.cuda.is_available() or torch.mps.is_available() else "cpu"
    precision = usable_precision(recipe.precision, kind)
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


@torch.no_grad()
def _track(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)
    for buffer, current in zip(average.buffers(), network.buffers(), strict=True):
        buffer.copy_(current)


def _places(recipe: Recipe, fabric: Fabric) -> range:
    """This process's share of each batch."""
    batch, world = recipe.data.batch, fabric.world_size
    if batch % world:
        raise UsageError(f"data.batch = {batch} does not divide among {world} processes")
    share = batch // world
    return range(fabric.global_rank * share, (fabric.global_rank + 1) * share)


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """A process's batches by their step, for workers that draw ahead."""

    def __init__(self, task: Task, places: range) -> None:
        self.task, self.places = task, places

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.task.batch(step, self.places)


def _draw(
    task: Task, places: range, start: int, end: int, workers: int
) -> Generator[tuple[Tensor, Tensor]]:
    """The batches of steps ``start`` to ``end``, drawn ahead by a thread or by processes."""
    steps = range(start, end)
    if workers:
        dataset = _Batches(task, places)
        yield from DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers)
        return
    loader = ThreadPoolExecutor(1)
    try:
        coming = [loader.submit(task.batch, step, places) for step in steps[:1]]
        for step in steps:
            batch = coming.pop().result()
            if step + 1 < end:
                coming.append(loader.submit(task.batch, step + 1, places))
            yield batch
    finally:
        loader.shutdown(cancel_futures=True)


def _seed(recipe: Recipe, step: int, rank: int) -> None:
    """Dropout, drop path and the like draw from the step too, so a run resumes anywhere."""
    words = np.random.SeedSequence((recipe.seed, step, rank)).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


def _check_recipe(checkpoint: Checkpoint, recipe: Recipe, source: Path) -> None:
    try:
        before = parse_recipe(json.loads(checkpoint.recipe))
    except ValueError as error:
        raise WeightsError(f"{source} does not say its recipe: {error}") from error
    changed = differences(before, recipe)
    if changed:
        raise UsageError(
            f"{source} comes from another recipe than {recipe.name}: {'; '.join(changed)}"
        )


def train(
    network: nn.Module,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    fabric: Fabric | None = None,
    resume: bool = False,
    workers: int = 0,
    on_step: Callable[[Progress], None] | None = None,
    stop_after: int | None = None,
) -> TrainingReport:
    """Train a network in place by a recipe; everything the run writes goes below ``folder``.

    ``step-N`` folders are checkpoints, ``weights.safetensors`` the averaged weights at the end,
    ``log.csv`` and ``tensorboard`` the curves. With ``resume`` the run goes on from its newest
    checkpoint and, on a CPU, to the same losses bit for bit. Batches are drawn ahead by a thread,
    or by ``workers`` processes of each training process: they are the same. ``stop_after`` ends
    the run early at that step with a checkpoint.
    Raises ``UsageError`` if the folder holds another run, or one that was not to be resumed, and
    ``TrainingError`` when the loss is no longer finite.
    """
    fabric = fabric or start_fabric(recipe)
    places = _places(recipe, fabric)
    described = json.dumps(asdict(recipe), sort_keys=True)
    found = list_checkpoints(folder)
    if found and not resume:
        raise UsageError(f"{folder} holds a run already: --resume goes on with it")
    average = copy.deepcopy(network)
    optimiser = build_optimiser(network, recipe.optimiser)
    start = 0
    if found:
        checkpoint = load_checkpoint(found[-1])
        _check_recipe(checkpoint, recipe, found[-1])
        try:
            network.load_state_dict(checkpoint.model)
            average.load_state_dict(checkpoint.average)
        except RuntimeError as error:
            raise WeightsError(f"{found[-1]} holds another network: {error}") from error
        optimiser.load_state_dict(checkpoint.optimiser)
        start = checkpoint.step
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module, optimiser = fabric.setup(network, optimiser)
    module.train()
    average = average.to(fabric.device).eval()
    folder.mkdir(parents=True, exist_ok=True)
    log = _Log(folder, start) if fabric.is_global_zero else None
    saved = found[-1] if found else None
    end = min(recipe.steps, stop_after or recipe.steps)
    loss_value, metrics = math.nan, {}

    def save(step: int) -> Path | None:
        if not fabric.is_global_zero:
            return None
        state = Checkpoint(
            step,
            described,
            network.state_dict(),
            average.state_dict(),
            optimiser.state_dict(),
        )
        return save_checkpoint(folder, state)

    batches = _draw(task, places, start, end, workers)
    try:
        for step, (low, high) in zip(range(start, end), batches, strict=True):
            _seed(recipe, step, fabric.global_rank)
            rate = learning_rate(
                step, recipe.steps, recipe.optimiser.learning_rate, recipe.schedule
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            low = low.to(fabric.device, memory_format=torch.channels_last)
            high = high.to(fabric.device)
            output = module(low, high) if getattr(task, "feeds_targets", False) else module(low)
            loss = task.loss(output, high)
            optimiser.zero_grad(set_to_none=True)
            fabric.backward(loss)
            loss_value = float(fabric.all_reduce(loss.detach()))  # type: ignore[arg-type]
            if not math.isfinite(loss_value):
                last = f"the last good checkpoint is {saved}" if saved else "nothing was saved yet"
                raise TrainingError(f"the loss became {loss_value} at step {step + 1}; {last}")
            if recipe.optimiser.clip:
                fabric.clip_gradients(module, optimiser, max_norm=recipe.optimiser.clip)
            optimiser.step()
            done = step + 1
            # A short memory at first, or the mean would hold the untrained weights for long.
            _track(average, network, min(recipe.average, done / (done + 10)))
            validated = done % recipe.validate_every == 0 or done == end
            if validated:
                metrics = task.validate(average) if fabric.is_global_zero else {}
                if log and metrics:
                    log.write(done, metrics)
            if log and (done % recipe.log_every == 0 or done == end):
                log.write(done, {"loss": loss_value, "learning_rate": rate})
            if done % recipe.checkpoint_every == 0 or done == end:
                saved = save(done) or saved
            if on_step and fabric.is_global_zero:
                on_step(Progress(done, recipe.steps, loss_value, rate, metrics, validated))
    finally:
        batches.close()
        if log:
            log.close()
    weights = folder / "weights.safetensors"
    if fabric.is_global_zero:
        if start >= end:
            # Nothing was left to do: what is written beside the weights has figures all the same.
            metrics = task.validate(average)
        save_weights(average, weights)
    fabric.barrier()
    return TrainingReport(
        end, start, loss_value, metrics, saved or folder, weights, UNITS[recipe.task]
    )
