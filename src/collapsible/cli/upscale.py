"""``collapsible upscale``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.weights import DEFAULT_MODEL


@example(
    "collapsible upscale photo.jpg -o large.png; collapsible upscale holiday/ -o large/ --recursive"
)
def upscale(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Pictures and folders of pictures.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File (for one picture) or folder. Default: NAME_x2.EXT beside the picture, "
            "FOLDER_x2 beside the folder.",
        ),
    ] = None,
    scale: Annotated[int, typer.Option(help="Enlargement: 2, 3 or 4.")] = 2,
    model: Annotated[
        str, typer.Option(help="Shipped model (see models) or .onnx file.")
    ] = DEFAULT_MODEL,
    engine: Annotated[str, typer.Option(help="auto, openvino or onnxruntime.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (bf16 where it loses less than 0.02 dB), fp32, bf16 or int8.")
    ] = "auto",
    fast: Annotated[
        bool, typer.Option("--fast", help="Let auto precision be int8, which loses up to 0.1 dB.")
    ] = False,
    tile: Annotated[str, typer.Option(help="Side of the tiles in input pixels, or auto.")] = "auto",
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look in the subfolders of folders too.")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="png, jpeg, webp, tiff or bmp, instead of the input's.")
    ] = None,
    quality: Annotated[int, typer.Option(help="Of JPEG and WebP, 1 to 100.")] = 95,
    frame: Annotated[
        int | None, typer.Option(help="Which frame of an animated picture, from 0.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace results that exist; otherwise they are kept."),
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all).")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Enlarge pictures. Stop it at any time: the same command goes on with what is missing."""
    from dataclasses import asdict

    from collapsible.errors import UnknownNameError, UsageError
    from collapsible.upscaler import Upscaler
    from collapsible.upscaler.files import SUFFIXES, Outcome, plan_jobs, upscale_files

    if format is not None and format.lower() not in SUFFIXES:
        raise UnknownNameError("format", format, SUFFIXES)
    if tile != "auto" and not tile.isdigit():
        raise UsageError(f"--tile {tile!r}: auto or a number of pixels")
    if not 1 <= quality <= 100:
        raise UsageError(f"--quality {quality}: 1 to 100 are accepted")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: the least is 1")
    if scale not in (2, 3, 4):
        raise UsageError(f"--scale {scale}: 2, 3 and 4 are accepted")
    suffix = SUFFIXES[format.lower()] if format else None
    jobs = plan_jobs(inputs, output, scale=scale, recursive=recursive, suffix=suffix)
    upscaler = Upscaler(
        model,
        scale=scale,
        engine=engine,
        precision=precision,
        fast=fast,
        tile="auto" if tile == "auto" else int(tile),
        threads=threads,
    )
    count = 0
    with progress("enlarging", len(jobs)) as update:

        def show(outcome: Outcome) -> None:
            nonlocal count
            count += 1
            update(done=count)
            source, target = outcome.job.source, outcome.job.target
            if outcome.status == "failed":
                complain(f"error: {outcome.error}")
            elif outcome.status == "kept":
                complain(f"{target} exists and is kept (--overwrite replaces it)")
            elif not json and outcome.size:
                width, height = outcome.size
                print(f"{source} -> {target}  {width}x{height}  {outcome.seconds:.2f} s")

        outcomes = upscale_files(
            jobs, upscaler, frame=frame, quality=quality, overwrite=overwrite, on_outcome=show
        )
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if json:
        print_json(
            {
                "model": upscaler.graph.name,
                "scale": scale,
                "engine": upscaler.engine.name,
                "precision": upscaler.engine.precision,
                "pictures": [asdict(outcome) for outcome in outcomes],
            }
        )
    elif len(jobs) > 1:
        complain(f"{len(jobs) - failed} of {len(jobs)} pictures done")
    if failed:
        raise typer.Exit(1)
