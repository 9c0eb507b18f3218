"""The job behind ``restructure``, in two halves between which a person may look at the plan.

latency table -> search with gates -> exact selection -> plan -> other forms -> fine-tuning
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from collapsible.blocks.restructurable import GatedBottleneck
from collapsible.costs import cost
from collapsible.costs.targets import Target, find_target
from collapsible.deploy.estimate import estimate
from collapsible.errors import BudgetError, UsageError, WeightsError
from collapsible.folding import collapse
from collapsible.imaging import atomic_write
from collapsible.models.registry import load_state, read_state
from collapsible.models.trained import check_classifier
from collapsible.search.distillation import DistilTask, teacher_beside
from collapsible.search.gates import (
    REACH,
    GatePressure,
    absorb,
    gate_network,
    gate_speeds,
    measure_importance,
    recalibrate,
)
from collapsible.search.int8 import make_int8
from collapsible.search.inverted import require_bottlenecks
from collapsible.search.latency_table import LatencyTable, build_latency_table
from collapsible.search.plan import (
    Plan,
    apply_plan,
    check_plan,
    check_record,
    write_plan,
)
from collapsible.search.restructure_choice import choose_forms, read_budget
from collapsible.search.restructure_report import RestructureReport, RestructureSpec
from collapsible.training.checkpoints import list_checkpoints
from collapsible.training.classification import Classification
from collapsible.training.loop import Progress, start_fabric, train
from collapsible.training.recipes import (
    AugmentSpec,
    DataSpec,
    NetworkSpec,
    OptimiserSpec,
    Recipe,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# Batches that importance is measured on, and that statistics are taken from.
IMPORTANCE_BATCHES, STATISTICS_BATCHES = 4, 16
OnProgress = Callable[[str, int, int, str], None]


def default_recipe(name: str, size: int, steps: int = 2000) -> Recipe:
    """Fine-tuning of a trained classifier on pictures of ``size`` pixels, in ``steps`` steps."""
    return Recipe(
        name="restructure",
        task="classification",
        network=NetworkSpec(name),
        steps=steps,
        data=DataSpec(size=size, batch=64, interpolation="bilinear"),
        optimiser=OptimiserSpec("adamw", 1e-3, weight_decay=0.05, clip=5.0),
        augment=AugmentSpec(scale=(0.35, 1.0), smoothing=0.1),
        loss="cross-entropy",
        validate_every=500,
        checkpoint_every=100,
    )


class Restructuring:
    """A job in two halves, ``make_plan`` and ``finish``, between which a person may look.

    Arguments and errors are those of ``restructure``.
    """

    def __init__(
        self,
        network: nn.Module,
        data: str | Path | Classification,
        target: Target | str,
        *,
        folder: str | Path = "runs/restructure",
        recipe: Recipe | None = None,
        spec: RestructureSpec | None = None,
        input_size: Sequence[int] | None = None,
        resume: bool = False,
        cache: str | Path | bool = True,
        fabric: Fabric | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.spec, self.target, self.folder = (
            spec or RestructureSpec(),
            find_target(target),
            Path(folder),
        )
        self.original = copy.deepcopy(network).eval()
        self.blocks = require_bottlenecks(self.original)
        self.task = _task(data, recipe, self.original, input_size)
        self.recipe = self.task.recipe
        classes = len(self.task.pictures.classes)
        check_classifier(self.original, self.recipe.network.name, classes, self.recipe.data.size)
        count, batch = len(self.task.pictures), self.recipe.data.batch
        if count < batch:
            raise UsageError(
                f"{self.task.pictures.source.root}: {count} pictures are fewer than one batch of "
                f"{batch}: give more, or a recipe with a smaller data.batch"
            )
        side = self.task.preprocessing.size
        self.size = tuple(input_size) if input_size else (1, 3, side, side)
        self.resume, self.cache = resume, cache
        self.fabric = fabric or start_fabric(self.recipe)
        self.on_progress = on_progress or (lambda *_: None)
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    def make_plan(self, budget: float | str | None) -> Plan:
        """The latency table, the search and the selection; the plan is in ``folder/plan.toml``."""
        if budget is None:
            raise UsageError("a budget is needed: a share as 0.6, or milliseconds as 4.5ms")
        read_budget(budget, 1.0)  # what is no budget is said before anything is compiled
        self._guard("search")
        with self._phase("latency table"):
            # One process compiles, and all have the same figures where they are measured.
            made = self._latencies() if self.fabric.is_global_zero else None
            table = self.fabric.broadcast(made)
        assert table is not None
        budget_ms = read_budget(budget, table.network_ms)
        # A budget that is out of reach ends it here, before anything is trained.
        try:
            choose_forms(table, self.blocks, budget_ms, {}, {})
        except BudgetError as error:
            raise BudgetError(
                f"budget {budget}: {error}; the network as it is takes {table.network_ms:.4g} ms"
            ) from None
        if self.fabric.is_global_zero:
            _write_text(self.folder / "latency.json", table.json())
        network, gates = self._gated({row.name: row.milliseconds for row in table.blocks})
        pressure = GatePressure(gates, table, budget_ms, self.spec.gates)
        recipe = self._search_recipe()
        task = DistilTask(self.task, recipe.steps, self.spec.distil, pressure)
        with self._phase("search"), teacher_beside(network, self._teacher()):
            report = train(
                network,
                task,
                recipe,
                self.folder / "search",
                fabric=self.fabric,
                resume=self.resume,
                on_step=lambda now: self._show("search", now),
            )
        plan = None
        if self.fabric.is_global_zero:
            with self._phase("selection"):
                load_state(network, read_state(report.weights), str(report.weights))
                importance = measure_importance(
                    network,
                    gates,
                    self.task,
                    range(recipe.steps, recipe.steps + IMPORTANCE_BATCHES),
                    recipe.data.batch,
                )
                values = {name: gate.gates.detach().tolist() for name, gate in gates.items()}
                plan = choose_forms(table, self.blocks, budget_ms, importance, values)
                plan = replace(plan, network=self.recipe.network.name)
                write_plan(plan, self.folder / "plan.toml")
            spent = {"seconds": self.seconds, "processor_seconds": self.processor}
            _write_text(self.folder / "seconds.json", json.dumps(spent))
        plan = self.fabric.broadcast(plan)
        assert plan is not None
        return plan

    def finish(self, plan: Plan) -> tuple[nn.Module, RestructureReport]:
        """The planned network, fine-tuned with the original as its teacher, and the report."""
        check_plan(plan, self.original)
        same = find_target(plan.target).name == self.target.name
        if not same or tuple(plan.input_size) != self.size:
            raise UsageError(
                f"the plan is for {plan.target} at {list(plan.input_size)}, "
                f"not for {self.target.name} at {list(self.size)}"
            )
        self._guard("finetune")
        if not self.seconds and (self.folder / "seconds.json").is_file():
            spent = json.loads((self.folder / "seconds.json").read_text(encoding="utf-8"))
            self.seconds, self.processor = spent["seconds"], spent["processor_seconds"]
        folder, recipe = self.folder / "finetune", self.recipe
        begun, record = bool(list_checkpoints(folder)), folder / "plan.toml"
        if begun:
            check_record(plan, record)
        # A run that goes on has its weights in its checkpoint; before the first one it has none.
        network = apply_plan(self.original, plan) if begun else self._start(plan)
        if not begun and self.fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            write_plan(plan, record)
        task = DistilTask(self.task, recipe.steps, self.spec.distil)
        with self._phase("fine-tuning"), teacher_beside(network, self._teacher()):
            report = train(
                network,
                task,
                recipe,
                folder,
                fabric=self.fabric,
                resume=self.resume,
                on_step=lambda now: self._show("fine-tuning", now),
            )
        load_state(network, read_state(report.weights), str(report.weights))
        network = network.cpu().eval()
        made = None
        if self.fabric.is_global_zero:
            with self._phase("report"):
                metrics = report.metrics or self.task.validate(network)
                made = self._report(network, plan, metrics, report.weights)
            made = replace(made, seconds=self.seconds, processor_seconds=self.processor)
            _write_text(self.folder / "report.json", made.json())
        made = self.fabric.broadcast(made)
        assert made is not None
        return network, made

    def write_int8(
        self, network: nn.Module, report: RestructureReport, *, steps: int = 0
    ) -> RestructureReport:
        """``network.tflite`` in the folder: int8, calibrated on training pictures, and measured.

        ``network`` and ``report`` are ``finish``'s; its ``report.json`` is written anew. With
        ``steps`` the network is first trained so long in int8 form, the original as its teacher.
        Raises ``UsageError`` without validation pictures, ``ExportError`` where it cannot be
        converted, ``MissingExtraError`` without the converter.
        """
        side = self.task.preprocessing.size
        if self.size != (1, 3, side, side):
            raise UsageError(
                f"int8: latencies are of {list(self.size)}, validation pictures of {side}x{side}"
            )
        with self._phase("int8"):
            made = make_int8(
                collapse(network)[0] if report.plan.changed else network,
                self.task,
                self.folder / "network.tflite",
                steps=steps,
                teacher=self._teacher(),
                fabric=self.fabric,
                resume=self.resume,
                on_progress=self.on_progress,
            )
        report = replace(report, int8=made, seconds=self.seconds, processor_seconds=self.processor)
        if self.fabric.is_global_zero:
            _write_text(self.folder / "report.json", report.json())
        return report

    def _report(
        self, network: nn.Module, plan: Plan, metrics: dict[str, float], weights: Path
    ) -> RestructureReport:
        probe = torch.rand(self.size, generator=torch.Generator().manual_seed(0))
        before, _ = collapse(self.original, probe=probe)
        after, collapsed = collapse(network, probe=probe)
        estimates = [
            estimate(one, self.target, self.size, cache=self.cache) for one in (before, after)
        ]
        costs = [cost(one, self.size) for one in (before, after)]
        speeds = [e.latency_ms if e.latency_ms is not None else e.npu_ms for e in estimates]
        return RestructureReport(
            plan=plan,
            before_ms=speeds[0],
            after_ms=speeds[1],
            planned_ms=plan.after_ms,
            parameters_before=costs[0].params,
            parameters_after=costs[1].params,
            macs_before=costs[0].macs,
            macs_after=costs[1].macs,
            collapse_error=collapsed.max_error_float64,
            output_range=collapsed.output_range,
            metrics_before=self.task.validate(self.original),
            metrics_after=dict(metrics),
            seconds={},
            weights=str(weights),
            cpu_operators=tuple(map(str, estimates[1].cpu_operators)),
        )

    def _latencies(self) -> LatencyTable:
        return build_latency_table(
            self.original,
            self.blocks,
            self.target,
            self.size,
            cache=self.cache,
            on_form=lambda done, total: self.on_progress("latency table", done, total, ""),
        )

    def _gated(
        self, latencies: Mapping[str, Mapping[str, float]]
    ) -> tuple[nn.Module, dict[str, GatedBottleneck]]:
        """Every block gated that has another form than its own, by each form's latency."""
        torch.manual_seed(self.recipe.seed)
        recipe = self._search_recipe()
        speed = max(1.0, REACH / (recipe.steps * recipe.optimiser.learning_rate))
        # The gates end at the dense form.
        able = {name: ms for name, ms in latencies.items() if "dense" in ms}
        blocks = [block for block in self.blocks if block.name in able]
        return gate_network(self.original, blocks, gate_speeds(able, speed), self.spec.gates.start)

    def _start(self, plan: Plan) -> nn.Module:
        """The planned network with the search's weights or the original's: the lesser loss.

        A search that was stopped short has bent blocks that the plan then keeps. Batch norms have
        their statistics taken anew either way.
        """
        batch, first = self.recipe.data.batch, self.recipe.steps
        sources = [self.original]
        if (searched := self._searched(plan)) is not self.original:
            sources.append(searched)
        networks = [apply_plan(source, plan) for source in sources]
        losses = []
        for network in networks:
            recalibrate(network, self.task, range(first, first + STATISTICS_BATCHES), batch)
            with torch.no_grad():
                drawn = (
                    self.task.batch(first + STATISTICS_BATCHES + step, range(batch))
                    for step in range(IMPORTANCE_BATCHES if len(networks) > 1 else 0)
                )
                losses.append(sum(float(self.task.loss(network(x), y)) for x, y in drawn))
        return networks[self.fabric.broadcast(losses.index(min(losses)))]

    def _searched(self, plan: Plan) -> nn.Module:
        """The original with the weights that the search left, if there was one in this folder."""
        weights = self.folder / "search" / "weights.safetensors"
        if not weights.is_file():
            return self.original
        gated, _ = self._gated({b.name: b.milliseconds for b in plan.blocks})
        try:
            load_state(gated, read_state(weights), str(weights))
        except WeightsError as error:
            raise WeightsError(
                f"{self.folder / 'search'} holds the search of another network or plan: {error}"
            ) from error
        result = copy.deepcopy(self.original)
        absorb(result, require_bottlenecks(result), gated)
        return result

    def _search_recipe(self) -> Recipe:
        return replace(self.recipe, name="search", steps=self.spec.search_steps)

    def _teacher(self) -> nn.Module | None:
        return self.original if self.spec.distil else None

    def _guard(self, phase: str) -> None:
        """Hours of work must not end at a folder that cannot be used."""
        if not self.resume and any((self.folder / phase).glob("step-*")):
            raise UsageError(f"{self.folder / phase} holds a run already: --resume goes on with it")

    def _show(self, phase: str, now: Progress) -> None:
        measured = " ".join(f"{name} {value:.2f} %" for name, value in now.metrics.items())
        self.on_progress(phase, now.step, now.steps, f"loss {now.loss:.4f} {measured}".strip())

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        spent = time.process_time() - processor
        self.processor[name] = self.processor.get(name, 0.0) + spent


def _task(
    data: str | Path | Classification,
    recipe: Recipe | None,
    network: nn.Module,
    input_size: Sequence[int] | None,
) -> Classification:
    if isinstance(data, Classification):
        return data
    side = int(input_size[-1]) if input_size else 224
    recipe = recipe or default_recipe(type(network).__name__, side)
    if recipe.task != "classification":
        raise UsageError(f"{recipe.name} is a recipe of {recipe.task}; one of classification is")
    return Classification(recipe, Path(data), network=network)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((text + "\n").encode())
