"""FastPReLU against torch.nn.PReLU: forward and backward on feature maps [32, 16, 64, 64].

    python benchmarks/prelu.py [--json FILE] [--rounds N] [--threads N]

Channels last, as the networks train, in fp32 and bf16. The cases take turns; ratios are to torch's.
"""

from __future__ import annotations

import torch
from timing import finish, parser, summarise, take_turns
from torch import nn

from collapsible.blocks import FastPReLU


def main() -> None:
    given = parser(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    result: dict[str, object] = {"threads": given.threads}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(32, 16, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
        x.requires_grad_()
        upstream = torch.randn_like(x)

        def case(act: nn.PReLU, x: torch.Tensor = x, upstream: torch.Tensor = upstream) -> None:
            torch.autograd.grad(act(x), [x, act.weight], upstream)

        ours, theirs = FastPReLU(16), nn.PReLU(16).to(dtype)
        cases = {"torch": lambda c=case, a=theirs: c(a), "fast": lambda c=case, a=ours: c(a)}
        name = str(dtype).removeprefix("torch.")
        result[name] = summarise(take_turns(cases, given.rounds), "torch")
    finish(result, given.json)


if __name__ == "__main__":
    main()
