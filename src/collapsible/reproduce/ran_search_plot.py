"""The picture of ``reproduce ran/search``: int8 accuracy over estimated latency, every network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collapsible.reproduce.ran_search_measure import top1
from collapsible.reproduce.ran_search_setting import Setting

# Told apart by form and colour, for readers who do not see all colours.
MARKS = {
    "base": ("o", "#000000"),
    "continued": ("s", "#555555"),
    "searched": ("*", "#d55e00"),
    "earliest": ("^", "#0072b2"),
    "pattern-c": ("P", "#009e73"),
    "pattern-gt": ("X", "#009e73"),
    "from-scratch": ("D", "#cc79a7"),
    "mobilenetv2": ("v", "#56b4e9"),
}


def plot(found: dict[str, list[dict[str, Any]]], setting: Setting, path: Path) -> Path:
    """Write the picture (PNG): one panel a target, one mark a seed, int8 as deployed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = setting.targets or (setting.target,)
    figure = Figure(figsize=(5.2 * len(targets), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, target in enumerate(targets):
        axes = figure.add_subplot(1, len(targets), number + 1)
        for name, ones in found.items():
            mark, colour = MARKS.get(name, ("d", "#e69f00"))
            known = [one for one in ones if one["int8_fps"][target]]
            axes.scatter(
                [1e3 / one["int8_fps"][target] for one in known],
                [top1(one, "best") for one in known],
                s=130 if mark == "*" else 55,
                marker=mark,
                color=colour,
                label=name,
                alpha=0.85,
                linewidths=0.5,
                edgecolors="white",
            )
        axes.set_xlabel(f"latency in ms, {target} (estimated)")
        axes.set_ylabel("int8 top-1 in % (measured)")
        axes.grid(alpha=0.3)
        if number == 0:
            axes.legend(fontsize=8, loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    figure.savefig(draft, format="png", dpi=120)
    draft.replace(path)
    return path
