"""Enlarge pictures in memory, tile by tile, without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError
from collapsible.imaging import cut
from collapsible.upscaler.engines import open_engine
from collapsible.upscaler.graph_file import find_graph
from collapsible.weights import DEFAULT_MODEL, Card

Tile = int | Literal["auto"]

# Largest tile sides for "auto". Measured with SESR-M5 x2 on 1920x1080, OpenVINO, two threads of a
# busy machine, least of 4 interleaved runs in seconds, bf16 and fp32: the whole frame 0.92, 1.11;
# tiles of 540x640 1.00, 1.16; 360x480 1.10, 1.18; 270x384 1.21, 1.34. The tiles that this gives
# cost a few percent, and all feature maps of one stay in a few tens of megabytes.
AUTO_TILE = (640, 640)
# Sides are rounded up, so that pictures of similar sizes share a compiled graph: making one takes
# 0.05 to 0.15 s, as long as a tile or longer. The surplus is cropped; many tiles would repeat it.
_STEP_WHOLE, _STEP_SPLIT = 64, 16


@dataclass(frozen=True)
class Band:
    """Rows of the enlarged picture, from ``top`` down: pixels [rows, s W, C]."""

    top: int
    pixels: NDArray[Any]


def _side(length: int, largest: int) -> int:
    """The side of equal tiles: cutting off the largest instead would leave a last one mostly empty.

    1080 in tiles of at most 512 would be computed as 1536, in equal ones as 1104.
    """
    even = -(-length // -(-length // largest))
    step = _STEP_WHOLE if even == length else _STEP_SPLIT
    return min(largest, -(-even // step) * step)


class Upscaler:
    """A model made ready once, for as many pictures as come.

    ``model`` is a shipped model's name, a ``Card`` or the path of an ``.onnx`` graph; ``engine``
    and ``precision`` as for ``open_engine``; ``fast`` lets ``"auto"`` precision be int8, which
    costs up to 0.1 dB, where the model has an int8 graph; ``tile`` is the largest side of the
    input tiles in pixels or ``"auto"``; ``threads`` limits the engine's CPU threads.

    The picture is mirrored at its borders, as far as the network sees; tiles overlap by as much, so
    that in fp32 the result does not depend on the tiles at all, bit for bit. Memory is bounded by a
    row of tiles, besides input and output.
    """

    def __init__(
        self,
        model: str | Path | Card = DEFAULT_MODEL,
        *,
        scale: int = 2,
        engine: str = "auto",
        precision: str = "auto",
        fast: bool = False,
        tile: Tile = "auto",
        threads: int | None = None,
    ) -> None:
        if tile != "auto" and (not isinstance(tile, int) or tile < 16):
            raise UsageError(f"tile {tile!r}: 'auto' or a side of at least 16 pixels")
        self.graph = find_graph(model, scale, precision, fast=fast)
        self.engine = open_engine(self.graph, engine, precision, threads)
        self.scale = self.graph.scale
        self._tile = AUTO_TILE if tile == "auto" else (int(tile), int(tile))

    def __call__(self, image: NDArray[Any]) -> NDArray[Any]:
        """Enlarge uint8 or uint16 HxW or HxWx{1,2,3,4} (grey, +alpha, RGB, +alpha).

        Returns the same kind of array, ``scale`` times as high and wide.
        Raises ``UsageError`` for any other array.
        """
        pixels = check_image(image)
        flat = image.ndim == 2
        height, width, channels = pixels.shape
        large = np.empty((height * self.scale, width * self.scale, channels), pixels.dtype)
        for band in self.bands(pixels):
            large[band.top : band.top + len(band.pixels)] = band.pixels
        return large[..., 0] if flat else large

    def bands(self, image: NDArray[Any]) -> Iterator[Band]:
        """The enlarged picture in bands of rows from the top, for pictures too large to hold."""
        pixels = check_image(image)
        height, width, channels = pixels.shape
        s, radius = self.scale, self.graph.radius
        tile_height, tile_width = _side(height, self._tile[0]), _side(width, self._tile[1])
        alpha = pixels[..., -1] if channels in (2, 4) else None
        solid = alpha is not None and bool((alpha == alpha.flat[0]).all())
        around = tile_height + 2 * radius, tile_width + 2 * radius
        for top in range(0, height, tile_height):
            rows = min(tile_height, height - top)
            band = np.empty((rows * s, width * s, channels), pixels.dtype)
            for left in range(0, width, tile_width):
                columns = min(tile_width, width - left)
                # Beyond the last row and column mirrored pixels also fill up the tile, and what
                # comes of them is cropped.
                part = cut(pixels, top - radius, left - radius, *around)
                into = band[:, left * s : (left + columns) * s]
                if channels >= 3:
                    into[..., :3] = self._run(part[..., :3])[: rows * s, : columns * s]
                else:
                    into[..., 0] = self._run_grey(part[..., 0])[: rows * s, : columns * s]
                if alpha is None:
                    continue
                if solid:
                    into[..., -1] = alpha.flat[0]
                else:
                    into[..., -1] = self._run_grey(part[..., -1])[: rows * s, : columns * s]
            yield Band(top * s, band)

    def _run(self, part: NDArray[Any]) -> NDArray[Any]:
        """Enlarge one tile [H, W, 3], its surrounding included on the way in, not out."""
        if part.dtype == np.uint16:
            # 257 = 65535 / 255: the graph without its rounding works in levels of 8 bits.
            floats = self.engine.run(part.astype(np.float32) / np.float32(257))
            large = np.clip(np.rint(floats * np.float32(257)), 0, 65535).astype(np.uint16)
        else:
            large = self.engine.run(part)
        edge = self.graph.radius * self.scale
        return large[edge:-edge, edge:-edge] if edge else large

    def _run_grey(self, plane: NDArray[Any]) -> NDArray[Any]:
        """Enlarge one plane [H, W] as a grey picture: all three channels come out alike."""
        return self._run(np.repeat(plane[..., None], 3, axis=2))[..., 1]


def check_image(image: NDArray[Any]) -> NDArray[Any]:
    """The array as HxWxC; raises ``UsageError`` that says what is accepted."""
    accepted = "uint8 or uint16, HxW or HxWx{1,2,3,4}, no side empty"
    if not isinstance(image, np.ndarray):
        raise UsageError(f"an image is a NumPy array ({accepted}), not {type(image).__name__}")
    shaped = image[..., None] if image.ndim == 2 else image
    if (
        shaped.ndim != 3
        or not 1 <= shaped.shape[2] <= 4
        or 0 in shaped.shape
        or image.dtype not in (np.uint8, np.uint16)
    ):
        raise UsageError(f"image of shape {image.shape} and dtype {image.dtype}: {accepted}")
    return shaped


def upscale(
    image: NDArray[Any],
    scale: int = 2,
    model: str | Path | Card = DEFAULT_MODEL,
    *,
    engine: str = "auto",
    precision: str = "auto",
    fast: bool = False,
    tile: Tile = "auto",
) -> NDArray[Any]:
    """Enlarge one picture: uint8 or uint16, HxW or HxWx{1,2,3,4}; returns the same kind.

    The network is opened for each call; for many pictures keep an ``Upscaler``.
    Arguments and errors as for ``Upscaler``.
    """
    upscaler = Upscaler(
        model, scale=scale, engine=engine, precision=precision, fast=fast, tile=tile
    )
    return upscaler(image)
