"""One training step of SESR-M5, collapsed against expanded: time, peak memory, MACs.

    python benchmarks/training_step.py [--json FILE] [--steps N] [--threads N]

Each mode runs in its own process (peak memory is a property of a process); the two alternate, so
that a noisy machine disturbs both. Reported: the median step of each mode over all rounds, the
growth of resident memory over that before the first step, and their ratios. All measured; the
MACs are counted by torch (one forward pass, batch 32 of 64x64: the paper's 41.77G against
1.84G; `collapsible reproduce sesr/training-cost` puts these beside the paper's).
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collapsible.blocks.collapsible_conv import Mode
from collapsible.reproduce.training_step import forward_macs, measure_alone


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    runs: dict[Mode, list[dict[str, Any]]] = {"collapsed": [], "expanded": []}
    for _ in range(given.rounds):
        for mode, found in runs.items():
            steps = given.steps * (10 if mode == "collapsed" else 1)
            found.append(asdict(measure_alone(mode, steps, given.threads)))
    counted = {mode: forward_macs(mode) / 1e9 for mode in runs}
    result: dict[str, object] = {"threads": given.threads, "gmacs_forward_counted": counted}
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
