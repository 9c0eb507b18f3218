r"""Give an SESR whose last blocks do nothing new ones in their place, to train on from there.

    python tools/renew_blocks.py sesr-xl --keep 9 --new 3 7 --data sr/train -o renewed.safetensors

The first --keep blocks stay, their channels scaled to ranges of one (exactly: the next kernel
divides by the factor). The rest go; blocks that change nothing (identity kernels, PReLU slopes of
1) stand at the places --new, counted from 0, free to learn (Chen et al., Net2Net, arXiv
1511.05641, section 2.3). The last layer is fitted anew to what the kept blocks give, by least
squares (a patch weighs as its PSNR does), with --ridge against large kernels that cancel.
benchmarks/channels.py shows which blocks do nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.evaluation.networks import find_network, load_network
from collapsible.evaluation.pairs import luma_middles, read_pair
from collapsible.imaging import list_pictures
from collapsible.models import create_model
from collapsible.models.registry import save_weights
from collapsible.models.sesr import SESR, kernel_of, load_kernel, make_identity

SIDE = 64


def read_patches(folder: Path, scale: int, count: int) -> tuple[Tensor, Tensor]:
    """The middles of ``count`` pictures, spread over the folder: low [N, 1, p, p] and high."""
    files = list_pictures(folder, recursive=True)
    pairs = (read_pair(file, None, scale) for file in files[:: max(1, len(files) // count)])
    low, high = map(torch.from_numpy, luma_middles(pairs, scale, SIDE))
    return low, high


@torch.no_grad()
def renew(network: SESR, new: SESR, places: list[int], low: Tensor) -> None:
    """Fill ``new`` with the blocks of ``network`` but for ``places``; its last layer stays."""
    y = network.first(low)
    factors = [_to_one(y)]
    load_kernel(new.first, *_scaled(network.first, factors[0]))
    old = iter(network.blocks)
    for place, block in enumerate(new.blocks):
        if place in places:
            make_identity(block.conv)
            for slope in block.act.parameters():  # ReLU has none, and passes what ReLU gave
                slope.fill_(1.0)
            continue
        kept = next(old)
        y = kept(y)
        factors.append(_to_one(y))
        weight, bias = _scaled(kept.conv, factors[-1])
        load_kernel(block.conv, weight / factors[-2][None, :, None, None], bias)
        block.act.load_state_dict(kept.act.state_dict())


def _scaled(conv: nn.Module, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel and bias that give ``factor`` times the output channels."""
    kernel, bias = kernel_of(conv)
    assert bias is not None
    return kernel * factor[:, None, None, None], bias * factor


def _to_one(y: Tensor) -> Tensor:
    """What makes each channel's range one, nought among it, for that is where PReLU bends."""
    span = y.amax((0, 2, 3)).clamp(min=0) - y.amin((0, 2, 3)).clamp(max=0)
    return 1 / span.clamp(min=1e-6)


@torch.no_grad()
def fit_last(network: SESR, low: Tensor, high: Tensor, ridge: float) -> None:
    """The last layer that makes ``high`` [N, 1, s p, s p] of ``low`` with the least error.

    Pixels that see the patch's border are left out, and a patch weighs by its own error's inverse,
    as in the mean of the patches' PSNR.
    """
    old, _ = kernel_of(network.last)
    y = first = network.first(low)
    for block in network.blocks:
        y = block(y)
    if network.long_residual:
        y = y + first
    wanted = F.pixel_unshuffle(high, network.scale)
    if network.input_residual:
        wanted = wanted - low.repeat_interleave(network.scale**2, 1)
    edge, kernel = network.receptive_radius, old.shape[2:]
    around = [side // 2 for side in kernel]
    height, width = (side - 2 * edge for side in low.shape[2:])
    many = old[0].numel() + 1
    gram, right = torch.zeros(many, many).double(), torch.zeros(many, len(old)).double()
    total = torch.zeros(()).double()
    for features, target in zip(y, wanted, strict=True):
        part = features[
            :,
            edge - around[0] : edge + height + around[0],
            edge - around[1] : edge + width + around[1],
        ]
        seen = F.unfold(part[None], (kernel[0], kernel[1]))[0].T.double()
        seen = torch.cat([seen, torch.ones(len(seen), 1).double()], 1)
        aim = target[:, edge : edge + height, edge : edge + width].flatten(1).T.double()
        weight = 1 / (aim.square().mean() + 1e-4)
        gram += weight * (seen.T @ seen)
        right += weight * (seen.T @ aim)
        total += weight * len(seen)
    held = torch.eye(many).double() * ridge
    held[-1, -1] = 0
    found = torch.linalg.solve(gram / total + held, right / total)
    load_kernel(network.last, found[:-1].T.reshape(old.shape), found[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a shipped name, or a weights file with its facts beside it")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--keep", type=int, required=True, help="how many blocks stay")
    parser.add_argument("--new", type=int, nargs="+", required=True, help="places of the new ones")
    parser.add_argument(
        "--data", type=Path, required=True, help="pictures to fit the last layer on"
    )
    parser.add_argument("--count", type=int, default=220, help="of those pictures")
    parser.add_argument("--ridge", type=float, default=1e-4)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    path, architecture, options = find_network(given.model, given.scale)
    network = load_network(path, architecture, given.scale, options)
    new = create_model(architecture, scale=given.scale, **{**options, "block": "narrow"})
    if not isinstance(network, SESR) or not isinstance(new, SESR):
        raise SystemExit(f"{given.model} is no SESR")
    count = len(network.blocks)
    if given.keep + len(set(given.new)) != count or not set(given.new) <= set(range(count)):
        raise SystemExit(f"--keep and the places --new (0 to {count - 1}) must make {count} blocks")
    if 0 in given.new and not [name for name in new.state_dict() if name.endswith("act.weight")]:
        raise SystemExit("with ReLU the first block cannot be one that changes nothing")
    low, high = read_patches(given.data, given.scale, given.count)
    renew(network, new, given.new, low)
    fit_last(new, low, high, given.ridge)
    save_weights(new, given.output)


if __name__ == "__main__":
    main()
