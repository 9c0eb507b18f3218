"""``collapsible detect``: what is in a picture, drawn and listed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, complain, example, print_json, progress
from collapsible.errors import require_packages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Told apart also by people who see red and green alike (Okabe and Ito).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0))


@example("collapsible detect blood.jpg --weights runs/detect/weights.safetensors -o found.png")
def detect(
    picture: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    weights: Annotated[Path, typer.Option(help="A trained detector, its card beside it.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Picture with boxes drawn (default: NAME-boxes.png beside it); for a folder "
            "the folder of them (default: FOLDER-boxes).",
        ),
    ] = None,
    score: Annotated[float, typer.Option(help="Least score that is shown.")] = 0.5,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse unreadable pictures instead of skipping them.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find things in pictures and draw boxes around them."""
    require_packages("detection", "torch", "torchvision", "timm", "safetensors", extra="detect")
    import torch

    from collapsible.errors import PictureError, UsageError
    from collapsible.evaluation.boxed import list_any, read_rgb
    from collapsible.imaging import output_format, write_picture
    from collapsible.models.detector import load_detector, to_input

    if not 0 <= score <= 1:
        raise UsageError(f"--score {score}: expected 0 to 1")
    sources = list_any(picture)
    targets = _targets(picture, sources, output)
    for target in targets:
        output_format(target)
    network, card = load_detector(weights)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    device = next(network.parameters()).device
    if picture.is_dir():
        targets[0].parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    skipped = 0
    with progress("detecting", len(sources)) as update:
        for number, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
            try:
                pixels = read_rgb(source)
            except PictureError as error:
                if strict or not picture.is_dir():
                    raise
                complain(f"left out: {error}")
                skipped += 1
                continue
            with torch.inference_mode():
                found = network([to_input(pixels).to(device)])[0]
            kept = found["scores"] >= score
            boxes = found["boxes"][kept].cpu().tolist()
            names = [card.classes[int(label) - 1] for label in found["labels"][kept].cpu()]
            scores = found["scores"][kept].cpu().tolist()
            write_picture(target, draw_boxes(pixels, boxes, names, scores, card.classes))
            results.append(
                {
                    "picture": str(source),
                    "drawn": str(target),
                    "boxes": boxes,
                    "labels": names,
                    "scores": scores,
                }
            )
            update(done=number)
    if skipped:
        complain(f"left out: {skipped} of {len(sources)} pictures")
    if not results:
        raise PictureError(f"no picture in {picture} can be read")
    if json:
        print_json({"classes": list(card.classes), "skipped": skipped, "pictures": results})
        return
    for one in results:
        counts = {name: one["labels"].count(name) for name in card.classes}
        told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        print(f"{one['picture']}: {told or 'nothing'}; drawn in {one['drawn']}")


def _targets(picture: Path, sources: list[Path], output: Path | None) -> list[Path]:
    if not picture.is_dir():
        return [output or picture.with_name(f"{picture.stem}-boxes.png")]
    folder = output or picture.with_name(f"{picture.resolve().name}-boxes")
    # Whole names, so that a.png and a.jpg do not meet.
    return [folder / f"{source.name}.png" for source in sources]


def draw_boxes(
    pixels: NDArray[np.uint8],
    boxes: list[list[float]],
    names: list[str],
    scores: list[float],
    classes: tuple[str, ...],
) -> NDArray[np.uint8]:
    """A copy of RGB pixels [H, W, 3] with boxes (x1, y1, x2, y2) and their names drawn."""
    import numpy as np
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    brush = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 320))
    for (x1, y1, x2, y2), name, score in zip(boxes, names, scores, strict=True):
        colour = COLOURS[classes.index(name) % len(COLOURS)]
        brush.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        text = f"{name} {score:.2f}"
        place = brush.textbbox((x1 + line, y1 + line), text)
        brush.rectangle(place, fill=(0, 0, 0))
        brush.text((x1 + line, y1 + line), text, fill=colour)
    return np.asarray(image)
