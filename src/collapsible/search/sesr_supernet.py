"""All shapes of a space in one network, whose choices are learned with its weights.

A mixture of convolutions with different kernels is one convolution, with the mixture of the
kernels: so a block of the supernet costs one convolution of pictures, however many kernels it
chooses among. Widths are a mixture of masks, and a block that may be left out is mixed with its
input (DARTS, arXiv 1806.09055; masks over shared channels: FBNetV2, arXiv 2004.05565).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.algebra import pad_kernel, same_padding
from collapsible.blocks import CollapsibleConv2d, FastPReLU
from collapsible.errors import BudgetError
from collapsible.search.selection import Option, select
from collapsible.search.sesr_space import SKIP, SesrLatencies, SesrShape, SesrSpace, kernel_name
from collapsible.training.loop import Task


class Choices(NamedTuple):
    """Probabilities of kernels [blocks, kernels], of blocks being there [blocks], of widths
    [widths], and of the kernels of the first and the last layer [ends] each."""

    kernels: Tensor
    keeps: Tensor
    widths: Tensor
    first: Tensor
    last: Tensor


class SesrSupernet(nn.Module):
    """[N, 1, H, W] to [N, 1, scale * H, scale * W], as SESR, over a space of shapes.

    ``speed`` multiplies what the choices' logits are worth, so that they move faster than weights
    under the optimiser's one learning rate.
    """

    def __init__(
        self, space: SesrSpace, *, scale: int = 2, expansion: int = 64, speed: float = 20.0
    ) -> None:
        super().__init__()
        self.space, self.scale, self.speed = space, scale, speed
        widest = max(space.widths)
        self.size, self.end_size = room(space.kernels), room(space.ends)
        self.first = nn.ModuleList(
            CollapsibleConv2d(1, widest, kernel, expansion=expansion) for kernel in space.ends
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                CollapsibleConv2d(widest, widest, kernel, expansion=expansion, residual=True)
                for kernel in space.kernels
            )
            for _ in range(space.blocks)
        )
        self.acts = nn.ModuleList(FastPReLU(widest) for _ in range(space.blocks))
        self.last = nn.ModuleList(
            CollapsibleConv2d(widest, scale**2, kernel, expansion=expansion, gain=0.1)
            for kernel in space.ends
        )
        self.kernel_logits = nn.Parameter(torch.zeros(space.blocks, len(space.kernels)))
        # Blocks are there at first: 0.88.
        self.keep_logits = nn.Parameter(torch.full((space.blocks,), 2.0 / speed))
        self.width_logits = nn.Parameter(torch.zeros(len(space.widths)))
        self.first_logits = nn.Parameter(torch.zeros(len(space.ends)))
        self.last_logits = nn.Parameter(torch.zeros(len(space.ends)))
        steps = [[float(channel < width) for channel in range(widest)] for width in space.widths]
        self.masks: Tensor
        self.register_buffer("masks", torch.tensor(steps), persistent=False)

    @property
    def receptive_radius(self) -> int:
        """How far an output looks with the largest kernel everywhere."""
        return 2 * (max(self.end_size) // 2) + self.space.blocks * (max(self.size) // 2)

    def _fast(self, logits: Tensor) -> Tensor:
        # The factor acts on the value alone: clipping by the norm of all gradients sees it else.
        return self.speed * logits.detach() + (logits - logits.detach())

    def choices(self) -> Choices:
        """What the network has learned to choose so far."""
        return Choices(
            self._fast(self.kernel_logits).softmax(1),
            self._fast(self.keep_logits).sigmoid(),
            self._fast(self.width_logits).softmax(0),
            self._fast(self.first_logits).softmax(0),
            self._fast(self.last_logits).softmax(0),
        )

    def forward(self, x: Tensor) -> Tensor:
        choices = self.choices()
        mask = (choices.widths @ self.masks)[None, :, None, None]
        y = first = mixed_conv2d(x, self.first, choices.first, self.end_size) * mask
        for number, (layers, act) in enumerate(zip(self.blocks, self.acts, strict=True)):
            assert isinstance(layers, nn.ModuleList)
            z = act(mixed_conv2d(y, layers, choices.kernels[number], self.size)) * mask
            y = y + choices.keeps[number] * (z - y)
        y = mixed_conv2d(y + first, self.last, choices.last, self.end_size)
        return F.pixel_shuffle(y + x.repeat_interleave(self.scale**2, dim=1), self.scale)


def room(kernels: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The least odd height and width in which every kernel finds its place."""
    left, right, top, bottom = map(max, zip(*map(same_padding, kernels), strict=True))
    return 2 * max(top, bottom) + 1, 2 * max(left, right) + 1


