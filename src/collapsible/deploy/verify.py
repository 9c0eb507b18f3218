"""Run an exported file beside its network and say how far apart they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsible.deploy.given import Array, InputSize, batches
from collapsible.errors import ExportError, UsageError
from collapsible.imaging import psnr

Run = Callable[[Array], Array]
"""From inputs [N, C, H, W] of a fixed size to outputs."""


@dataclass(frozen=True)
class RuntimeCheck:
    """A file run by one runtime, compared with the torch network on the same inputs: measured.

    ``max_error`` and ``rms_error`` are of all outputs of all ``inputs``, ``relative_error`` is
    ``max_error`` over ``output_range``, torch's largest output. ``measure`` is ``"psnr"`` (dB),
    ``"top-1"`` (share, 0 to 1) or None; ``torch`` and ``file`` are its values for the network and
    for the file, ``change`` is file less torch.
    """

    runtime: str
    inputs: int
    max_error: float
    rms_error: float
    relative_error: float
    output_range: float
    measure: str | None = None
    torch: float | None = None
    file: float | None = None

    @property
    def change(self) -> float | None:
        """The measure for the file less that for the network."""
        if self.torch is None or self.file is None:
            return None
        return 0.0 if self.torch == self.file else self.file - self.torch


@dataclass(frozen=True)
class Samples:
    """What to compare on: inputs [C, H, W] and, to measure quality, the truth or the labels.

    Where the network enlarges by a whole number, inputs may be of any size, and are cut to
    tiles of the file's size that overlap by ``overlap`` input pixels; elsewhere they are of the
    file's size. ``truth`` holds the enlarged pictures [C', s H, s W] on the network's own scale,
    0 to 1. ``described`` says where they come from.
    """

    inputs: Sequence[Array]
    truth: Sequence[Array] | None = None
    labels: Sequence[int] | None = None
    described: str = "the given pictures"
    overlap: int = 0


@dataclass(frozen=True)
class Reference:
    """The network's own outputs on samples, kept for every file and runtime of one export."""

    samples: Samples
    parts: tuple[Array, ...]
    """Per sample its inputs of the file's size, [N, C, H, W]."""
    outputs: tuple[Array, ...]
    scale: int | None


def refer(run: Run, samples: Samples, size: InputSize, output: Array) -> Reference:
    """Cut the samples to the file's size and run the network on them.

    ``output`` is the network's for one input of ``size``; its shape tells the enlargement.
    Raises ``UsageError`` for samples, truth or labels that do not fit the network.
    """
    scale = enlargement(size, output)
    _check(samples, size, scale, output)
    parts = tuple(
        _tiles(sample, size, samples.overlap) if scale else sample[None]
        for sample in map(_as_array, samples.inputs)
    )
    return Reference(samples, parts, tuple(_run(run, part, size[0]) for part in parts), scale)


def compare(runtime: str, run: Run, reference: Reference, batch: int) -> RuntimeCheck:
    """Run a file on the reference's inputs. Raises ``ExportError`` for values not finite."""
    worst, squares, count, largest = 0.0, 0.0, 0, 0.0
    results = []
    for part, wanted in zip(reference.parts, reference.outputs, strict=True):
        found = _run(run, part, batch)
        if found.shape != wanted.shape:
            raise ExportError(
                f"{runtime} gives {list(found.shape)} where torch gives {list(wanted.shape)}"
            )
        if not np.isfinite(found).all():
            raise ExportError(f"{runtime} gives values that are not finite")
        difference = found.astype(np.float64) - wanted
        worst = max(worst, float(np.abs(difference).max()))
        squares += float(np.square(difference).sum())
        count += difference.size
        largest = max(largest, float(np.abs(wanted).max()))
        results.append(found)
    measure = _measure_name(reference)
    return RuntimeCheck(
        runtime=runtime,
        inputs=len(reference.parts),
        max_error=worst,
        rms_error=(squares / count) ** 0.5,
        relative_error=worst / largest if largest else worst,
        output_range=largest,
        measure=measure,
        torch=_quality(reference, reference.outputs) if measure else None,
        file=_quality(reference, results) if measure else None,
    )


def enlargement(size: InputSize, output: Array) -> int | None:
    """The whole number by which outputs [N, C, s H, s W] are larger, None for any other shape."""
    if output.ndim != 4 or output.shape[2] % size[2]:
        return None
    scale = output.shape[2] // size[2]
    return scale if output.shape[2:] == (scale * size[2], scale * size[3]) else None


