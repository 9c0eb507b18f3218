"""Pairs of high- and low-resolution pictures: decoded once, cached on disk, drawn as patches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collapsible.deploy.cache import built_folder, cache_folder
from collapsible.errors import PictureError, UsageError
from collapsible.evaluation.labelled import as_rgb8
from collapsible.imaging import (
    crop_to_multiple,
    cut,
    list_pictures,
    read_picture,
    resize,
    rgb_to_y,
)
from collapsible.training.degrade import GRID, degrade, margin
from collapsible.training.recipes import DegradeSpec
from collapsible.training.teacher import Teacher

# Luma is kept as 16-bit fixed point: 1/256 of a level is far below the PSNR's last digit, and
# half the memory of floats.
LUMA_STEPS = 256.0
# Raise when the layout or the arithmetic of the cache changes.
CACHE_VERSION = 2
CLEAN = DegradeSpec()


def _planes(pixels: np.ndarray, colour: str) -> np.ndarray:
    """The form that is cached: [H, W, 1] uint16 luma in 1/256 levels, or the RGB itself.

    Where luma is asked for, one channel is luma already.
    """
    if colour == "rgb":
        return pixels
    luma = pixels[..., 0] if pixels.shape[2] == 1 else rgb_to_y(pixels.astype(np.float32))
    return np.rint(luma * LUMA_STEPS).astype(np.uint16)[..., None]


def _level(planes: np.ndarray) -> float:
    """How many steps of these cached values make a level of 255."""
    return LUMA_STEPS if planes.dtype == np.uint16 else 1.0


def to_unit(planes: np.ndarray) -> np.ndarray:
    """Cached values as float32 in [0, 1], the networks' range."""
    return planes.astype(np.float32) * np.float32(1.0 / (255.0 * _level(planes)))


