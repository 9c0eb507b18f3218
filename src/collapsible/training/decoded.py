"""Labelled pictures, each decoded once: kept as uint8 on disk up to a bound, bad ones named."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from collapsible.deploy.cache import built_folder, cache_folder
from collapsible.errors import PictureError, UsageError
from collapsible.evaluation.labelled import LabelledPictures

# Raise when the layout of the cache changes.
CACHE_VERSION = 1
DEFAULT_BOUND = 4 << 30
"""Bytes of decoded pictures that are kept, unless told otherwise."""


class DecodedPictures:
    """Labelled pictures that are all known to be readable.

    At first use every file is decoded; pixels are kept in a memory-mapped file, which all
    processes share, until ``bound`` bytes are used, and the other pictures are decoded again when
    drawn. ``skipped`` names the files that could not be read and why; with ``strict`` they are a
    ``PictureError``. Raises ``UsageError`` where fewer than two classes are left with pictures.
    """

    def __init__(
        self,
        source: LabelledPictures,
        *,
        bound: int = DEFAULT_BOUND,
        strict: bool = False,
        cache: Path | None = None,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> None:
        self.source = source
        described = [
            (str(p.file.resolve()), p.offset, stat.st_size, stat.st_mtime_ns)
            for p in source.pictures
            for stat in (p.file.stat(),)
        ]
        content = json.dumps([CACHE_VERSION, bound, described])
        key = hashlib.sha256(content.encode()).hexdigest()[:24]
        self.folder = (cache or cache_folder()) / f"labelled-{key}"
        if not (self.folder / "skipped.json").is_file():
            # One process of each machine decodes, whatever the others' patience with collectives.
            if int(os.environ.get("LOCAL_RANK", "0")) == 0:
                self._build(bound, on_picture)
            else:
                while not (self.folder / "skipped.json").is_file():
                    time.sleep(0.2)
        skipped = json.loads((self.folder / "skipped.json").read_text())
        self.skipped: tuple[tuple[str, str], ...] = tuple(map(tuple, skipped))
        if strict and skipped:
            raise PictureError(
                f"{len(skipped)} of {len(source)} pictures cannot be read; "
                f"the first: {skipped[0][1]}"
            )
        # Per readable picture: place in the source, start in the file (-1: not kept), height, width
        self.table: np.ndarray = np.load(self.folder / "table.npy")
        self.labels = np.array([p.label for p in source.pictures])[self.table[:, 0]]
        self._pixels: np.ndarray | None = None
        present = np.unique(self.labels)
        if len(present) < 2:
            what = f"only class {source.classes[present[0]]}" if len(present) else "no class"
            bad = f" ({len(skipped)} of {len(source)} could not be read)" if skipped else ""
            raise UsageError(
                f"{source.root}: {what} has readable pictures{bad}; a classifier needs two"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.table)

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the file itself; a copy of the map would carry every pixel.
        return self.__dict__ | {"_pixels": None}

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def read(self, index: int) -> np.ndarray:
        """A picture, uint8 RGB [H, W, 3]."""
        place, start, height, width = (int(value) for value in self.table[index])
        if start < 0:
            return self.source.read(place)
        if self._pixels is None:
            self._pixels = np.memmap(self.folder / "pixels.bin", np.uint8, mode="r")
        many = height * width * 3
        return np.asarray(self._pixels[start : start + many]).reshape(height, width, 3)

    def _decoded(self) -> Iterator[tuple[int, np.ndarray | PictureError]]:
        """All pictures in order, decoded by several threads, few at a time."""

        def one(index: int) -> np.ndarray | PictureError:
            try:
                return self.source.read(index)
            except PictureError as error:
                return error

        threads = os.cpu_count() or 1
        waiting: deque[tuple[int, Future[np.ndarray | PictureError]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for index in range(len(self.source)):
                waiting.append((index, pool.submit(one, index)))
                if len(waiting) >= 4 * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()

    def _build(self, bound: int, on_picture: Callable[[int, int], None] | None) -> None:
        with built_folder(self.folder, "skipped.json") as draft:
            rows, skipped, used = [], [], 0
            with (draft / "pixels.bin").open("wb") as file:
                for index, pixels in self._decoded():
                    if isinstance(pixels, PictureError):
                        skipped.append([str(self.source.pictures[index]), str(pixels)])
                    elif used + pixels.size <= bound:
                        rows.append([index, used, *pixels.shape[:2]])
                        file.write(pixels.tobytes())
                        used += pixels.size
                    else:
                        rows.append([index, -1, *pixels.shape[:2]])
                    if on_picture:
                        on_picture(index + 1, len(self.source))
            np.save(draft / "table.npy", np.array(rows, np.int64).reshape(-1, 4))
            (draft / "skipped.json").write_text(json.dumps(skipped))
