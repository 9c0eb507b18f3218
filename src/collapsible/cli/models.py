"""``collapsible models``: what there is, what it costs and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from collapsible.cli.common import Debug, Json, example, print_json, progress

if TYPE_CHECKING:
    from collapsible.weights import Card

HEIGHT, WIDTH = 1080, 1920
BENCH_RUNS = 5


@example('collapsible models "sesr*" --bench')
def models(
    pattern: Annotated[
        str, typer.Argument(help="Names to show, with * and ? as in file names.")
    ] = "*",
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure seconds for 1920x1080 on this machine too.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the shipped models with their cost, quality and, on request, speed."""
    from fnmatch import fnmatchcase

    from collapsible.errors import UnknownNameError
    from collapsible.weights import list_cards, normalise_name

    cards = list_cards()
    chosen = [card for card in cards if fnmatchcase(card.architecture, normalise_name(pattern))]
    if not chosen and pattern != "*":
        raise UnknownNameError("model", pattern, {card.name for card in cards})
    rows = [_row(card) for card in chosen]
    if bench:
        with progress("measuring", len(rows)) as update:
            for done, (card, row) in enumerate(zip(chosen, rows, strict=True), start=1):
                row |= _speed(card)
                update(done=done)
    if json:
        print_json(rows)
    else:
        print(_table(rows) if rows else "no models are shipped with this version")


def _row(card: Card) -> dict[str, Any]:
    """The facts of one model; ``metrics`` are the card's, in dB and SSIM."""
    sizes = {
        kind: path.stat().st_size if path.is_file() else None
        for kind, path in (
            ("onnx", card.onnx_path),
            ("safetensors", card.safetensors_path),
            ("int8", card.int8_path),
        )
    }
    return {
        "model": card.name,
        "scale": card.scale,
        "parameters": card.parameters,
        # Every weight is used once for each input pixel: all layers work at the input's size.
        "macs_1080p": card.parameters * HEIGHT * WIDTH,
        "bytes": sizes,
        "metrics": card.metrics,
        "metrics_int8": card.metrics_int8,
        "training_data": card.training_data,
        "licence": card.licence,
    }


def _speed(card: Card) -> dict[str, Any]:
    forms = {"": "auto", "_int8": "int8"} if card.has_int8 else {"": "auto"}
    return {
        f"{key}{form}": value
        for form, precision in forms.items()
        for key, value in _speed_of(card, precision).items()
    }


def _speed_of(card: Card, precision: str) -> dict[str, Any]:
    """The least of a few runs on one 1920x1080 picture in memory, after one to warm up."""
    import time

    import numpy as np

    from collapsible.upscaler import Upscaler

    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    upscaler = Upscaler(card, scale=card.scale, precision=precision)
    seconds = []
    for _ in range(BENCH_RUNS + 1):
        start = time.perf_counter()
        upscaler(picture)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds_1080p": min(seconds[1:]),
        "engine": upscaler.engine.name,
        "precision": upscaler.engine.precision,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    sets = sorted({name for row in rows for name in row["metrics"]}, key=_set_order)
    bench = "seconds_1080p" in rows[0]
    head = ["model", "scale", "form", "parameters", "GMACs 1080p", "kB", *sets]
    lines = [[*head, "s 1080p", "by"] if bench else head]
    for row in rows:
        for form in ("", "_int8") if row["metrics_int8"] else ("",):
            size = row["bytes"]["int8" if form else "onnx"]
            line = [
                row["model"],
                f"x{row['scale']}",
                "int8" if form else "float",
                f"{row['parameters']:,}",
                f"{row['macs_1080p'] / 1e9:.1f}",
                "-" if size is None else f"{size / 1000:.0f}",
            ]
            for name in sets:
                measured = row[f"metrics{form}"].get(name, {}).get("psnr")
                line.append("-" if measured is None else f"{measured:.2f}")
            if bench:
                made_by = f"{row[f'engine{form}']} {row[f'precision{form}']}"
                line += [f"{row[f'seconds_1080p{form}']:.3f}", made_by]
            lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    notes = ["", "parameters and GMACs count convolutions, counted for a 1920x1080 input"]
    if sets:
        notes.append(f"{', '.join(sets)}: psnr in dB of the network's own Y, measured (evaluate)")
    if bench:
        notes.append(f"s 1080p: least of {BENCH_RUNS} runs, measured here and now")
    return "\n".join(text + notes)


def _set_order(name: str) -> tuple[int, str]:
    known = ("Set5", "Set14", "B100")
    return (known.index(name) if name in known else len(known), name)
