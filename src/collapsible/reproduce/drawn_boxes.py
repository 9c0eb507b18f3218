"""Coloured discs on noise with their boxes, a Pascal VOC data set for short trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collapsible.imaging import write_picture

CLASSES = {"blue": (40, 60, 220), "red": (220, 60, 40)}


def draw_discs(folder: Path, side: int = 96, counts: tuple[int, int] = (24, 12)) -> Path:
    """Pictures of ``side`` pixels for train and val, one to three discs each, the same each time.

    The folder is then one that ``find_boxed`` reads; nothing is drawn where it is whole already.
    """
    if (folder / "ImageSets" / "Main" / "val.txt").is_file():
        return folder
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] + 0.5
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "val"), counts, strict=True):
        names = [f"{part}{number:03}" for number in range(count)]
        for name in names:
            pixels = random.normal(128, 15, (side, side, 3))
            objects = []
            for place in random.permutation(4)[: random.integers(1, 4)]:
                kind = str(random.choice(list(CLASSES)))
                radius = random.uniform(side / 10, side / 5)
                cx = side / 4 + side / 2 * (place % 2)
                cy = side / 4 + side / 2 * (place // 2)
                inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
                pixels[inside] = np.array(CLASSES[kind]) + random.normal(0, 10, (inside.sum(), 3))
                rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
                edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                corners = zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
                objects.append(f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>")
            drawn = np.clip(pixels, 0, 255).astype(np.uint8)
            write_picture(folder / "JPEGImages" / f"{name}.png", drawn)
            text = f"<annotation>{''.join(objects)}</annotation>"
            (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return folder
