"""From a budget, latencies and importances to the plan that is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from collapsible.errors import UsageError
from collapsible.search.inverted import Bottleneck
from collapsible.search.latency_table import LatencyTable
from collapsible.search.plan import Plan, PlannedBlock
from collapsible.search.selection import Option, select

# A rise of the loss below this cannot be told from none on a few batches, so that no block turns
# dense for less: of choices that measure alike, the one that bends most is taken. The fused form
# keeps one inner activation of two.
LEAST_IMPORTANCE = {"keep": 0.0, "fused": 0.5e-3, "dense": 1e-3}


def read_budget(budget: float | str, network_ms: float) -> float:
    """A budget in milliseconds: ``0.6`` of the network's latency, or ``"4.5ms"``.

    Raises ``UsageError`` for anything else.
    """
    text = str(budget).strip().lower()
    in_ms = text.endswith("ms")
    try:
        value = float(text.removesuffix("ms"))
    except ValueError:
        raise UsageError(f"budget {budget!r}: a share as 0.6, or milliseconds as 4.5ms") from None
    if not 0 < value < math.inf:
        raise UsageError(f"budget {budget}: it must be above 0")
    if not in_ms and value > 1:
        raise UsageError(
            f"budget {budget}: a share of the network's latency is at most 1; "
            f"milliseconds are written {value:g}ms"
        )
    return value if in_ms else value * network_ms


def choose_forms(
    table: LatencyTable,
    blocks: Sequence[Bottleneck],
    budget_ms: float,
    importance: Mapping[str, Mapping[str, float]],
    gates: Mapping[str, Sequence[float]],
) -> Plan:
    """The plan with the least total importance of changed blocks within the budget.

    ``importance`` is by block name and form, ``gates`` by block name; 0 and 1 where a block has
    none. An importance below the form's in ``LEAST_IMPORTANCE`` counts as that. Raises
    ``BudgetError`` with the least latency where nothing meets the budget.
    """
    planned, options = [], []
    for block, row in zip(blocks, table.blocks, strict=True):
        times, losses = row.milliseconds, importance.get(block.name, {})
        options.append(
            [
                Option(form, ms, max(losses.get(form, 0.0), LEAST_IMPORTANCE[form]))
                for form, ms in times.items()
            ]
        )
        planned.append(
            PlannedBlock(
                block.name,
                "keep",
                block.shape,
                times["keep"],
                dense_ms=times.get("dense"),
                fused_ms=times.get("fused"),
                importance=losses.get("dense", 0.0),
                fused_importance=losses.get("fused", 0.0),
                gates=tuple(gates.get(block.name, (1.0,) * len(block.parts.acts))),
            )
        )
    found = select(options, budget_ms, table.rest_ms)
    return Plan(
        network="",
        target=table.target,
        input_size=table.input_size,
        source=table.source,
        rest_ms=table.rest_ms,
        budget_ms=budget_ms,
        blocks=tuple(
            replace(block, form=form) for block, form in zip(planned, found.forms, strict=True)
        ),
    )
