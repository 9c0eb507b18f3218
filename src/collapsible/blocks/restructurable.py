"""Inverted bottlenecks that can do without their inner activations (RAN-e, arXiv 2208.08562).

Without them the bottleneck is linear. It is then trained wide, as its two or three layers with
batch norms, and folds into one dense convolution; one non-linearity is kept, in front:

    dense form:  act -> 1x1, norm -> depthwise kxk, norm -> 1x1, norm            (+ x)
    of a fused:  act -> kxk, norm -> 1x1, norm                                   (+ x)
    collapsed:   act -> dense kxk                                                (+ x)

Where the first inner activation alone goes, what stands before the second is one convolution, and
the block is a fused bottleneck (EfficientNet-EdgeTPU, arXiv 2003.02838), in between in what it
costs and in what it can say:

    fused form:  1x1, norm -> depthwise kxk, norm -> act -> 1x1, norm            (+ x)
    collapsed:   dense kxk to the wide map -> act -> 1x1, norm                   (+ x)

Both forms pad *before* the first 1x1. A bottleneck pads between the two, where the first norm's
shift has gone already, and no single convolution equals that at the borders.

On the way from one form to another each inner activation is a mixture of itself and the identity
with a learned coefficient (Layer Folding, arXiv 2106.09309; DepthShrinker, arXiv 2206.00843). The
first activation goes before the second, and the one in front comes as the last inner one goes, so
that coefficients of 1, 1 are the bottleneck, 0, 1 the fused form and 0, 0 the dense form, but for
the padding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from collapsible.algebra import compose, fold_batch_norm
from collapsible.errors import UsageError


@dataclass(frozen=True, eq=False)
class BottleneckParts:
    """The layers of a bottleneck in their order: convolution, norm, activation, convolution, ...

    One norm a convolution (``nn.Identity`` where there is none), one activation between two. One
    convolution at most looks around or strides; the others are 1x1. ``drop`` is what stands before
    the residual's sum (stochastic depth), or an identity.
    """

    convs: tuple[nn.Conv2d, ...]
    norms: tuple[nn.Module, ...]
    acts: tuple[nn.Module, ...]
    residual: bool
    drop: nn.Module

    @property
    def place(self) -> int:
        """Which of the convolutions looks around: the depthwise one, or the only one not 1x1."""
        for place, conv in enumerate(self.convs):
            if conv.groups > 1 or conv.kernel_size != (1, 1) or conv.stride != (1, 1):
                return place
        return 0

    @property
    def fusible(self) -> bool:
        """Whether there is a form between the bottleneck and the dense one: of three layers."""
        return len(self.convs) == 3

    def copies(self) -> BottleneckParts:
        """The same layers, copied, with no activation working in place."""
        acts = copy.deepcopy(self.acts)
        for act in acts:
            if getattr(act, "inplace", False):
                act.inplace = False  # pyright: ignore[reportArgumentType]
        return BottleneckParts(
            copy.deepcopy(self.convs),
            copy.deepcopy(self.norms),
            acts,
            self.residual,
            copy.deepcopy(self.drop),
        )


def front_activation(act: nn.Module, channels: int) -> nn.Module:
    """A copy of an inner activation for the block's input, which has other channels."""
    if isinstance(act, nn.PReLU) and act.num_parameters > 1:
        made = nn.PReLU(channels).to(act.weight)
        with torch.no_grad():
            made.weight.fill_(float(act.weight.mean()))
        return made
    return copy.deepcopy(act)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution and its norm's evaluation form, in float64."""
    kernel = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.Identity):
        return kernel, kernel.new_zeros(len(kernel)) if bias is None else bias
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        raise UsageError(f"{type(norm).__name__} without running statistics cannot be folded")
    assert norm.running_var is not None
    return fold_batch_norm(
        kernel,
        bias,
        mean=norm.running_mean.double(),
        variance=norm.running_var.double(),
        weight=None if norm.weight is None else norm.weight.detach().double(),
        shift=None if norm.bias is None else norm.bias.detach().double(),
        epsilon=norm.eps,
    )