def mixed_conv2d(
    x: Tensor, layers: Iterable[nn.Module], shares: Tensor, size: tuple[int, int]
) -> Tensor:
    """Convolve with the mixture of the layers' kernels, each with its share, in one of ``size``."""
    kernel, bias = x.new_zeros(()), x.new_zeros(())
    for share, layer in zip(shares, layers, strict=True):
        assert isinstance(layer, CollapsibleConv2d)
        part, offset = layer.kernel_and_bias()
        assert offset is not None
        kernel = kernel + share * pad_kernel(part, size)
        bias = bias + share * offset
    return F.conv2d(x, kernel, bias, padding=(size[0] // 2, size[1] // 2))


class ShapePressure:
    """The search's own terms of the loss: the latency above the budget, and indecision.

    weight * max(0, expected / budget - 1) + decision * progress * mean entropy of the choices,
    each a share of the greatest there is.
    """

    def __init__(
        self,
        network: SesrSupernet,
        table: SesrLatencies,
        budget_ms: float,
        *,
        weight: float = 0.05,
        decision: float = 0.005,
    ) -> None:
        self.network, self.budget_ms = network, budget_ms
        self.weight, self.decision = weight, decision
        space = network.space
        self.rest = torch.tensor([table.rest[width] for width in space.widths])
        self.layers = _rows(table.layers, space.widths, space.kernels)
        self.first = _rows(table.first, space.widths, space.ends)
        self.last = _rows(table.last, space.widths, space.ends)

    def expected_ms(self) -> Tensor:
        """The latency of the mixture, a number."""
        now = self.network.choices()
        each = (now.keeps[:, None] * now.kernels).sum(0) @ self.layers.to(now.kernels).T
        ends = now.first @ self.first.to(now.first).T + now.last @ self.last.to(now.last).T
        return now.widths @ (self.rest.to(each) + each + ends)

    def __call__(self, progress: Tensor) -> Tensor:
        now = self.network.choices()
        over = (self.expected_ms() / self.budget_ms - 1).clamp_min(0)
        entropies = [
            _entropy(now.kernels).mean(),
            _entropy(torch.stack([now.keeps, 1 - now.keeps], 1)).mean(),
            *(_entropy(shares[None]).mean() for shares in (now.widths, now.first, now.last)),
        ]
        return self.weight * over + self.decision * progress * sum(entropies) / len(entropies)


def _rows(
    table: Mapping[int, Mapping[str, float]],
    widths: Sequence[int],
    kernels: Sequence[tuple[int, int]],
) -> Tensor:
    """Milliseconds [widths, kernels] of one part of a table."""
    return torch.tensor([[table[width][kernel_name(k)] for k in kernels] for width in widths])


def _entropy(shares: Tensor) -> Tensor:
    """Of each row, over the greatest there is; 0 where there is one choice."""
    if shares.shape[1] == 1:
        return shares.new_zeros(len(shares))
    return -(shares * shares.clamp_min(1e-12).log()).sum(1) / math.log(shares.shape[1])


class ShapeTask:
    """A super-resolution task with the pressure; the place in the run rides on the target."""

    def __init__(self, task: Task, steps: int, pressure: ShapePressure) -> None:
        self.task, self.steps, self.pressure = task, steps, pressure

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        inputs, target = self.task.batch(step, places)
        progress = torch.full_like(target[:, :1], step / self.steps)
        return inputs, torch.cat([target, progress], 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.task.loss(output, target[:, :-1]) + self.pressure(target[0, -1, 0, 0])

    def validate(self, network: nn.Module) -> dict[str, float]:
        return self.task.validate(network)


@torch.no_grad()
def choose_shape(network: SesrSupernet, table: SesrLatencies, budget_ms: float) -> SesrShape:
    """The likeliest shape within the budget, chosen exactly over kernels, depth and width.

    Raises ``BudgetError`` with the least latency where none is.
    """
    kernels, keeps, widths, *ends = (share.double().clamp(1e-9, 1) for share in network.choices())
    space, best, least = network.space, None, math.inf
    for number, width in enumerate(space.widths):
        times = table.layers[width]
        blocks = [
            [
                Option(SKIP, 0.0, -math.log(max(1e-9, 1 - float(keep)))),
                *(
                    Option(kernel_name(kernel), times[kernel_name(kernel)], -math.log(share * keep))
                    for kernel, share in zip(space.kernels, row.tolist(), strict=True)
                ),
            ]
            for row, keep in zip(kernels, keeps.tolist(), strict=True)
        ]
        blocks += [
            [
                Option(kernel_name(kernel), part[width][kernel_name(kernel)], -math.log(share))
                for kernel, share in zip(space.ends, shares.tolist(), strict=True)
            ]
            for part, shares in zip((table.first, table.last), ends, strict=True)
        ]
        try:
            found = select(blocks, budget_ms, table.rest[width])
        except BudgetError:
            least = min(least, table.rest[width])
            continue
        loss = found.loss - math.log(float(widths[number]))
        if best is None or loss < best[0]:
            best = (loss, width, found.forms)
    if best is None:
        raise BudgetError(
            f"a budget of {budget_ms:.4g} ms is below what can be reached: the least is "
            f"{least:.4g} ms, without any block"
        )
    _, width, (*inner, first, last) = best
    named = {kernel_name(kernel): kernel for kernel in (*space.kernels, *space.ends)}
    chosen = tuple(named[form] for form in inner if form != SKIP)
    if not chosen:
        # A network of no blocks has no bend at all: the cheapest block that there is.
        chosen = (min(space.kernels, key=lambda kernel: table.layers[width][kernel_name(kernel)]),)
    shape = SesrShape(chosen, width, named[first], named[last])
    if table.total(shape) > budget_ms * (1 + 1e-9):
        raise BudgetError(
            f"a budget of {budget_ms:.4g} ms is below what can be reached: the least with a block "
            f"is {table.total(shape):.4g} ms"
        )
    return shape
