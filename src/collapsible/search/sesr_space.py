"""The shapes of SESR that a search chooses among, and what each costs on a target.

SESR's paper (arXiv 2103.09404, section 3.4) searches over even and asymmetric kernels with the
hardware in the loss; neither its space nor its table was published, so both are made afresh here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.costs.targets import Target, find_target
from collapsible.deploy.estimate import estimate
from collapsible.errors import CollapsibleError, UsageError
from collapsible.models import create_model
from collapsible.models.sesr import read_kernels

SKIP = "skip"
# A layer's time is the difference of two networks, this many layers apart.
FEW, MANY = 1, 4
MOST_BLOCKS = 32


def kernel_name(kernel: tuple[int, int]) -> str:
    """``3x2``: height, width."""
    return f"{kernel[0]}x{kernel[1]}"


@dataclass(frozen=True)
class SesrSpace:
    """Kernels (height, width) for each block, or none at all there; one width for all blocks.

    Raises ``UsageError`` for an empty or impossible list, or one value twice.
    """

    kernels: tuple[tuple[int, int], ...] = ((3, 3), (2, 2), (3, 2), (2, 3), (3, 1), (1, 3), (5, 5))
    widths: tuple[int, ...] = (8, 12, 16, 20, 24)
    blocks: int = 8

    def __post_init__(self) -> None:
        read_kernels(self.kernels)
        lists: tuple[Sequence[Any], ...] = (self.kernels, self.widths)
        if any(not one or len(set(one)) < len(one) for one in lists) or min(self.widths) < 1:
            raise UsageError(
                f"kernels {self.kernels} and widths {self.widths}: at least one of each, from 1, "
                "none twice"
            )
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise UsageError(f"blocks={self.blocks}: 1 to {MOST_BLOCKS} are accepted")


@dataclass(frozen=True)
class SesrShape:
    """One network of the space."""

    kernels: tuple[tuple[int, int], ...]
    features: int

    def __str__(self) -> str:
        return f"{self.features} channels, {' '.join(map(kernel_name, self.kernels))}"

    def build(self, scale: int, **options: Any) -> nn.Module:
        """The network, newly drawn."""
        return create_model(
            "sesr_nas", scale=scale, kernels=self.kernels, features=self.features, **options
        )


M5 = SesrShape(((3, 3),) * 5, 16)


@dataclass(frozen=True)
class SesrLatencies:
    """Milliseconds of a run on a target: ``layers[width][kernel]`` of one block, by name, and
    ``ends[width]`` of all the rest. ``base_ms`` is M5's, measured or estimated whole."""

    target: str
    input_size: tuple[int, ...]
    source: str
    base_ms: float
    ends: dict[int, float]
    layers: dict[int, dict[str, float]]

    def total(self, shape: SesrShape) -> float:
        """The sum of a shape's parts."""
        layers = self.layers[shape.features]
        return self.ends[shape.features] + sum(layers[kernel_name(k)] for k in shape.kernels)

    def json(self) -> str:
        """The table as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def covers(self, space: SesrSpace, target: str, input_size: Sequence[int]) -> bool:
        """Whether it has all that a search of a space needs."""
        names = set(map(kernel_name, space.kernels))
        same = self.target == target and tuple(self.input_size) == tuple(input_size)
        return same and all(names <= set(self.layers.get(width, {})) for width in space.widths)


def read_latencies(path: Path) -> SesrLatencies:
    """The table that ``json`` wrote; raises ``UsageError`` for a file that holds none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        numbers = {
            name: {int(width): value for width, value in record[name].items()}
            for name in ("ends", "layers")
        }
        return SesrLatencies(**{**record, **numbers, "input_size": tuple(record["input_size"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no latencies of SESR: {error}") from error


def measure_shapes(
    space: SesrSpace,
    target: Target | str,
    input_size: Sequence[int],
    scale: int,
    *,
    tile: tuple[int, int] | None = None,
    act: str = "prelu",
    on_done: Callable[[int, int], None] | None = None,
) -> SesrLatencies:
    """Estimate, or on ``host`` measure, every kernel at every width, collapsed.

    A block's time is a third of the difference between networks of four such blocks and of one.
    Nothing is below 0, whatever the clock says. Raises what ``estimate`` raises, and
    ``CollapsibleError`` where the target does not run a network of the space.
    """
    target = find_target(target)
    size = tuple(input_size)
    jobs = list(itertools.product(space.widths, space.kernels))
    ends: dict[int, list[float]] = {width: [] for width in space.widths}
    layers: dict[int, dict[str, float]] = {width: {} for width in space.widths}
    base, source = _latency(M5, target, size, scale, tile, act)
    for done, (width, kernel) in enumerate(jobs, start=1):
        few, many = (
            _latency(SesrShape((kernel,) * count, width), target, size, scale, tile, act)[0]
            for count in (FEW, MANY)
        )
        layer = max(0.0, (many - few) / (MANY - FEW))
        layers[width][kernel_name(kernel)] = layer
        ends[width].append(max(0.0, few - FEW * layer))
        if on_done is not None:
            on_done(done, len(jobs))
    means = {width: math.fsum(values) / len(values) for width, values in ends.items()}
    return SesrLatencies(target.name, size, source, base, means, layers)


def _latency(
    shape: SesrShape,
    target: Target,
    size: tuple[int, ...],
    scale: int,
    tile: tuple[int, int] | None,
    act: str,
) -> tuple[float, str]:
    # Wide kernels cost nothing once collapsed: narrow ones are quicker to build.
    network = shape.build(scale, expansion=1, act=act).eval()
    report = estimate(network, target, size, tile=tile, legalise=target.kind == "vela")
    if report.latency_ms is None:
        off = ", ".join(map(str, report.cpu_operators)) or "it does not fit the memory"
        raise CollapsibleError(
            f"{target.name} does not run SESR of {shape} at {size[3]}x{size[2]}: {off}; a --tile "
            "may help"
        )
    return report.latency_ms, report.source
