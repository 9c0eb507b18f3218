"""Padded max pooling in a form that integers have: borders repeated, no padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepeatedBorders(nn.Module):
    """Extend [N, C, H, W] by its own border values, ``rows`` above and below, ``columns`` beside.

    By joining slices, which every target has.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if self.rows:
            x = torch.cat([*[x[:, :, :1]] * self.rows, x, *[x[:, :, -1:]] * self.rows], dim=2)
        if self.columns:
            sides = [x[..., :1]] * self.columns, [x[..., -1:]] * self.columns
            x = torch.cat([*sides[0], x, *sides[1]], dim=3)
        return x


def repeat_borders(network: nn.Module) -> nn.Module:
    """Replace padded ``MaxPool2d`` layers by ``RepeatedBorders`` and the same pooling, in place.

    Torch pads with minus infinity, which no int8 range holds. A window that reaches over the border
    by at most half its size holds the border's own value too, so repeating that value changes no
    maximum: the layers are equal for every input. Dilated pooling and ``ceil_mode`` are left as
    they are, for their windows may miss the border's value.
    """
    for name, pool in list(network.named_modules()):
        if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode or pool.return_indices:
            continue
        if _pair(pool.dilation) != (1, 1) or _pair(pool.padding) == (0, 0):
            continue
        made = nn.Sequential(
            RepeatedBorders(*_pair(pool.padding)), nn.MaxPool2d(pool.kernel_size, pool.stride)
        )
        parent, _, own = name.rpartition(".")
        if not own:
            return made
        setattr(network.get_submodule(parent), own, made)
    return network


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
