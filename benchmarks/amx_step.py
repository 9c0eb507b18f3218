"""A training step of SESR-XL by ``tools/amx`` and by torch in bf16, in turn on one core.

    python benchmarks/amx_step.py

Prints milliseconds for a batch (least and median of the rounds) and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from collapsible.models.sesr import SESR

TOOL = Path(__file__).parents[1] / "tools" / "amx" / "train.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--features", type=int, default=32, choices=(32, 64))
    given = parser.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("amx_train", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    network = SESR(11, given.features, block="narrow").train()
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.rand(given.batch, 1, given.patch, given.patch)

    def by_torch(net: SESR, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return SESR.forward(net, x)

    def step(forward: Callable[[SESR, Tensor], Tensor]) -> float:
        start = time.perf_counter()
        network.zero_grad(set_to_none=True)
        forward(network, x).float().square().mean().backward()
        return (time.perf_counter() - start) * 1e3

    ways = {"torch, bf16": by_torch, "tools/amx": tool.forward}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(given.rounds + 2):
        for name, forward in ways.items():
            taken = step(forward)
            if turn >= 2:
                times[name].append(taken)
    for name, values in times.items():
        print(f"{name:<12} {min(values):8.1f} ms least {statistics.median(values):8.1f} ms median")
    first, second = (statistics.median(values) for values in times.values())
    print(f"ratio of the medians {first / second:.2f} (measured)")


if __name__ == "__main__":
    main()
