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

from collapsible.evaluation.networks import described, load_network
from collapsible.evaluation.pairs import luma, read_pairs
from collapsible.models.sesr import SESR
from collapsible.weights import find_card


def load(given: str, scale: int) -> SESR:
    """A shipped network, or that of a weights file with a card or a run's facts beside it."""
    path = Path(given)
    if path.suffix == ".safetensors":
        name, options = described(path, scale)
    else:
        card = find_card(given, scale)
        path, name, options = card.safetensors_path, card.architecture, card.options
    network = load_network(path, name, scale, options)
    if not isinstance(network, SESR):
        raise SystemExit(f"{given} is no SESR")
    return network


@torch.inference_mode()
def ranges(network: SESR, pictures: list[np.ndarray]) -> list[tuple[float, float]]:
    """Of each map the median channel's range, and the whole map's over that."""
    layers = [network.first, *network.blocks]
    least = [torch.full((network.features,), torch.inf) for _ in layers]
    greatest = [-values for values in least]

    def keep(index: int, output: torch.Tensor) -> None:
        least[index] = torch.minimum(least[index], output.amin((0, 2, 3)))
        greatest[index] = torch.maximum(greatest[index], output.amax((0, 2, 3)))

    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, index=index: keep(index, output))
        for index, layer in enumerate(layers)
    ]
    for picture in pictures:
        network(torch.from_numpy(picture / 255).float()[None, None])
    for hook in hooks:
        hook.remove()
    found = []
    for low, high in zip(least, greatest, strict=True):
        median = float((high - low).median())
        found.append((median, float(high.max() - low.min()) / median))
    return found


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
