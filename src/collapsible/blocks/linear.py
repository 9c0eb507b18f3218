"""The linear blocks that SESR's ablation compares, by name (arXiv 2103.09404, section 5)."""

from __future__ import annotations

import torch
from torch import nn

from collapsible.algebra import identity_kernel
from collapsible.blocks.collapsible_conv import CollapsibleConv2d, Mode, SameConv2d
from collapsible.blocks.parallel_conv import ParallelConv2d, draw
from collapsible.errors import UnknownNameError, UsageError

LINEAR_BLOCKS = ("sesr", "expandnet", "repvgg", "plain", "narrow")


def linear_block(
    kind: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    *,
    residual: bool = False,
    expansion: int = 256,
    mode: Mode = "collapsed",
    gain: float | None = None,
) -> nn.Module:
    """A block that collapses to one convolution, as one of the papers trains it.

    ``sesr`` goes through ``expansion`` channels and has a short residual where ``residual`` asks
    for it; ``expandnet`` is the same without; ``repvgg`` has a 1x1 and, where ``residual`` asks,
    the identity in parallel; ``plain`` is the small convolution itself, and so is ``narrow``, which
    starts where ``sesr`` does: as the identity and noise where ``residual`` asks for it.
    ``expansion`` and ``mode`` mean something to the first two alone; kernels of ``repvgg`` and
    ``plain`` are square and odd. ``gain`` scales the first kernel: see ``CollapsibleConv2d``.
    Raises ``UnknownNameError`` for another kind, ``UsageError`` for a kernel that it cannot have.
    """
    if kind in ("sesr", "expandnet"):
        return CollapsibleConv2d(
            in_channels,
            out_channels,
            kernel_size,
            expansion=expansion,
            residual=residual and kind == "sesr",
            mode=mode,
            gain=gain,
        )
    if kind not in LINEAR_BLOCKS:
        raise UnknownNameError("linear block", kind, LINEAR_BLOCKS)
    if kind == "narrow":
        conv = SameConv2d(in_channels, out_channels, kernel_size)
        draw(conv, (0.3 if residual else 1.0) if gain is None else gain)
        if residual:
            with torch.no_grad():
                conv.weight += identity_kernel(
                    out_channels, (conv.weight.shape[2], conv.weight.shape[3])
                )
        return conv
    side = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
    if side % 2 == 0 or kernel_size not in (side, (side, side)):
        raise UsageError(f"kernel {kernel_size}: a {kind} block has a square and odd one")
    kernel_size = side
    if kind == "repvgg":
        return ParallelConv2d(in_channels, out_channels, kernel_size, identity=residual, gain=gain)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return draw(conv, 1.0 if gain is None else gain)
