"""A training step of SESR-XL by ``tools/amx`` and by torch in bf16, in turn on one core.

    python benchmarks/amx_step.py [--features 64]

The ratios are to ``tools/amx``, whose forward and backward are one call each.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timing import finish, parser, summarise, take_turns
from torch import Tensor

from collapsible.models.sesr import SESR

TOOL = Path(__file__).parents[1] / "tools" / "amx" / "train.py"


def by_torch(network: SESR, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return SESR.forward(network, x)


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(rounds=10, threads=1)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--patch", type=int, default=48)
    options.add_argument("--features", type=int, default=32, choices=(32, 64))
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    network = SESR(11, given.features, block="narrow").train()
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.rand(given.batch, 1, given.patch, given.patch)

    def step(forward: Callable[[SESR, Tensor], Tensor]) -> None:
        network.zero_grad(set_to_none=True)
        forward(network, x).float().square().mean().backward()

    ways = {"torch, bf16": by_torch, "tools/amx": runpy.run_path(str(TOOL))["forward"]}
    seconds = take_turns({name: partial(step, way) for name, way in ways.items()}, given.rounds)
    what = {"features": given.features, "batch": given.batch, "threads": given.threads}
    finish({**what, "cases": summarise(seconds, "tools/amx")}, given.json)


if __name__ == "__main__":
    main()
