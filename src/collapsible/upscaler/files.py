"""Enlarge picture files: one, many, folders; reading, network and writing overlap."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from collapsible.errors import CollapsibleError, PictureError, UsageError
from collapsible.imaging import (
    Picture,
    PngWriter,
    list_pictures,
    output_format,
    picture_info,
    read_picture,
    write_picture,
)
from collapsible.upscaler.upscaler import Upscaler

# Pictures with a result above this are neither read ahead nor kept waiting for the writer: a
# photograph of 12 megapixels x2. Four such results wait or are written at a time.
_LARGE_BYTES = 150_000_000
SUFFIXES = {
    "png": ".png",
    "jpeg": ".jpg",
    "jpg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
}


@dataclass(frozen=True)
class Job:
    """One picture to enlarge, and where the result goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``done``, ``kept`` (the target was there already) or ``failed``.

    ``seconds`` is the network's time, measured; ``size`` the result's width and height.
    """

    job: Job
    status: str
    seconds: float = 0.0
    size: tuple[int, int] | None = None
    error: str = ""


def _is_folder_target(output: Path, many: bool) -> bool:
    if output.is_dir():
        return True
    if output.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}:
        if many:
            raise UsageError(f"{output} is one file, but there are several pictures: give a folder")
        return False
    if output.suffix and not many:
        output_format(output)  # names the suffixes that would do
    return True


def plan_jobs(
    inputs: Iterable[Path],
    output: Path | None = None,
    *,
    scale: int = 2,
    recursive: bool = False,
    suffix: str | None = None,
) -> list[Job]:
    """Pair every picture with its target.

    A file's target is, without ``output``, NAME_x2.EXT beside it; a folder's, FOLDER_x2 with the
    same names inside. ``output`` is a file's name (for one picture) or a folder. ``suffix``
    changes the format; a GIF becomes a PNG.
    Raises ``UsageError`` for inputs that do not exist, folders without pictures, a target that is
    its own source, or one target for two pictures.
    """
    inputs = list(inputs)
    jobs: list[Job] = []
    many = len(inputs) > 1 or any(path.is_dir() for path in inputs)
    folder = output if output is not None and _is_folder_target(output, many) else None
    for given in inputs:
        if given.is_dir():
            found = list_pictures(given, recursive)
            target_folder = folder or given.with_name(f"{given.resolve().name}_x{scale}")
            inside = target_folder.resolve()
            found = [path for path in found if inside not in path.resolve().parents]
            if not found:
                deeper = "" if recursive else " (--recursive looks in its subfolders)"
                raise UsageError(f"no pictures in {given}{deeper}")
            pairs = [(path, target_folder / path.relative_to(given)) for path in found]
        elif given.exists():
            name = given.with_name(f"{given.stem}_x{scale}{given.suffix}")
            pairs = [(given, folder / given.name if folder else output or name)]
        else:
            raise UsageError(f"no such file or folder: {given}")
        for source, target in pairs:
            if output is None or folder is not None:
                kept = ".png" if target.suffix.lower() == ".gif" else target.suffix
                target = target.with_suffix(suffix or kept)
            jobs.append(Job(source, target))
    sources = {job.source.resolve() for job in jobs}
    seen: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise UsageError(
                f"{job.target} is an input: it would be overwritten by its enlargement"
            )
        if target in seen:
            raise UsageError(f"{seen[target]} and {job.source} would both become {job.target}")
        seen[target] = job.source
    return jobs


def _large(job: Job, scale: int) -> bool:
    info = picture_info(job.source)
    values = info.width * info.height * info.channels * scale**2
    return values * info.bits // 8 > _LARGE_BYTES


def _enlarged(picture: Picture, pixels: np.ndarray, scale: int) -> Picture:
    """The result with the source's profile and EXIF; the print size stays, so dpi grows."""
    dpi = tuple(d * scale for d in picture.dpi) if picture.dpi else None
    return replace(picture, pixels=pixels, dpi=dpi)


