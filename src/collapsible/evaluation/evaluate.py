"""Evaluate a shipped model, a checkpoint or plain bicubic on a folder of pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from collapsible.errors import UsageError, require_packages
from collapsible.evaluation.measure import (
    PROTOCOL,
    EvaluationReport,
    PictureScore,
    Subject,
    score,
)
from collapsible.evaluation.pairs import find_pairs, has_given_low, luma, luma_pair, read_pair
from collapsible.imaging import code_jpeg, resize

LOWS = ("picture", "luma")
"""What may be reduced to make the low-resolution pictures."""


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    scale: int = 2,
    engine: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    jpeg: int | None = None,
    low: str = "picture",
    on_picture: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Measure a model by the field's protocol (``PROTOCOL`` says it in words).

    ``model`` is a shipped model's name, the path of a safetensors file (its network is known from
    a card or a training run's facts beside it, or from ``architecture``), that of an ONNX picture
    graph (what ``upscale`` takes), or ``"bicubic"``.
    ``data`` is a folder of high-resolution pictures, or one that holds ``HR`` and ``LRx2`` and so
    on, whose low-resolution pictures are then used; otherwise they are made by MATLAB's bicubic
    with mirrored borders. ``engine`` and ``precision`` are those of ``collapsible.upscale``.
    With ``jpeg`` (a quality of 1 to 100) the low-resolution pictures pass a JPEG file first, with
    chroma at half the size. With ``low="luma"`` the 8-bit luma is reduced and not rounded
    (``luma_pair``), as for many published tables, and no finished pictures are measured.
    ``on_picture(done, total)`` is called after each picture.
    Raises ``UnknownNameError``, ``UsageError``, ``PictureError``, ``WeightsError``, and
    ``MissingExtraError`` where torch is needed and not installed.
    """
    data = Path(data)
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise UsageError(f"jpeg={jpeg}: a quality from 1 to 100 is accepted")
    if low not in LOWS:
        raise UsageError(f"low={low!r}: {' and '.join(map(repr, LOWS))} are accepted")
    if jpeg is not None and low == "luma":
        raise UsageError("jpeg goes with low='picture': a JPEG file holds no unrounded luma")
    files = find_pairs(data, scale)
    scores = []
    with tempfile.TemporaryDirectory(prefix="collapsible-") as scratch:
        subject = _subject(model, scale, engine, precision, architecture, Path(scratch))
        for done, (high, given) in enumerate(files, start=1):
            pair = luma_pair(high, scale) if low == "luma" else read_pair(high, given, scale)
            if jpeg is not None:
                pair = replace(pair, low=code_jpeg(pair.low, jpeg))
            own = score(pair, np.clip(subject.luma(pair.low), 0, 255), scale)
            picture: tuple[float | None, float | None] = (None, None)
            if low == "picture":
                picture = score(pair, luma(subject.picture(pair.low)), scale)
            scores.append(PictureScore(pair.name, *own, *picture))
            if on_picture is not None:
                on_picture(done, len(files))
    return EvaluationReport(
        model=subject.name,
        scale=scale,
        data=str(data),
        low=_origin(data, scale, low) + ("" if jpeg is None else f", then JPEG of quality {jpeg}"),
        protocol=PROTOCOL,
        engine=subject.engine,
        precision=subject.precision,
        pictures=tuple(scores),
    )


def _origin(data: Path, scale: int, low: str) -> str:
    """Where the low-resolution pictures came from, in words."""
    if low == "luma":
        return "8-bit luma by MATLAB bicubic, mirrored borders, not rounded"
    return f"LRx{scale}" if has_given_low(data, scale) else "MATLAB bicubic, mirrored borders"


def _subject(
    model: str | Path,
    scale: int,
    engine: str,
    precision: str,
    architecture: str | None,
    scratch: Path,
) -> Subject:
    if str(model).lower() == "bicubic":
        return Subject(
            "bicubic",
            lambda low: resize(luma(low), scale=scale),
            lambda low: resize(low, scale=scale),
            "imaging.resize",
            "exact",
        )
    from collapsible.evaluation.networks import checkpoint, picture_graph, shipped

    require_packages("evaluating a network", "torch", "safetensors", extra="train")
    path = Path(model)
    if path.suffix == ".safetensors":
        return checkpoint(
            path, scale, engine, precision, architecture=architecture, scratch=scratch
        )
    if architecture is not None:
        raise UsageError(f"architecture={architecture!r} goes with a safetensors file, not a name")
    if path.suffix == ".onnx":
        return picture_graph(path, scale, engine, precision)
    return shipped(str(model), scale, engine, precision)
