"""``estimate``: how fast a network runs on a target, by a compiler, a roofline or a stopwatch.

It stands in this room and not in ``costs`` because an estimate for an Ethos-U needs the files that
are made here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from collapsible.blocks import CollapsibleConv2d
from collapsible.costs.roofline import RooflineReport, roofline, tiled_size
from collapsible.costs.targets import Target, find_target
from collapsible.costs.trace import check_size
from collapsible.deploy.advice import advise
from collapsible.deploy.estimate_report import EstimateReport, LayerEstimate
from collapsible.deploy.host import measure_host
from collapsible.deploy.legalise import legalise as rewrite
from collapsible.deploy.npu import compile_network, excess, find_tile, layer_estimates
from collapsible.deploy.tflite_file import read_tflite
from collapsible.deploy.vela import VelaReport, compile_vela
from collapsible.errors import ExportError, UsageError
from collapsible.folding import collapse

Tile = tuple[int, int]


def estimate(
    network: nn.Module | str | Path,
    target: Target | str,
    input_size: Sequence[int] | None = None,
    *,
    tile: Tile | None = None,
    legalise: bool = False,
    cache: str | Path | bool = True,
) -> EstimateReport:
    """Estimate or measure how fast a network runs on a target.

    ``network`` is a module, collapsed first, or a file: ``.tflite`` (int8) for an Ethos-U,
    ``.onnx`` or ``.tflite`` for the host. ``input_size`` (batch, channels, height, width) is
    needed for a module. ``tile`` (height, width) cuts the picture into tiles of that many input
    pixels, each run with the receptive field's reach around it. ``legalise`` rewrites the network
    for the target first and says what would fall off without. What Vela makes is kept by ``cache``:
    True for the usual folder, or another one.

    For an Ethos-U the network is converted to int8 with random pictures, which is enough for its
    speed, and compiled by Vela; for a roofline target it is traced; for ``host`` it is run.
    Raises ``UnknownNameError`` for an unknown target, ``UsageError`` for a file or a size that is
    none, ``MissingExtraError`` for a compiler or engine that is not installed,
    ``CollapsibleError`` where one fails. A network that falls off the target or does not fit its
    memory is no error: the report says so.
    """
    target = find_target(target)
    if isinstance(network, str | Path):
        if legalise:
            raise UsageError(f"{network}: a file cannot be legalised; give the network itself")
        return _of_file(Path(network), target, input_size, tile, cache)
    if input_size is None:
        raise UsageError("input_size is needed, such as (1, 3, 224, 224)")
    if not isinstance(network, nn.Module):
        raise UsageError(f"network {network!r}: a torch module or a file is accepted")
    size, name = check_size(input_size), type(network).__name__
    network, note = _collapsed(network)
    make = _legalised if legalise else _of_network
    report = make(network, target, size, tile, cache)
    notes = (note,) if note else ()
    return replace(report, network=name, assumptions=(*report.assumptions, *notes))


def _collapsed(network: nn.Module) -> tuple[nn.Module, str]:
    """The collapsed network; or the network as it is, with the reason if that is worth a word."""
    try:
        return collapse(network)[0], ""
    except UsageError as error:
        if any(isinstance(module, CollapsibleConv2d) for module in network.modules()):
            raise
        if "nothing to collapse" in str(error):
            return network, ""
        return network, f"The network is as given: it could not be collapsed ({error})."


def _of_network(
    network: nn.Module, target: Target, size: tuple[int, ...], tile: Tile | None, cache: Any
) -> EstimateReport:
    if target.kind == "roofline":
        return _of_roofline(roofline(network, size, target, tile=tile), target)
    tiled, tiles = tiled_size(network, size, tile) if tile is not None else (size, 1)
    if target.kind == "host":
        report = _of_host(network, target, tiled)
    else:
        compiled = compile_network(network, target, tiled, cache=cache)
        report = _of_vela(compiled, target, tiled)
        if not report.fits:
            found, why = find_tile(network, target, tiled, compiled, cache=cache)
            report = replace(
                report,
                suggested_tile=found,
                advice=(*report.advice, _room(compiled, target, found, why)),
            )
    if tile is None:
        return report
    return replace(
        report,
        input_size=size,
        tile=tile,
        tile_input=(tiled[2], tiled[3]),
        tiles=tiles,
        **{
            name: value * by
            for name, by in (
                ("fps", 1 / tiles),
                ("latency_ms", tiles),
                ("npu_ms", tiles),
                ("cycles", tiles),
                ("macs", tiles),
                ("dram_traffic", tiles),
            )
            if (value := getattr(report, name)) is not None
        },
    )


def _of_file(
    path: Path, target: Target, input_size: Sequence[int] | None, tile: Tile | None, cache: Any
) -> EstimateReport:
    if tile is not None:
        raise UsageError(f"{path}: a file has one size; tiles need the network itself")
    if target.kind == "roofline":
        raise UsageError(
            f"{path}: target {target.name} is estimated from the network itself, not from a file"
        )
    if target.kind == "host":
        if path.suffix.lower() not in (".onnx", ".tflite"):
            raise UsageError(f"{path}: .onnx and .tflite files are measured")
        found = measure_host(path, target.host, input_size)
        size = tuple(input_size) if input_size is not None else ()
        return replace(_host_report(found, target, size), network=path.name)
    compiled = compile_vela(path, target, cache=cache)
    (shape, *_) = read_tflite(path).inputs
    size = (shape[0], shape[-1], *shape[1:-1]) if len(shape) == 4 else shape
    if input_size is not None and tuple(input_size) != size:
        raise UsageError(f"{path}: input_size={tuple(input_size)}, but the file takes {size}")
    report = _of_vela(compiled, target, size)
    if not report.fits:
        note = "export it for tiles: estimate the network itself to be told which would fit"
        report = replace(report, advice=(*report.advice, _room(compiled, target, None, note)))
    return replace(report, network=path.name)


def _legalised(
    network: nn.Module, target: Target, size: tuple[int, ...], tile: Tile | None, cache: Any
) -> EstimateReport:
    try:
        given = _of_network(network, target, size, tile, cache)
        falls, within = given.cpu_operators, given.tile_input or size[2:]
    except ExportError:
        # It cannot even be converted as it is; the legal form may be.
        falls, within = (), tiled_size(network, size, tile)[0][2:] if tile else size[2:]
    legal, changes = rewrite(network, target, input_size=(*size[:2], *within), cache=cache)
    report = _of_network(legal, target, size, tile, cache)
    return replace(
        report,
        legalised=tuple(changes.table().splitlines()),
        without_legalising=falls,
    )


def _of_vela(compiled: VelaReport, target: Target, size: tuple[int, ...]) -> EstimateReport:
    fits = not excess(compiled, target)[1]
    runs = fits and not compiled.cpu
    clock = target.clock_hz or 1.0
    return EstimateReport(
        network="",
        target=target.name,
        input_size=size,
        source=f"estimated: ethos-u-vela {compiled.version}",
        fps=size[0] * compiled.fps if runs else None,
        latency_ms=compiled.latency_ms if runs else None,
        npu_ms=compiled.latency_ms,
        cycles=compiled.cycles,
        macs=compiled.macs,
        utilisation=compiled.utilisation,
        cpu_operators=compiled.cpu_operators,
        advice=advise(compiled.cpu),
        fits=fits,
        sram_bytes=compiled.sram_bytes,
        sram_limit=target.sram_bytes,
        dram_bytes=compiled.dram_bytes + compiled.flash_bytes,
        dram_limit=target.dram_bytes,
        dram_traffic=compiled.dram_traffic + compiled.flash_traffic,
        layers=layer_estimates(compiled.layers, clock),
        assumptions=target.assumptions,
        compiled=str(compiled.compiled),
    )


def _room(compiled: VelaReport, target: Target, tile: Tile | None, why: str) -> str:
    place, over = excess(compiled, target)
    text = f"it needs {over:,} bytes of {place} more than {target.name} has: "
    if tile is None:
        return text + why
    return text + f"tiles of {tile[0]} x {tile[1]} fit (--tile {tile[0]},{tile[1]})"


def _of_roofline(found: RooflineReport, target: Target) -> EstimateReport:
    off = found.unknown
    return EstimateReport(
        network="",
        target=target.name,
        input_size=found.input_size,
        source="estimated: roofline",
        fps=None if off else found.fps,
        latency_ms=None if off else found.latency_ms,
        npu_ms=found.latency_ms,
        cycles=found.cycles,
        macs=found.macs,
        utilisation=found.utilisation,
        cpu_operators=off,
        advice=tuple(f"{name}: the array has no form of it; replace it" for name in off),
        fits=target.dram_bytes is None or found.dram_bytes <= target.dram_bytes,
        sram_bytes=found.sram_bytes,
        sram_limit=target.sram_bytes,
        dram_bytes=found.dram_bytes,
        dram_limit=target.dram_bytes,
        dram_traffic=found.dram_traffic,
        tile=found.tile,
        tile_input=found.tile_input,
        tiles=found.tiles,
        layers=tuple(
            LayerEstimate(
                name=layer.name,
                kind=" + ".join([layer.kind, *layer.fused]),
                ms=layer.ms,
                cycles=layer.cycles,
                macs=layer.macs,
                traffic=layer.read + layer.written,
                utilisation=layer.utilisation,
                bound=layer.bound,
            )
            for layer in found.layers
        ),
        assumptions=found.assumptions,
    )


def _of_host(network: nn.Module, target: Target, size: tuple[int, ...]) -> EstimateReport:
    from collapsible.deploy.onnx_files import save_onnx

    if len(size) != 4:
        raise UsageError(f"input_size={size}: batch, channels, height, width are accepted")
    batch, channels, height, width = size
    with tempfile.TemporaryDirectory() as folder:
        path = save_onnx(network, Path(folder) / "network.onnx", (batch, channels, height, width))
        found = measure_host(path, target.host, size)
    return _host_report(found, target, size)


def _host_report(found: Any, target: Target, size: tuple[int, ...]) -> EstimateReport:
    return EstimateReport(
        network="",
        target=target.name,
        input_size=size,
        source=found.source,
        fps=1e3 * (size[0] if size else 1) / found.latency_ms,
        latency_ms=found.latency_ms,
        npu_ms=None,
        cycles=None,
        macs=None,
        utilisation=None,
        cpu_operators=(),
        advice=(),
        fits=True,
        sram_bytes=None,
        sram_limit=None,
        dram_bytes=None,
        dram_limit=None,
        dram_traffic=None,
        assumptions=target.assumptions,
    )
