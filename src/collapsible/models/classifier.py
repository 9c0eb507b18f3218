"""What timm expects of a classifier, once for our families."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collapsible.errors import UnknownNameError


class Head(nn.Module):
    """Global pooling, an optional norm, dropout, one linear layer: [N, C, H, W] to [N, classes].

    ``pool`` is "avg" or "max"; "" hands maps on unpooled. ``classes`` 0 leaves the linear layer
    out.
    """

    def __init__(self, features: int, classes: int, pool: str, drop: float, norm: bool) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(features, eps=1e-6) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.features = features
        self.reset(classes, pool)

    def reset(self, classes: int, pool: str | None = None) -> None:
        """New linear layer for ``classes``; another pooling if one is given."""
        if pool is not None:
            if pool not in ("avg", "max", ""):
                raise UnknownNameError("global_pool", pool, ("avg", "max", ""))
            self.pool = pool
        # Maps that were not pooled are classified pixel by pixel.
        self.fc: nn.Module = nn.Linear(self.features, classes) if classes else nn.Identity()
        if isinstance(self.fc, nn.Linear):
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if not self.pool:
            y = self.norm(x.permute(0, 2, 3, 1))
            y = y if pre_logits else self.fc(self.drop(y))
            return y.permute(0, 3, 1, 2)
        # Ethos-U runs a mean that keeps its axes, and not one that drops them.
        average = self.pool == "avg"
        x = x.mean((2, 3), keepdim=True) if average else x.amax((2, 3), keepdim=True)
        y = self.norm(x.flatten(1))
        return y if pre_logits else self.fc(self.drop(y))


class Classifier(nn.Module):
    """A classifier: ``forward_features`` of the family, then ``head``.

    Sub-classes set ``num_classes``, ``num_features``, ``head_hidden_size``, ``feature_info`` and
    ``head``, and run their blocks through ``run_blocks``.
    """

    head: Head
    num_classes: int
    num_features: int
    head_hidden_size: int

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and run each again when going back."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A newly drawn last layer for ``num_classes`` (0: none), and another pooling if given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head.to(next(self.parameters()))

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] to the last map [N, num_features, h, w]."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to [N, num_classes], or to the head's features [N, num_features]."""
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Blocks(nn.Sequential):
    """Blocks in a row, each run again when going back if ``grad_checkpointing`` is set."""

    grad_checkpointing = False

    def forward(self, input: Tensor) -> Tensor:
        y = input
        for block in self:
            if self.grad_checkpointing and torch.is_grad_enabled():
                result = checkpoint(block, y, use_reentrant=False)
                assert isinstance(result, Tensor)
                y = result
            else:
                y = block(y)
        return y
