"""Budgets that cannot be counted from a shape: latencies and memory of the built network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from collapsible.errors import CollapsibleError
from collapsible.search.families import Family, Shape

RUNS = 7
MEASURED = {
    "latency_ms": "measured on this CPU, torch fp32, batch 1",
    "npu_latency_ms": "estimated",
    "peak_memory": "counted, 4 bytes a number",
}


def measure(family: Family, shape: Shape, kind: str, target: str) -> float:
    """``kind`` of the shape's network: a key of ``MEASURED``; ms or bytes."""
    measures: dict[str, Callable[[Family, Shape, str], float]] = {
        "latency_ms": _cpu,
        "npu_latency_ms": _npu,
        "peak_memory": _memory,
    }
    return measures[kind](family, shape, target)


def _cpu(family: Family, shape: Shape, target: str) -> float:
    """Median of a few runs after one to warm up."""
    import torch

    network = family.build(shape).eval().to(memory_format=torch.channels_last)
    x = torch.rand(1, *family.size).to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            network(x)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])


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
