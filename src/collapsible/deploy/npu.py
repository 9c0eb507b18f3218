"""From a network to Vela's figures: convert, compile, and say whether it fits."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from collapsible.costs import cost
from collapsible.costs.roofline import tiled_size
from collapsible.costs.targets import Target
from collapsible.costs.trace import Value, trace
from collapsible.deploy.cache import cache_folder, make_cache_folder
from collapsible.deploy.estimate_report import LayerEstimate
from collapsible.deploy.litert import save_litert
from collapsible.deploy.vela import VelaLayer, VelaReport, compile_vela
from collapsible.errors import UsageError, require_packages

# Speed hangs on shapes alone, so random pictures will do to find the ranges of int8.
CALIBRATION_PICTURES = 2
# How many tiles are compiled until one fits.
ATTEMPTS = 6


def to_tflite(network: nn.Module, size: Sequence[int], *, cache: str | Path | bool = True) -> Path:
    """An int8 TFLite file of the network for one input size, calibrated with random pictures.

    For its speed only, not for its pictures. Kept in the cache by what the network computes, its
    weights and the converters' versions, so asking again costs a traced run.
    Raises ``UsageError`` for a size that is not one or not accepted, ``ExportError`` where it
    cannot be converted, ``MissingExtraError`` without the converters.
    """
    require_packages(
        "estimates for Ethos-U", "litert_torch", "ai_edge_quantizer", "ethosu", extra="edge"
    )
    batch, channels, height, width = _four(size)
    base = cache_folder() if cache is True else Path(cache or ".")
    key = fingerprint(network, size)
    path = base / f"tflite-{key}.tflite"
    if path.is_file() and path.stat().st_size:
        return path
    make_cache_folder(base)
    random = np.random.default_rng(0)
    pictures = [
        random.random((channels, height, width), dtype=np.float32)
        for _ in range(CALIBRATION_PICTURES * batch)
    ]
    return save_litert(network, path, (batch, channels, height, width), calibration=pictures)


def _four(size: Sequence[int]) -> tuple[int, int, int, int]:
    if len(size) != 4:
        raise UsageError(
            f"input_size={tuple(size)}: four numbers (batch, channels, height, width) are accepted"
        )
    return size[0], size[1], size[2], size[3]


def fingerprint(network: nn.Module, size: Sequence[int]) -> str:
    """A name for what a network computes on inputs of a size: its operators and its weights.

    Two networks of the same operators, shapes and numbers have the same, whatever their names.
    """
    run = trace(network, size)
    digest = hashlib.sha256()
    for package in ("litert-torch", "ai-edge-quantizer", "litert-converter"):
        digest.update(f"{package} {_version(package)} ".encode())
    digest.update(f"{CALIBRATION_PICTURES} {tuple(size)}".encode())
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    places: dict[int, int] = {}

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return str(leaf)
        content = ""
        if leaf.key not in places and leaf.storage in run.weights:
            content = _content(tensors[run.weights[leaf.storage].name])
        return ("tensor", places.setdefault(leaf.key, len(places)), leaf.shape, content)

    for step in run.steps:
        digest.update(
            f"{step.op} {tree_map(plain, (step.args, step.kwargs, step.outputs))}".encode()
        )
    # Tensors that are neither parameters nor buffers may be read too.
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                digest.update(_content(value).encode())
    return digest.hexdigest()[:32]


def _content(tensor: torch.Tensor) -> str:
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def compile_network(
    network: nn.Module, target: Target, size: Sequence[int], *, cache: str | Path | bool = True
) -> VelaReport:
    """Vela's report on a network for one input size (see ``to_tflite`` and ``compile_vela``)."""
    return compile_vela(to_tflite(network, size, cache=cache), target, cache=cache)


def excess(report: VelaReport, target: Target) -> tuple[str, int]:
    """Which memory of the target is too small and by how many bytes: ("", 0) if none is."""
    for place, used, limit in (
        ("SRAM", report.sram_bytes, target.sram_bytes),
        ("DRAM", report.dram_bytes, target.dram_bytes),
    ):
        if limit is not None and used > limit:
            return place, used - limit
    return "", 0


def find_tile(
    network: nn.Module,
    target: Target,
    size: tuple[int, ...],
    report: VelaReport,
    *,
    cache: str | Path | bool = True,
) -> tuple[tuple[int, int] | None, str]:
    """The tile that fits the target's memory with the least work, by compiling it; or None and why.

    A picture is cut into equal rows and columns, of whole 8 pixels where that is more than one;
    work is counted with the receptive field's reach around every tile. Memory grows with the area,
    so cuts that are far too coarse are not compiled.
    """
    place, over = excess(report, target)
    used = report.sram_bytes if place == "SRAM" else report.dram_bytes
    limit, sides = used - over, size[2:]
    try:
        # Of a tile of one pixel all but that one is reach.
        reach = [side - 1 for side in tiled_size(network, size, (1, 1))[0][2:]]
    except UsageError as error:
        return None, str(error).partition("tiles: ")[2] or str(error)
    cuts = []
    for tile in itertools.product(*(_parts(side) for side in sides)):
        within = [min(t + r, side) for t, r, side in zip(tile, reach, sides, strict=True)]
        count = math.prod(-(-side // t) for t, side in zip(tile, sides, strict=True))
        cuts.append((count * math.prod(within), math.prod(within), tile, within))
    expected = used / math.prod(sides)
    attempts = 0
    for _, area, tile, within in sorted(cuts):
        if attempts == ATTEMPTS:
            break
        inside = (*size[:2], *within)
        if area * expected > limit:
            continue
        if cost(network, inside, element_bytes=1).peak_memory > limit:
            expected = max(expected, 1.01 * limit / area)
            continue
        tried = compile_network(network, target, inside, cache=cache)
        if not excess(tried, target)[1]:
            return (tile[0], tile[1]), ""
        attempts += 1
        # What it really took guides the next guess.
        taken = tried.sram_bytes if place == "SRAM" else tried.dram_bytes
        expected = max(expected, taken / area)
    return None, "no tile of 8 pixels or more fits"


def _parts(side: int) -> list[int]:
    """Sides of equal parts of a side, of whole 8 pixels but for the whole, largest first."""
    parts = {8 * math.ceil(side / n / 8) for n in range(2, side // 8 + 2)} if side > 8 else set()
    return sorted({side, *parts}, reverse=True)


def layer_estimates(layers: Sequence[VelaLayer], clock: float) -> tuple[LayerEstimate, ...]:
    """Vela's layers as every target reports them; fused ones stand with the one they belong to."""
    found: list[LayerEstimate] = []
    for layer in layers:
        if found and not layer.cycles:
            found[-1] = replace(found[-1], kind=f"{found[-1].kind} + {layer.npu_operator}")
        else:
            found.append(_layer_estimate(layer, clock))
    return tuple(found)


def _layer_estimate(layer: VelaLayer, clock: float) -> LayerEstimate:
    waits = {
        "compute": layer.npu_cycles,
        "SRAM": layer.sram_cycles,
        "DRAM": layer.dram_cycles,
        "flash": layer.flash_cycles,
    }
    return LayerEstimate(
        name=layer.name,
        kind=layer.npu_operator,
        ms=1e3 * layer.cycles / clock,
        cycles=layer.cycles,
        macs=layer.macs,
        # Vela tells bytes for the whole network alone.
        traffic=None,
        utilisation=layer.utilisation,
        bound=max(waits, key=lambda name: waits[name]),
    )
