"""What int8 graphs lose and take where int8 arithmetic saturates, and what the remedy costs.

    python benchmarks/saturation.py --set SR/Set5 [--model NAME ...] [--scale N] [--rounds N]

Each engine runs the fp32 graph, the int8 graph as the engine would by itself, and as the library
makes it (``collapsible.upscaler.int8``), in turn. PSNR in dB of the finished 8-bit pictures' Y;
times are the least of the rounds, as ratios to the engine's own fp32. On a CPU with VNNI the last
two rows are the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from collapsible.evaluation.pairs import read_pairs
from collapsible.imaging import psnr, rgb_to_y
from collapsible.upscaler import ENGINES, Upscaler, engines
from collapsible.weights import Card, find_card

NOTHING = ("session.x64quantprecision", "0")


def prepared(card: Card, engine: str, way: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if way == "fp32":
        return Upscaler(card, scale=card.scale, engine=engine, precision="fp32", threads=1)
    if way == "int8":
        return Upscaler(card, scale=card.scale, engine=engine, precision="int8", threads=1)
    with (
        mock.patch.object(engines, "int8_saturates", return_value=False),
        mock.patch.object(engines, "ONNXRUNTIME_EXACT", NOTHING),
    ):
        return Upscaler(card, scale=card.scale, engine=engine, precision="int8", threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=["sesr-cpu", "sesr-m5", "sesr-m11"])
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    pairs = list(read_pairs(given.set, given.scale))
    for name in given.model:
        card = find_card(name, given.scale)
        for engine in ENGINES:
            ways = {way: prepared(card, engine, way) for way in ("fp32", "int8 by itself", "int8")}
            best = dict.fromkeys(ways, float("inf"))
            values: dict[str, float] = {}
            for _ in range(given.rounds):
                for way, upscale in ways.items():
                    start = time.perf_counter()
                    pictures = [upscale(pair.low) for pair in pairs]
                    best[way] = min(best[way], time.perf_counter() - start)
                    values[way] = float(
                        np.mean(
                            [
                                psnr(rgb_to_y(pair.high), rgb_to_y(large), crop=given.scale)
                                for pair, large in zip(pairs, pictures, strict=True)
                            ]
                        )
                    )
            for way in ways:
                ratio = best[way] / best["fp32"]
                print(f"{name} {engine:12} {way:15} {values[way]:.2f} dB  {ratio:.2f}")


if __name__ == "__main__":
    main()
