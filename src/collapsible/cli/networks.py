"""How commands are told a network and the size of its input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

Network = Annotated[
    str, typer.Argument(help="Network, such as sesr-m5, or timm:NAME for any of timm's.")
]
InputSize = Annotated[
    str,
    typer.Option(help="Batch, channels, height, width with commas, such as 1,3,224,224."),
]


def read_size(text: str) -> tuple[int, ...]:
    """``1,3,224,224`` as numbers. Raises ``UsageError`` for anything else."""
    from collapsible.errors import UsageError

    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UsageError(
            f"--input-size {text!r}: give whole numbers with commas, such as 1,3,224,224"
        ) from None


def size_for(network: nn.Module, text: str | None) -> tuple[int, ...]:
    """``--input-size``, or one picture of the size that timm gives with the network.

    Raises ``UsageError`` where there is neither.
    """
    from collapsible.errors import UsageError

    if text is not None:
        return read_size(text)
    config = getattr(network, "pretrained_cfg", None)
    size = None if config is None else getattr(config, "get", lambda _: None)("input_size")
    if size is None:
        raise UsageError("--input-size is needed, such as 1,3,224,224")
    return 1, *size


def build(
    model: str, scale: int, collapsed: bool, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """A network by name, its own wide blocks collapsed if that is wanted.

    Its weights are newly drawn unless ``weights`` says otherwise (see ``create_model``).
    """
    from collapsible.blocks import CollapsibleConv2d
    from collapsible.folding import collapse
    from collapsible.models import create_model

    network = create_model(model, scale=scale, weights=weights, **options)
    if collapsed and any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    return network
