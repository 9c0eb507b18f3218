"""Which blocks change: exactly the best choice under a budget of latency.

Every block has several options, each with a latency and a loss. The choice of one option a block
with the least total loss within the budget is a multiple-choice knapsack; it is solved by merging
Pareto fronts block by block, which is dynamic programming without a grid (two-stage DP of Kim et
al., arXiv 2301.12187, and LayerMerge, arXiv 2406.12837, do it on a grid of latencies).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from collapsible.errors import BudgetError, UsageError

# A front longer than this is thinned to the best choice of each of so many steps of latency.
LONGEST_FRONT = 50_000
STEPS = 20_000


@dataclass(frozen=True)
class Option:
    """One form of a block: its name, its latency in ms, and what choosing it costs (>= 0)."""

    form: str
    latency_ms: float
    loss: float


@dataclass(frozen=True)
class Selection:
    """The chosen forms in the order of the blocks, their total latency (with ``fixed``) and loss.

    ``exact`` is False where a front had to be thinned; the budget holds in any case.
    """

    forms: tuple[str, ...]
    latency_ms: float
    loss: float
    exact: bool = True


@dataclass(frozen=True)
class _State:
    latency: float
    loss: float
    option: Option | None
    before: _State | None


def select(
    blocks: Sequence[Sequence[Option]], budget_ms: float, fixed_ms: float = 0.0
) -> Selection:
    """The least loss within the budget; of equal losses the least latency.

    ``fixed_ms`` is what the rest of the network takes. Raises ``UsageError`` for a block without
    options or numbers that are none, and ``BudgetError`` with the least latency there is.
    """
    for number, options in enumerate(blocks):
        if not options:
            raise UsageError(f"block {number} has no option")
        for option in options:
            if not all(map(math.isfinite, (option.latency_ms, option.loss))) or option.loss < 0:
                raise UsageError(f"block {number}: {option}: a finite latency and a loss >= 0")
    if not math.isfinite(budget_ms):
        raise UsageError(f"budget_ms={budget_ms}: a finite number is accepted")
    least = [min(option.latency_ms for option in options) for options in blocks]
    # What the blocks to come take at the least: states that leave less are dropped early.
    rest = [sum(least[number:]) for number in range(len(blocks) + 1)]
    room = budget_ms - fixed_ms
    slack = 1e-9 * max(abs(budget_ms), abs(fixed_ms), 1e-30)
    if rest[0] > room + slack:
        raise BudgetError(
            f"a budget of {budget_ms:.4g} ms is below what can be reached: "
            f"the least is {fixed_ms + rest[0]:.4g} ms"
        )
    front, exact = [_State(0.0, 0.0, None, None)], True
    for number, options in enumerate(blocks):
        grown = [
            _State(state.latency + option.latency_ms, state.loss + option.loss, option, state)
            for state in front
            for option in options
            if state.latency + option.latency_ms + rest[number + 1] <= room + slack
        ]
        front = _pareto(grown)
        if len(front) > LONGEST_FRONT:
            front, exact = _thin(front), False
    best = min(front, key=lambda state: (state.loss, state.latency))
    forms: list[str] = []
    state: _State | None = best
    while state is not None and state.option is not None:
        forms.append(state.option.form)
        state = state.before
    return Selection(tuple(reversed(forms)), fixed_ms + best.latency, best.loss, exact)


def _pareto(states: list[_State]) -> list[_State]:
    """The states that no other one beats or equals in both, by rising latency."""
    front: list[_State] = []
    for state in sorted(states, key=lambda s: (s.latency, s.loss)):
        if not front or state.loss < front[-1].loss:
            front.append(state)
    return front


def _thin(front: list[_State]) -> list[_State]:
    """The best state of each step of latency; the fastest stays, so the budget can be met."""
    low, high = front[0].latency, front[-1].latency
    kept: dict[int, _State] = {-1: front[0]}
    for state in front:
        # Along a front the loss falls, so the last of a step is its best.
        kept[int((state.latency - low) / (high - low) * STEPS)] = state
    return _pareto(list(kept.values()))
