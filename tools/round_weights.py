r"""Round shipped weights to half floats, safetensors and graph alike: half the bytes.

    python tools/round_weights.py sesr-m11-web --scale 2 --sets ../shared/data/sr

The int8 graph stays as it is; the card gets the figures of the rounded weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ship_weights import CARD_PROTOCOL, measure

from collapsible.deploy import ship, write_card
from collapsible.models import create_model
from collapsible.weights import find_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--sets", type=Path, required=True)
    given = parser.parse_args()
    card = find_card(given.name, given.scale)
    network = create_model(
        card.architecture, scale=card.scale, weights="default", block="narrow", **card.options
    )
    rounded = ship(network, architecture=card.architecture, scale=card.scale, half=True)
    sums = {**card.sha256, **rounded.sha256}
    figures = measure(card.architecture, given.sets, card.scale, "fp32")
    card = replace(card, sha256=sums, protocol=CARD_PROTOCOL, metrics=figures)
    write_card(card)


if __name__ == "__main__":
    main()
