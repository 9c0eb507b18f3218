"""Gates: blocks that learn whether they need their inner activations, under a latency budget.

The loss of the search is the task's, plus

    latency * max(0, expected / budget - 1)  +  decision * progress * mean of 4 g (1 - g)

with expected = rest + sum of g keep + (1 - g) dense. The expected latency in the loss is
DepthShrinker's idea (arXiv 2206.00843), the coefficient that is driven to 0 or 1 by a penalty Layer
Folding's (arXiv 2106.09309). Here the first term ends where the budget is met, and the second grows
with the search: early on, gates may still change their mind.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from collapsible.blocks.restructurable import GatedBottleneck
from collapsible.search.inverted import Bottleneck
from collapsible.search.latency_table import LatencyTable
from collapsible.search.plan import replace_modules
from collapsible.training.loop import Task

# How far a gate's logit can go in a search: from the start at 3 to far beyond 0 and back.
REACH = 20.0


@dataclass(frozen=True)
class GateSpec:
    """``start`` is g at first; ``latency`` and ``decision`` weigh the two terms of the loss."""

    start: float = 0.95
    latency: float = 2.0
    decision: float = 0.2


def gate_network(
    network: nn.Module,
    blocks: Sequence[Bottleneck],
    speed: float | Mapping[str, float],
    start: float = 0.95,
) -> tuple[nn.Module, dict[str, GatedBottleneck]]:
    """A copy of the network with the given blocks gated, and the gated blocks by name.

    ``speed`` is that of all gates, or each one's by the block's name.
    """
    speeds = speed if isinstance(speed, Mapping) else {b.name: speed for b in blocks}
    gated = {b.name: GatedBottleneck(b.parts, start=start, speed=speeds[b.name]) for b in blocks}
    modules: dict[str, nn.Module] = dict(gated)
    return replace_modules(copy.deepcopy(network), modules), gated


@torch.no_grad()
def absorb(network: nn.Module, blocks: Sequence[Bottleneck], gated_network: nn.Module) -> None:
    """Take a gated network's weights and statistics into the original form, in place.

    ``blocks`` are the network's own, by the names under which they are gated.
    """
    gates = {n: m for n, m in gated_network.named_modules() if isinstance(m, GatedBottleneck)}
    inside = tuple(f"{name}." for name in gates)
    state = {k: v for k, v in gated_network.state_dict().items() if not k.startswith(inside)}
    network.load_state_dict(state, strict=False)
    for block in blocks:
        if block.name in gates:
            gate, parts = gates[block.name], block.parts
            for own, learned in (
                *zip(parts.convs, gate.convs, strict=True),
                *zip(parts.norms, gate.norms, strict=True),
                *zip(parts.acts, gate.acts, strict=True),
            ):
                own.load_state_dict(learned.state_dict())


def gate_speeds(gains: Mapping[str, float], speed: float) -> dict[str, float]:
    """The speed of each block's gate: ``speed`` times its share of the greatest gain in latency.

    Under Adam every gate that the latency term pushes at all would move alike, and blocks that
    gain next to nothing would turn dense with those that gain much. ``gains`` are in any unit and
    may be negative; the least speed is a fiftieth.
    """
    greatest = max((abs(gain) for gain in gains.values()), default=0.0)
    return {
        name: speed * max(0.02, abs(gain) / greatest if greatest else 1.0)
        for name, gain in gains.items()
    }


class GatePressure:
    """The search's own terms of the loss, from the gates as they are."""

    def __init__(
        self,
        gates: Mapping[str, GatedBottleneck],
        table: LatencyTable,
        budget_ms: float,
        spec: GateSpec,
    ) -> None:
        self.gates, self.spec, self.budget_ms = dict(gates), spec, budget_ms
        rows = {row.name: row for row in table.blocks}
        self.keep = [rows[name].keep.latency_ms or 0.0 for name in self.gates]
        self.dense = [rows[name].dense.latency_ms or 0.0 for name in self.gates]
        self.rest_ms = table.network_ms - sum(self.keep)

    def values(self) -> Tensor:
        """The coefficients [blocks]."""
        return torch.stack([gate.gate for gate in self.gates.values()])

    def expected_ms(self, gates: Tensor) -> Tensor:
        """The latency of the mixture, a number."""
        keep, dense = gates.new_tensor(self.keep), gates.new_tensor(self.dense)
        return self.rest_ms + (gates * keep + (1 - gates) * dense).sum()

    def __call__(self, progress: Tensor) -> Tensor:
        """The terms at ``progress`` (0 to 1) of the search."""
        gates = self.values()
        over = (self.expected_ms(gates) / self.budget_ms - 1).clamp_min(0)
        undecided = (4 * gates * (1 - gates)).mean()
        return self.spec.latency * over + self.spec.decision * progress * undecided


@torch.no_grad()
def measure_importance(
    network: nn.Module, gates: Mapping[str, GatedBottleneck], task: Task, steps: range, batch: int
) -> dict[str, float]:
    """How much the loss rises when one block alone is dense, the others as they are.

    Measured on the pictures of the given steps, each block against itself kept. Batch norms use
    the batch's own statistics, as the running ones are of other gates. Never below 0. The network
    is left as it was.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    was = network.training
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    device = next(network.parameters()).device
    rises = dict.fromkeys(gates, 0.0)
    counts = [norm.num_batches_tracked for norm in norms]
    counts = [None if count is None else count.clone() for count in counts]
    try:
        for step in steps:
            inputs, target = task.batch(step, range(batch))
            inputs, target = inputs.to(device), target.to(device)
            for name, gate in gates.items():
                losses = []
                for value in (0.0, 1.0):
                    gate.forced = value
                    losses.append(float(task.loss(network(inputs), target)))
                gate.forced = None
                rises[name] += (losses[0] - losses[1]) / len(steps)
    finally:
        for gate in gates.values():
            gate.forced = None
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked = count
        network.train(was)
    return {name: max(0.0, rise) for name, rise in rises.items()}


@torch.no_grad()
def recalibrate(network: nn.Module, task: Task, steps: range, batch: int) -> None:
    """Take the batch norms' running statistics anew from the pictures of the given steps."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    was, momenta = network.training, [norm.momentum for norm in norms]
    network.eval()
    device = next(network.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for step in steps:
        network(task.batch(step, range(batch))[0].to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was)
