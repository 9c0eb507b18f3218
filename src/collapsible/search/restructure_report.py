"""How ``restructure`` is told to search, and what it says in the end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from collapsible.errors import UsageError
from collapsible.search.gates import GateSpec
from collapsible.search.int8 import Int8Report
from collapsible.search.plan import Plan


@dataclass(frozen=True)
class RestructureSpec:
    """``search_steps`` of the search; ``distil`` is the share of the loss in both phases that is
    learning from the original network (0: none)."""

    search_steps: int = 1000
    distil: float = 0.5
    gates: GateSpec = field(default_factory=GateSpec)

    def __post_init__(self) -> None:
        if self.search_steps < 1:
            raise UsageError(f"search_steps={self.search_steps}: the least is 1")
        if not 0 <= self.distil <= 1:
            raise UsageError(f"distil={self.distil}: a share from 0 to 1 is accepted")


@dataclass(frozen=True)
class RestructureReport:
    """What was done. Latencies are on the plan's target, by ``plan.source``.

    ``planned_ms`` is the sum of the plan's parts; ``before_ms`` and ``after_ms`` are of the whole
    collapsed networks (of what runs on the NPU alone, where ``cpu_operators`` fall off it).
    ``metrics_before`` and ``metrics_after`` are as the task measures (top-1 and top-5 in per cent).
    ``collapse_error`` is the largest difference between the trained wide network and the collapsed
    one in float64, of outputs that reach ``output_range``. ``seconds`` of each phase are measured,
    by the clock; ``processor_seconds`` are those that this process computed in them.
    ``int8`` is there where an int8 file was asked for.
    """

    plan: Plan
    before_ms: float | None
    after_ms: float | None
    planned_ms: float
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    collapse_error: float
    output_range: float
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    seconds: dict[str, float]
    weights: str
    cpu_operators: tuple[str, ...] = ()
    processor_seconds: dict[str, float] = field(default_factory=dict)
    int8: Int8Report | None = None

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps({**asdict(self), "plan": json.loads(self.plan.json())}, indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""

        def ms(value: float | None) -> str:
            return "no figure" if value is None else f"{value:.4f} ms"

        lines = [
            self.plan.table(),
            "",
            f"latency      {ms(self.before_ms)} -> {ms(self.after_ms)} "
            f"(planned {self.planned_ms:.4f} ms; {self.plan.source})",
            f"parameters   {self.parameters_before:,} -> {self.parameters_after:,} (collapsed)",
            f"MACs         {self.macs_before:,} -> {self.macs_after:,} (collapsed)",
            f"collapse     differs by {self.collapse_error:.1e} in float64 "
            f"(measured; outputs reach {self.output_range:.3g})",
        ]
        for name, value in self.metrics_after.items():
            before = self.metrics_before.get(name)
            old = "" if before is None else f"{before:.2f} -> "
            lines.append(f"{name:<12} {old}{value:.2f} % (measured)")
        if self.cpu_operators:
            lines.append(f"not counted  on the CPU: {', '.join(self.cpu_operators)}")
        if self.int8 is not None:
            lines.append(self.int8.table())
        spent = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        return "\n".join([*lines, f"time         {spent}", f"weights      {self.weights}"])
