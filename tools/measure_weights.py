r"""Measure shipped weights again and write their cards: after a change of what measures them.

    python tools/measure_weights.py --sets ../shared/data/sr
    python tools/measure_weights.py sesr-m5_x3 sesr-xl --sets ../shared/data/sr
    python tools/measure_weights.py --defence --sets ../shared/data/sr

NAMES are networks, at every scale that ships of them, or one scale's; without, all are measured.
--defence: the defence laboratory's networks on RGB. --sets holds Set5, Set14 and B100.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import ship_defence_weights as defence
from ship_weights import measured

from collapsible.deploy import write_card
from collapsible.evaluation.networks import load_network
from collapsible.weights import list_cards, normalise_name, read_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--defence", action="store_true")
    given = parser.parse_args()
    if given.defence:
        for path in sorted(defence.FOLDER.glob("*.json")):
            card = read_card(path)
            weights = path.with_suffix(".safetensors")
            network = load_network(weights, card.architecture, card.scale, card.options)
            metrics = defence.measure(network, given.sets, card.scale)
            defence.write(replace(card, metrics=metrics), path)
        return
    wanted = {normalise_name(name) for name in given.names}
    named = [({normalise_name(card.name), card.stem}, card) for card in list_cards()]
    if missing := wanted.difference(*(names for names, _ in named)):
        raise SystemExit(f"nothing ships as {', '.join(sorted(missing))}")
    for names, card in named:
        if wanted and not wanted & names:
            continue
        print(card.stem)
        write_card(measured(card, given.sets))


if __name__ == "__main__":
    main()
