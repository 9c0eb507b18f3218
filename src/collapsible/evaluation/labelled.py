"""Pictures with their classes: a folder of class folders, or tar shards as webdataset has them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import PictureError, UsageError
from collapsible.imaging import PICTURE_SUFFIXES, list_pictures, read_picture

PARTS = {"train": ("train", "training"), "val": ("val", "validation", "test")}
LAYOUT = (
    "expected are sub-folders named by class, with pictures in them (optionally below train and "
    "val), or .tar shards of NAME.jpg and NAME.cls"
)


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """Where one picture lies (``size`` bytes at ``offset`` of a shard, or a whole file)."""

    file: Path
    label: int
    name: str = ""
    offset: int = 0
    size: int = -1

    def __str__(self) -> str:
        return f"{self.file}: {self.name}" if self.name else str(self.file)


@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures and the names of their classes; ``named`` is False where shards give numbers."""

    root: Path
    classes: tuple[str, ...]
    pictures: tuple[LabelledPicture, ...]
    named: bool = True

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> int:
        """The class of a picture, a place in ``classes``."""
        return self.pictures[index].label

    def read(self, index: int) -> NDArray[np.uint8]:
        """A picture as uint8 RGB [H, W, 3]; raises ``PictureError`` that names it."""
        picture = self.pictures[index]
        if picture.size < 0:
            return as_rgb8(read_picture(picture.file).pixels)
        try:
            with picture.file.open("rb") as shard:
                shard.seek(picture.offset)
                content = BytesIO(shard.read(picture.size))
        except OSError as error:
            raise PictureError(f"cannot read {picture}: {error.strerror or error}") from error
        content.name = str(picture)
        return as_rgb8(read_picture(content).pixels)


def as_rgb8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Any picture [H, W, 1..4] of 8 or 16 bits as uint8 RGB [H, W, 3]; alpha is dropped."""
    colour = pixels[..., : pixels.shape[2] - (pixels.shape[2] in (2, 4))]
    if colour.dtype == np.uint16:
        colour = ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(colour, 3, axis=2) if colour.shape[2] == 1 else np.ascontiguousarray(colour)


def find_part(folder: Path, part: str) -> Path | None:
    """The sub-folder of a data folder that holds ``train`` or ``val``, if there is one."""
    return next((folder / name for name in PARTS[part] if (folder / name).is_dir()), None)


def find_labelled(folder: Path, classes: Sequence[str] = ()) -> LabelledPictures:
    """The labelled pictures of a folder: ``FOLDER/CLASS/*.jpg``, or ``FOLDER/*.tar`` shards.

    ``classes`` are the known ones, in order; without them they are the names of the sub-folders,
    sorted, or for shards the lines of ``classes.txt`` beside them, or numbers. In a shard a
    picture ``NAME.jpg`` (or another format) goes with ``NAME.cls``, the number of its class.
    Raises ``UsageError`` where the folder is missing, empty or laid out otherwise, where a class
    is not among the known ones, or where it has no picture and none are known.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder of labelled pictures at {folder}")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    shards = sorted(folder.glob("*.tar"))
    if shards and not folders:
        _refuse_mixed(folder, shards)
        return _from_shards(folder, shards, classes)
    packed = sorted([*folder.glob("*.tar.*"), *folder.glob("*.tgz")])
    if packed and not folders:
        raise UsageError(
            f"{packed[0]} is compressed, and shards are read at random places: "
            "unpack it to .tar (gunzip, unxz) or to folders"
        )
    if not folders:
        raise UsageError(f"{folder} holds no class folders: {LAYOUT}")
    return _from_folders(folder, folders, classes)


def _refuse_mixed(folder: Path, shards: list[Path]) -> None:
    """Shards of both parts in one folder, as ImageNet's are published: trained on and measured."""
    of = {part: next((s for s in shards if part in s.name.lower()), None) for part in PARTS}
    if of["train"] and of["val"]:
        raise UsageError(
            f"{folder} holds shards of both parts ({of['train'].name}, {of['val'].name}): "
            "move or link them to its sub-folders train and val"
        )


def _from_folders(root: Path, folders: list[Path], classes: Sequence[str]) -> LabelledPictures:
    names = tuple(classes) or tuple(p.name for p in folders)
    places = {name: place for place, name in enumerate(names)}
    unknown = [p.name for p in folders if p.name not in places]
    if unknown:
        raise UsageError(
            f"{root} has classes that are not known: {_few(unknown)}; known are {_few(names)}"
        )
    pictures, empty = [], []
    for folder in folders:
        files = list_pictures(folder, recursive=True)
        pictures += [LabelledPicture(path, places[folder.name]) for path in files]
        if not files:
            empty.append(folder.name)
    if empty and len(empty) < len(folders) and not classes:
        raise UsageError(f"{root}: no pictures in class {_few(empty)}: fill or remove the folder")
    if not pictures:
        raise UsageError(f"{root}: its class folders hold no pictures: {LAYOUT}")
    return LabelledPictures(root, names, tuple(pictures))


def _from_shards(root: Path, shards: list[Path], classes: Sequence[str]) -> LabelledPictures:
    pictures: list[LabelledPicture] = []
    for shard in shards:
        pictures += _read_shard(shard)
    if not pictures:
        raise UsageError(f"{root}: its shards hold no pictures: {LAYOUT}")
    most = max(picture.label for picture in pictures)
    beside = root / "classes.txt"
    names = tuple(classes)
    if not names and beside.is_file():
        lines = beside.read_text(encoding="utf-8").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    named = bool(names)
    names = names or tuple(str(number) for number in range(most + 1))
    if most >= len(names):
        raise UsageError(f"{root} has class number {most}, but only {_few(names)} are known")
    return LabelledPictures(root, names, tuple(pictures), named)


def _read_shard(shard: Path) -> list[LabelledPicture]:
    """The pictures of an uncompressed tar, by reading its headers and labels alone."""
    places: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                # As webdataset does: the key is everything up to the base name's first dot.
                head, slash, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key, kind = f"{head}{slash}{stem}", kind.lower()
                if f".{kind}" in PICTURE_SUFFIXES:
                    places[key] = (member.name, member.offset_data, member.size)
                elif kind == "cls":
                    content = archive.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), f"{shard}: {member.name}")
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"{shard} is not a readable tar shard: {error}") from error
    missing = [key for key in places if key not in labels]
    if missing:
        raise UsageError(f"{shard}: no {missing[0]}.cls says the class of {places[missing[0]][0]}")
    return [
        LabelledPicture(shard, labels[key], name, offset, size)
        for key, (name, offset, size) in places.items()
    ]


def _label(content: bytes, where: str) -> int:
    try:
        label = json.loads(content)
        if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
            return label
    except ValueError:
        pass
    raise UsageError(f"{where}: expected the number of a class from 0, got {content[:20]!r}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")