def run_tiles(run: Run, picture: Array, size: InputSize, overlap: int) -> Array:
    """Enlarge a picture [C, H, W] of any size by a function of one size, tile by tile.

    Tiles overlap by ``overlap`` input pixels on each side, the radius of the receptive field, so
    no seam is seen. The picture is mirrored at its borders, as by the upscaler; a
    picture of just the file's size is run as it is.
    Raises ``UsageError`` for a tile that the overlap leaves nothing of.
    """
    outputs = _run(run, _tiles(picture, size, overlap), size[0])
    return _join(outputs, picture.shape, size, overlap)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin on the extended axis, the last one flush with its end."""
    step, total = tile - 2 * overlap, max(tile, length + 2 * overlap)
    return [*range(0, total - tile, step), total - tile]


def _overlap(shape: tuple[int, ...], size: InputSize, overlap: int) -> int:
    """A picture of the file's own size is run whole, with the network's own borders."""
    return 0 if tuple(shape[1:]) == tuple(size[2:]) else overlap


def _tiles(picture: Array, size: InputSize, overlap: int) -> Array:
    _, _, height, width = size
    overlap = _overlap(picture.shape, size, overlap)
    if min(height, width) <= 2 * overlap:
        raise UsageError(
            f"a tile of {height}x{width} is all border: tiles overlap by {overlap} on each side, "
            f"so more than {2 * overlap} are needed"
        )
    after = [
        max(overlap, tile - overlap - side)
        for side, tile in zip(picture.shape[1:], (height, width), strict=True)
    ]
    wide = np.pad(picture, [(0, 0), *((overlap, n) for n in after)], mode="symmetric")
    return np.stack(
        [
            wide[:, top : top + height, left : left + width]
            for top in _starts(picture.shape[1], height, overlap)
            for left in _starts(picture.shape[2], width, overlap)
        ]
    )


def _join(outputs: Array, shape: tuple[int, ...], size: InputSize, overlap: int) -> Array:
    """Tiles' outputs put together to [C', s H, s W]."""
    _, _, height, width = size
    overlap = _overlap(shape, size, overlap)
    scale = outputs.shape[2] // height
    rows = _starts(shape[1], height, overlap)
    columns = _starts(shape[2], width, overlap)
    # Tiles of a small picture reach past its end; what is too much is cut at the close.
    whole = np.zeros(
        (
            outputs.shape[1],
            scale * (rows[-1] + height - 2 * overlap),
            scale * (columns[-1] + width - 2 * overlap),
        ),
        dtype=outputs.dtype,
    )
    inner = (
        slice(scale * overlap, scale * (height - overlap)),
        slice(scale * overlap, scale * (width - overlap)),
    )
    for number, tile in enumerate(outputs):
        top, left = rows[number // len(columns)], columns[number % len(columns)]
        kept = tile[:, inner[0], inner[1]]
        whole[
            :,
            scale * top : scale * top + kept.shape[1],
            scale * left : scale * left + kept.shape[2],
        ] = kept
    return whole[:, : scale * shape[1], : scale * shape[2]]


def _run(run: Run, part: Array, batch: int) -> Array:
    return np.concatenate([run(stack) for stack in batches(list(part), batch)])[: len(part)]


def _as_array(sample: Array) -> Array:
    return np.asarray(sample, dtype=np.float32)


def _check(samples: Samples, size: InputSize, scale: int | None, output: Array) -> None:
    if not len(samples.inputs):
        raise UsageError("no pictures to compare on")
    for number, sample in enumerate(samples.inputs):
        shape = list(np.shape(sample))
        fits = shape == list(size[1:]) or (scale and len(shape) == 3 and shape[0] == size[1])
        if not fits:
            raise UsageError(f"picture {number} has shape {shape}: {list(size[1:])} is accepted")
    for name, given in (("truth", samples.truth), ("labels", samples.labels)):
        if given is not None and len(given) != len(samples.inputs):
            raise UsageError(f"{len(given)} {name} for {len(samples.inputs)} pictures")
    if samples.truth is not None:
        if scale is None:
            raise UsageError("a truth to compare with is for networks that enlarge pictures")
        for number, truth in enumerate(samples.truth):
            sample = samples.inputs[number]
            wanted = [output.shape[1], scale * sample.shape[1], scale * sample.shape[2]]
            if list(truth.shape) != wanted:
                raise UsageError(f"truth {number} has shape {list(truth.shape)}: {wanted} fits")
    if samples.labels is not None and output.ndim != 2:
        raise UsageError(f"labels are for classifiers; outputs are {list(output.shape)}")


def _measure_name(reference: Reference) -> str | None:
    if reference.samples.truth is not None:
        return "psnr"
    return "top-1" if reference.samples.labels is not None else None


def _quality(reference: Reference, outputs: Sequence[Array]) -> float:
    samples = reference.samples
    if samples.labels is not None:
        right = [
            int(found.argmax()) == label
            for found, label in zip(outputs, samples.labels, strict=True)
        ]
        return sum(right) / len(right)
    assert samples.truth is not None
    assert reference.scale is not None
    size = _size_of(reference)
    figures = [
        psnr(
            _last(truth),
            _last(np.clip(_join(found, sample.shape, size, samples.overlap), 0, 1)),
            crop=reference.scale,
            peak=1.0,
        )
        for sample, truth, found in zip(samples.inputs, samples.truth, outputs, strict=True)
    ]
    return float(np.mean(figures))


def _size_of(reference: Reference) -> InputSize:
    _, channels, height, width = reference.parts[0].shape
    return 1, channels, height, width


def _last(picture: Array) -> NDArray[np.float64]:
    return np.moveaxis(picture.astype(np.float64), 0, -1)
