"""Pictures with boxes: Pascal VOC's XML and COCO's JSON, read into one form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import CollapsibleError, PictureError, UsageError
from collapsible.imaging import list_pictures, picture_info, read_picture

Faults = list[tuple[Path, str]]
# A box this far outside is a rounding of its writer, in pixels.
SLACK = 1.0
# A side below this, in pixels, is nothing: resizing in float32 could make it 0, and training stop.
THINNEST = 0.01
# Label, four corners and whether it is a crowd, as they stand in the file.
Raw = tuple[str, tuple[float, float, float, float], bool]


@dataclass(frozen=True, eq=False)
class BoxedPicture:
    """A picture file and what is in it.

    ``boxes`` [N, 4] are x1, y1, x2, y2 in pixels, edges counted from the picture's left and top
    border; ``labels`` [N] count from 1 (0 is background); ``crowd`` [N] marks groups, which are
    neither trained on nor counted as missed.
    """

    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def read(self) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [H, W, 3]; raises ``PictureError``."""
        pixels = read_rgb(self.path)
        if pixels.shape[:2] != (self.height, self.width):
            raise PictureError(f"{self.path} changed since its boxes were read")
        return pixels


@dataclass(frozen=True, eq=False)
class BoxedPictures:
    """A set of them. ``skipped`` names pictures left out, ``faults`` boxes clipped or dropped."""

    root: Path
    classes: tuple[str, ...]
    pictures: tuple[BoxedPicture, ...]
    skipped: tuple[tuple[Path, str], ...] = ()
    faults: tuple[tuple[Path, str], ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def boxes(self) -> int:
        """How many boxes there are."""
        return sum(len(picture.boxes) for picture in self.pictures)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A picture file as uint8 [H, W, 3]; grey is repeated, alpha dropped, 16 bits rounded."""
    pixels = read_picture(path).pixels
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257.0).astype(np.uint8)
    colour = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
    return np.array(np.broadcast_to(colour, (*colour.shape[:2], 3)))


def find_boxed(
    folder: Path, part: str = "", classes: Sequence[str] = (), *, strict: bool = False
) -> BoxedPictures:
    """Read a data set's boxes; every picture is decoded once to know that it can be.

    ``folder`` is a Pascal VOC folder (``Annotations`` with XML, ``JPEGImages``, optionally
    ``ImageSets/Main/PART.txt``), also one level below; or a COCO JSON file, or a folder with
    ``annotations/*PART*.json`` or ``PART/_annotations.coco.json``. ``part`` is such as ``train``
    or ``val``; empty takes everything, and a data set without parts is taken whole. ``classes``
    fixes the names and their order; none: VOC's sorted, COCO's by identity.

    Boxes that reach outside are clipped, those of no area dropped, unreadable pictures left out;
    each is listed. With ``strict`` the first such finding is a ``PictureError``.
    Raises ``UsageError`` where there is no such data set, or for a class that is not known.
    """
    folder = Path(folder)
    if folder.is_file():
        return _read_coco(folder, tuple(classes), strict)
    if not folder.is_dir():
        raise UsageError(f"no data at {folder}")
    for root in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (root / "Annotations").is_dir():
            return _read_voc(root, part, tuple(classes), strict)
    found = _coco_files(folder, part)
    if len(found) == 1:
        return _read_coco(found[0], tuple(classes), strict)
    if found:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{folder} has several annotation files ({names}): give one of them")
    raise UsageError(
        f"{folder} holds no boxes: expected Annotations/*.xml with JPEGImages (Pascal VOC), or "
        f"annotations/*{part or 'PART'}*.json (COCO)"
    )


def has_part(folder: Path, part: str) -> bool:
    """Whether a data set says which of its pictures are in a part."""
    for root in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        if (root / "ImageSets" / "Main" / f"{part}.txt").is_file():
            return True
    return any(part in str(path.relative_to(folder)) for path in _coco_files(folder, part))


def _coco_files(folder: Path, part: str) -> list[Path]:
    inside = sorted((folder / "annotations").glob(f"instances_{part}*.json" if part else "*.json"))
    if part and not inside:
        inside = sorted((folder / "annotations").glob(f"*{part}*.json"))
    inside = inside or [p for p in [folder / part / "_annotations.coco.json"] if p.is_file()]
    return inside or sorted(folder.glob("*.json"))


def clean_box(
    box: Iterable[float], width: int, height: int
) -> tuple[tuple[float, float, float, float] | None, str]:
    """A box within its picture, or None if nothing is left; and what was wrong ("" for nothing)."""
    x1, y1, x2, y2 = values = tuple(float(v) for v in box)
    named = f"box {', '.join(f'{v:g}' for v in values)}"
    if not all(math.isfinite(v) for v in values):
        return None, f"{named} is not finite: dropped"
    if x2 <= x1 or y2 <= y1:
        return None, f"{named} has no area: dropped"
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, f"{named} lies outside {width}x{height}: dropped"
    if min(inside[2] - inside[0], inside[3] - inside[1]) < THINNEST:
        return None, f"{named} is thinner than {THINNEST} pixels: dropped"
    out = max(abs(a - b) for a, b in zip(values, inside, strict=True))
    return inside, f"{named} reaches outside {width}x{height}: clipped" if out > SLACK else ""


class _Reader:
    """Gathers pictures, and what is wrong with them and their boxes."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.skipped: Faults = []
        self.faults: Faults = []
        self.found: list[tuple[Path, int, int, list[Raw]]] = []

    def note(self, where: Faults, path: Path, reason: str) -> None:
        if self.strict:
            raise PictureError(f"{path}: {reason}" if str(path) not in reason else reason)
        where.append((path, reason))

    def add(self, path: Path, source: Path, raw: list[Raw]) -> None:
        try:
            height, width = read_rgb(path).shape[:2]
        except CollapsibleError as error:
            self.note(self.skipped, path, str(error))
            return
        kept: list[Raw] = []
        for label, box, crowd in raw:
            clean, fault = clean_box(box, width, height)
            if fault:
                self.note(self.faults, source, f"{path.name}: {fault}")
            if clean is not None:
                kept.append((label, clean, crowd))
        self.found.append((path, width, height, kept))

    def finish(self, root: Path, classes: tuple[str, ...]) -> BoxedPictures:
        if not self.found:
            why = f"; {len(self.skipped)} cannot be read" if self.skipped else ""
            raise UsageError(f"{root} has no pictures with boxes{why}")
        present = {label for *_, raw in self.found for label, _, _ in raw}
        classes = classes or tuple(sorted(present))
        unknown = sorted(present - set(classes))
        if unknown:
            raise UsageError(
                f"{root} has boxes of {', '.join(unknown[:5])}; "
                f"the {len(classes)} classes known are {', '.join(classes[:5])}"
            )
        if not classes:
            raise UsageError(f"{root} has no boxes at all")
        at = {name: place for place, name in enumerate(classes, 1)}
        pictures = tuple(
            BoxedPicture(
                path,
                width,
                height,
                np.array([b for _, b, _ in raw], np.float32).reshape(-1, 4),
                np.array([at[name] for name, _, _ in raw], np.int64),
                np.array([crowd for *_, crowd in raw], np.bool_),
            )
            for path, width, height, raw in self.found
        )
        return BoxedPictures(root, classes, pictures, tuple(self.skipped), tuple(self.faults))


def _read_voc(root: Path, part: str, classes: tuple[str, ...], strict: bool) -> BoxedPictures:
    files = sorted((root / "Annotations").glob("*.xml"))
    chosen = root / "ImageSets" / "Main" / f"{part}.txt"
    if part and chosen.is_file():
        names = [line.split()[0] for line in chosen.read_text().splitlines() if line.strip()]
        files = [root / "Annotations" / f"{name}.xml" for name in names]
    folder = root / "JPEGImages" if (root / "JPEGImages").is_dir() else root
    at = {path.stem: path for path in list_pictures(folder)}
    reader = _Reader(strict)
    for file in files:
        picture = at.get(file.stem, folder / f"{file.stem}.jpg")
        try:
            raw = _voc_boxes(file)
        except (ElementTree.ParseError, OSError, ValueError) as error:
            reader.note(reader.skipped, file, f"not a Pascal VOC file: {error}")
            continue
        reader.add(picture, file, raw)
    return reader.finish(root, classes)


def _voc_boxes(file: Path) -> list[Raw]:
    found: list[Raw] = []
    for item in ElementTree.parse(file).getroot().iter("object"):
        name, place = item.findtext("name"), item.find("bndbox")
        texts = [place.findtext(k) if place is not None else None for k in _CORNERS]
        if name is None or None in texts:
            raise ValueError("an object without a name or a whole bndbox")
        x1, y1, x2, y2 = (float(text or "") for text in texts)
        found.append((name.strip(), (x1, y1, x2, y2), False))
    return found


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _read_coco(file: Path, classes: tuple[str, ...], strict: bool) -> BoxedPictures:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = {int(c["id"]): str(c["name"]) for c in record["categories"]}
        raw: dict[int, list[Raw]] = {int(i["id"]): [] for i in record["images"]}
        for note in record["annotations"]:
            x, y, w, h = (float(v) for v in note["bbox"])
            name = names[int(note["category_id"])]
            box = (x, y, x + w, y + h)
            raw[int(note["image_id"])].append((name, box, bool(note.get("iscrowd", 0))))
        places = [(str(i["file_name"]), raw[int(i["id"])]) for i in record["images"]]
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{file} is not a COCO annotation file ({reason})") from error
    reader = _Reader(strict)
    roots = _picture_folders(file)
    for name, boxes in places:
        path = next((r / name for r in roots if (r / name).is_file()), roots[0] / name)
        reader.add(path, file, boxes)
    ordered = tuple(names[key] for key in sorted(names))
    return reader.finish(file, classes or ordered)


def _picture_folders(file: Path) -> list[Path]:
    base = file.parent.parent if file.parent.name == "annotations" else file.parent
    part = file.stem.rpartition("_")[2]
    return [file.parent, base / part, base / "images" / part, base / "images", base]


def list_any(path: Path) -> list[Path]:
    """The picture itself, or those of a folder; raises ``UsageError`` where there are none."""
    if path.is_dir():
        found = list_pictures(path)
        if not found:
            raise UsageError(f"no pictures in {path}")
        return found
    if not path.is_file():
        raise UsageError(f"no picture at {path}")
    picture_info(path)
    return [path]