class _Pipeline:
    """Reader and writer threads around the network, each at most a picture or two ahead."""

    def __init__(self, upscaler: Upscaler, frame: int | None, quality: int) -> None:
        self.upscaler, self.frame, self.quality = upscaler, frame, quality
        self.read: queue.Queue[tuple[Job, Picture | Exception | None] | None] = queue.Queue(2)
        self.write: queue.Queue[tuple[Job, Picture, float] | None] = queue.Queue(2)
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.stop = threading.Event()

    def _put(self, where: queue.Queue, item: object) -> None:
        while not self.stop.is_set():
            try:
                where.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def reader(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self.stop.is_set():
                return
            try:
                # A large picture is read by the main thread itself, when nothing else is held.
                large = _large(job, self.upscaler.scale)
                item = None if large else read_picture(job.source, frame=self.frame)
            except Exception as error:
                self._put(self.read, (job, error))
            else:
                self._put(self.read, (job, item))
        self._put(self.read, None)

    def writer(self) -> None:
        while (item := self.write.get()) is not None:
            job, picture, seconds = item
            try:
                write_picture(job.target, picture, quality=self.quality)
            except Exception as error:
                self.outcomes.put(_failed(job, error))
            else:
                self.outcomes.put(_done(job, picture.pixels.shape, seconds))
            del item, picture
            self.write.task_done()

    def small(self, job: Job, picture: Picture) -> None:
        """Enlarge a picture and leave the result to the writer alone."""
        start = time.perf_counter()
        pixels = self.upscaler(picture.pixels)
        seconds = time.perf_counter() - start
        self.write.put((job, _enlarged(picture, pixels, self.upscaler.scale), seconds))

    def large(self, job: Job) -> Outcome:
        """Enlarge one large picture holding as little of it as the format allows."""
        self.write.join()  # what waits for the writer would be held besides
        picture = read_picture(job.source, frame=self.frame)
        height, width, channels = picture.pixels.shape
        shape = (height * self.upscaler.scale, width * self.upscaler.scale, channels)
        start = time.perf_counter()
        if output_format(job.target) == "PNG":
            facts = _enlarged(picture, picture.pixels, self.upscaler.scale)
            depth = 8 * picture.pixels.dtype.itemsize
            with PngWriter(
                job.target,
                *shape,
                bit_depth=depth,
                icc_profile=facts.icc_profile,
                exif=facts.exif,
                dpi=facts.dpi,
            ) as file:
                for band in self.upscaler.bands(picture.pixels):
                    file.write_rows(band.pixels)
            return _done(job, shape, time.perf_counter() - start)
        pixels = self.upscaler(picture.pixels)
        seconds = time.perf_counter() - start
        result = _enlarged(picture, pixels, self.upscaler.scale)
        del picture, pixels  # the writer needs the room
        write_picture(job.target, result, quality=self.quality)
        return _done(job, shape, seconds)


def _failed(job: Job, error: Exception) -> Outcome:
    if not isinstance(error, CollapsibleError):
        kind = type(error).__name__
        error = PictureError(f"{job.source}: {kind}: {error}")
    return Outcome(job, "failed", error=" ".join(str(error).split()))


def _done(job: Job, shape: tuple[int, ...], seconds: float) -> Outcome:
    return Outcome(job, "done", seconds, (shape[1], shape[0]))


def upscale_files(
    jobs: list[Job],
    upscaler: Upscaler,
    *,
    frame: int | None = None,
    quality: int = 95,
    overwrite: bool = False,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Enlarge files; a file that fails does not stop the others.

    Targets that exist are kept unless ``overwrite``: since a target appears only when it is
    complete, a run that was stopped goes on where it was. ``frame`` chooses one of an animated
    input's frames (from 0), ``quality`` (1 to 100) is JPEG's and WebP's.
    Returns one outcome per job, in the jobs' order. ``on_outcome`` hears each as it comes.
    """
    outcomes: dict[Path, Outcome] = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.job.target] = outcome
        if on_outcome:
            on_outcome(outcome)

    todo = []
    for job in jobs:
        if job.target.exists() and not overwrite:
            note(Outcome(job, "kept"))
            continue
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            note(_failed(job, PictureError(f"cannot write {job.target}: {reason}")))
            continue
        todo.append(job)
    # Closed here and now if ``note`` is interrupted, so that no thread is cut off in a file.
    with closing(_run(todo, _Pipeline(upscaler, frame, quality))) as finished:
        for outcome in finished:
            note(outcome)
    return [outcomes[job.target] for job in jobs]


def _run(jobs: list[Job], pipeline: _Pipeline) -> Generator[Outcome, None, None]:
    writer = threading.Thread(target=pipeline.writer, daemon=True)
    reader = threading.Thread(target=pipeline.reader, args=(jobs,), daemon=True)
    reader.start()
    writer.start()
    try:
        while (item := pipeline.read.get()) is not None:
            job, picture = item
            try:
                if isinstance(picture, Exception):
                    raise picture
                if picture is None:
                    yield pipeline.large(job)
                else:
                    pipeline.small(job, picture)
            except Exception as error:
                yield _failed(job, error)
            while not pipeline.outcomes.empty():
                yield pipeline.outcomes.get()
    except BaseException:
        # Interrupted: finish the picture that is being written, begin no other.
        pipeline.stop.set()
        while not pipeline.write.empty():
            pipeline.write.get_nowait()
        raise
    finally:
        pipeline.write.put(None)
        writer.join()
    while not pipeline.outcomes.empty():
        yield pipeline.outcomes.get()
