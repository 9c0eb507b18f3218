r"""Put another int8 graph beside shipped weights, if it measures better, and say so on the card.

    collapsible export sesr-m5-relu -o q.onnx --picture --int8 --calibration sr/train \
        --int8-steps 800
    python tools/ship_int8.py sesr-m5-relu --scale 2 --graph q.onnx --sets sr --how "800 steps"

--sets holds Set5, Set14 and B100. The mean of the three decides; nothing is written otherwise.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ship_weights import SETS, measure

from collapsible.deploy import write_card
from collapsible.imaging import atomic_write
from collapsible.weights import find_card, sha256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--graph", type=Path, required=True)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--how", required=True, help="how it was trained, in a few words")
    given = parser.parse_args()
    card = find_card(given.name, given.scale)
    figures = measure(given.graph, given.sets, given.scale, "int8")
    new, old = (
        sum(one[name]["psnr"] for name in SETS) / len(SETS) for one in (figures, card.metrics_int8)
    )
    if new <= old:
        raise SystemExit(f"not better: {new:.4f} dB against {old:.4f}")
    with atomic_write(card.int8_path) as stream:
        stream.write(given.graph.read_bytes())
    sums = {**card.sha256, "int8": sha256(card.int8_path)}
    recipe = f"{card.recipe.partition('; int8')[0]}; int8: {given.how}"
    card = replace(card, sha256=sums, metrics_int8=figures, recipe=recipe)
    write_card(card)


if __name__ == "__main__":
    main()
