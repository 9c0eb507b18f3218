"""The linear blocks that SESR's ablation compares, by name (arXiv 2103.09404, section 5)."""

from __future__ import annotations

from torch import nn

from collapsible.blocks.collapsible_conv import CollapsibleConv2d, Mode
from collapsible.blocks.parallel_conv import ParallelConv2d, draw
from collapsible.errors import UnknownNameError

LINEAR_BLOCKS = ("sesr", "expandnet", "repvgg", "plain")


def linear_block(
    kind: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    residual: bool = False,
    expansion: int = 256,
    mode: Mode = "collapsed",
    gain: float | None = None,
) -> nn.Module:
    """A block that collapses to one k x k convolution (k odd), as one of the papers trains it.

    ``sesr`` goes through ``expansion`` channels and has a short residual where ``residual`` asks
    for it; ``expandnet`` is the same without; ``repvgg`` has a 1x1 and, where ``residual`` asks,
    the identity in parallel; ``plain`` is the small convolution itself. ``expansion`` and ``mode``
    mean nothing to the last two. ``gain`` scales the first kernel: see ``CollapsibleConv2d``.
    Raises ``UnknownNameError`` for another kind.
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
    if kind == "repvgg":
        return ParallelConv2d(in_channels, out_channels, kernel_size, identity=residual, gain=gain)
    if kind == "plain":
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        return draw(conv, 1.0 if gain is None else gain)
    raise UnknownNameError("linear block", kind, LINEAR_BLOCKS)