def _from_unit(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Values in [0, 1] in the form of other cached ones."""
    return np.rint(values * np.float32(255.0 * _level(like))).astype(like.dtype)


@dataclass(frozen=True)
class Pair:
    """High resolution [s * H, s * W, C] and low resolution [H, W, C], uint8 or 16-bit luma."""

    name: str
    high: np.ndarray
    low: np.ndarray


class PairedPictures:
    """All pictures below some folders with their reduced copies by MATLAB's bicubic.

    ``pairs`` holds memory-mapped arrays, so several processes share one copy. ``skipped`` names
    the files that could not be read and why. With ``grey_is_luma`` the values of a grey picture are
    its luma, as the field measures; without, it goes through RGB, as when it is enlarged.
    ``teacher`` makes the high-resolution ones anew.
    Raises ``UsageError`` if a folder is missing or no picture is large enough for ``smallest``
    low-resolution pixels a side.
    """

    def __init__(
        self,
        folders: list[Path],
        *,
        scale: int,
        colour: str,
        rescale: tuple[float, ...] = (1.0,),
        smallest: int = 1,
        grey_is_luma: bool = False,
        teacher: Teacher | None = None,
        cache: Path | None = None,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> None:
        files: list[Path] = []
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"no folder of pictures at {folder}")
            files += list_pictures(folder, recursive=True)
        self.scale, self.colour, self.rescale = scale, colour, rescale
        self.grey_is_luma, self.teacher = grey_is_luma and colour == "y", teacher
        described = [
            (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files
        ]
        settings = [
            *(CACHE_VERSION, scale, colour, list(rescale), smallest, grey_is_luma),
            described,
            *(() if teacher is None else teacher.key),
        ]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
        target = (cache or cache_folder()) / f"pairs-{key}"
        if not (target / "index.json").is_file():
            self._build(files, target, smallest, on_picture)
        index = json.loads((target / "index.json").read_text())
        self.skipped: tuple[tuple[str, str], ...] = tuple(map(tuple, index["skipped"]))
        high = np.load(target / "high.npy", mmap_mode="r")
        low = np.load(target / "low.npy", mmap_mode="r")
        self.pairs: list[Pair] = []
        for name, height, width, channels, start in index["pictures"]:
            many = height * width * channels
            s = scale
            self.pairs.append(
                Pair(
                    name,
                    high[start * s * s : (start + many) * s * s].reshape(
                        height * s, width * s, channels
                    ),
                    low[start : start + many].reshape(height, width, channels),
                )
            )
        if not self.pairs:
            bad = f"; {len(self.skipped)} could not be read" if self.skipped else ""
            raise UsageError(
                f"no picture of at least {smallest * scale} pixels a side in "
                f"{', '.join(map(str, folders))} ({len(files)} files{bad})"
            )

    def _build(
        self,
        files: list[Path],
        target: Path,
        smallest: int,
        on_picture: Callable[[int, int], None] | None,
    ) -> None:
        with built_folder(target, "index.json") as folder:
            # A folder that is given twice is drawn from twice as often; it is decoded once.
            distinct = list(dict.fromkeys(files))
            pictures: dict[Path, list[list[object]]] = {}
            skipped, start = [], 0
            high_parts, low_parts = [], []
            for number, path in enumerate(distinct):
                pictures[path] = []
                try:
                    pixels = read_picture(path).pixels
                except PictureError as error:
                    skipped.append([str(path), str(error)])
                    continue
                whole = as_rgb8(pixels)
                if self.grey_is_luma and pixels.shape[2] < 3:
                    whole = whole[..., :1]
                for factor in self.rescale:
                    copy = whole if factor == 1.0 else resize(whole, scale=factor)
                    copy = crop_to_multiple(copy, self.scale)
                    if min(copy.shape[:2]) < smallest * self.scale:
                        continue
                    low = _planes(resize(copy, scale=1 / self.scale), self.colour)
                    high = _planes(copy, self.colour)
                    if self.teacher is not None:
                        mixed = self.teacher.target(to_unit(low), to_unit(high))
                        high = _from_unit(mixed, high)
                    high_parts.append(high.ravel())
                    low_parts.append(low.ravel())
                    pictures[path].append([f"{path.stem}@{factor:g}", *low.shape, start])
                    start += low.size
                if on_picture:
                    on_picture(number + 1, len(distinct))
            empty = np.zeros(0, np.uint16 if self.colour == "y" else np.uint8)
            np.save(folder / "high.npy", np.concatenate([*high_parts, empty]))
            np.save(folder / "low.npy", np.concatenate([*low_parts, empty]))
            drawn = [one for path in files for one in pictures[path]]
            index = json.dumps({"pictures": drawn, "skipped": skipped})
            (folder / "index.json").write_text(index)


class PatchSampler:
    """Draws batches of aligned patches, each a function of (seed, step, place in the batch) alone.

    Nothing is carried from one draw to the next, so a resumed or differently divided run draws
    the same patches. A picture is drawn with probability proportional to the square root of its
    area: large photographs count for more than small ones, but do not crowd them out.
    Each patch is flipped and turned into one of its eight symmetries at random. ``spec`` says what
    happens to low-resolution patches before. A patch may begin up to ``outside`` low-resolution
    pixels beyond the picture, which is mirrored there as in use: with as many pixels at the
    patch's border left out of the loss, a picture's own border is learnt as often as the rest.
    """

    def __init__(
        self,
        pictures: PairedPictures,
        *,
        patch: int,
        seed: int,
        outside: int = 0,
        spec: DegradeSpec = CLEAN,
    ) -> None:
        self.pairs, self.scale, self.patch, self.seed = (
            pictures.pairs,
            pictures.scale,
            patch,
            seed,
        )
        self.spec, self.outside = spec, outside
        weight = np.array([np.sqrt(p.low.shape[0] * p.low.shape[1]) for p in self.pairs])
        self.cumulative = np.cumsum(weight / weight.sum())

    def draw(self, step: int, places: range) -> tuple[np.ndarray, np.ndarray]:
        """Low [N, C, p, p] and high [N, C, s p, s p] patches, float32 in [0, 1]."""
        lows, highs = zip(*(self._one(step, place) for place in places), strict=True)
        return to_unit(np.stack(lows)), to_unit(np.stack(highs))

    def _one(self, step: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng((self.seed, step, place))
        chosen = int(np.searchsorted(self.cumulative, random.random(), side="right"))
        pair = self.pairs[min(chosen, len(self.pairs) - 1)]
        size, s, o = self.patch, self.scale, self.outside
        height, width = pair.low.shape[:2]
        top = int(random.integers(-o, height - size + o + 1))
        left = int(random.integers(-o, width - size + o + 1))
        low = cut(pair.low, top, left, size, size)
        if self.spec.share and random.random() < self.spec.share:
            low = self._degraded(pair.low, top, left, random)
        high = cut(pair.high, s * top, s * left, s * size, s * size)
        turns, flip = int(random.integers(4)), bool(random.integers(2))
        patches = []
        for patch in (low, high):
            turned = np.rot90(patch, turns)
            turned = turned[:, ::-1] if flip else turned
            patches.append(np.ascontiguousarray(turned.transpose(2, 0, 1)))
        return patches[0], patches[1]

    def _degraded(
        self, picture: np.ndarray, top: int, left: int, random: np.random.Generator
    ) -> np.ndarray:
        """The patch, degraded with what lies around it, mirrored beyond the border.

        The grid of blocks that JPEG sees lies anywhere.
        """
        size, around = self.patch, margin(self.spec)
        shift = [int(random.integers(GRID)) if self.spec.jpeg else 0 for _ in range(2)]
        before = [around + s for s in shift]
        sides = [b + size + around for b in before]
        part = cut(picture, top - before[0], left - before[1], *sides)
        whole = degrade(part, self.spec, random, steps=_level(picture))
        return whole[before[0] : before[0] + size, before[1] : before[1] + size]
