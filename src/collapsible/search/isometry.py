"""Layerwise dynamical isometry, measured (arXiv 1910.00780, section 3.3).

A network keeps signals and gradients alive where the singular values of each layer's Jacobian are
near 1. They are measured here from the Jacobian itself, so any activation's slope is right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError

MOST_ELEMENTS = 4096


@dataclass(frozen=True)
class LayerIsometry:
    """Singular values of one layer's Jacobian at one input: mean, deviation, extremes."""

    name: str
    mean: float
    deviation: float
    least: float
    most: float


@dataclass(frozen=True)
class IsometryReport:
    """One line a layer. Measured."""

    layers: tuple[LayerIsometry, ...]

    @property
    def mean(self) -> float:
        """Mean of the layers' means."""
        return sum(layer.mean for layer in self.layers) / len(self.layers)

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps({"mean": self.mean, **asdict(self)}, indent=2)

    def table(self) -> str:
        """A line a layer."""
        lines = [f"{'layer':<28}{'mean':>9}{'dev.':>9}{'least':>9}{'most':>9}"]
        lines += [
            f"{one.name:<28}{one.mean:>9.3f}{one.deviation:>9.3f}{one.least:>9.3f}{one.most:>9.3f}"
            for one in self.layers
        ]
        return "\n".join(lines)


def singular_values(layer: nn.Module, x: Tensor) -> Tensor:
    """Singular values of d layer(x) / d x for one input, greatest first.

    Raises ``UsageError`` where input or output have more than 4096 numbers.
    """
    if x.numel() > MOST_ELEMENTS:
        raise UsageError(
            f"an input of {x.numel()} numbers: the Jacobian is measured up to {MOST_ELEMENTS}; "
            "give a smaller picture or network"
        )
    jacobian = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    assert isinstance(jacobian, Tensor)
    return torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))


def measure_isometry(
    network: nn.Module, x: Tensor, layers: Sequence[str] | None = None
) -> IsometryReport:
    """Run ``network`` on ``x`` (one example) and measure each of its layers where it stands.

    ``layers`` are paths of modules that map one tensor to one; not given, they are the network's
    residual blocks (the cells that ``topology`` finds), or the children of a ``Sequential``.
    Raises ``UsageError`` for an unknown path or where none is found.
    """
    modules = dict(network.named_modules())
    names = list(layers) if layers is not None else _usual(network)
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise UsageError(
            f"no layer {unknown[0]!r}" if unknown else f"{type(network).__name__}: no layers found"
        )
    inputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name] = given[0].detach()

        return hook

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name in names:
        values = singular_values(modules[name], inputs[name])
        found.append(
            LayerIsometry(
                name,
                float(values.mean()),
                float(values.std(unbiased=False)),
                float(values.min()),
                float(values.max()),
            )
        )
    return IsometryReport(tuple(found))


def _usual(network: nn.Module) -> list[str]:
    from collapsible.search.cells import find_cells

    if isinstance(network, nn.Sequential):
        return [name for name, _ in network.named_children()]
    return [cell.name for cell in find_cells(network)]
