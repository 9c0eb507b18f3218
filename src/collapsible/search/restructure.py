"""``restructure``: find the bends that a network can do without, for a target and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from collapsible.costs.targets import Target
from collapsible.models.registry import load_state, read_state
from collapsible.search.plan import Plan, apply_plan, read_plan
from collapsible.search.restructure_report import RestructureReport, RestructureSpec
from collapsible.search.restructuring import OnProgress, Restructuring
from collapsible.training.classification import Classification
from collapsible.training.recipes import Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def restructure(
    network: nn.Module,
    data: str | Path | Classification,
    target: Target | str,
    budget: float | str | None = None,
    *,
    folder: str | Path = "runs/restructure",
    plan: Plan | str | Path | None = None,
    recipe: Recipe | None = None,
    spec: RestructureSpec | None = None,
    input_size: Sequence[int] | None = None,
    resume: bool = False,
    cache: str | Path | bool = True,
    fabric: Fabric | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[nn.Module, RestructureReport]:
    """Make a trained classifier faster on a target by making inverted bottlenecks dense.

    ``data`` is a folder of labelled pictures (see ``find_labelled``) or a task of one.
    ``budget`` is a share of the network's latency (0.6 or "0.6") or a latency ("4.5ms"); it may be
    left out with a ``plan`` (or its file), which leaves the search out. ``recipe`` says how to
    train; its steps are those of the fine-tuning. ``input_size`` (1, 3, H, W) is what latencies
    are of. Everything is kept below ``folder``; with ``resume`` a stopped run goes on from there.
    ``on_progress(phase, done, total, note)`` is called as work goes on.

    Returns the restructured network in its wide form with trained weights, in evaluation mode
    (``collapse`` gives the deployed one), and a report. The given network is untouched.
    Raises ``UsageError`` for a network without inverted bottlenecks or too few pictures,
    ``BudgetError`` for a budget below what is reachable, ``PlanError`` for a plan of another
    network, ``UnknownNameError`` for an unknown target, ``CollapsibleError`` where a tool fails.
    """
    job = Restructuring(
        network,
        data,
        target,
        folder=folder,
        recipe=recipe,
        spec=spec,
        input_size=input_size,
        resume=resume,
        cache=cache,
        fabric=fabric,
        on_progress=on_progress,
    )
    chosen = read_plan(plan) if isinstance(plan, str | Path) else plan
    return job.finish(job.make_plan(budget) if chosen is None else chosen)


def load_restructured(
    network: nn.Module, plan: Plan | str | Path, weights: str | Path
) -> nn.Module:
    """A restructured network in its wide form: the original's architecture, a plan, its weights.

    Raises ``PlanError`` and ``WeightsError`` where they do not belong together.
    """
    result = apply_plan(network, read_plan(plan) if isinstance(plan, str | Path) else plan)
    load_state(result, read_state(Path(weights)), str(weights))
    return result.eval()
