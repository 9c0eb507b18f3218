"""Budgets that cannot be counted from a shape: latencies and memory of the built network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from collapsible.errors import CollapsibleError
from collapsible.search.families import Family, Shape

# Rounds of a network; of pairs of them more, as ratios are to be trusted to a few per cent.
RUNS, PAIRS = 7, 11
MEASURED = {
    "latency_ms": "measured on this CPU, torch fp32, batch 1",
    "latency_share": "of the base's, both measured on this CPU in turn, torch fp32, batch 1",
    "npu_latency_ms": "estimated",
    "peak_memory": "counted, 4 bytes a number",
}


def measure(family: Family, shape: Shape, kind: str, target: str) -> float:
    """``kind`` of the shape's network: a key of ``MEASURED``; ms, a ratio or bytes."""
    measures: dict[str, Callable[[Family, Shape, str], float]] = {
        "latency_ms": _cpu,
        "latency_share": _share,
        "npu_latency_ms": _npu,
        "peak_memory": _memory,
    }
    return measures[kind](family, shape, target)


def _cpu(family: Family, shape: Shape, target: str) -> float:
    """Median over a few rounds."""
    (rates,) = _rates(family, [shape], RUNS)
    return 1000 / statistics.median(rates)


def _share(family: Family, shape: Shape, target: str) -> float:
    """Median of ratios of rounds that follow each other: what slows the machine slows both."""
    pairs = zip(*_rates(family, [shape, family.base], PAIRS), strict=True)
    return statistics.median(base / own for own, base in pairs)


def _rates(family: Family, shapes: Sequence[Shape], rounds: int) -> list[list[float]]:
    """Pictures a second of each network, one at a time with torch, in interleaved rounds."""
    import torch

    from collapsible.search.speed import sample_speed

    samples = sample_speed(
        {str(number): family.build(shape) for number, shape in enumerate(shapes)},
        ("torch",),
        (1, *family.size),
        rounds=rounds,
        threads=torch.get_num_threads(),
    )
    return list(samples.values())


def _npu(family: Family, shape: Shape, target: str) -> float:
    from collapsible.deploy.estimate import estimate

    report = estimate(family.build(shape).eval(), target, (1, *family.size))
    if report.latency_ms is None:
        raise CollapsibleError(
            f"{family.name} networks do not run on {target} alone: "
            f"{', '.join(map(str, report.cpu_operators[:4]))} fall off it; "
            "take the inverted-bottleneck or resnet family"
        )
    return report.latency_ms


def _memory(family: Family, shape: Shape, target: str) -> float:
    from collapsible.costs import cost

    return float(cost(family.build(shape), (1, *family.size)).peak_memory)
