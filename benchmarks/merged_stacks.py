"""Does it pay to merge neighbours in a plain stack of convolutions, the activation between gone?

SESR's shape as it is deployed (ReLU, no input residual), and the same with pairs of its 3x3 layers
merged into 5x5, which is what a search could at best find; estimated for several targets. Nothing
is trained. Run: python benchmarks/merged_stacks.py [TARGET ...]
"""

from __future__ import annotations

import sys

from torch import nn

from collapsible.deploy.estimate import estimate

TARGETS = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-1024", "npu-4tops")
SMALL, FRAME = (1, 1, 96, 96), (1, 1, 1080, 1920)
# Name, layers of 3x3, channels, pairs merged.
STACKS = (("M5", 5, 16, 1), ("M5", 5, 16, 2), ("M11", 11, 16, 4), ("XL", 11, 32, 4))


def stack(layers: int, channels: int, merged: int) -> nn.Module:
    """SESR x2, collapsed, with so many pairs of its 3x3 layers merged."""
    kernels = [5] * merged + [3] * (layers - 2 * merged)
    made: list[nn.Module] = [nn.Conv2d(1, channels, 5, padding=2), nn.ReLU()]
    for kernel in kernels:
        made += [nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*made, nn.Conv2d(channels, 4, 5, padding=2), nn.PixelShuffle(2)).eval()


def latency(network: nn.Module, target: str, size: tuple[int, ...]) -> float:
    """Milliseconds: of all of it, or of what runs on the NPU."""
    report = estimate(network, target, size)
    value = report.latency_ms if report.latency_ms is not None else report.npu_ms
    assert value is not None
    return value


def main() -> None:
    targets = sys.argv[1:] or list(TARGETS)
    heads = [f"{name}, {merged} of {layers // 2} pairs" for name, layers, _, merged in STACKS]
    print(f"{'times the speed as it is (estimated)':<40}" + "".join(f"{h:>20}" for h in heads))
    for target in targets:
        for size in (SMALL, FRAME) if target.startswith("npu-") else (SMALL,):
            cells = []
            for _, layers, channels, merged in STACKS:
                plain = latency(stack(layers, channels, 0), target, size)
                cells.append(plain / latency(stack(layers, channels, merged), target, size))
            name = f"{target}, {size[3]}x{size[2]}"
            print(f"{name:<40}" + "".join(f"{cell:>20.2f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
