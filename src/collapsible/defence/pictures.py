"""Labelled pictures of many sizes as batches of one size, and what their labels mean."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collapsible.errors import UsageError, require_packages
from collapsible.imaging import list_pictures, read_picture

WORDNET_ID = re.compile(r"n\d{8}")
SHOWN = 5


@dataclass(frozen=True)
class LabelledPictures:
    """Files and the name of each one's class (a folder's name, a WordNet id or a number)."""

    root: str
    files: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, limit: int | None) -> LabelledPictures:
        """At most ``limit`` of them, evenly spaced over the sorted list and so over classes."""
        if limit is None or limit >= len(self):
            return self
        places = [int(i * len(self) / limit) for i in range(limit)]
        return LabelledPictures(
            self.root,
            tuple(self.files[i] for i in places),
            tuple(self.names[i] for i in places),
        )


def find_labelled_pictures(folder: str | Path) -> LabelledPictures:
    """The pictures of a folder: in sub-folders named by class, or listed by its ``labels.csv``.

    ``labels.csv`` has a column ``filename`` and one of ``wnid``, ``class`` and ``class_index``.
    Raises ``UsageError`` for a folder that is missing, has neither, or has no picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"no folder of labelled pictures at {folder}")
    if (root / "labels.csv").is_file():
        return _from_list(root)
    files: list[Path] = []
    names: list[str] = []
    for part in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found = list_pictures(part)
        files += found
        names += [part.name] * len(found)
    if not files:
        raise UsageError(
            f"{folder} holds no labelled pictures: expected are sub-folders named by class with "
            "pictures in them, or a labels.csv with columns filename and wnid"
        )
    return LabelledPictures(str(folder), tuple(files), tuple(names))


def _from_list(root: Path) -> LabelledPictures:
    with (root / "labels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = set(rows[0]) if rows else set()
    key = next((k for k in ("wnid", "class", "class_index") if k in columns), None)
    if "filename" not in columns or key is None:
        raise UsageError(
            f"{root / 'labels.csv'}: columns filename and wnid, class or class_index expected, "
            f"found {', '.join(sorted(map(str, columns))) or 'none'}"
        )
    missing = [row["filename"] for row in rows if not (root / (row["filename"] or "")).is_file()]
    if missing:
        raise UsageError(f"{root / 'labels.csv'} lists files that are not there: {_few(missing)}")
    return LabelledPictures(
        str(root),
        tuple(root / row["filename"] for row in rows),
        tuple(str(row[key]).strip() for row in rows),
    )


def match_labels(
    names: Sequence[str], outputs: int, classes: Mapping[str, int] | None = None
) -> tuple[int, ...]:
    """The classifier's output that stands for each name.

    By ``classes`` where given; else numbers are outputs themselves; else WordNet ids are
    ImageNet's if there are 1000 outputs; else as many names as outputs are taken in sorted order.
    Raises ``UsageError`` where names and outputs do not match.
    """
    found = sorted(set(names))
    if classes is None:
        classes = _usual_classes(found, outputs)
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UsageError(
            f"labels do not match: the classifier does not know {_few(unknown)}; "
            f"known are {_few(sorted(classes))}"
        )
    beyond = [name for name in found if not 0 <= classes[name] < outputs]
    if beyond:
        raise UsageError(
            f"labels do not match: {_few(beyond)} would be output {classes[beyond[0]]}, but the "
            f"classifier's outputs are 0 to {outputs - 1}"
        )
    return tuple(classes[name] for name in names)


def _usual_classes(found: list[str], outputs: int) -> dict[str, int]:
    if all(name.isdecimal() for name in found):
        return {name: int(name) for name in found}
    if outputs == 1000 and all(WORDNET_ID.fullmatch(name) for name in found):
        require_packages("ImageNet's class names", "timm", extra="train")
        from timm.data.imagenet_info import ImageNetInfo

        return {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if len(found) == outputs:
        return {name: i for i, name in enumerate(found)}
    raise UsageError(
        f"labels do not match: {len(found)} classes of pictures ({_few(found)}) and a classifier "
        f"of {outputs} outputs, and nothing says which is which: give a file of classes"
    )


def read_classes(path: str | Path) -> dict[str, int]:
    """A file that says which output each class name is.

    JSON (``{"name": 3}`` or ``["name of 0", "name of 1"]``), or text with one ``name,3`` a line,
    or one name a line in the outputs' order. Raises ``UsageError`` for anything else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the classes of {path}: {error}") from error
    try:
        if Path(path).suffix.lower() == ".json":
            record = json.loads(text)
            if isinstance(record, list):
                return {str(name): i for i, name in enumerate(record)}
            return {str(name): int(i) for name, i in record.items()}
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [line.rpartition(",") for line in lines]
        if all(comma and number.strip().isdecimal() for _, comma, number in pairs):
            return {name.strip(): int(number) for name, _, number in pairs}
        return {line: i for i, line in enumerate(lines)}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path}: a mapping of class names to outputs expected: {error}") from None


def read_batch(files: Sequence[Path], size: int, crop: float = 0.875) -> Tensor:
    """Pictures of any sizes as one batch, float32 [N, 3, size, size] in [0, 1].

    The short side is resized to ``size / crop`` pixels (Pillow's bilinear, which averages where it
    shrinks) and the centre cut out; 8-bit values over 255. Alpha is dropped, grey repeated.
    Raises ``PictureError`` that names a file that cannot be read.
    """
    return torch.stack([_read(file, size, crop) for file in files])


def _read(file: Path, size: int, crop: float) -> Tensor:
    from PIL import Image

    pixels = read_picture(file, frame=None).pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    short = max(size, round(size / crop))
    ratio = short / min(image.size)
    width, height = (max(short, round(side * ratio)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _few(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
