"""What ``scale`` returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from collapsible.errors import CollapsibleError, require_packages
from collapsible.search.families import Family, Shape


@dataclass(frozen=True)
class Candidate:
    """One network: counts for one picture, all exact.

    ``effectiveness`` is the sum of 1 / width over its blocks, ``entropy`` DeepMAD's, ``score``
    what the rule ranks by. ``measured`` is the budget's own figure where it was taken.
    """

    shape: Shape
    params: int
    macs: int
    nn_mass: float
    non_linear_units: int
    entropy: float
    effectiveness: float
    score: float
    measured: float | None = None


@dataclass(frozen=True)
class ScaleReport:
    """Candidates for a budget, best first, and how they were found."""

    base: str
    family: Family
    budgets: Mapping[str, float]
    rule: str
    cap: float
    target: str
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]

    def build(self, rank: int = 0) -> nn.Module:
        """A candidate's network, newly drawn; rank 0 is the best."""
        return self.family.build(self.candidates[rank].shape)

    def pareto(self) -> tuple[Candidate, ...]:
        """Candidates that no other beats in both score (more) and effectiveness (less)."""
        return tuple(
            one
            for one in self.candidates
            if not any(
                other.score >= one.score
                and other.effectiveness <= one.effectiveness
                and (other.score, other.effectiveness) != (one.score, one.effectiveness)
                for other in self.candidates
            )
        )

    def json(self) -> str:
        """The report as a JSON object."""
        facts = {
            "base": self.base,
            "family": self.family.name,
            "input_size": self.family.size,
            "budget": dict(self.budgets),
            "rule": self.rule,
            "cap": self.cap,
            "target": self.target if "npu_latency_ms" in self.budgets else None,
            "candidates": [
                {**asdict(one.shape), **{k: v for k, v in asdict(one).items() if k != "shape"}}
                for one in self.candidates
            ],
        }
        return json.dumps(facts, indent=2)

    def table(self) -> str:
        """A line a candidate."""
        head = ["rank", "depths", "widths", "params M", "MACs G", "NN-Mass", "units", "sum 1/w"]
        measured = [kind for kind in self.budgets if kind not in ("macs", "params")]
        rows = [[*head, "score", *measured]]
        for rank, one in enumerate(self.candidates, start=1):
            row = [
                str(rank),
                ",".join(map(str, one.shape.depths)),
                ",".join(map(str, one.shape.dims)),
                f"{one.params / 1e6:.3f}",
                f"{one.macs / 1e9:.3f}",
                f"{one.nn_mass:,.0f}",
                f"{one.non_linear_units:,}",
                f"{one.effectiveness:.3f}",
                f"{one.score:,.0f}",
            ]
            if measured:
                row.append("-" if one.measured is None else f"{one.measured:,.4g}")
            rows.append(row)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        size = " x ".join(map(str, self.family.size))
        return "\n".join(
            [*lines, "", f"{self.family.name}, input {size}, rule {self.rule!r}; counted"]
        )

    def plot(self, path: str | Path) -> None:
        """Score over depth-by-width of the candidates, with the Pareto front and the cap."""
        require_packages("plotting candidates", "matplotlib", extra="plot")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        points = axes.scatter(
            [one.effectiveness for one in self.candidates],
            [one.score for one in self.candidates],
            c=[one.params / 1e6 for one in self.candidates],
        )
        figure.colorbar(points, label="parameters, millions")
        front = sorted(self.pareto(), key=lambda one: one.effectiveness)
        axes.step([one.effectiveness for one in front], [one.score for one in front], where="post")
        axes.axvline(self.cap, linestyle=":", color="grey", label="cap")
        axes.set_xlabel("depth over width: sum over blocks of 1 / width")
        axes.set_ylabel("entropy" if self.rule == "entropy" else "non-linear units")
        limits = [f"{kind} at most {limit:g}" for kind, limit in self.budgets.items()]
        axes.set_title(f"{self.base}: {', '.join(limits)}")
        axes.legend()
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise CollapsibleError(f"cannot write {path}: {error}") from error