class BottleneckConv2d(nn.Module):
    """A convolution trained as a bottleneck's layers and norms, all padding in front.

    [N, inputs, H, W] to [N, outputs, H', W'] as the stride has it. ``narrow()`` is the one dense
    convolution that equals its evaluation form, borders included: for 1x1, depthwise, 1x1, with P,
    D, E the projection, depthwise and expansion kernels (norms folded in), W[o, i, :, :] = sum over
    h of P[o, h] D[h, :, :] E[h, i].
    """

    def __init__(self, parts: BottleneckParts) -> None:
        super().__init__()
        parts = parts.copies()
        self.convs, self.norms = nn.ModuleList(parts.convs), nn.ModuleList(parts.norms)
        self.place = parts.place
        padding = parts.convs[self.place].padding
        if isinstance(padding, str):
            raise UsageError(f"padding={padding!r}: give it in pixels")
        for place, conv in enumerate(parts.convs):
            conv.padding = padding if place == 0 else (0, 0)
            # torch keeps a second copy of the padding, for modes other than zeros.
            high, wide = conv.padding
            conv._reversed_padding_repeated_twice = [wide, wide, high, high]

    def layers(self) -> list[nn.Conv2d]:
        """The convolutions in their order."""
        return [layer for layer in self.convs if isinstance(layer, nn.Conv2d)]

    @torch.no_grad()
    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """Kernel [outputs, inputs, k, k] and bias [outputs] of the evaluation form, float64."""
        layers = self.layers()
        kernel, bias = _folded(layers[0], self.norms[0])
        groups = layers[0].groups
        for conv, norm in zip(layers[1:], list(self.norms)[1:], strict=True):
            following, shift = _folded(conv, norm)
            kernel, summed, groups = compose(
                kernel,
                following,
                first_bias=bias,
                second_bias=shift,
                first_groups=groups,
                second_groups=conv.groups,
            )
            assert summed is not None
            bias = summed
        return kernel, bias

    def narrow(self) -> nn.Conv2d:
        """The dense convolution, of the block's own dtype and device, rounded once."""
        kernel, bias = self.kernel_and_bias()
        layers = self.layers()
        first, last, wide = layers[0], layers[-1], layers[self.place]
        size, padding, weight = wide.kernel_size, first.padding, last.weight
        assert not isinstance(padding, str)
        conv = nn.Conv2d(
            first.in_channels,
            last.out_channels,
            (size[0], size[1]),
            (wide.stride[0], wide.stride[1]),
            (padding[0], padding[1]),
            (wide.dilation[0], wide.dilation[1]),
        )
        conv = conv.to(device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            conv.weight.copy_(kernel)
            assert conv.bias is not None
            conv.bias.copy_(bias)
        conv.requires_grad_(weight.requires_grad)
        return conv

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
        return x


class PreactivatedBottleneck(nn.Module):
    """The dense form: one activation, then a linear bottleneck; ``collapse`` makes it one conv.

    Shapes and residual as those of the bottleneck whose parts it is made of (which are copied).
    """

    def __init__(self, parts: BottleneckParts) -> None:
        super().__init__()
        parts = parts.copies()
        self.act = front_activation(parts.acts[0], parts.convs[0].in_channels)
        self.conv: nn.Module = BottleneckConv2d(parts)
        self.drop, self.residual = parts.drop, parts.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.act(x))
        return x + self.drop(y) if self.residual else y


class FusedBottleneck(nn.Module):
    """The fused form: a linear pair, one activation, 1x1; ``collapse`` makes two convolutions.

    Shapes and residual as those of the bottleneck whose parts it is made of (which are copied).
    Raises ``UsageError`` for a bottleneck of two layers, which is fused already.
    """

    def __init__(self, parts: BottleneckParts) -> None:
        super().__init__()
        if not parts.fusible:
            raise UsageError(f"a bottleneck of {len(parts.convs)} layers: the fused form is of 3")
        parts = parts.copies()
        pair = replace(parts, convs=parts.convs[:2], norms=parts.norms[:2], acts=parts.acts[:1])
        self.conv: nn.Module = BottleneckConv2d(pair)
        self.act, self.project, self.norm = parts.acts[1], parts.convs[2], parts.norms[2]
        self.drop, self.residual = parts.drop, parts.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.project(self.act(self.conv(x))))
        return x + self.drop(y) if self.residual else y


