"""Budgets that cannot be counted from a shape: latencies and memory of the built network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from collapsible.errors import CollapsibleError
from collapsible.search.families import Family, Shape

# Runs of a network; of pairs of them more, as ratios are to be trusted to a few per cent.
RUNS, PAIRS = 7, 31
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
    """Median of a few runs after one to warm up."""
    return 1000 * statistics.median(seconds for (seconds,) in _times(family, [shape], RUNS))


def _share(family: Family, shape: Shape, target: str) -> float:
    """Median of ratios of runs that follow each other: what slows the machine slows both."""
    pairs = _times(family, [shape, family.base], PAIRS)
    return statistics.median(own / base for own, base in pairs)


def _times(family: Family, shapes: Sequence[Shape], rounds: int) -> list[tuple[float, ...]]:
    """Seconds a picture of each network in turn, round by round, after one to warm up."""
    import torch

    networks = [
        family.build(shape).eval().to(memory_format=torch.channels_last) for shape in shapes
    ]
    x = torch.rand(1, *family.size).to(memory_format=torch.channels_last)

    def run(network: Any) -> float:
        start = time.perf_counter()
        network(x)
        return time.perf_counter() - start

    with torch.inference_mode():
        return [tuple(run(network) for network in networks) for _ in range(rounds + 1)][1:]


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
