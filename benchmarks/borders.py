"""What a picture's extension beyond its borders is worth: PSNR of shipped networks by each way.

    python benchmarks/borders.py --sets SR [--model NAME ...] [--scale N] [--json FILE]

--sets holds Set5, Set14 and B100 (each with HR inside). ``edge`` repeats the last pixel,
``reflect`` mirrors about it, ``symmetric`` mirrors with it (what ``upscale`` does), ``odd`` mirrors
and turns the differences about, and ``zeros`` leaves it to the convolutions' own padding.
PSNR in dB of the network's own Y, as ``collapsible evaluate`` has it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from collapsible.evaluation.measure import LumaFunction, evaluate_luma
from collapsible.evaluation.networks import load_network
from collapsible.evaluation.pairs import luma, read_pairs
from collapsible.weights import find_card

SETS = ("Set5", "Set14", "B100")
WAYS: dict[str, dict[str, str]] = {
    "edge": {"mode": "edge"},
    "reflect": {"mode": "reflect"},
    "symmetric": {"mode": "symmetric"},
    "odd": {"mode": "reflect", "reflect_type": "odd"},
    "zeros": {},
}


def luma_function(
    network: torch.nn.Module, scale: int, around: int, how: dict[str, str]
) -> LumaFunction:
    """The network as a function of a picture that is extended by ``around`` pixels."""

    def enlarge(low: NDArray[Any]) -> NDArray[np.float64]:
        wide = np.pad(luma(low), around, **how)
        with torch.inference_mode():
            y = network(torch.from_numpy(wide.astype(np.float32) / 255)[None, None])[0, 0]
        cut = around * scale
        return y.double().numpy()[cut : y.shape[0] - cut, cut : y.shape[1] - cut] * 255

    return enlarge


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--model", nargs="+", default=["sesr-m5"])
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in given.model:
        card = find_card(name, given.scale)
        network = load_network(card.safetensors_path, card.architecture, card.scale, card.options)
        for one in SETS:
            pairs = read_pairs(given.sets / one, card.scale)
            scores = result.setdefault(card.name, {}).setdefault(one, {})
            for way, how in WAYS.items():
                around = card.receptive_radius if how else 0
                enlarge = luma_function(network, card.scale, around, how)
                measured = evaluate_luma(enlarge, pairs, card.scale)
                scores[way] = float(np.mean([psnr for psnr, _ in measured]))
            print(
                card.name,
                one,
                *(f"{way} {value:.3f}" for way, value in scores.items()),
                sep="  ",
            )
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
