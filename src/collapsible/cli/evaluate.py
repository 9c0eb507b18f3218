"""``collapsible evaluate``: PSNR and SSIM, top-1 and top-5, or mAP, by the field's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress


@example(
    "collapsible evaluate sesr-m5 --scale 2 --data pictures/Set5; "
    "collapsible evaluate timm:convnext_tiny --weights convnext_tiny.safetensors --data imagenet"
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model, a .safetensors or picture .onnx file, 'bicubic', or a "
            "classifier's name."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of high-resolution pictures, or one with HR and LRx2 inside; for a "
            "classifier class sub-folders or tar shards, also below val; for a detector Pascal "
            "VOC or COCO."
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
    jpeg: Annotated[
        int | None,
        typer.Option(help="Compress the low-resolution pictures as JPEG of this quality first."),
    ] = None,
    low: Annotated[
        str,
        typer.Option(
            help="What is reduced: the 8-bit picture, or its 8-bit luma without rounding after, "
            "as for many published tables (SRCNN's, VDSR's, SESR's): picture, luma."
        ),
    ] = "picture",
    weights: Annotated[
        Path | None, typer.Option(help="Weights of a classifier that is given by its name.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="Which part of a detector's data: test, val, ... (default: val).")
    ] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a detector's odd boxes and bad pictures.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure PSNR and SSIM of an upscaler, a classifier's top-1 and top-5, a detector's mAP."""
    from collapsible.errors import UsageError
    from collapsible.evaluation import evaluate as measure
    from collapsible.evaluation import (
        evaluate_classifier,
        evaluate_detector,
        is_classifier,
        is_detector,
    )

    if is_detector(model):
        if weights is not None:
            raise UsageError("a detector is given by its file of weights: --weights is for names")
        with progress("measuring") as update:
            boxes = evaluate_detector(
                model,
                data,
                part=part,
                strict=strict,
                on_picture=lambda done, total: update(done=done, total=total),
            )
        for note in (*boxes.skipped, *boxes.faults):
            complain(f"left out or clipped: {note}")
        print_json(boxes.json()) if json else print(boxes.table())
        return
    if part or strict:
        raise UsageError(f"{model} is no detector: --part and --strict go with one")
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
            jpeg=jpeg,
            low=low,
            on_picture=lambda done, total: update(done=done, total=total),
        )
    print_json(report.json()) if json else print(report.table())
