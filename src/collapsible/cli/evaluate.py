"""``collapsible evaluate``: PSNR and SSIM, or top-1 and top-5, by the field's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress


@example(
    "collapsible evaluate sesr-m5 --scale 2 --data pictures/Set5; "
    "collapsible evaluate timm:convnext_tiny --weights convnext_tiny.safetensors --data imagenet"
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model, a .safetensors file, 'bicubic', or a classifier's name."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of high-resolution pictures, or one with HR and LRx2 inside; for a "
            "classifier class sub-folders or tar shards, also below val."
        ),
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
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a classifier that is given by its name.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure PSNR and SSIM of an upscaler, or top-1 and top-5 of a classifier, on pictures."""
    from collapsible.errors import UsageError
    from collapsible.evaluation import evaluate as measure
    from collapsible.evaluation import evaluate_classifier, is_classifier

    if is_classifier(model):
        with progress("measuring") as update:
            scores = evaluate_classifier(
                model,
                data,
                weights=weights,
                on_picture=lambda done, total: update(done=done, total=total),
            )
        print_json(scores.json()) if json else print(scores.table())
        return
    if weights is not None:
        raise UsageError(f"{model} is no classifier: --weights goes with a classifier's name")
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
