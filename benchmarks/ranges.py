"""How large an SESR's features become from block to block, and how unlike its channels are.

    python benchmarks/ranges.py sesr-xl runs/xl-x2/weights.safetensors --scale 2 --data sr/Set5

Of each map (the first layer's output, then each block's): the median over its channels of what
lies between the least and the greatest value on the reduced pictures of --data, and how many times
that the whole map's range is. A next kernel may undo any scale; but an engine that holds a map in
8 bits with one scale for all channels has that many fewer steps for the median one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from collapsible.evaluation.networks import find_network, load_network
from collapsible.evaluation.pairs import luma, read_pairs
from collapsible.models.sesr import SESR


def load(model: str, scale: int) -> SESR:
    """A shipped network, or that of a weights file with a card or a run's facts beside it."""
    path, architecture, options = find_network(model, scale)
    network = load_network(path, architecture, scale, options)
    if not isinstance(network, SESR):
        raise SystemExit(f"{model} is no SESR")
    return network


@torch.inference_mode()
def ranges(network: SESR, pictures: list[np.ndarray]) -> list[tuple[float, float]]:
    """Of each map the median channel's range, and the whole map's over that."""
    ends = []
    for picture in pictures:
        x, of_picture = torch.from_numpy(picture / 255).float()[None, None], []
        for layer in (network.first, *network.blocks):
            x = layer(x)
            of_picture.append(torch.stack((x.amin((0, 2, 3)), x.amax((0, 2, 3)))))
        ends.append(torch.stack(of_picture))
    low, high = torch.stack(ends).unbind(2)  # each [pictures, maps, channels]
    low, high = low.amin(0), high.amax(0)
    medians = (high - low).median(1).values
    whole = high.amax(1) - low.amin(1)
    return list(zip(medians.tolist(), (whole / medians).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="+", help="shipped names, weights files")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    pictures = [luma(pair.low) for pair in read_pairs(given.data, given.scale)]
    for name in given.model:
        found = ranges(load(name, given.scale), pictures)
        print(f"{name} x{given.scale}: " + "  ".join(f"{m:.3g} ({t:.1f})" for m, t in found))


if __name__ == "__main__":
    main()
