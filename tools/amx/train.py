"""``collapsible train`` for SESR-XL on CPUs with AMX, faster (``benchmarks/amx_step.py``).

    python tools/amx/train.py sesr-xl-x4-soap --data sr/train --out runs/xl-x4 --threads 1

takes what ``collapsible train`` takes. Narrow SESR of 32 or 64 features with PReLU and one colour
are computed by ``sesr_amx.cpp``, in bfloat16 as the recipes ask for (its sums, the short residuals
and the picture itself are more exact than autocast's); whatever else is computed as always.
Needs g++ 12 or newer and ninja. On one thread; several processes (torchrun) do as always.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.cpp_extension import load

from collapsible.blocks import FastPReLU
from collapsible.models.sesr import SESR, Bend

SOURCE = Path(__file__).with_name("sesr_amx.cpp")
WIDTHS = (32, 64)


@cache
def _compiled(features: int) -> Any:
    """The extension for this many features, built when first asked for and kept by torch."""
    flags = ["-O3", "-std=c++20", "-march=sapphirerapids", f"-DGROUPS={features // 32}"]
    return load(f"sesr_amx_{features}", [str(SOURCE)], extra_cflags=flags)


class _Whole(torch.autograd.Function):
    """All of the network; the extension keeps what its gradient needs, of the newest call alone."""

    newest = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        x, *values = (p.detach().float().contiguous() for p in (x, *parameters))
        first, first_bias, *blocks, last, last_bias = values
        kernels, biases, slopes = (blocks[part::3] for part in range(3))
        extension = _compiled(first.shape[0])
        out = extension.forward(x, first, first_bias, kernels, biases, slopes, last, last_bias)
        _Whole.newest += 1
        ctx.kept = (extension, _Whole.newest, x, kernels, slopes, last)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        extension, number, *kept = ctx.kept
        if number != _Whole.newest:
            raise RuntimeError("the gradient of an older call was asked for: it is not kept")
        return None, *extension.backward(grads[0].float().contiguous(), *kept)


def _parameters(network: SESR) -> list[nn.Parameter] | None:
    """The parameters in the extension's order, or None where it does not do this network."""
    blocks = [block for block in network.blocks if isinstance(block, Bend)]
    convs = [network.first, *(block.conv for block in blocks), network.last]
    sides = [5, *[3] * len(blocks), 5]
    if not (
        network.features in WIDTHS
        and network.colour == "y"
        and network.scale <= 4
        and network.long_residual
        and network.input_residual
        and len(blocks) <= 16
        and all(isinstance(block.act, FastPReLU) for block in blocks)
        and all(
            isinstance(conv, nn.Conv2d) and conv.kernel_size == (side, side)
            for conv, side in zip(convs, sides, strict=True)
        )
    ):
        return None
    pairs = [[conv.weight, conv.bias] for conv in convs]
    slopes = [[block.act.weight] for block in blocks]
    middle = [p for pair, slope in zip(pairs[1:-1], slopes, strict=True) for p in pair + slope]
    return [*pairs[0], *middle, *pairs[-1]]  # type: ignore[list-item]


_as_always = SESR.forward


def forward(network: SESR, x: Tensor) -> Tensor:
    """``SESR.forward``, by the extension where a training step is what it is for."""
    usable = network.training and torch.is_grad_enabled() and x.shape[3] % 2 == 0
    parameters = _parameters(network) if usable and x.device.type == "cpu" else None
    if parameters is None:
        return _as_always(network, x)
    with torch.autocast("cpu", enabled=False):
        return _Whole.apply(x, *parameters)  # type: ignore[return-value]


def main() -> None:
    from collapsible.cli import main as collapsible

    if not torch.cpu._is_amx_tile_supported():
        sys.exit("this CPU has no AMX: `collapsible train` is for all others")
    os.environ.setdefault("MAX_JOBS", "1")
    SESR.forward = forward  # type: ignore[method-assign]
    sys.argv[1:1] = ["train"]
    sys.exit(collapsible())


if __name__ == "__main__":
    main()
