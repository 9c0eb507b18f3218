"""PSNR and SSIM of an enlargement over a set of pictures, and the report of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import PictureError, UsageError
from collapsible.evaluation.pairs import PicturePair, luma
from collapsible.imaging import psnr, ssim

LumaFunction = Callable[[NDArray[Any]], NDArray[np.float64]]
"""From a picture [H, W, 1 or 3] to its enlarged Y, float [s H, s W]; all values 0..255."""

PictureFunction = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""From a picture uint8 [H, W, 1 or 3] to the enlarged one, uint8 [s H, s W, the same]."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a name, and its two functions."""

    name: str
    luma: LumaFunction
    picture: PictureFunction
    engine: str
    precision: str


PROTOCOL = (
    "PSNR (dB, peak 255) and SSIM (11x11 Gaussian) on Y (BT.601 studio range, unrounded), "
    "borders cropped by the scale, mean over pictures; psnr and ssim: the network's own Y "
    "(fp32, clipped, unrounded); psnr_picture and ssim_picture: Y of the finished 8-bit picture; "
    "grey pictures taken as Y"
)
MEASURES = ("psnr", "ssim", "psnr_picture", "ssim_picture")


@dataclass(frozen=True)
class PictureScore:
    """One picture's figures: PSNR in dB, SSIM at most 1; None for what was not measured."""

    name: str
    psnr: float | None
    ssim: float | None
    psnr_picture: float | None
    ssim_picture: float | None


@dataclass(frozen=True)
class EvaluationReport:
    """Measured figures for a model on a set: a picture each, and their means.

    ``low`` says where the low-resolution pictures came from, ``engine`` and ``precision`` what made
    the finished pictures. The network's own Y is always computed in fp32.
    """

    model: str
    scale: int
    data: str
    low: str
    protocol: str
    engine: str
    precision: str
    pictures: tuple[PictureScore, ...]

    @property
    def psnr(self) -> float | None:
        return self._mean("psnr")

    @property
    def ssim(self) -> float | None:
        return self._mean("ssim")

    @property
    def psnr_picture(self) -> float | None:
        return self._mean("psnr_picture")

    @property
    def ssim_picture(self) -> float | None:
        return self._mean("ssim_picture")

    @property
    def means(self) -> dict[str, float]:
        """The measured means by name, as a card's ``metrics`` hold them."""
        named = ((measure, self._mean(measure)) for measure in MEASURES)
        return {measure: value for measure, value in named if value is not None}

    def _mean(self, measure: str) -> float | None:
        values = [getattr(picture, measure) for picture in self.pictures]
        if not values or any(value is None for value in values):
            return None
        return float(np.mean(values))

    def json(self) -> str:
        """The report as a JSON object; an infinite PSNR (equal pictures) is null."""
        record: dict[str, Any] = asdict(self)
        pictures = record.pop("pictures")
        record |= {measure: self._mean(measure) for measure in MEASURES}
        record["pictures"] = pictures
        for entry in (record, *pictures):
            for measure in MEASURES:
                if entry[measure] is not None and not math.isfinite(entry[measure]):
                    entry[measure] = None
        return json.dumps(record, indent=2, allow_nan=False)

    def table(self) -> str:
        """The report as lines of text for people."""
        mean = PictureScore("mean", self.psnr, self.ssim, self.psnr_picture, self.ssim_picture)
        width = max(8, *(len(picture.name) for picture in self.pictures))
        lines = [
            f"{self.model} x{self.scale} on {self.data} (low resolution: {self.low}); "
            f"picture by {self.engine}, {self.precision}; measured",
            f"{'picture':{width}}  {'psnr':>7}  {'ssim':>6}  {'psnr_picture':>12}  "
            f"{'ssim_picture':>12}",
        ]
        lines += [
            f"{row.name:{width}}  {_cell(row.psnr, 7, 3)}  {_cell(row.ssim, 6, 4)}  "
            f"{_cell(row.psnr_picture, 12, 3)}  {_cell(row.ssim_picture, 12, 4)}"
            for row in (*self.pictures, mean)
        ]
        return "\n".join(lines)


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def evaluate_luma(
    enlarge: LumaFunction, pairs: Iterable[PicturePair], scale: int
) -> tuple[tuple[float, float], ...]:
    """(PSNR, SSIM) per pair of a function's Y, clipped to 0..255, not rounded.

    Raises ``PictureError`` that names a picture too small to measure (SSIM's window needs 11
    pixels inside the crop) or of the wrong size.
    """
    return tuple(
        score(pair, np.clip(enlarge(pair.low).astype(np.float64), 0, 255), scale) for pair in pairs
    )


def evaluate_pictures(
    enlarge: PictureFunction, pairs: Iterable[PicturePair], scale: int
) -> tuple[tuple[float, float], ...]:
    """(PSNR, SSIM) per pair of the Y of finished pictures; errors as in ``evaluate_luma``."""
    return tuple(score(pair, luma(enlarge(pair.low)), scale) for pair in pairs)


def score(pair: PicturePair, y: NDArray[np.float64], scale: int) -> tuple[float, float]:
    """(PSNR, SSIM) of an enlarged Y [s H, s W] against the pair's high-resolution picture."""
    truth = luma(pair.high)
    try:
        return psnr(truth, y, crop=scale), ssim(truth, y, crop=scale)
    except UsageError as error:
        raise PictureError(f"{pair.name}: {error}") from error
