"""Pictures from folders as a network's input: for calibration, and to measure what export costs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.deploy.given import Array
from collapsible.errors import UsageError
from collapsible.imaging import list_pictures, read_picture, resize, rgb_to_y

LABELS = "labels.csv"
# Of pictures to calibrate on: how many, and the side of what is cut from each.
MOST_CROPS, CROP = 44, 96


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes an input [C, H, W]: (x / 255 - mean) / std, channel by channel.

    ``channels`` is 1 (BT.601 studio luma) or 3 (RGB). ``crop`` is the share of the short side that
    the centre cut keeps after resizing, as classifiers take pictures; None cuts at full size, as
    super-resolution does, and extends a smaller picture by its border.
    """

    channels: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UsageError(f"{self.channels} input channels: pictures give 1 (luma) or 3 (RGB)")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise UsageError(
                    f"{name} has {len(values)} values: 1 or {self.channels} are accepted"
                )
        if not all(value > 0 for value in self.std):
            raise UsageError(f"std {self.std}: values above 0 are accepted")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UsageError(f"crop {self.crop}: above 0 and at most 1 is accepted")


def prepare_picture(
    pixels: NDArray[Any], preparation: Preparation, size: tuple[int, int] | None = None
) -> Array:
    """A picture [H, W, 1 to 4] of 8 or 16 bits as an input [C, H, W] float32, cut to ``size``."""
    plain = pixels.astype(np.float64) / (257.0 if pixels.dtype == np.uint16 else 1.0)
    channels = plain.shape[2]
    plain = plain[..., : channels - (channels in (2, 4))]
    if preparation.channels == 3 and plain.shape[2] == 1:
        plain = np.repeat(plain, 3, axis=2)
    if preparation.channels == 1 and plain.shape[2] == 3:
        plain = rgb_to_y(plain)[..., None]
    if size is not None:
        plain = _cut(plain, size, preparation.crop)
    scaled = (plain / 255.0 - np.array(preparation.mean)) / np.array(preparation.std)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def read_inputs(
    folder: Path, preparation: Preparation, size: tuple[int, int], limit: int | None = None
) -> list[Array]:
    """The pictures of a folder and those below it as inputs, at most ``limit`` evenly chosen.

    Raises ``UsageError`` for no folder or one without pictures, ``PictureError`` for one that
    cannot be read.
    """
    paths = _found(folder)
    return [_read(path, preparation, size) for path in choose(paths, limit)]


def read_labelled(
    folder: Path,
    preparation: Preparation,
    size: tuple[int, int],
    classes: int,
    limit: int | None = None,
) -> tuple[list[Array], list[int]]:
    """Labelled pictures as inputs and class indices below ``classes``.

    Labels come from ``labels.csv`` in the folder (columns ``filename`` and ``class_index``), or
    from one folder a class below it: named by its index or, for 1000 classes, its ImageNet
    ``n01440764``; other names are the classes in sorted order, if there are as many.
    Raises ``UsageError`` where neither fits.
    """
    pairs = choose(_label(folder, classes), limit)
    for path, label in pairs:
        if not 0 <= label < classes:
            raise UsageError(f"{path}: class {label}; the network has 0 to {classes - 1}")
    return [_read(path, preparation, size) for path, _ in pairs], [label for _, label in pairs]


def choose(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` of the items, evenly spread over them."""
    if limit is None or len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def _read(path: Path, preparation: Preparation, size: tuple[int, int]) -> Array:
    return prepare_picture(read_picture(path).pixels, preparation, size)


def _found(folder: Path) -> list[Path]:
    paths = list_pictures(folder, recursive=True)
    if not paths:
        raise UsageError(f"no pictures in {folder}")
    return paths


def _cut(pixels: NDArray[np.float64], size: tuple[int, int], crop: float | None) -> NDArray[Any]:
    height, width = size
    if crop is not None:
        scale = max(height / pixels.shape[0], width / pixels.shape[1]) / crop
        wanted = [
            max(n, math.floor(side * scale + 0.5))
            for n, side in zip(size, pixels.shape[:2], strict=True)
        ]
        pixels = np.clip(resize(pixels, size=(wanted[0], wanted[1])), 0, 255)
    missing = [max(0, n - side) for n, side in zip(size, pixels.shape[:2], strict=True)]
    around = [(n // 2, n - n // 2) for n in missing]
    pixels = np.pad(pixels, [*around, (0, 0)], mode="edge")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _label(folder: Path, classes: int) -> list[tuple[Path, int]]:
    table = folder / LABELS
    if table.is_file():
        return _from_table(table)
    paths = _found(folder)
    names = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    if not names or any(path.parent == folder for path in paths):
        raise UsageError(f"{folder}: no {LABELS}, and not one folder a class below it")
    index = _index(names, classes)
    if index is None:
        raise UsageError(
            f"{folder}: {len(names)} folders for a network of {classes} classes, and their names "
            "are no class indices or ImageNet names"
        )
    return [(path, index[path.relative_to(folder).parts[0]]) for path in paths]


def _index(names: list[str], classes: int) -> dict[str, int] | None:
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    if classes == 1000 and all(name[:1] == "n" and name[1:].isdecimal() for name in names):
        from timm.data.imagenet_info import ImageNetInfo

        known = {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
        return {name: known[name] for name in names} if set(names) <= set(known) else None
    return {name: i for i, name in enumerate(names)} if len(names) == classes else None


def _from_table(table: Path) -> list[tuple[Path, int]]:
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        found = [(table.parent / row["filename"], int(row["class_index"])) for row in rows]
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise UsageError(
            f"{table}: columns filename and class_index (a number) are accepted"
        ) from error
    if not found:
        raise UsageError(f"{table} is empty")
    return found


def read_crops(folder: Path, scale: int) -> list[NDArray[np.uint8]]:
    """Low-resolution RGB crops [H, W, 3] to calibrate a network for pictures on.

    The middles, of at most 96 pixels a side, of evenly chosen pictures below ``folder``, reduced
    by ``scale`` as what the network enlarges is: pictures at their own size are softer. Grey ones,
    and those that are too small, are left out.
    Raises ``UsageError`` where nothing remains.
    """
    files = _found(folder)
    found: list[NDArray[np.uint8]] = []
    for path in choose(files, MOST_CROPS):
        pixels = read_picture(path).pixels
        if pixels.shape[2] < 3:
            continue
        plain = pixels[..., :3].astype(np.float64) / (257 if pixels.dtype == np.uint16 else 1)
        small = np.clip(np.rint(resize(plain, scale=1 / scale)), 0, 255).astype(np.uint8)
        top, left = (max(0, (side - CROP) // 2) for side in small.shape[:2])
        middle = small[top : top + CROP, left : left + CROP]
        if min(middle.shape[:2]) >= CROP // 2:
            found.append(np.ascontiguousarray(middle))
    if not found:
        raise UsageError(
            f"no colour picture of at least {CROP // 2 * scale} pixels a side among "
            f"{len(files)} in {folder}"
        )
    return found
