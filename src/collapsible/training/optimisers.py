"""Optimisers by their recipe's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from collapsible.errors import require_packages
from collapsible.training.recipes import OptimiserSpec

# A kernel is a matrix to SOAP: its last axes are joined while the product stays within this, so
# that SESR's 16x16x3x3 is one of 16 rows and 144 columns.
JOINED = 144


def build_optimiser(network: nn.Module, spec: OptimiserSpec) -> torch.optim.Optimizer:
    """Adam, AdamW or SOAP over all parameters; vectors (biases, norms, layer scales) do not decay.

    SOAP is Adam in the eigenbasis of each kernel's gradient covariance, of its rows and of its
    columns (Vyas et al., arXiv 2409.11321), as pytorch-optimizer has it.
    Raises ``MissingExtraError`` where that package is wanted and not there.
    """
    everything = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": everything}]
    if spec.weight_decay or spec.kind == "soap":
        groups = [
            {"params": [p for p in everything if p.ndim > 1]},
            {"params": [p for p in everything if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if spec.kind == "soap":
        require_packages("the optimiser soap", "pytorch_optimizer", extra="train")
        from pytorch_optimizer import SOAP

        # A vector has no axes to join (and the package's joining fails on it).
        groups[1]["merge_dims"] = False
        return SOAP(
            groups,
            lr=spec.learning_rate,
            betas=spec.betas,
            weight_decay=spec.weight_decay,
            merge_dims=True,
            max_precondition_dim=JOINED,
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.kind]
    return kind(
        groups,
        lr=spec.learning_rate,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        amsgrad=spec.amsgrad,
    )
