"""Run two forms of a network on the same inputs and measure how far they differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.errors import CollapsibleError, UsageError
from collapsible.folding.report import MapError

Inputs = tuple[Any, ...]

# Sizes tried for a probe, largest odd one first: deep layers should still see more than a border.
_SIZES = ((96, 127), (64, 64), (24, 31), (224, 224), (256, 256))
# A correct map is wrong by rounding alone, some 1e-13; anything near this is a wrong map.
BROKEN = 1e-6


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating-point tensors in another dtype; everything else as it is."""
    return tuple(
        v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype)
        if isinstance(v, Tensor)
        else v
        for v in inputs
    )


def describe(inputs: Inputs) -> str:
    """The inputs' shapes in words."""
    return ", ".join(
        str(list(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in inputs
    )


def _candidates(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes that the first layer with a known number of channels may accept."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            yield (2, layer.in_features)
            yield (2, 5, layer.in_features)
        elif isinstance(layer, nn.Conv1d):
            yield from ((2, layer.in_channels, size) for size in (127, 31))
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            yield from ((2, layer.in_channels, *size) for size in _SIZES)
        elif isinstance(layer, nn.BatchNorm1d):
            yield (2, layer.num_features)
            yield (2, layer.num_features, 31)
        elif isinstance(layer, nn.BatchNorm2d):
            yield from ((2, layer.num_features, *size) for size in _SIZES)
        else:
            continue
        return


@torch.no_grad()
def find_probe(network: nn.Module) -> Inputs:
    """Random input that a float64 network accepts, by its first layer's channels.

    Raises ``UsageError`` where none of the usual sizes fits: then the caller has to give one.
    """
    tried = []
    generator = torch.Generator().manual_seed(0)
    for shape in _candidates(network):
        probe = (torch.randn(shape, generator=generator, dtype=torch.float64),)
        try:
            network(*probe)
        except Exception as error:
            tried.append(f"{list(shape)}: {str(error).splitlines()[0] if str(error) else error!r}")
        else:
            return probe
    raise UsageError(
        f"no input of a usual size suits {type(network).__name__}"
        f"{f' ({tried[0]})' if tried else ''}: give one as probe"
    )


def random_like(inputs: Inputs) -> Inputs:
    """Random inputs of the same shapes; integers and everything else unchanged."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(v.shape, generator=generator, dtype=torch.float64)
        if isinstance(v, Tensor) and v.is_floating_point()
        else v
        for v in inputs
    )


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor of an output, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [t for v in value for t in tensors_of(v)]
    return []


def run(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs of a copy of a network, as tensors; names the inputs where it fails."""
    try:
        with torch.no_grad():
            # Copies: a network may overwrite what it is given.
            return tensors_of(network(*copy.deepcopy(inputs)))
    except Exception as error:
        raise UsageError(
            f"the network does not accept a probe of shape "
            f"{', '.join(str(tuple(v.shape)) for v in inputs if isinstance(v, Tensor))}: {error}"
        ) from error


def _split(difference: Tensor) -> tuple[float, float] | None:
    """The largest values of [N, C, H, W] in the outer quarter of each side and inside."""
    if difference.dim() != 4 or min(difference.shape[-2:]) < 4:
        return None
    top, left = difference.shape[-2] // 4, difference.shape[-1] // 4
    edge = difference.clone()
    edge[..., top:-top, left:-left] = 0
    return float(edge.max()), float(difference[..., top:-top, left:-left].max())


def compare(given: nn.Module, found: nn.Module, inputs: Inputs, described: str) -> MapError:
    """The error of ``found`` against ``given``, both already in the dtype of ``inputs``.

    Raises ``UsageError`` where the given network's own output is not finite.
    """
    dtype = next(
        (str(v.dtype).removeprefix("torch.") for v in inputs if isinstance(v, Tensor)), "none"
    )
    expected, got = run(given, inputs), run(found, inputs)
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise CollapsibleError("the collapsed network's outputs have other shapes: not exact")
    worst = reach = 0.0
    border = inside = None
    for a, b in zip(expected, got, strict=True):
        if not bool(torch.isfinite(a).all()):
            raise UsageError(f"the network's own output on {described} is not finite ({dtype})")
        difference = (a.double() - b.double()).abs()
        if not difference.numel():
            continue
        worst, reach = max(worst, float(difference.max())), max(reach, float(a.abs().max()))
        if (parts := _split(difference)) is not None:
            border, inside = max(border or 0.0, parts[0]), max(inside or 0.0, parts[1])
    relative = worst / reach if reach else worst
    if relative != relative:
        relative = float("inf")
    return MapError(described, dtype, worst, relative, border, inside, reach)
