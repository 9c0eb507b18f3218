"""Side-by-side timing: the cases take turns, so that a noisy machine disturbs all of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def take_turns(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Least and median seconds, and both as ratios to the reference case."""
    least = {name: min(values) for name, values in seconds.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "least_seconds": least[name],
            "median_seconds": median[name],
            "ratio_of_least": least[name] / least[reference],
            "ratio_of_medians": median[name] / median[reference],
        }
        for name in seconds
    }


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--json", type=Path, help="write the result to this file too")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=os.cpu_count())
    return made


def finish(result: dict[str, Any], target: Path | None) -> None:
    """Print the result with the machine's description, and write it if asked."""
    machine = {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()}
    text = json.dumps({**result, "where": machine, "source": "measured"}, indent=2)
    print(text)
    if target:
        target.write_text(text + "\n")
