"""``collapsible collapse``: the deployed form of a network and the error of the map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json
from collapsible.errors import require_packages


@example(
    "collapsible collapse sesr-m5 --scale 2 --weights runs/m5/weights.safetensors -o m5.safetensors"
)
def collapse(
    model: Annotated[str, typer.Argument(help="Network, such as sesr-m5.")],
    scale: Annotated[int, typer.Option(help="Enlargement of the network.")] = 2,
    weights: Annotated[
        Path | None,
        typer.Option(help="Trained weights (safetensors); the shipped ones if not given."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the collapsed weights.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fold a network's wide blocks into small convolutions; prints the measured error."""
    require_packages("collapsing", "torch", "safetensors", extra="train")
    from collapsible.folding import collapse as fold
    from collapsible.models import create_model
    from collapsible.models.registry import save_weights

    network = create_model(model, scale=scale, weights=weights or "default")
    deployed, report = fold(network)
    if output is not None:
        save_weights(deployed, output)
    print_json(report.json()) if json else print(report.table())