class GatedBottleneck(nn.Module):
    """A bottleneck between its forms: every inner activation is g act + (1 - g) identity.

    ``gates`` are the coefficients g of the inner activations in their order, never falling; the
    activation in front is the other way round, 1 - g of the last. With s the sigmoid of ``speed``
    times a logit, the first is s_1 and the second s_1 + (1 - s_1) s_2: s_1 is the share of the
    bottleneck, and s_2 how much of the rest is the fused form. Where ``fused`` is False, as where
    a target does not run that form, one logit serves all. A ``speed`` each (or one for all) makes
    coefficients move faster than the weights under the optimiser's one learning rate. The share
    of the bottleneck starts at ``start``, in (0, 1), and the rest in halves.
    """

    def __init__(
        self,
        parts: BottleneckParts,
        *,
        start: float = 0.95,
        speed: float | Sequence[float] = 1.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        count = 2 if fused and parts.fusible else 1
        speeds = [speed] * count if isinstance(speed, int | float) else list(speed)
        if not 0 < start < 1 or len(speeds) != count or min(speeds) <= 0:
            raise UsageError(
                f"start={start} must lie in (0, 1) and speed={speed} be above 0, {count} of them"
            )
        parts = parts.copies()
        self.convs, self.norms = nn.ModuleList(parts.convs), nn.ModuleList(parts.norms)
        self.acts, self.drop = nn.ModuleList(parts.acts), parts.drop
        self.front = front_activation(parts.acts[0], parts.convs[0].in_channels)
        self.residual, self.speeds = parts.residual, tuple(map(float, speeds))
        first = torch.tensor(start).logit()
        self.logits = nn.Parameter(
            torch.stack([first, torch.zeros(())][:count]) / torch.tensor(self.speeds)
        )
        self.forced: str | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that it is between, from the bottleneck on."""
        return ("keep", "fused", "dense") if len(self.speeds) == 2 else ("keep", "dense")

    @property
    def shares(self) -> Tensor:
        """What of each of ``forms`` it is: numbers in [0, 1] that sum to 1."""
        if self.forced is not None:
            place = self.forms.index(self.forced)
            return self.logits.new_tensor([float(i == place) for i in range(len(self.forms))])
        # Adam takes the size out of a gradient, but clipping by the norm of all of them does not:
        # the factor acts on the value alone.
        speeds = self.logits.new_tensor(self.speeds)
        fast = speeds * self.logits.detach() + (self.logits - self.logits.detach())
        split = torch.sigmoid(fast)
        rest = 1 - split[0]
        if len(self.speeds) == 1:
            return torch.stack([split[0], rest])
        return torch.stack([split[0], rest * split[1], rest * (1 - split[1])])

    @property
    def gates(self) -> Tensor:
        """The coefficients g of the inner activations, in [0, 1], never falling."""
        falls = self.shares.cumsum(0)[:-1]
        return falls if len(falls) == len(self.acts) else falls.expand(len(self.acts))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates
        y = _mix(self.front(x), x, gates[-1])
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if place < len(self.acts):
                y = _mix(y, self.acts[place](y), gates[place])
        return x + self.drop(y) if self.residual else y


def _mix(linear: Tensor, bent: Tensor, g: Tensor) -> Tensor:
    # Not lerp: a number without axes takes on the maps' type under autocast.
    return linear + g * (bent - linear)


class KeptBottleneck(nn.Module):
    """The bottleneck itself, from its parts (which are copied)."""

    def __init__(self, parts: BottleneckParts) -> None:
        super().__init__()
        parts = parts.copies()
        self.convs, self.norms = nn.ModuleList(parts.convs), nn.ModuleList(parts.norms)
        self.acts, self.drop = nn.ModuleList(parts.acts), parts.drop
        self.residual = parts.residual

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if place < len(self.acts):
                y = self.acts[place](y)
        return x + self.drop(y) if self.residual else y
