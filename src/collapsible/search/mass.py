"""NN-Mass, average degree and non-linear units of a network (arXiv 1910.00780, 2208.08562).

A *cell* is a chain of layers with some connections that skip layers. With a_j the channels of the
chain's nodes (its input first, its output left out), its density is the share of the skip
channels that could be there and are, and its mass the density times the channels of its nodes:

    possible = sum over layers i >= 2 of (a_0 + ... + a_{i-2})
    mass     = present / possible * (a_0 + ... + a_{L-1})

For a residual over L layers, ``present`` is a_0: the input reaches the last layer's output.
docs/theory.md proves what follows from this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from torch import nn

from collapsible.errors import UsageError


@dataclass(frozen=True)
class Cell:
    """One cell: ``nodes`` are a_0 ... a_{L-1}; ``present`` and ``possible`` skip channels.

    ``units`` are its non-linear channels: channels of maps that pass an activation.
    """

    name: str
    kind: str
    nodes: tuple[int, ...]
    present: int
    possible: int
    units: int

    @property
    def density(self) -> float:
        """The share of possible skip channels that are present; 0 where none is possible."""
        return self.present / self.possible if self.possible else 0.0

    @property
    def mass(self) -> float:
        """NN-Mass of the cell."""
        return self.density * sum(self.nodes)

    @property
    def average_degree(self) -> float:
        """Mean number of channels that a layer after the first is fed, a_{i-1} and its skips."""
        layers = len(self.nodes)
        if layers < 2:
            return float(sum(self.nodes))
        return (sum(self.nodes[1:]) + self.present) / (layers - 1)


@dataclass(frozen=True)
class Topology:
    """The cells of a network. Counted from its modules, not measured."""

    network: str
    cells: tuple[Cell, ...]

    @property
    def nn_mass(self) -> float:
        """Sum of the cells' masses."""
        return sum(cell.mass for cell in self.cells)

    @property
    def non_linear_units(self) -> int:
        """Sum of the cells' non-linear channels."""
        return sum(cell.units for cell in self.cells)

    @property
    def average_degree(self) -> float:
        """Mean over the cells."""
        return sum(cell.average_degree for cell in self.cells) / len(self.cells)

    def json(self) -> str:
        """The topology as a JSON object."""
        facts = {
            "network": self.network,
            "nn_mass": self.nn_mass,
            "average_degree": self.average_degree,
            "non_linear_units": self.non_linear_units,
            "cells": [{**asdict(cell), "mass": cell.mass} for cell in self.cells],
        }
        return json.dumps(facts, indent=2)

    def table(self) -> str:
        """The totals as lines of text."""
        return "\n".join(
            (
                f"network           {self.network}, {len(self.cells)} cells",
                f"NN-Mass           {self.nn_mass:,.1f}",
                f"average degree    {self.average_degree:,.1f}",
                f"non-linear units  {self.non_linear_units:,}",
            )
        )


def possible_skips(nodes: Sequence[int]) -> int:
    """Skip channels that a chain with these nodes could have."""
    return sum(list(accumulate(nodes))[:-1])


def residual_mass(inputs: int, hidden: Sequence[int]) -> float:
    """NN-Mass of one residual over ``len(hidden) + 1`` layers; 0 over a single layer."""
    nodes = (inputs, *hidden)
    possible = possible_skips(nodes)
    return inputs * sum(nodes) / possible if possible else 0.0


def dense_cell(width: int, depth: int, most_links: int, name: str = "cell") -> Cell:
    """The cell of the NN-Mass paper (section 3): ``depth`` layers of ``width`` channels.

    Layer i takes at most ``most_links`` skip channels out of the width * (i - 1) that lie behind
    its predecessor.
    """
    if width < 1 or depth < 2 or most_links < 0:
        raise UsageError(f"width={width} from 1, depth={depth} from 2, most_links={most_links}")
    choices = [width * (i - 1) for i in range(2, depth)]
    present = sum(min(most_links, choice) for choice in choices)
    return Cell(name, "dense", (width,) * depth, present, sum(choices), width * depth)


def topology(network: nn.Module) -> Topology:
    """The cells of a network, found by its modules' types.

    Known are residual blocks of ConvNeXt (ours, timm's), inverted bottlenecks (ours, timm's,
    torchvision's), basic and bottleneck blocks of ResNets (timm's, torchvision's), dense blocks
    (torchvision's, timm's), and SESR in training form. Blocks without a residual have mass 0 and
    keep their non-linear units. Raises ``UsageError`` where none is found.
    """
    from collapsible.search.cells import find_cells

    cells = tuple(find_cells(network))
    if not cells:
        raise UsageError(
            f"{type(network).__name__}: no cell found; looked for blocks of ConvNeXt, inverted "
            "bottlenecks, ResNet, DenseNet and SESR"
        )
    return Topology(type(network).__name__, cells)


def nn_mass(network: nn.Module) -> float:
    """NN-Mass of a network: the sum over its cells (see ``topology`` for what is known).

    Source: Bhardwaj et al., arXiv 1910.00780, section 3, and for ConvNeXt arXiv 2208.08562, whose
    2 C a block follows from the same formula. Raises ``UsageError`` where no cell is found.
    """
    return topology(network).nn_mass
