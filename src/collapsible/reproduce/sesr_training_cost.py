"""What training collapsed saves (SESR, section 3.3 and its figure on efficient training)."""

from __future__ import annotations

import statistics

from collapsible.blocks.collapsible_conv import Mode
from collapsible.reproduce.registry import Request
from collapsible.reproduce.report import Check, Column, Kind, Reproduction, Row, Section
from collapsible.reproduce.training_step import (
    BATCH,
    PATCH,
    StepCost,
    forward_macs,
    impulse_macs,
    measure_alone,
)

PAPER = "SESR (arXiv 2103.09404), section 3.3"
PARAMETERS = 13_520
PUBLISHED = {"expanded": 41.77e9, "collapsed": 1.84e9}


def training_cost(request: Request) -> Reproduction:
    """MACs of a forward pass of SESR-M5 in both modes, and time and memory of a whole step."""
    import torch

    from collapsible.models import create_model

    expanded, collapsed = forward_macs("expanded"), forward_macs("collapsed")
    with torch.device("meta"):
        network = create_model("sesr_m5", scale=2)
        folding = impulse_macs(network)
    pixels = BATCH * PATCH**2
    convolutions = PARAMETERS * pixels
    as_the_paper = convolutions + folding
    counter = "torch's FlopCounterMode, MACs = FLOPs / 2"
    rows = (
        _macs_row("published", "published", PAPER, *PUBLISHED.values()),
        _macs_row("collapsed as here", "measured", counter, expanded, collapsed),
        _macs_row("collapsed by impulses", "measured", counter, expanded, as_the_paper),
    )
    batch, steps, rounds = (BATCH, 5, 3) if request.full else (2, 1, 1)
    threads = torch.get_num_threads()
    costs = _measure(request, batch, steps, rounds, threads)
    step_source = f"median step, batch {batch} of {PATCH}x{PATCH}, {threads} threads"
    steps_rows = [
        Row(mode, "measured", step_source, dict(zip(_KEYS, values, strict=True)))
        for mode, values in costs.items()
    ]
    ratios = {
        key: _over(costs["expanded"][n], costs["collapsed"][n]) for n, key in enumerate(_KEYS)
    }
    steps_rows.append(Row("expanded / collapsed", "measured", "of the two rows above", ratios))
    checks = (
        Check(
            "41.77G MACs expanded, counted",
            abs(expanded - PUBLISHED["expanded"]) < 0.01e9,
            f"{expanded / 1e9:.4f}G (printed without rounding up)",
        ),
        Check(
            "1.84G MACs collapsed, counted with the paper's way to collapse",
            round(as_the_paper / 1e9, 2) == 1.84,
            f"{convolutions / 1e9:.3f}G for the pictures + {folding / 1e6:.1f}M for collapsing"
            f" = {as_the_paper / 1e9:.3f}G",
        ),
    )
    notes = (
        "The paper's 1.84G against our "
        f"{collapsed / 1e9:.3f}G: the pictures cost {convolutions / 1e9:.3f}G in both. The paper "
        "collapses a block by sending an impulse per input channel through its wide layers "
        f"({folding / 1e6:.1f}M for all blocks); here the two kernels are multiplied directly "
        f"({(collapsed - convolutions) / 1e6:.2f}M).",
        "Time and memory depend on the machine and on what else it does; the MACs do not.",
    )
    return Reproduction(
        "sesr/training-cost",
        "SESR-M5 x2 trained expanded and collapsed",
        PAPER,
        request.form,
        (
            Section(
                f"MACs of one forward pass, {BATCH} pictures of {PATCH}x{PATCH}",
                (
                    Column("expanded", "expanded G", ".3f"),
                    Column("collapsed", "collapsed G", ".3f"),
                    Column("ratio", "ratio", ".1f"),
                ),
                rows,
            ),
            Section(
                "A whole training step: forward, backward, Adam",
                (
                    Column("seconds", "seconds", ".3f"),
                    Column("tensor_mebibytes", "tensors MiB", ".0f"),
                    Column("resident_mebibytes", "resident MiB", ".0f"),
                ),
                tuple(steps_rows),
            ),
        ),
        checks,
        notes,
        {"batch": batch, "patch": PATCH, "steps": steps, "rounds": rounds, "threads": threads},
    )


_KEYS = ("seconds", "tensor_mebibytes", "resident_mebibytes")


def _macs_row(name: str, kind: Kind, source: str, expanded: float, collapsed: float) -> Row:
    return Row(
        name,
        kind,
        source,
        {
            "expanded": expanded / 1e9,
            "collapsed": collapsed / 1e9,
            "ratio": expanded / collapsed,
        },
    )


def _over(wide: float | None, narrow: float | None) -> float | None:
    return None if wide is None or not narrow else wide / narrow


def _measure(
    request: Request, batch: int, steps: int, rounds: int, threads: int
) -> dict[str, list[float | None]]:
    """Medians over rounds; the modes take turns, so that a noisy machine disturbs both."""
    found: dict[Mode, list[StepCost]] = {"expanded": [], "collapsed": []}
    done = 0
    for _ in range(rounds):
        for mode, costs in found.items():
            # A collapsed step is some tens of times shorter; more of them make its median steady.
            count = steps * (10 if mode == "collapsed" and request.full else 1)
            costs.append(measure_alone(mode, count, threads, batch))
            done += 1
            request.on_progress(done, 2 * rounds, f"{mode} step")
    return {mode: [_median(costs, key) for key in _KEYS] for mode, costs in found.items()}


def _median(costs: list[StepCost], key: str) -> float | None:
    values = [getattr(cost, key) for cost in costs]
    return None if None in values else statistics.median(values)
