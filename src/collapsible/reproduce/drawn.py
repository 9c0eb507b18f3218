"""Networks with newly drawn weights, the same ones at every call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def draw_network(model: str, **options: Any) -> nn.Module:
    """``create_model`` from one seed, in evaluation form; torch's own generator is left alone.

    The same weights give the same compiled files, which are then found again in the cache.
    """
    import torch

    from collapsible.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model(model, **options).eval()
