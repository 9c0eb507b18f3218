"""``collapsible bench``: speed, side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress
from collapsible.errors import require_packages


@example("collapsible bench ran-i --engines torch,openvino-bf16")
def ran_i(
    networks: Annotated[
        str | None,
        typer.Option(help="Names with commas [default: RAN-i and ConvNeXt, tiny, small, base]."),
    ] = None,
    engines: Annotated[
        str, typer.Option(help="Of torch, openvino-fp32, openvino-bf16, openvino-int8.")
    ] = "torch,openvino-fp32,openvino-bf16,openvino-int8",
    input_size: Annotated[int, typer.Option(help="Side of the square pictures.")] = 224,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds over all networks and engines.")] = 9,
    threads: Annotated[int, typer.Option(help="Threads [default: all cores].")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time RAN-i against ConvNeXt on this CPU, published accuracies beside."""
    require_packages("timing classifiers", "torch", "timm", extra="train")
    from collapsible.search.speed import PAIRS, measure_speed

    usual = [name for pair in PAIRS for name in pair]
    chosen = usual if networks is None else [n.strip() for n in networks.split(",")]
    with progress("rounds", rounds) as update:
        report = measure_speed(
            chosen,
            [engine.strip() for engine in engines.split(",")],
            size=input_size,
            batch=batch,
            rounds=rounds,
            threads=threads,
            tell=lambda done, total: update(done=done, total=total),
        )
    print_json(report.json()) if json else print(report.table())
