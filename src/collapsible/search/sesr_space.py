"""The shapes of SESR that a search chooses among, and what each costs on a target.

SESR's paper (arXiv 2103.09404, section 3.4) searches over even and asymmetric kernels with the
hardware in the loss; neither its space nor its table was published, so both are made afresh here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.costs.targets import Target, find_target
from collapsible.deploy.estimate import estimate
from collapsible.errors import CollapsibleError, UsageError
from collapsible.models import create_model
from collapsible.models.sesr import read_kernels

SKIP = "skip"
# A layer's time is the difference of two networks of so many layers, over the layers between.
FEW, MANY = 1, 7
ROUNDS = 3
MOST_BLOCKS = 32


def kernel_name(kernel: tuple[int, int]) -> str:
    """``3x2``: height, width."""
    return f"{kernel[0]}x{kernel[1]}"


@dataclass(frozen=True)
class SesrSpace:
    """Kernels (height, width) for each block, or none at all there; one width for all blocks.

    ``ends`` are the kernels of the first and the last layer, which are always there.
    Raises ``UsageError`` for an empty or impossible list, or one value twice.
    """

    kernels: tuple[tuple[int, int], ...] = ((3, 3), (2, 2), (3, 2), (2, 3), (3, 1), (1, 3), (5, 5))
    widths: tuple[int, ...] = (8, 12, 16, 20, 24)
    blocks: int = 8
    ends: tuple[tuple[int, int], ...] = ((5, 5), (3, 3))

    def __post_init__(self) -> None:
        read_kernels(self.kernels)
        read_kernels(self.ends)
        lists: tuple[Sequence[Any], ...] = (self.kernels, self.widths, self.ends)
        if any(not one or len(set(one)) < len(one) for one in lists) or min(self.widths) < 1:
            raise UsageError(
                f"kernels {self.kernels}, widths {self.widths} and ends {self.ends}: at least one "
                "of each, from 1, none twice"
            )
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise UsageError(f"blocks={self.blocks}: 1 to {MOST_BLOCKS} are accepted")


@dataclass(frozen=True)
class SesrShape:
    """One network of the space."""

    kernels: tuple[tuple[int, int], ...]
    features: int
    first: tuple[int, int] = (5, 5)
    last: tuple[int, int] = (5, 5)

    def __str__(self) -> str:
        inner = " ".join(map(kernel_name, self.kernels))
        ends = f"{kernel_name(self.first)} first and {kernel_name(self.last)} last"
        return f"{self.features} channels, {inner}, {ends}"

    @property
    def options(self) -> dict[str, Any]:
        """What ``sesr_nas`` takes to be this shape."""
        return {
            "kernels": self.kernels,
            "features": self.features,
            "first_kernel": self.first,
            "last_kernel": self.last,
        }

    def build(self, scale: int, **options: Any) -> nn.Module:
        """The network, newly drawn."""
        return create_model("sesr_nas", scale=scale, **self.options, **options)


M5 = SesrShape(((3, 3),) * 5, 16)


@dataclass(frozen=True)
class SesrLatencies:
    """Milliseconds of a run on a target: ``layers[width][kernel]`` of one block, by name,
    ``first[width][kernel]`` and ``last[width][kernel]`` of those layers above the quickest kernel
    there, and ``rest[width]`` of all else. ``base_ms`` is M5's, measured or estimated whole."""

    target: str
    input_size: tuple[int, ...]
    source: str
    base_ms: float
    rest: dict[int, float]
    layers: dict[int, dict[str, float]]
    first: dict[int, dict[str, float]]
    last: dict[int, dict[str, float]]

    def total(self, shape: SesrShape) -> float:
        """The sum of a shape's parts."""
        width = shape.features
        ends = self.first[width][kernel_name(shape.first)]
        ends += self.last[width][kernel_name(shape.last)]
        layers = sum(self.layers[width][kernel_name(kernel)] for kernel in shape.kernels)
        return self.rest[width] + ends + layers

    def json(self) -> str:
        """The table as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def covers(self, space: SesrSpace, target: str, input_size: Sequence[int]) -> bool:
        """Whether it has all that a search of a space needs."""
        tables = ((self.layers, space.kernels), (self.first, space.ends), (self.last, space.ends))
        same = self.target == target and tuple(self.input_size) == tuple(input_size)
        return same and all(
            set(map(kernel_name, kernels)) <= set(table.get(width, {}))
            for table, kernels in tables
            for width in space.widths
        )


def read_latencies(path: Path) -> SesrLatencies:
    """The table that ``json`` wrote; raises ``UsageError`` for a file that holds none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        numbers = {
            name: {int(width): value for width, value in record[name].items()}
            for name in ("rest", "layers", "first", "last")
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

    A block's time is the slope from networks of one such block to networks of ``MANY``; what
    another first or last kernel costs is the difference in a network of one block. On ``host``
    every network is measured in ``ROUNDS`` rounds, and the least of its medians counts: other work
    on a machine only ever adds to a time. Nothing is below 0, whatever the clock says. Raises what
    ``estimate`` raises, and ``CollapsibleError`` where the target does not run a network of the
    space.
    """
    target = find_target(target)
    size = tuple(input_size)
    usual = space.ends[0]
    plain = {width: SesrShape(space.kernels[:1], width, usual, usual) for width in space.widths}
    deep = {
        (width, kernel, count): replace(plain[width], kernels=(kernel,) * count)
        for width, kernel, count in itertools.product(space.widths, space.kernels, (FEW, MANY))
    }
    ends = {
        (width, end, kernel): replace(plain[width], **{end: kernel})
        for width, end, kernel in itertools.product(space.widths, ("first", "last"), space.ends)
    }
    # What a network of the table is twice is measured once.
    shapes = list(dict.fromkeys([M5, *deep.values(), *ends.values()]))
    times, source = dict.fromkeys(shapes, math.inf), ""
    runs = list(itertools.product(range(rounds_of(target)), shapes))
    for done, (_, shape) in enumerate(runs, start=1):
        latency, what = _latency(shape, target, size, scale, tile, act)
        times[shape] = min(times[shape], latency)
        source = what if shape == M5 else source
        if on_done is not None:
            on_done(done, len(runs))
    layers: dict[int, dict[str, float]] = {}
    first: dict[int, dict[str, float]] = {}
    last: dict[int, dict[str, float]] = {}
    rest: dict[int, float] = {}
    for width in space.widths:
        layers[width], without = {}, []
        for kernel in space.kernels:
            few, many = (times[deep[width, kernel, count]] for count in (FEW, MANY))
            layer = max(0.0, (many - few) / (MANY - FEW))
            layers[width][kernel_name(kernel)] = layer
            without.append(few - FEW * layer)
        rest[width] = math.fsum(without) / len(without)
        for end, table in (("first", first), ("last", last)):
            least = min(times[ends[width, end, kernel]] for kernel in space.ends)
            table[width] = {
                kernel_name(kernel): times[ends[width, end, kernel]] - least
                for kernel in space.ends
            }
            rest[width] -= table[width][kernel_name(usual)]
        rest[width] = max(0.0, rest[width])
    return SesrLatencies(target.name, size, source, times[M5], rest, layers, first, last)


def rounds_of(target: Target) -> int:
    """How many times a network is asked for: once where the answer is an estimate."""
    return ROUNDS if target.kind == "host" else 1


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
