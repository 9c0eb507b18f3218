"""A roofline: how long a network takes on an accelerator known by few numbers alone.

Each layer takes as long as its arithmetic on the array or its traffic to DRAM, whichever is
longer. The arithmetic is counted in whole passes of the array, so channels that do not fill it
count as if they did. The traffic follows every map from the layer that makes it to those that
read it: one that fits into what is free of the SRAM all that time costs nothing, any other is
written once and read by each.
Activations, residual additions and padding are done on the way and cost nothing of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from collapsible.costs import operators
from collapsible.costs.array import cycles_of
from collapsible.costs.dataflow import Dataflow, Map, MapKey, Pass, dataflow
from collapsible.costs.receptive import receptive_field
from collapsible.costs.targets import Target, assume, find_target
from collapsible.costs.trace import check_size, trace
from collapsible.errors import UsageError

MIB = 2**20


@dataclass(frozen=True)
class RooflineLayer:
    """One layer with what is done on the way (activations, residual additions): ``fused``.

    ``cycles`` of the array; ``read`` and ``written`` are bytes of DRAM, weights included.
    ``compute_ms`` and ``memory_ms`` each for itself, ``ms`` the layer. ``utilisation`` (0 to 1)
    is the share of the array's multiplications in ``ms`` that are wanted ones, and may exceed 1
    under Winograd, which saves multiplications.
    """

    name: str
    kind: str
    fused: tuple[str, ...]
    output: tuple[int, ...]
    macs: int
    cycles: int
    read: int
    written: int
    compute_ms: float
    memory_ms: float
    ms: float
    utilisation: float
    bound: str


@dataclass(frozen=True)
class RooflineReport:
    """Estimated by a roofline; ``assumptions`` are all that the figures hang on.

    ``layers`` are of one tile where there are tiles, all other figures of the whole input.
    ``dram_traffic`` is bytes moved, ``sram_bytes`` the most that maps and weights take on the chip
    at once, ``dram_bytes`` the most that they take off it. ``unknown`` names operators whose work
    is not counted.
    """

    target: str
    input_size: tuple[int, ...]
    tile: tuple[int, int] | None
    tile_input: tuple[int, int] | None
    tiles: int
    latency_ms: float
    fps: float
    cycles: int
    macs: int
    dram_traffic: int
    sram_bytes: int
    dram_bytes: int
    utilisation: float
    layers: tuple[RooflineLayer, ...]
    unknown: tuple[str, ...]
    assumptions: tuple[str, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def roofline(
    network: nn.Module,
    input_size: Sequence[int],
    target: Target | str = "npu-4tops",
    *,
    tile: tuple[int, int] | None = None,
) -> RooflineReport:
    """Estimate a network as it is (``collapse`` it first) on a roofline target.

    ``tile`` (height, width) in input pixels cuts the picture: each tile is run with the receptive
    field's reach on every side (but no larger than the picture), all of one size. For other
    assumptions pass ``assume(target, deconvolution="sub-pixel")`` and the like.
    Raises ``UsageError`` for a target of another kind, a size the network does not accept, and
    tiles of a network that sees the whole picture.
    """
    target = find_target(target)
    array = target.roofline
    if array is None:
        raise UsageError(f"target {target.name} is no roofline but of kind {target.kind!r}")
    size = check_size(input_size)
    whole = size
    tiles = 1
    if tile is not None:
        size, tiles = tiled_size(network, size, tile)
    run = trace(network, size)
    heavy = ("aten.pixel_shuffle",) if array.depth_to_space == "deconvolution" else ()
    flow = dataflow(run, heavy)
    resident, peak = _residents(flow, target)
    outside = _outside(flow, resident, array.element_bytes)
    layers = tuple(
        _layer(one, number, flow, resident, target) for number, one in enumerate(flow.passes)
    )
    latency = tiles * sum(layer.ms for layer in layers)
    macs = tiles * sum(layer.macs for layer in layers)
    clock, width = target.clock_hz or 1.0, target.macs_per_cycle or 1
    return RooflineReport(
        target=target.name,
        input_size=whole,
        tile=tile,
        tile_input=(size[-2], size[-1]) if tile is not None else None,
        tiles=tiles,
        latency_ms=latency,
        fps=1e3 * whole[0] / latency if latency else math.inf,
        cycles=tiles * sum(layer.cycles for layer in layers),
        macs=macs,
        dram_traffic=tiles * sum(layer.read + layer.written for layer in layers),
        sram_bytes=peak,
        dram_bytes=outside,
        utilisation=macs / (latency * 1e-3 * clock * width) if latency else 0.0,
        layers=layers,
        unknown=tuple(sorted({step.op for step in run.steps if operators.is_unknown(step)})),
        assumptions=assumptions(target, tiled=tile is not None),
    )


def assumptions(target: Target, tiled: bool = False) -> tuple[str, ...]:
    """Everything that a roofline of this target hangs on, a sentence each."""
    array = target.roofline
    assert array is not None
    clock, sram = target.clock_hz or 0.0, target.sram_bytes or 0
    multiply = {
        "direct": "Every product is multiplied.",
        "winograd": "Convolutions of stride 1 are multiplied by Winograd where that is quicker.",
    }
    enlarge = {
        "zero-stuffed": "A deconvolution runs as a convolution of the zero-stuffed map.",
        "sub-pixel": "A deconvolution runs as a convolution at its input's size, phase by phase.",
    }
    shuffle = {
        "deconvolution": "Depth to space runs as a 2 x 2 deconvolution of ones and zeros.",
        "addressing": "Depth to space is done while the map is written.",
    }
    return (
        f"{target.macs_per_cycle:,} MACs a cycle at {clock / 1e9:g} GHz: {array.input_channels} "
        f"inputs x {array.output_channels} outputs x a patch of {array.rows} x {array.columns}; "
        "what does not fill them waits.",
        multiply[array.algorithm],
        enlarge[array.deconvolution],
        shuffle[array.depth_to_space],
        f"SRAM of {sram / MIB:g} MiB: a map that fits beside the others and the weights stays "
        "there for its life, any other is written to DRAM once and read by each layer.",
        f"DRAM of {array.dram_bandwidth / 1e9:g} GB/s, all of it used; the input comes from there, "
        "the output goes there, weights are read once"
        + (" a tile." if tiled else ".")
        + (" Nothing is compressed."),
        "A layer takes the longer of its arithmetic and its traffic."
        if array.overlap
        else "A layer takes its arithmetic and then its traffic.",
        "Activations, additions and padding are done on the way; pooling and the like take their "
        "traffic alone; every operator has a form on the chip.",
        f"{array.element_bytes} byte{'s' if array.element_bytes > 1 else ''} a number.",
        *target.assumptions,
    )


def tiled_size(
    network: nn.Module, size: tuple[int, ...], tile: tuple[int, int]
) -> tuple[tuple[int, ...], int]:
    """The input size of one tile with its overlap, and the number of tiles.

    Raises ``UsageError`` where the tile is not one, or the network sees the whole picture.
    """
    if len(size) != 4 or len(tile) != 2 or any(side < 1 for side in tile):
        raise UsageError(f"tile={tile}: two sides in pixels, for inputs [N, C, H, W]")
    field, reason = receptive_field(trace(network, size))
    if field is None:
        raise UsageError(f"tile={tile}: this network cannot run in tiles: {reason}")
    count, sides = 1, []
    for side, whole, before, after in zip(tile, size[2:], field.before, field.after, strict=True):
        count *= math.ceil(whole / side)
        sides.append(min(side + before + after, whole))
    return (*size[:2], *sides), count


def _residents(flow: Dataflow, target: Target) -> tuple[set[MapKey], int]:
    """The maps that stay on the chip, first come first served, and the most bytes there at once.

    A pass's weights come first, up to half of the SRAM; more are streamed through that half.
    """
    array, sram = target.roofline, target.sram_bytes or 0
    assert array is not None
    used = [min(one.weights * array.element_bytes, sram // 2) for one in flow.passes]
    resident: set[MapKey] = set()
    for one in flow.maps:
        size, span = one.elements * array.element_bytes, range(one.born, one.last + 1)
        if all(used[number] + size <= sram for number in span):
            resident.add(one.key)
            for number in span:
                used[number] += size
    return resident, max(used, default=0)


def _outside(flow: Dataflow, resident: set[MapKey], element_bytes: int) -> int:
    """The most bytes off the chip: maps that live there, with the input, the output and weights."""
    maps = [m for m in flow.maps if m.key not in resident or m.given or m.wanted]
    last = len(flow.passes) - 1
    most = max(
        (
            sum(
                m.elements
                for m in maps
                if (0 if m.given else m.born) <= number <= (last if m.wanted else m.last)
            )
            for number in range(last + 1)
        ),
        default=0,
    )
    return element_bytes * (most + sum(one.weights for one in flow.passes))


def _layer(
    one: Pass, number: int, flow: Dataflow, resident: set[MapKey], target: Target
) -> RooflineLayer:
    array = target.roofline
    assert array is not None
    maps = {m.key: m for m in flow.maps}
    clock, width = target.clock_hz or 1.0, target.macs_per_cycle or 1
    cycles = sum(cycles_of(step, array) for step in one.steps)
    macs = sum(map(operators.macs, one.steps))
    read = one.weights + sum(
        count for key, count in one.reads.items() if _fetched(maps.get(key), number, resident)
    )
    written = sum(
        m.elements
        for m in flow.maps
        if m.born == number and not m.given and (m.wanted or m.key not in resident)
    )
    read, written = read * array.element_bytes, written * array.element_bytes
    compute = 1e3 * cycles / clock
    memory = 1e3 * (read + written) / array.dram_bandwidth
    taken = max(compute, memory) if array.overlap else compute + memory
    return RooflineLayer(
        name=one.name,
        kind=one.kind,
        fused=one.fused,
        output=one.output,
        macs=macs,
        cycles=cycles,
        read=read,
        written=written,
        compute_ms=compute,
        memory_ms=memory,
        ms=taken,
        utilisation=1e3 * macs / (taken * clock * width) if taken else 0.0,
        bound="compute" if compute >= memory else "memory",
    )


def _fetched(one: Map | None, number: int, resident: set[MapKey]) -> bool:
    """Whether pass ``number`` reads a map from DRAM; the input comes from there once at least."""
    if one is None or one.key not in resident:
        return True
    return one.given and number == one.born


__all__ = ["RooflineLayer", "RooflineReport", "assume", "assumptions", "roofline", "tiled_size"]
