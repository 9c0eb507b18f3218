"""Kernels of two-dimensional convolutions: composition, identity, padding, folding.

A kernel is a tensor [out, in / groups, height, width] in torch's cross-correlation convention.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from collapsible.errors import UsageError


def same_padding(kernel_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Zero padding (left, right, top, bottom) that keeps the size at stride 1.

    An even kernel has no centre; as in torch's ``padding="same"`` the extra zero goes right
    and below, so that the tap at ``(k - 1) // 2`` lies on the output pixel's own place.
    """
    height, width = kernel_size
    top, left = (height - 1) // 2, (width - 1) // 2
    return left, width - 1 - left, top, height - 1 - top


def identity_kernel(
    channels: int,
    kernel_size: tuple[int, int],
    *,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The kernel [channels, channels / groups, height, width] that returns its input.

    The one tap lies where ``same_padding`` puts the output pixel. (SESR, section 3: the short
    residual as an identity kernel added to the collapsed weights.)
    """
    if channels % groups:
        raise UsageError(f"{channels} channels do not divide into {groups} groups")
    height, width = kernel_size
    within = channels // groups
    kernel = torch.zeros(channels, within, height, width, dtype=dtype, device=device)
    index = torch.arange(channels, device=device)
    kernel[index, index % within, (height - 1) // 2, (width - 1) // 2] = 1
    return kernel


def pad_kernel(kernel: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Grow a kernel with zero taps, keeping its ``same_padding`` place; never shrinks it."""
    height, width = kernel.shape[-2:]
    new_height, new_width = kernel_size
    if new_height < height or new_width < width:
        raise UsageError(f"cannot pad a {height}x{width} kernel to {new_height}x{new_width}")
    top = (new_height - 1) // 2 - (height - 1) // 2
    left = (new_width - 1) // 2 - (width - 1) // 2
    return F.pad(
        kernel, (left, new_width - width - left, top, new_height - height - top), value=0.0
    )


def densify(kernel: Tensor, groups: int) -> Tensor:
    """The ungrouped kernel [out, in, height, width] of a grouped one: block diagonal."""
    if groups == 1:
        return kernel
    out_channels, within, height, width = kernel.shape
    per_group = out_channels // groups
    dense = kernel.new_zeros(out_channels, within * groups, height, width)
    for group in range(groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        dense[rows, group * within : (group + 1) * within] = kernel[rows]
    return dense


def _compose_same_groups(first: Tensor, second: Tensor, groups: int) -> Tensor:
    middle, within, first_height, first_width = first.shape
    out_channels, _, second_height, second_width = second.shape
    if second_height == second_width == 1 or first_height == first_width == 1:
        # A matrix product: the common case of every training step (1x1 after or before k x k).
        if groups == 1 and second_height == second_width == 1:
            merged = second.flatten(1) @ first.flatten(1)
            return merged.reshape(out_channels, within, first_height, first_width)
        a = first.reshape(groups, middle // groups, within, first_height, first_width)
        b = second.reshape(
            groups, out_channels // groups, middle // groups, second_height, second_width
        )
        if second_height == second_width == 1:
            merged = torch.einsum("gom,gmihw->goihw", b[..., 0, 0], a)
        else:
            merged = torch.einsum("gomhw,gmi->goihw", b, a[..., 0, 0])
        return merged.flatten(0, 1)
    merged = []
    for part, following in zip(first.chunk(groups), second.chunk(groups), strict=True):
        # Input channels of `first` act as the batch; flipping turns torch's correlation into
        # the true convolution that composing two correlations asks for.
        full = F.conv2d(
            part.transpose(0, 1),
            following.flip(-2, -1),
            padding=(second_height - 1, second_width - 1),
        )
        merged.append(full.transpose(0, 1))
    return torch.cat(merged)


def compose(
    first: Tensor,
    second: Tensor,
    *,
    first_bias: Tensor | None = None,
    second_bias: Tensor | None = None,
    first_groups: int = 1,
    second_groups: int = 1,
) -> tuple[Tensor, Tensor | None, int]:
    """One convolution that equals ``second`` after ``first`` (both stride 1, dilation 1).

    Shapes: first [middle, in / g1, h1, w1], second [out, middle / g2, h2, w2]; the result is
    (kernel [out, in / g, h1 + h2 - 1, w1 + w2 - 1], bias [out] or None, groups g), exact for
    unpadded ("valid") convolutions. With zero padding it is exact if the padding is applied
    once, before ``first``; padding between the two differs at the border whenever ``first``
    has a bias or ``second`` is larger than 1x1 (SESR, section 3.1, gives the 1x1 case).

    ``second`` may stride: the composition then strides likewise. Groups stay grouped where
    both have the same number; otherwise the result is dense (g = 1).
    Raises ``UsageError`` where the channels do not meet.
    """
    middle = first.shape[0]
    if second.shape[1] * second_groups != middle:
        raise UsageError(
            f"the first kernel puts out {middle} channels, "
            f"the second takes {second.shape[1] * second_groups}"
        )
    groups = first_groups if first_groups == second_groups else 1
    if groups == 1:
        first, second = densify(first, first_groups), densify(second, second_groups)
    kernel = _compose_same_groups(first, second, groups)
    bias = second_bias
    if first_bias is not None:
        response = densify(second, groups).sum((-2, -1)) @ first_bias
        bias = response if bias is None else bias + response
    return kernel, bias, groups


def fold_batch_norm(
    kernel: Tensor,
    bias: Tensor | None,
    *,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    shift: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Kernel and bias that include the batch normalisation (evaluation form) that follows.

    kernel [out, in / groups, h, w]; the statistics are [out]. y = (x - mean) / sqrt(variance +
    epsilon) * weight + shift.
    """
    if epsilon < 0 or not math.isfinite(epsilon):
        raise UsageError(f"epsilon must be finite and not negative, not {epsilon}")
    gain = torch.rsqrt(variance + epsilon)
    if weight is not None:
        gain = gain * weight
    offset = -mean if bias is None else bias - mean
    folded = offset * gain
    return kernel * gain[:, None, None, None], folded if shift is None else folded + shift
