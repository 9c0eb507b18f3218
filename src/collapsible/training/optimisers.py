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
    kernels, vectors = [p for p in everything if p.ndim > 1], [p for p in everything if p.ndim <= 1]
    if spec.kind == "soap":
        require_packages("the optimiser soap", "pytorch_optimizer", extra="train")
        from pytorch_optimizer import SOAP

        # The package fails where all axes would be joined: such kernels keep theirs.
        small = [p for p in kernels if p.numel() <= JOINED]
        return SOAP(
            [
                {"params": [p for p in kernels if p.numel() > JOINED], "merge_dims": True},
                {"params": small, "merge_dims": False},
                {"params": vectors, "merge_dims": False, "weight_decay": 0.0},
            ],
            lr=spec.learning_rate,
            betas=spec.betas,
            weight_decay=spec.weight_decay,
            max_precondition_dim=JOINED,
        )
    groups: list[dict[str, Any]] = [{"params": everything}]
    if spec.weight_decay:
        groups = [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.kind]
    return kind(
        groups,
        lr=spec.learning_rate,
        betas=spec.betas,
        weight_decay=spec.weight_decay,
        amsgrad=spec.amsgrad,
    )
