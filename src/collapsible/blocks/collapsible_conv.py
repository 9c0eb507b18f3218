"""The collapsible linear block of SESR (arXiv 2103.09404, section 3.1)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collapsible.algebra import compose, identity_kernel, same_padding
from collapsible.errors import UsageError

Mode = Literal["collapsed", "expanded"]
MODES: tuple[Mode, ...] = ("collapsed", "expanded")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class SameConv2d(nn.Conv2d):
    """A convolution that keeps the picture's size, for even kernels too.

    ``nn.Conv2d`` cannot pad unevenly without a warning and a copy inside; here the padding is
    ``algebra.same_padding`` for every kernel size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, _pair(kernel_size), groups=groups, bias=bias)
        self.borders = same_padding(_pair(kernel_size))

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H, W]."""
        return same_conv2d(input, self.weight, self.bias, self.groups)


def same_conv2d(x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """Convolve with zero padding that keeps the size, whatever the kernel's shape."""
    left, right, top, bottom = same_padding((kernel.shape[-2], kernel.shape[-1]))
    if (left, top) == (right, bottom):
        return F.conv2d(x, kernel, bias, padding=(top, left), groups=groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, bias, groups=groups)


class CollapsibleConv2d(nn.Module):
    """k x k convolution to ``expansion`` channels, then 1x1 to ``out_channels``; no bend between.

    Maps [N, in_channels, H, W] to [N, out_channels, H, W] (stride 1, zero padding that keeps the
    size). Being linear it equals one small convolution, ``kernel_and_bias()``. With
    ``squeeze`` a 1x1 convolution to that many channels comes first; with ``residual`` the input
    is added to the output (needs as many inputs as outputs): the identity kernel, once collapsed.

    Two modes give the same outputs and gradients, borders included:

    ``collapsed``
        every step composes the small weight tensors and convolves the pictures once. The weights
        that learn are still the wide ones (SESR, section 3.3, "efficient training").
    ``expanded``
        runs every layer on the pictures; for checking and for comparison. The input is padded
        once, before the first layer, so that a bias of the first 1x1 acts on the border as it
        does inside. This is what makes the collapse exact there.

    Initialisation: every factor is normal with variance 1 / fan-in, so the composed kernel has
    variance ``gain`` squared / (in_channels / groups * kh * kw) whatever the expansion: features
    keep their size. A ``residual`` block starts nearer to the identity, its kernel scaled by
    ``gain`` (0.3 unless told): a stack of m such blocks then grows features by
    (1 + 0.09)^(m / 2) only, and gradients pass to the first layer through the identity.

    Raises ``UsageError`` for impossible shapes or an unknown mode.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        expansion: int = 256,
        squeeze: int | None = None,
        residual: bool = False,
        bias: bool = True,
        groups: int = 1,
        mode: Mode = "collapsed",
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.expansion, self.squeeze = expansion, squeeze
        self.residual, self.groups = residual, groups
        if min(self.kernel_size) < 1:
            raise UsageError(f"kernel sizes start at 1, not {self.kernel_size}")
        for name, channels in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("expansion", expansion),
            ("squeeze", groups if squeeze is None else squeeze),
        ):
            if channels < 1 or channels % groups:
                raise UsageError(
                    f"{name}={channels} must be a positive multiple of {groups} groups"
                )
        if residual and in_channels != out_channels:
            raise UsageError(
                f"a residual needs as many inputs as outputs, not {in_channels} and {out_channels}"
            )
        kernel_in = in_channels if squeeze is None else squeeze
        self.squeeze_weight = (
            None
            if squeeze is None
            else nn.Parameter(torch.empty(squeeze, in_channels // groups, 1, 1))
        )
        self.squeeze_bias = (
            nn.Parameter(torch.empty(squeeze)) if squeeze is not None and bias else None
        )
        self.expand_weight = nn.Parameter(
            torch.empty(expansion, kernel_in // groups, *self.kernel_size)
        )
        self.expand_bias = nn.Parameter(torch.empty(expansion)) if bias else None
        self.project_weight = nn.Parameter(torch.empty(out_channels, expansion // groups, 1, 1))
        self.project_bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.gain = (0.3 if residual else 1.0) if gain is None else gain
        self.mode: Mode = "collapsed"
        self.set_mode(mode)
        self.reset_parameters()

    def set_mode(self, mode: Mode) -> None:
        """Choose how the forward pass runs; outputs and gradients do not change."""
        if mode not in MODES:
            raise UsageError(f"mode {mode!r}: known modes are {', '.join(MODES)}")
        self.mode = mode

    def reset_parameters(self) -> None:
        """Draw new weights; see the class's note on initialisation. Biases start at zero."""
        weights = [w for w in (self.squeeze_weight, self.expand_weight) if w is not None]
        for weight in weights:
            nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        nn.init.normal_(
            self.project_weight, std=self.gain / math.sqrt(self.project_weight[0].numel())
        )
        for bias in (self.squeeze_bias, self.expand_bias, self.project_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def kernel_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The equal small convolution: kernel [out, in / groups, kh, kw] and bias [out] or None.

        Differentiable; computed in the parameters' own precision even under autocast, since
        rounding the factors would cost more than it saves.
        """
        device = self.expand_weight.device.type
        # The meta device, on which networks are costed, knows no autocast.
        available = torch.amp.is_autocast_available(device)
        with torch.autocast(device, enabled=False) if available else nullcontext():
            kernel, bias = self.expand_weight, self.expand_bias
            if self.squeeze_weight is not None:
                kernel, bias, _ = compose(
                    self.squeeze_weight,
                    kernel,
                    first_bias=self.squeeze_bias,
                    second_bias=bias,
                    first_groups=self.groups,
                    second_groups=self.groups,
                )
            kernel, bias, _ = compose(
                kernel,
                self.project_weight,
                first_bias=bias,
                second_bias=self.project_bias,
                first_groups=self.groups,
                second_groups=self.groups,
            )
            if self.residual:
                kernel = kernel + identity_kernel(
                    self.out_channels,
                    self.kernel_size,
                    groups=self.groups,
                    dtype=kernel.dtype,
                    device=kernel.device,
                )
        return kernel, bias

    @torch.no_grad()
    def load_kernel(self, kernel: Tensor, bias: Tensor | None = None) -> None:
        """Set the wide weights so that they compose to exactly this small convolution.

        The inverse of ``kernel_and_bias`` (up to rounding), for going on from collapsed weights.
        The projection's rows are drawn orthonormal, so the expanded weights are the projection's
        transpose times the kernel: of all factorings the balanced one keeps gradients even.
        Raises ``UsageError`` for another shape, or where the block is too narrow to hold it.
        """
        expected = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if tuple(kernel.shape) != expected:
            raise UsageError(f"kernel of shape {tuple(kernel.shape)}: expected {expected}")
        if self.squeeze_weight is not None:
            raise UsageError("a block with a first 1x1 cannot take a collapsed kernel")
        if self.expansion < self.out_channels:
            raise UsageError(f"expansion {self.expansion} is below {self.out_channels} outputs")
        if bias is not None and self.project_bias is None:
            raise UsageError("this block has no bias to load one into")
        kernel = kernel.to(self.expand_weight.dtype)
        if self.residual:
            kernel = kernel - identity_kernel(
                self.out_channels, self.kernel_size, groups=self.groups, dtype=kernel.dtype
            )
        scale = kernel.norm().clamp_min(1e-12).sqrt()
        for rows, targets, part in zip(
            self.project_weight.chunk(self.groups),
            self.expand_weight.chunk(self.groups),
            kernel.chunk(self.groups),
            strict=True,
        ):
            basis = torch.empty(rows.shape[0], rows.shape[1], dtype=rows.dtype)
            nn.init.orthogonal_(basis)
            rows.copy_((basis * scale)[..., None, None])
            targets.copy_(torch.einsum("op,oihw->pihw", basis / scale, part))
        for old in (self.expand_bias, self.project_bias):
            if old is not None:
                old.zero_()
        if bias is not None and self.project_bias is not None:
            self.project_bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H, W]."""
        if self.mode == "collapsed":
            kernel, bias = self.kernel_and_bias()
            return same_conv2d(x, kernel, bias, self.groups)
        padded = F.pad(x, same_padding(self.kernel_size))
        if self.squeeze_weight is not None:
            padded = F.conv2d(padded, self.squeeze_weight, self.squeeze_bias, groups=self.groups)
        wide = F.conv2d(padded, self.expand_weight, self.expand_bias, groups=self.groups)
        y = F.conv2d(wide, self.project_weight, self.project_bias, groups=self.groups)
        return y + x if self.residual else y

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"expansion={self.expansion}, squeeze={self.squeeze}, residual={self.residual}, "
            f"groups={self.groups}, mode={self.mode!r}"
        )


def set_mode(module: nn.Module, mode: Mode) -> nn.Module:
    """Set the mode of every collapsible block in a network, in place; returns the network."""
    for block in module.modules():
        if isinstance(block, CollapsibleConv2d):
            block.set_mode(mode)
    return module
