"""Draw what sesr-m11-web does for a compressed picture, beside plain M11.

    python tools/compare_web.py examples/coffee.jpg -o docs/web.png

The picture is reduced by 2, compressed as JPEG, and enlarged again by both networks; a piece of
each is shown twice as large, in one row: compressed (by nearest neighbour), M11, M11-web, original.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import collapsible
from collapsible.imaging import atomic_write, psnr, read_picture, resize, rgb_to_y

GAP = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--quality", type=int, default=40)
    parser.add_argument("--at", type=int, nargs=2, default=(150, 150), metavar=("TOP", "LEFT"))
    parser.add_argument("--side", type=int, default=130)
    given = parser.parse_args()
    original = read_picture(given.picture).pixels[..., :3]
    original = original[: original.shape[0] // 2 * 2, : original.shape[1] // 2 * 2]
    small = np.clip(np.rint(resize(original, scale=0.5)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "JPEG", quality=given.quality)
    small = np.asarray(Image.open(stream))
    shown = {"compressed": small.repeat(2, 0).repeat(2, 1)}
    for model in ("sesr-m11", "sesr-m11-web"):
        shown[model] = collapsible.upscale(small, scale=2, model=model)
    shown["original"] = original
    for name, pixels in shown.items():
        print(f"{name:12} {psnr(luma(original), luma(pixels), crop=2):6.2f} dB on Y")
    top, left = given.at
    pieces = [
        pixels[top : top + given.side, left : left + given.side].repeat(2, 0).repeat(2, 1)
        for pixels in shown.values()
    ]
    gap = np.full((pieces[0].shape[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([part for piece in pieces for part in (piece, gap)][:-1], 1)
    with atomic_write(given.output) as file:
        Image.fromarray(row).save(file, "PNG", optimize=True)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return rgb_to_y(pixels.astype(np.float64))


if __name__ == "__main__":
    main()
