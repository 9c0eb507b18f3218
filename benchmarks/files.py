"""A folder of 1920x1080 JPEGs: the whole command against the network alone.

    python benchmarks/files.py [--model sesr-m5] [--scale 2] [--count 8] [--json FILE]

The command, started as people start it, decodes, enlarges and writes to JPEG and to PNG; the
network alone enlarges the same pictures in memory. They take turns. ``network_share`` is the
network's time over the command's: target 0.7 to JPEG.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import finish, parser, summarise, take_turns

from collapsible.imaging import read_picture, resize, write_picture
from collapsible.upscaler import Upscaler

PHOTO = Path(__file__).resolve().parents[1] / "examples" / "coffee.jpg"


def make_pictures(folder: Path, count: int) -> list[np.ndarray]:
    """Photographs of 1920x1080 with grain: the sample photo enlarged, each shifted otherwise."""
    photo = resize(read_picture(PHOTO).pixels, size=(1280, 1920))
    random = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        top = int(random.integers(0, 200))
        grain = random.normal(0, 4, (1080, 1920, 3))
        picture = np.clip(photo[top : top + 1080] + grain, 0, 255).astype(np.uint8)
        write_picture(folder / f"{number:03}.jpg", picture)
        pictures.append(picture)
    return pictures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="sesr-m5")
    options.add_argument("--scale", type=int, default=2)
    options.add_argument("--count", type=int, default=8)
    options.set_defaults(rounds=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        pictures = make_pictures(source, given.count)
        upscaler = Upscaler(given.model, scale=given.scale, threads=given.threads)

        def network() -> None:
            for picture in pictures:
                upscaler(picture)

        def command(form: str) -> None:
            shutil.rmtree(target, ignore_errors=True)
            words = ["upscale", source, "-o", target, "--format", form, "--model", given.model]
            words += ["--scale", given.scale, "--threads", given.threads]
            subprocess.run(
                [sys.executable, "-m", "collapsible", *map(str, words)],
                check=True,
                capture_output=True,
            )

        cases = {
            "network": network,
            "to jpeg": lambda: command("jpeg"),
            "to png": lambda: command("png"),
        }
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "collapsible", "--help"], capture_output=True)
        help_seconds = time.perf_counter() - start
        measured = summarise(take_turns(cases, given.rounds), "network")
    shares = {
        name: 1 / measured[name]["ratio_of_medians"] for name in measured if name != "network"
    }
    result = {
        "pictures": f"{given.count} JPEGs of 1920x1080",
        "model": given.model,
        "scale": given.scale,
        "threads": given.threads,
        "engine": f"{upscaler.engine.name} {upscaler.engine.precision}",
        "cases": measured,
        "network_share": shares,
        "help_seconds": help_seconds,
    }
    finish(result, given.json)


if __name__ == "__main__":
    main()
