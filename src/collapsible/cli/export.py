"""``collapsible export``: files for other runtimes, run again and compared with torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress
from collapsible.cli.networks import Network, build, size_for
from collapsible.errors import CollapsibleError, UsageError, require_packages

if TYPE_CHECKING:
    from torch import nn

    from collapsible.deploy.samples import Preparation

STAGES = 6
DRAWN = "the weights are newly drawn (--weights FILE for trained ones)"


@example(
    "collapsible export timm:repvgg_a0 -o net.tflite --input-size 1,3,224,224 "
    "--int8 --calibration pictures --target ethos-u55-256"
)
def export(
    model: Network,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Where to write: .onnx or .tflite."),
    ],
    input_size: Annotated[
        str | None,
        typer.Option(help="Batch, channels, height, width, such as 1,3,224,224."),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(min=1, help="For super-resolution, in place of --input-size: a square tile."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to int8; needs --calibration.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of pictures that show the ranges of values.")
    ] = None,
    picture: Annotated[
        bool,
        typer.Option(
            "--picture",
            help="Write the graph that upscale takes: RGB pictures of any size in and out.",
        ),
    ] = False,
    int8_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="With --picture --int8: train so many steps in int8 form on the pictures of "
            "--calibration; checkpoints lie beside the file, and the same command goes on.",
        ),
    ] = 0,
    target: Annotated[
        str | None, typer.Option(help="Compile the file for an Ethos-U too: ethos-u55-256.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder to measure PSNR (pictures, or HR and LRx2) or top-1 on (labels.csv, or "
            "a folder a class)."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="At most so many pictures of each folder, evenly chosen.")
    ] = 100,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights (.safetensors, .pth); if not given, the shipped ones where "
            "there are some, else newly drawn."
        ),
    ] = None,
    scale: Annotated[int, typer.Option(help="Enlargement, where the network has one.")] = 2,
    mean: Annotated[
        str | None, typer.Option(help="Mean of inputs in [0, 1] by channel, in place of timm's.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Deviation of inputs by channel, in place of timm's.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a network as ONNX or LiteRT, fp32 or int8; run the file and compare with torch."""
    require_packages("exporting", "torch", "safetensors", "onnx", extra="edge")
    from collapsible.deploy.export import export as write
    from collapsible.deploy.samples import read_inputs

    if int8 != (calibration is not None):
        raise UsageError("--int8 and --calibration FOLDER go together")
    if int8_steps and not (picture and int8):
        raise UsageError("--int8-steps goes with --picture --int8")
    network, drawn = _network(model, scale, weights)
    if picture:
        if input_size or tile or target or mean or std:
            raise UsageError(
                "--picture takes pictures of any size, as they are: no --input-size, --tile, "
                "--target, --mean or --std"
            )
        _write_picture(network, model, output, calibration, int8_steps, data, drawn, json)
        return
    size = _size(network, input_size, tile)
    preparation = _preparation(network, size, mean, std)
    arrays = None
    if calibration is not None:
        arrays = read_inputs(calibration, preparation, (size[2], size[3]), limit)
    given = {} if data is None else _given(network, data, preparation, size, limit)
    with progress("exporting", total=STAGES) as update:
        stages = iter(range(STAGES + 1))
        report = write(
            network,
            output,
            input_size=size,
            int8=arrays,
            target=target,
            progress=lambda stage: update(done=next(stages), description=stage),
            **given,
        )
    if drawn:
        report = replace(report, notes=(*report.notes, DRAWN))
    print_json(report.json()) if json else print(report.table())


def _write_picture(
    network: nn.Module,
    model: str,
    output: Path,
    calibration: Path | None,
    int8_steps: int,
    data: Path | None,
    drawn: bool,
    json: bool,
) -> None:
    from collapsible.cli.export_picture import export_picture

    with progress("exporting", total=1) as update:
        report = export_picture(
            network,
            model,
            output,
            calibration=calibration,
            int8_steps=int8_steps,
            data=data,
            notes=(DRAWN,) if drawn else (),
            show=lambda done, total, what: update(done=done, total=total, description=what),
        )
    print_json(report.json()) if json else print(report.table())


def _network(model: str, scale: int, weights: Path | None) -> tuple[nn.Module, bool]:
    """The network in its training form, and whether its weights are newly drawn."""
    if weights is None and not model.startswith("timm:"):
        from collapsible.weights import find_card

        try:
            find_card(model, scale)
        except CollapsibleError:
            return build(model, scale, False), True
        return build(model, scale, False, "default"), False
    return build(model, scale, False, weights), weights is None


def _size(network: nn.Module, input_size: str | None, tile: int | None) -> tuple[int, ...]:
    if input_size is not None and tile is not None:
        raise UsageError("give --input-size or --tile, not both")
    if tile is None:
        if input_size is None and getattr(network, "colour", None) is not None:
            raise UsageError("give --input-size, such as 1,1,360,640, or --tile")
        return size_for(network, input_size)
    colour = getattr(network, "colour", None)
    if colour is None:
        raise UsageError("--tile is for super-resolution networks; give --input-size")
    assert tile is not None
    return 1, 1 if colour == "y" else 3, tile, tile


def _preparation(
    network: nn.Module, size: tuple[int, ...], mean: str | None, std: str | None
) -> Preparation:
    from collapsible.deploy.given import check_size
    from collapsible.deploy.samples import Preparation

    channels = check_size(size)[1]
    facts: dict[str, Any] = {}
    if not hasattr(network, "colour") and hasattr(network, "pretrained_cfg"):
        from timm.data.config import resolve_data_config

        config = resolve_data_config({}, model=network)
        facts = {key: tuple(config[key]) for key in ("mean", "std")}
        facts["crop"] = config["crop_pct"]
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            facts[name] = _numbers(f"--{name}", text)
    return Preparation(channels, **facts)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: numbers with commas, such as 0.5,0.5,0.5") from None


def _given(
    network: nn.Module,
    folder: Path,
    preparation: Preparation,
    size: tuple[int, ...],
    limit: int,
) -> dict[str, Any]:
    """Pictures with their truth or labels, as ``export`` takes them."""
    from collapsible.deploy.samples import choose, prepare_picture, read_labelled

    if hasattr(network, "colour"):
        from collapsible.evaluation.pairs import find_pairs, read_pair

        scale = int(network.scale)  # type: ignore[arg-type]
        files = choose(find_pairs(folder, scale), limit)
        pairs = [read_pair(high, low, scale) for high, low in files]
        return {
            "pictures": [prepare_picture(pair.low, preparation) for pair in pairs],
            "truth": [prepare_picture(pair.high, preparation) for pair in pairs],
        }
    classes = int(getattr(network, "num_classes", 0))
    if classes < 1:
        raise UsageError("--data is for super-resolution networks and classifiers")
    pictures, labels = read_labelled(folder, preparation, (size[2], size[3]), classes, limit)
    return {"pictures": pictures, "labels": labels}
