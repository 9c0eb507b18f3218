"""Gates: blocks that learn whether they need their inner activations, under a latency budget.

The loss of the search is the task's, plus

    latency * max(0, expected / budget - 1)  +  decision * progress * mean of 4 g (1 - g)

with expected = rest + the sum over blocks of each form's share times its latency, and g the
coefficients of the inner activations. The expected latency in the loss is DepthShrinker's idea
(arXiv 2206.00843), coefficients that are driven to 0 or 1 by a penalty are Layer Folding's
(arXiv 2106.09309). Here the first term ends where the budget is met, and the second grows with the
search: early on, gates may still change their mind.
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
    """``start`` is the share of the bottleneck at first; ``latency`` and ``decision`` weigh the two
    terms of the loss."""

    start: float = 0.95
    latency: float = 2.0
    decision: float = 0.2


def gate_network(
    network: nn.Module,
    blocks: Sequence[Bottleneck],
    speed: float | Mapping[str, Sequence[float]],
    start: float = 0.95,
) -> tuple[nn.Module, dict[str, GatedBottleneck]]:
    """A copy of the network with the given blocks gated, and the gated blocks by name.

    ``speed`` is that of all gates, or each block's by its name: one number where its bottleneck is
    to be kept or dense, two where it may be fused too.
    """
    gated = {}
    for block in blocks:
        own = speed[block.name] if isinstance(speed, Mapping) else speed
        fused = isinstance(own, int | float) or len(own) == 2
        gated[block.name] = GatedBottleneck(block.parts, start=start, speed=own, fused=fused)
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


def gate_speeds(
    latencies: Mapping[str, Mapping[str, float]], speed: float
) -> dict[str, tuple[float, ...]]:
    """The speeds of each block's gates: ``speed`` times their share of the greatest gain there is.

    Under Adam every gate that the latency term pushes at all would move alike, and blocks that
    gain next to nothing would turn dense with those that gain much. ``latencies`` are each form's,
    in any unit: the first gate gains what the quickest other form saves of the bottleneck's, the
    second the difference between the fused and the dense one. The least speed is a fiftieth.
    """
    gains: dict[str, tuple[float, ...]] = {}
    for name, ms in latencies.items():
        others = [ms[form] for form in ("fused", "dense") if form in ms]
        first = abs(ms["keep"] - min(others))
        gains[name] = (first, abs(others[0] - others[1])) if len(others) == 2 else (first,)
    greatest = max((gain for ones in gains.values() for gain in ones), default=0.0)
    return {
        name: tuple(speed * max(0.02, gain / greatest if greatest else 1.0) for gain in ones)
        for name, ones in gains.items()
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
        rows = {row.name: row.milliseconds for row in table.blocks}
        self.times = {name: [rows[name][f] for f in gate.forms] for name, gate in gates.items()}
        self.rest_ms = table.network_ms - sum(times[0] for times in self.times.values())

    def expected_ms(self) -> Tensor:
        """The latency of the mixture, a number."""
        shares = {name: gate.shares for name, gate in self.gates.items()}
        parts = [(shares[n] * shares[n].new_tensor(ms)).sum() for n, ms in self.times.items()]
        return self.rest_ms + torch.stack(parts).sum()

    def __call__(self, progress: Tensor) -> Tensor:
        """The terms at ``progress`` (0 to 1) of the search."""
        gates = torch.cat([gate.gates for gate in self.gates.values()])
        over = (self.expected_ms() / self.budget_ms - 1).clamp_min(0)
        undecided = (4 * gates * (1 - gates)).mean()
        return self.spec.latency * over + self.spec.decision * progress * undecided


@torch.no_grad()
def measure_importance(
    network: nn.Module, gates: Mapping[str, GatedBottleneck], task: Task, steps: range, batch: int
) -> dict[str, dict[str, float]]:
    """How much the loss rises when one block alone is fused, or dense, the others as they are.

    By block and form. Measured on the pictures of the given steps, each block against itself kept.
    Batch norms use the batch's own statistics, as the running ones are of other gates. Never below
    0. The network is left as it was.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    was = network.training
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 0.0
    device = next(network.parameters()).device
    rises = {name: dict.fromkeys(gate.forms[1:], 0.0) for name, gate in gates.items()}
    counts = [norm.num_batches_tracked for norm in norms]
    counts = [None if count is None else count.clone() for count in counts]
    try:
        for step in steps:
            inputs, target = task.batch(step, range(batch))
            inputs, target = inputs.to(device), target.to(device)
            for name, gate in gates.items():
                losses = {}
                for form in gate.forms:
                    gate.forced = form
                    losses[form] = float(task.loss(network(inputs), target))
                gate.forced = None
                for form in rises[name]:
                    rises[name][form] += (losses[form] - losses["keep"]) / len(steps)
    finally:
        for gate in gates.values():
            gate.forced = None
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked = count
        network.train(was)
    return {
        name: {form: max(0.0, rise) for form, rise in ones.items()} for name, ones in rises.items()
    }


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
