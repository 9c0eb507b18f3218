"""``collapsible estimate``: how fast a network runs on a target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress
from collapsible.cli.networks import build, read_size, size_for
from collapsible.errors import UsageError, require_packages

if TYPE_CHECKING:
    from collapsible.costs.targets import Target

FILES = (".tflite", ".onnx")


@example("collapsible estimate sesr-m5 --target ethos-u65-512 --input-size 1,1,360,640 --layers")
def estimate(
    model: Annotated[
        str,
        typer.Argument(
            help="Network, such as sesr-m5, or timm:NAME, or a file .tflite (int8) or .onnx."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            help="Such as ethos-u55-256, ethos-u85-512, npu-4tops, host, or a TOML file of yours."
        ),
    ],
    input_size: Annotated[
        str | None,
        typer.Option(help="Batch, channels, height, width; files and timm have their own."),
    ] = None,
    scale: Annotated[int, typer.Option(help="Enlargement, where the network has one.")] = 2,
    tile: Annotated[
        str | None,
        typer.Option(help="Cut the picture into tiles of height,width input pixels."),
    ] = None,
    legalise: Annotated[
        bool | None,
        typer.Option(
            "--legalise/--no-legalise",
            help="Rewrite the network for the target first [default: for Ethos-U].",
        ),
    ] = None,
    deconvolution: Annotated[
        str | None,
        typer.Option(help="Roofline: deconvolutions zero-stuffed or sub-pixel."),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="Roofline: multiply direct or by winograd.")
    ] = None,
    dram_bandwidth: Annotated[
        float | None, typer.Option(help="Roofline: DRAM bandwidth in bytes a second.")
    ] = None,
    sram_bytes: Annotated[
        int | None, typer.Option(help="Roofline: on-chip memory in bytes.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line for each layer too.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the time of each layer: .png, .svg or .pdf.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Frames a second, latency, memory and traffic of a network on a target."""
    require_packages("estimating", "torch", "safetensors", "onnx", extra="train")
    from collapsible.deploy.estimate import estimate as judge
    from collapsible.deploy.estimate_report import check_drawing, draw_estimate

    if plot is not None:
        check_drawing(plot)
    chip = _assumed(
        target,
        deconvolution=deconvolution,
        algorithm=algorithm,
        dram_bandwidth=dram_bandwidth,
        sram_bytes=sram_bytes,
    )
    size = None if input_size is None else read_size(input_size)
    part = None if tile is None else _read_tile(tile)
    with progress(f"estimating for {chip.name}"):
        if model.lower().endswith(FILES) or (Path(model).is_file() and ":" not in model):
            report = judge(Path(model), chip, size, tile=part, legalise=bool(legalise))
        else:
            network = build(model, scale, False)
            size = size_for(network, input_size)
            wanted = chip.kind == "vela" if legalise is None else legalise
            report = judge(network, chip, size, tile=part, legalise=wanted)
            report = replace(report, network=model)
    if plot is not None:
        draw_estimate(report, plot)
    print_json(report.json()) if json else print(report.table(layers))


def _assumed(name: str, **changes: object) -> Target:
    from collapsible.costs.targets import assume, find_target

    chip = find_target(name)
    given = {key: value for key, value in changes.items() if value is not None}
    if given and chip.kind != "roofline":
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise UsageError(f"{options}: {chip.name} is no roofline; its file says how it is")
    return assume(chip, **given)


def _read_tile(text: str) -> tuple[int, int]:
    sides = read_size(text) if "," in text or "x" in text else ()
    if len(sides) != 2:
        raise UsageError(f"--tile {text!r}: give height,width in pixels, such as 96,128")
    return sides[0], sides[1]
