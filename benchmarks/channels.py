"""What an SESR's blocks add: how many ways its features vary, and what a channel is missed for.

    python benchmarks/channels.py sesr-m11 sesr-xl --scale 2 --data sr/B100/HR

Of each block's output, on the reduced pictures of --data: the effective rank of its channels (the
exponential of the entropy of their correlation matrix's eigenvalues; Roy and Vetterli 2007), and
the PSNR in dB that is lost where one channel is taken away and guessed from the others, pixel by
pixel, by least squares: the median over the channels and the most. A block whose channels all can
be guessed at no loss hands on little that is its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ranges import load
from torch import Tensor

from collapsible.evaluation.pairs import luma_middles, read_pairs
from collapsible.models.sesr import SESR

SIDE = 80


class Rest:
    """What a network makes of a block's output, measured in dB."""

    def __init__(self, network: SESR, low: Tensor, high: Tensor) -> None:
        self.network, self.low, self.high = network, low, high
        self.first = network.first(low)

    def psnr(self, y: Tensor, place: int) -> float:
        """The mean PSNR in dB, pixels near the border left out, where block ``place`` gives y."""
        network, scale = self.network, self.network.scale
        for block in network.blocks[place + 1 :]:
            y = block(y)
        y = network.last(y + self.first) + self.low.repeat_interleave(scale**2, 1)
        edge = scale * network.receptive_radius
        error = (F.pixel_shuffle(y, scale) - self.high)[..., edge:-edge, edge:-edge]
        return float(-10 * error.square().mean((1, 2, 3)).log10().mean())


def effective_rank(values: Tensor) -> float:
    """Of values [N, channels]: 1 where all channels are one, their number where none agree."""
    varying = values[:, values.std(0) > 0]
    shares = torch.linalg.eigvalsh(torch.corrcoef(varying.T)).clamp(min=1e-12) / varying.shape[1]
    return float((-shares * shares.log()).sum().exp())


def without(y: Tensor, channel: int) -> Tensor:
    """y [N, C, H, W] with one channel replaced by the best guess from the others."""
    values = y.movedim(1, 3).flatten(0, 2).double()
    others = torch.cat([values[:, :channel], values[:, channel + 1 :]], 1)
    others = torch.cat([others, torch.ones(len(others), 1).double()], 1)
    others = others / others.square().mean(0).sqrt().clamp(min=1e-12)
    gram, right = others.T @ others, others.T @ values[:, channel : channel + 1]
    guess = torch.linalg.lstsq(gram, right, driver="gelsd").solution
    replaced = y.clone()
    replaced[:, channel] = (others @ guess).float().reshape(replaced[:, channel].shape)
    return replaced


@torch.inference_mode()
def describe(network: SESR, low: Tensor, high: Tensor) -> list[str]:
    rest = Rest(network, low, high)
    y, lines = rest.first, []
    for place, block in enumerate(network.blocks):
        y = block(y)
        values = y.movedim(1, 3).flatten(0, 2).double()
        whole = rest.psnr(y, place)
        lost = [whole - rest.psnr(without(y, c), place) for c in range(y.shape[1])]
        lines.append(
            f"  block {place + 1:>2}: rank {effective_rank(values):4.1f} of {y.shape[1]}; "
            f"without a channel {np.median(lost):.4f} dB lost, at most {max(lost):.3f}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="+", help="shipped names, weights files")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24, help="how many pictures")
    given = parser.parse_args()
    pairs = read_pairs(given.data, given.scale)[: given.count]
    low, high = map(torch.from_numpy, luma_middles(pairs, given.scale, SIDE))
    for name in given.model:
        lines = describe(load(name, given.scale), low, high)
        print("\n".join([f"{name} x{given.scale}", *lines]))


if __name__ == "__main__":
    main()
