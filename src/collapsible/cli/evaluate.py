"""``collapsible evaluate``: PSNR and SSIM by the field's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress


@example("collapsible evaluate sesr-m5 --scale 2 --data pictures/Set5")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A shipped model, a .safetensors file, or 'bicubic'.")
    ],
    data: Annotated[
        Path,
        typer.Option(help="Folder of high-resolution pictures, or one with HR and LRx2 inside."),
    ],
    scale: Annotated[int, typer.Option(help="Enlargement.")] = 2,
    engine: Annotated[
        str, typer.Option(help="What makes the finished pictures: auto, openvino, onnxruntime.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of the finished pictures: auto, fp32, bf16, int8.")
    ] = "auto",
    architecture: Annotated[
        str | None, typer.Option(help="Network of a .safetensors file that nothing describes.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure PSNR and SSIM of a model on a folder of pictures."""
    from collapsible.evaluation import evaluate as measure

    with progress("measuring") as update:
        report = measure(
            model,
            data,
            scale=scale,
            engine=engine,
            precision=precision,
            architecture=architecture,
            on_picture=lambda done, total: update(done=done, total=total),
        )
    print_json(report.json()) if json else print(report.table())
