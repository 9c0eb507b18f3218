"""One training step of SESR-M5, collapsed against expanded: time, peak memory, MACs.

    python benchmarks/training_step.py [--json FILE] [--steps N] [--threads N]

Each mode runs in its own process (peak memory is a property of a process); the two alternate, so
that a noisy machine disturbs both. Reported: the median step of each mode over all rounds, the
growth of resident memory over that before the first step, and their ratios. All measured; the
MACs are counted (convolutions of one forward pass, batch 32 of 64x64: the paper's 41.77G against
1.84G).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BATCH, PATCH = 32, 64


def measure(mode: str, steps: int, threads: int) -> dict[str, float]:
    import torch

    from collapsible.blocks import set_mode
    from collapsible.models import create_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = set_mode(create_model("sesr_m5", scale=2), mode)  # type: ignore[arg-type]
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step(batch: int) -> float:
        low = torch.rand(batch, 1, PATCH, PATCH).to(memory_format=torch.channels_last)
        high = torch.rand(batch, 1, 2 * PATCH, 2 * PATCH)
        start = time.perf_counter()
        loss = (network(low) - high).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return time.perf_counter() - start

    # One picture first: libraries, compiled kernels and the optimiser's state are there already
    # when the memory of the step itself is measured.
    step(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [step(BATCH) for _ in range(steps + 1)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(times[1:]),
        "tensor_mebibytes": tensor_peak(lambda: step(BATCH)),
        "resident_mebibytes": (after - before) / 1024,
    }


def tensor_peak(work: Callable[[], object]) -> float:
    """The most memory, in MiB, that tensors allocated during ``work`` hold at one time."""
    import torch

    with (
        tempfile.TemporaryDirectory() as folder,
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        work()
        profile.stop()
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    )
    held = list(itertools.accumulate(change for _, change in changes))
    return max(held) / 2**20


def forward_macs() -> dict[str, float]:
    """MACs of one forward pass in each form, from the shapes; collapsing itself included."""
    widths = [(1, 16, 5)] + [(16, 16, 3)] * 5 + [(16, 4, 5)]
    pixels = BATCH * PATCH**2
    expanded = sum(pixels * (i * 256 * k * k + 256 * o) for i, o, k in widths)
    folding = sum(i * 256 * o * k * k for i, o, k in widths)
    collapsed = sum(pixels * i * o * k * k for i, o, k in widths)
    return {"expanded": expanded / 1e9, "collapsed": (collapsed + folding) / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mode:
        print(json.dumps(measure(given.mode, given.steps, given.threads)))
        return
    runs: dict[str, list[dict[str, float]]] = {"collapsed": [], "expanded": []}
    for _ in range(given.rounds):
        for mode, found in runs.items():
            steps = given.steps * (10 if mode == "collapsed" else 1)
            command = [sys.executable, __file__, "--mode", mode, "--steps", str(steps)]
            command += ["--threads", str(given.threads)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    result: dict[str, object] = {"threads": given.threads, "gmacs_forward_counted": forward_macs()}
    keys = ("seconds", "tensor_mebibytes", "resident_mebibytes")
    summary = {
        mode: {key: statistics.median(run[key] for run in found) for key in keys}
        for mode, found in runs.items()
    }
    ratios = {key: summary["expanded"][key] / summary["collapsed"][key] for key in keys}
    result |= {"measured": summary, "expanded_over_collapsed": ratios, "runs": runs}
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
