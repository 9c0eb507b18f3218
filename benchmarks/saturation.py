"""What int8 graphs lose and take where int8 arithmetic saturates, and what the remedy costs.

    python benchmarks/saturation.py --set SR/Set5 [--model NAME ...] [--scale N] [--rounds N]

Each engine runs the fp32 graph, the int8 graph as the engine would by itself, and as the library
makes it (``collapsible.upscaler.int8``), in turn. PSNR in dB of the finished 8-bit pictures' Y;
times as ratios to the engine's own fp32. On a CPU with VNNI the last two are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from timing import finish, parser, summarise, take_turns

from collapsible.evaluation.pairs import PicturePair, read_pairs
from collapsible.imaging import psnr, rgb_to_y
from collapsible.upscaler import ENGINES, Upscaler, engines
from collapsible.upscaler.int8 import ONNXRUNTIME_EXACT


def quality(upscaler: Upscaler, pairs: list[PicturePair]) -> float:
    scores = [
        psnr(rgb_to_y(pair.high), rgb_to_y(upscaler(pair.low)), crop=upscaler.scale)
        for pair in pairs
    ]
    return float(np.mean(scores))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--set", type=Path, required=True)
    made.add_argument("--model", nargs="+", default=["sesr-cpu", "sesr-m5", "sesr-m11"])
    made.add_argument("--scale", type=int, default=2)
    given = made.parse_args()
    pairs = read_pairs(given.set, given.scale)
    result: dict[str, Any] = {}
    for model in given.model:
        for engine in ENGINES:
            options = {"scale": given.scale, "engine": engine, "threads": given.threads}
            ways = {
                precision: Upscaler(model, precision=precision, **options)
                for precision in ("fp32", "int8")
            }
            with (
                mock.patch.object(engines, "int8_saturates", return_value=False),
                mock.patch.object(engines, "ONNXRUNTIME_EXACT", (ONNXRUNTIME_EXACT[0], "0")),
            ):
                ways["int8 by itself"] = Upscaler(model, precision="int8", **options)
            cases = {
                way: lambda upscaler=upscaler: [upscaler(pair.low) for pair in pairs]
                for way, upscaler in ways.items()
            }
            measured = summarise(take_turns(cases, given.rounds), "fp32")
            result[f"{model} {engine}"] = {
                way: {"psnr": quality(upscaler, pairs), **measured[way]}
                for way, upscaler in ways.items()
            }
    finish({"scale": given.scale, "threads": given.threads, "cases": result}, given.json)


if __name__ == "__main__":
    main()
