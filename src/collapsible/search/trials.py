"""Several searches of one network, by budgets and seeds: one after another, or on a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.errors import UsageError
from collapsible.farm import farm
from collapsible.imaging import atomic_write
from collapsible.search.plan import read_plan
from collapsible.search.restructure_choice import read_budget
from collapsible.search.restructure_report import RestructureReport, RestructureSpec
from collapsible.search.restructuring import OnProgress, Restructuring
from collapsible.training.classification import Classification
from collapsible.training.recipes import Recipe


@dataclass(frozen=True)
class Trial:
    """One search: a budget as ``restructure`` takes it, a seed, the folder that it is kept in."""

    budget: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class TrialResult:
    """A finished trial. ``front``: no other of them is as fast and more accurate, or the like.

    ``top1`` is in per cent, of the int8 file where one was asked for, else of the fp32 network.
    """

    trial: Trial
    report: RestructureReport
    front: bool = False

    @property
    def top1(self) -> float:
        int8 = self.report.int8
        if int8 is not None:
            return int8.after if int8.trained is None else int8.trained
        return next(iter(self.report.metrics_after.values()))


@dataclass(frozen=True)
class TrialsReport:
    """Finished trials in the order of budgets and seeds."""

    results: tuple[TrialResult, ...]

    def json(self) -> str:
        """The report as a JSON object; each trial's own report is in its folder."""
        rows = [
            {
                "budget": one.trial.budget,
                "seed": one.trial.seed,
                "folder": str(one.trial.folder),
                "before_ms": one.report.before_ms,
                "after_ms": one.report.after_ms,
                "changed": one.report.plan.changed,
                "metrics_before": one.report.metrics_before,
                "metrics_after": one.report.metrics_after,
                "int8": None if one.report.int8 is None else asdict(one.report.int8),
                "front": one.front,
            }
            for one in self.results
        ]
        return json.dumps({"trials": rows}, indent=2)

    def table(self) -> str:
        """A line a trial."""
        head = f"{'budget':>8}{'seed':>6}{'changed':>9}{'ms':>10}{'times':>7}{'top-1 %':>9}"
        lines = [f"{head}  folder"]
        for one in self.results:
            before, after = one.report.before_ms, one.report.after_ms
            times = f"{before / after:.2f}" if before and after else "-"
            lines.append(
                f"{one.trial.budget:>8}{one.trial.seed:>6}{len(one.report.plan.changed):>9}"
                f"{'-' if after is None else f'{after:.4f}':>10}{times:>7}{one.top1:>9.2f}  "
                f"{one.trial.folder}{' *' if one.front else ''}"
            )
        kind = "int8" if self.results[0].report.int8 is not None else "fp32"
        source = self.results[0].report.plan.source
        lines += ["", f"* not beaten by another; top-1 measured ({kind}); latency: {source}"]
        return "\n".join(lines)


@dataclass(frozen=True)
class TrialSetup:
    """What trials share. A cluster's machines need ``data`` and ``cache`` at the same paths."""

    network: nn.Module
    data: Path
    recipe: Recipe
    target: str
    spec: RestructureSpec
    input_size: tuple[int, ...] | None = None
    int8: bool = False
    int8_steps: int = 0
    resume: bool = False


class TrialRunner:
    """Does trials of one setup, one after another."""

    def __init__(self, setup: TrialSetup) -> None:
        self.setup = setup

    def do(self, trial: Trial, on_progress: OnProgress | None = None) -> TrialResult:
        """The whole search; with ``resume`` what is in the folder is gone on with."""
        setup = self.setup
        recipe = replace(setup.recipe, seed=trial.seed)
        job = Restructuring(
            setup.network,
            Classification(recipe, setup.data, network=setup.network),
            setup.target,
            folder=trial.folder,
            spec=setup.spec,
            input_size=setup.input_size,
            resume=setup.resume,
            on_progress=on_progress,
        )
        plan = trial.folder / "plan.toml"
        chosen = read_plan(plan) if setup.resume and plan.is_file() else None
        network, report = job.finish(chosen or job.make_plan(trial.budget))
        if setup.int8:
            report = job.write_int8(network, report, steps=setup.int8_steps)
        return TrialResult(trial, report)


def list_trials(budgets: Sequence[str], seeds: int, folder: Path, first: int = 0) -> list[Trial]:
    """Every budget with every seed from ``first``, each in a folder of its own.

    Raises ``UsageError`` for no budget, one that is none or given twice, or no seed.
    """
    for budget in budgets:
        read_budget(budget, 1.0)
    if not budgets or len(set(budgets)) < len(budgets) or seeds < 1:
        raise UsageError(
            f"budgets {', '.join(budgets)} and {seeds} seeds: different budgets, at least one of "
            "each"
        )
    return [
        Trial(budget, seed, folder / f"{budget}-{seed}")
        for budget in budgets
        for seed in range(first, first + seeds)
    ]


def run_trials(
    setup: TrialSetup,
    trials: Sequence[Trial],
    *,
    ray: Any = False,
    cpus: int = 1,
    on_done: Callable[[TrialResult], None] | None = None,
    on_progress: OnProgress | None = None,
) -> TrialsReport:
    """Do all trials; with ``ray`` (True, or the module) on a cluster, ``cpus`` for each.

    Raises what ``restructure`` raises, and ``MissingExtraError`` where Ray is not installed.
    """
    done: Iterator[TrialResult]
    if ray:
        given = None if ray is True else ray
        command = "search ran-e --ray"
        done = farm(TrialRunner, setup, trials, command=command, cpus=cpus, ray=given)
    else:
        runner = TrialRunner(setup)
        done = (runner.do(trial, on_progress) for trial in trials)
    results: dict[Trial, TrialResult] = {}
    for result in done:
        results[result.trial] = result
        if on_done is not None:
            on_done(result)
    return TrialsReport(mark_front([results[trial] for trial in trials]))


def mark_front(results: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """The results with ``front`` set; one without a latency is never on it."""

    def better(one: TrialResult, other: TrialResult) -> bool:
        fast, slow = one.report.after_ms, other.report.after_ms
        if fast is None or slow is None:
            return False
        no_worse = fast <= slow and one.top1 >= other.top1
        return no_worse and (fast < slow or one.top1 > other.top1)

    return tuple(
        replace(
            one,
            front=one.report.after_ms is not None and not any(better(o, one) for o in results),
        )
        for one in results
    )


def write_trials(report: TrialsReport, path: Path) -> None:
    """Write the report as JSON: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write((report.json() + "\n").encode())
