"""SESR: super-efficient super-resolution (Bhardwaj et al., arXiv 2103.09404, section 3).

    x -> linear block 5x5, to f features                                    = F0
      -> m times: linear block 3x3 with short residual, then PReLU or ReLU
      -> + F0                                                   (long residual)
      -> linear block 5x5, to s * s channels a colour
      -> + x, copied to its s * s channels                     (input residual)
      -> depth to space by s

Collapsed, the variants (m, f) have these weights at x2 on luminance: M3 8,912, M5 13,520,
M7 18,128, M11 27,344, XL 105,376 (the paper's table 1). M2 is the defence paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.algebra import identity_kernel
from collapsible.blocks import CollapsibleConv2d, FastPReLU, linear_block
from collapsible.blocks.collapsible_conv import Mode
from collapsible.errors import UsageError
from collapsible.models.registry import register

Colour = Literal["y", "rgb"]
COLOUR_CHANNELS: dict[str, int] = {"y": 1, "rgb": 3}


def activation(kind: str, channels: int) -> nn.Module:
    """A PReLU with a slope a channel, or a ReLU. Raises ``UsageError`` for another kind."""
    if kind == "prelu":
        return FastPReLU(channels)
    if kind == "relu":
        return nn.ReLU()
    raise UsageError(f"activation {kind!r}: known are 'prelu' and 'relu'")


# What makes the output channels of the last block, whichever kind it is.
_LAST_WEIGHTS = {
    f"last.{name}"
    for name in (
        *("project_weight", "project_bias", "weight", "bias"),
        *("full.weight", "full.bias", "point.weight", "point.bias"),
    )
}


def read_kernels(kernels: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """Kernels as pairs (height, width); raises ``UsageError`` for what is none."""
    shapes = []
    for kernel in kernels:
        pair = tuple(kernel) if isinstance(kernel, Sequence) else ()
        if len(pair) != 2 or not all(type(side) is int and side >= 1 for side in pair):
            raise UsageError(f"kernel {kernel!r}: a height and a width are accepted, as (3, 2)")
        shapes.append((pair[0], pair[1]))
    return tuple(shapes)


class Bend(nn.Module):
    """One linear block with a short residual and the non-linearity that follows it."""

    def __init__(self, conv: nn.Module, features: int, kind: str) -> None:
        super().__init__()
        self.conv = conv
        self.act = activation(kind, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class SESR(nn.Module):
    """A SESR network in its training form; ``collapse`` gives the deployed one.

    Maps [N, C, H, W] to [N, C, scale * H, scale * W] in [0, 1] (not clipped); C is 1 for
    ``colour="y"`` (BT.601 studio luma / 255) and 3 for ``"rgb"``. ``blocks`` is m and
    ``features`` f in the text above; ``kernels`` are the m blocks' (height, width) where they are
    not all 3x3 (section 3.4: even and asymmetric ones), ``first_kernel`` and ``last_kernel`` those
    of the other two; ``expansion`` is the paper's p. For the
    paper's ablation ``block`` names another linear block (``blocks.linear_block``) for all layers,
    ``block_gain`` scales the first kernels of the m blocks, and each residual can be left out.
    Raises ``UsageError`` for values outside these.
    """

    def __init__(
        self,
        blocks: int,
        features: int = 16,
        *,
        scale: int = 2,
        colour: Colour = "y",
        expansion: int = 256,
        act: str = "prelu",
        block: str = "sesr",
        block_gain: float | None = None,
        long_residual: bool = True,
        input_residual: bool = True,
        kernels: Sequence[Sequence[int]] | None = None,
        first_kernel: Sequence[int] = (5, 5),
        last_kernel: Sequence[int] = (5, 5),
        mode: Mode = "collapsed",
    ) -> None:
        super().__init__()
        enter, leave = read_kernels([first_kernel, last_kernel])
        shapes = read_kernels([(3, 3)] * blocks if kernels is None else kernels)
        if len(shapes) != blocks:
            raise UsageError(f"{len(shapes)} kernels for {blocks} blocks: one a block")
        if colour not in COLOUR_CHANNELS:
            raise UsageError(f"colour {colour!r}: known are {', '.join(COLOUR_CHANNELS)}")
        if scale < 2 or blocks < 1 or features < 1:
            raise UsageError(
                f"scale={scale} starts at 2, blocks={blocks} and features={features} at 1"
            )
        self.scale, self.colour, self.features = scale, colour, features
        self.long_residual, self.input_residual = long_residual, input_residual
        channels = COLOUR_CHANNELS[colour]
        wide = partial(linear_block, block, expansion=expansion, mode=mode)
        self.first = wide(channels, features, enter)
        self.blocks = nn.ModuleList(
            Bend(wide(features, features, shape, residual=True, gain=block_gain), features, act)
            for shape in shapes
        )
        self.receptive_radius = max(
            sum(shape[axis] // 2 for shape in (enter, *shapes, leave)) for axis in (0, 1)
        )
        """How far, in input pixels, an output looks: 2 + m + 2 where all kernels are 3x3."""
        # The last block starts small: with the input residual the untrained network is then
        # close to enlarging by nearest neighbour, and the first steps do not have to undo noise.
        self.last = wide(features, channels * scale**2, leave, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge [N, C, H, W] to [N, C, scale * H, scale * W]."""
        first = self.first(x)
        y = first
        for block in self.blocks:
            y = block(y)
        if self.long_residual:
            y = y + first
        y = self.last(y)
        if self.input_residual:
            # Channel c * s * s + phase of the shuffle belongs to colour c.
            y = y + x.repeat_interleave(self.scale**2, dim=1)
        return F.pixel_shuffle(y, self.scale)

    @torch.no_grad()
    def start_from(self, other: SESR) -> None:
        """Continue from the same network at a smaller scale, as x4 starts from x2, in place.

        All shared blocks are taken over (section 4). The paper draws a new last block; here each
        of its output channels starts as the mean of those of the smaller scale's pixels which it
        touches, so the new network begins as the old one enlarged by nearest neighbour (x4 from
        x2) or nearly so (x3 from x2), which is a better place.
        Raises ``UsageError`` if the scale is not larger or the networks differ elsewhere.
        """
        if self.scale <= other.scale:
            raise UsageError(f"x{self.scale} cannot start from x{other.scale}: not a smaller scale")
        state = other.state_dict()
        fine, coarse = self.scale, other.scale
        for name in _LAST_WEIGHTS & set(state):
            old = state[name]
            grid = old.reshape(-1, coarse, coarse, old[0].numel()).permute(0, 3, 1, 2)
            grid = F.adaptive_avg_pool2d(grid, fine).permute(0, 2, 3, 1)
            state[name] = grid.reshape(-1, *old.shape[1:])
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"the networks differ in more than their scale: {error}") from error

    @torch.no_grad()
    def start_from_depth(self, other: SESR) -> None:
        """Continue from a network of another depth, as M11 or M3 starts from M5, in place.

        Deeper than ``other``: its blocks are spread evenly over this one's; those between start as
        the identity (a kernel of nought beside the residual, PReLU slopes of 1), so that the new
        network begins as exactly the old one (Chen et al., Net2Net, arXiv 1511.05641, section
        2.3). Shallower: it takes evenly spaced blocks of ``other``. ``expansion`` may differ.
        Raises ``UsageError`` if the depth is the same or anything else differs.
        """
        count, theirs_count = len(self.blocks), len(other.blocks)
        mine, theirs = _frame(self), _frame(other)
        if theirs_count == count or mine != theirs:
            raise UsageError(
                f"a network of {count} blocks, {mine}, cannot start from one of "
                f"{theirs_count}, {theirs}"
            )
        blocks = [_bend(block) for block in self.blocks]
        least = min(count, theirs_count)
        taken = {number * count // least: number * theirs_count // least for number in range(least)}
        pairs = [(self.first, other.first), (self.last, other.last)]
        for place, at in taken.items():
            new, old = (kernel_of(_bend(b).conv)[0] for b in (blocks[place], other.blocks[at]))
            if new.shape != old.shape:
                raise UsageError(
                    f"block {place} has kernels of {tuple(new.shape[2:])} and cannot start from "
                    f"block {at}, of {tuple(old.shape[2:])}"
                )
        for place, block in enumerate(blocks):
            if place in taken:
                old = _bend(other.blocks[taken[place]])
                pairs.append((block.conv, old.conv))
                block.act.load_state_dict(old.act.state_dict())
                continue
            if not isinstance(block.act, FastPReLU):
                raise UsageError("only blocks with PReLU can start as the identity")
            block.act.weight.fill_(1.0)
            make_identity(block.conv)
        for new, old in pairs:
            load_kernel(new, *kernel_of(old))

    @torch.no_grad()
    def start_from_width(self, other: SESR) -> None:
        """Continue from a network of half the width, as XL starts from M11, in place.

        Two copies of it stand side by side, with noughts between them, and the new network gives
        the mean of both. The second is turned by 180 degrees: as good as the first, but it errs
        elsewhere, so that the mean is better than either (self-ensemble; Lim et al.,
        arXiv 1707.02921, section 3.3). The kernels between them are free to learn.
        Raises ``UsageError`` if the width is not half, or anything else differs, or a kernel has
        an even side, which cannot be turned.
        """
        convs, theirs = ([net.first, *_convs(net), net.last] for net in (self, other))
        pairs = list(zip(convs, theirs, strict=False))
        kernels = [[kernel_of(conv)[0].shape[2:] for conv in side] for side in (convs, theirs)]
        wanted = {**_frame(other), "features": 2 * other.features}
        if _frame(self) != wanted or kernels[0] != kernels[1]:
            raise UsageError(
                f"a network of {len(self.blocks)} blocks, {_frame(self)}, cannot start from two of "
                f"{len(other.blocks)}, {_frame(other)}"
            )
        for height, width in kernels[0]:
            if not (height % 2 and width % 2):
                raise UsageError(f"a kernel of {(height, width)} has no middle to turn it by")
        for block, old_block in zip(self.blocks, other.blocks, strict=True):
            slopes = _bend(old_block).act.state_dict()
            doubled = {name: torch.cat([slope, slope]) for name, slope in slopes.items()}
            _bend(block).act.load_state_dict(doubled)
        for new, old in pairs:
            kernel, bias = kernel_of(old)
            turned = kernel.flip(2, 3)
            if old is other.last:
                both = torch.cat([kernel, self._turned_pixels(turned)], 1) / 2
                bias = None if bias is None else (bias + self._turned_pixels(bias)) / 2
            else:
                between = torch.zeros_like(kernel)
                both = torch.cat([kernel, turned])
                if old is not other.first:
                    left, right = torch.cat([kernel, between]), torch.cat([between, turned])
                    both = torch.cat([left, right], 1)
                bias = None if bias is None else torch.cat([bias, bias])
            load_kernel(new, both, bias)

    def _turned_pixels(self, values: Tensor) -> Tensor:
        """The last block's output channels for a picture turned by 180 degrees."""
        grid = values.reshape(-1, self.scale**2, *values.shape[1:])
        return grid.flip(1).reshape(values.shape)


def make_identity(conv: nn.Module) -> None:
    """Make a block's convolution hand on what it gets, in place."""
    if isinstance(conv, CollapsibleConv2d):
        conv.reset_parameters()
        conv.project_weight.zero_()
        return
    weight, _ = kernel_of(conv)
    eye = identity_kernel(weight.shape[0], (weight.shape[2], weight.shape[3]))
    load_kernel(conv, eye, None)


def kernel_of(conv: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The kernel [out, in, height, width] that a wide or narrow block amounts to, and its bias.

    Raises ``UsageError`` for another module.
    """
    if isinstance(conv, CollapsibleConv2d):
        return conv.kernel_and_bias()
    if isinstance(conv, nn.Conv2d):
        return conv.weight.detach(), conv.bias
    raise UsageError("only SESR's own blocks, wide or narrow, can take over others' kernels")


def load_kernel(conv: nn.Module, kernel: Tensor, bias: Tensor | None) -> None:
    """Make a wide or narrow block amount to this kernel and bias (None: noughts), in place."""
    if isinstance(conv, CollapsibleConv2d):
        conv.load_kernel(kernel, bias)
        return
    assert isinstance(conv, nn.Conv2d)
    conv.weight.copy_(kernel)
    if conv.bias is not None:
        conv.bias.copy_(torch.zeros(()) if bias is None else bias)


def _bend(block: nn.Module) -> Bend:
    assert isinstance(block, Bend)
    return block


def _convs(network: SESR) -> list[nn.Module]:
    return [_bend(block).conv for block in network.blocks]


def _frame(network: SESR) -> dict[str, object]:
    """What two networks share where they differ in the number of blocks alone."""
    convs = _convs(network)
    return {
        "features": network.features,
        "scale": network.scale,
        "colour": network.colour,
        "residuals": (network.long_residual, network.input_residual),
        "kernels": sorted({getattr(conv, "kernel_size", None) for conv in convs}, key=str),
        "ends": [getattr(conv, "kernel_size", None) for conv in (network.first, network.last)],
        "activation": sorted({type(_bend(block).act).__name__ for block in network.blocks}),
    }


@register
def sesr_m2(**options: object) -> SESR:
    return SESR(blocks=2, **options)  # type: ignore[arg-type]


@register
def sesr_m3(**options: object) -> SESR:
    return SESR(blocks=3, **options)  # type: ignore[arg-type]


@register
def sesr_m5(**options: object) -> SESR:
    return SESR(blocks=5, **options)  # type: ignore[arg-type]


@register
def sesr_m7(**options: object) -> SESR:
    return SESR(blocks=7, **options)  # type: ignore[arg-type]


@register
def sesr_m11(**options: object) -> SESR:
    return SESR(blocks=11, **{"expansion": 64, **options})  # type: ignore[arg-type]


@register
def sesr_m11_web(**options: object) -> SESR:
    """M11 by another name: its weights are for compressed, blurred and noisy pictures."""
    return sesr_m11(**options)


@register
def sesr_m5_relu(**options: object) -> SESR:
    """M5 with ReLU, which engines run faster than PReLU (SESR, section 5: for int8)."""
    return sesr_m5(**{"act": "relu", **options})


@register
def sesr_m11_relu(**options: object) -> SESR:
    """M11 with ReLU."""
    return sesr_m11(**{"act": "relu", **options})


@register
def sesr_cpu(**options: object) -> SESR:
    """What ``collapsible search sesr`` found for x86 CPUs that have bf16 (docs/training.md).

    Twelve asymmetric kernels with ReLU, and 3x3 at both ends: 9,936 weights at x2.
    """
    tall, wide = (3, 1), (1, 3)
    kernels = (wide, tall, wide, wide, wide, tall, wide, wide, wide, tall, wide, tall)
    found = {"kernels": kernels, "first_kernel": (3, 3), "last_kernel": (3, 3), "act": "relu"}
    return SESR(len(kernels), **{**found, **options})  # type: ignore[arg-type]


@register
def sesr_xl(**options: object) -> SESR:
    return SESR(blocks=11, **{"features": 32, "expansion": 64, **options})  # type: ignore[arg-type]


@register
def sesr_nas(*, kernels: Sequence[Sequence[int]] = ((3, 3),) * 5, **options: object) -> SESR:
    """A SESR of any shape, such as ``collapsible search sesr`` finds; by default M5's."""
    return SESR(len(kernels), kernels=kernels, **options)  # type: ignore[arg-type]
