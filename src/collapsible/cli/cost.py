"""``collapsible cost``: what a network costs for one input size."""

from __future__ import annotations

from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json
from collapsible.cli.networks import Network, build, size_for
from collapsible.errors import require_packages


@example("collapsible cost sesr-m5 --scale 2 --input-size 1,1,360,640 --layers")
def cost(
    model: Network,
    input_size: Annotated[
        str | None,
        typer.Option(
            help="Batch, channels, height, width with commas, such as 1,3,224,224; timm's networks "
            "have one of their own."
        ),
    ] = None,
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
    target: Annotated[
        str | None,
        typer.Option(help="Count memory as this target holds numbers: 1 byte each on NPUs."),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line for each layer too.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count parameters, MACs, non-linearities, memory and the receptive field."""
    require_packages("costing", "torch", "safetensors", extra="train")
    from collapsible.costs import cost as count

    if target is not None and element_bytes is None:
        from collapsible.costs.targets import find_target

        element_bytes = 4 if find_target(target).kind == "host" else 1
    network = build(model, scale, collapsed)
    report = count(network, size_for(network, input_size), element_bytes=element_bytes)
    print_json(report.json()) if json else print(report.table(layers))
