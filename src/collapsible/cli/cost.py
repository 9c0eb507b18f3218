"""``collapsible cost``: what a network costs for one input size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, example, print_json
from collapsible.errors import require_packages

if TYPE_CHECKING:
    from torch import nn

Network = Annotated[
    str, typer.Argument(help="Network, such as sesr-m5, or timm:NAME for any of timm's.")
]
InputSize = Annotated[
    str,
    typer.Option(help="Batch, channels, height, width with commas, such as 1,3,224,224."),
]


@example("collapsible cost sesr-m5 --scale 2 --input-size 1,1,360,640 --layers")
def cost(
    model: Network,
    input_size: InputSize,
    scale: Annotated[int, typer.Option(help="Enlargement, where the network has one.")] = 2,
    collapsed: Annotated[
        bool,
        typer.Option(
            "--collapsed/--training-form", help="Cost the collapsed network, or the wide one."
        ),
    ] = True,
    element_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Bytes of a number in memory: 1 for int8 [default: 4]."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line for each layer too.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count parameters, MACs, non-linearities, memory and the receptive field."""
    require_packages("costing", "torch", "safetensors", extra="train")
    from collapsible.costs import cost as count

    size = read_size(input_size)
    report = count(build(model, scale, collapsed), size, element_bytes=element_bytes)
    print_json(report.json()) if json else print(report.table(layers))


def read_size(text: str) -> tuple[int, ...]:
    """``1,3,224,224`` as numbers. Raises ``UsageError`` for anything else."""
    from collapsible.errors import UsageError

    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UsageError(
            f"--input-size {text!r}: give whole numbers with commas, such as 1,3,224,224"
        ) from None


def build(model: str, scale: int, collapsed: bool, **options: Any) -> nn.Module:
    """A network by name with newly drawn weights, collapsed if it can be and that is wanted."""
    if model.startswith("timm:"):
        return _of_timm(model.removeprefix("timm:"))
    from collapsible.blocks import CollapsibleConv2d
    from collapsible.folding import collapse
    from collapsible.models import create_model

    network = create_model(model, scale=scale, **options)
    if collapsed and any(isinstance(m, CollapsibleConv2d) for m in network.modules()):
        network, _ = collapse(network)
    return network


def _of_timm(name: str) -> nn.Module:
    from collapsible.errors import UnknownNameError

    require_packages(f"timm:{name}", "timm", extra="train")
    import timm

    if not timm.is_model(name):
        known = timm.list_models(f"*{name[:4]}*") or timm.list_models()[:8]
        raise UnknownNameError("timm network", name, known)
    return timm.create_model(name, pretrained=False)
