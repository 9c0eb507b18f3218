"""Classifiers in int8: the file, its accuracy by the LiteRT interpreter, and training for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsible.deploy.fake_quant import FakeQuantised, fake_quantise
from collapsible.deploy.litert import run_litert, save_litert
from collapsible.deploy.samples import choose
from collapsible.errors import UsageError, require_packages
from collapsible.evaluation.classification import BATCH, Labelled, score_pictures
from collapsible.models.registry import load_state, read_state
from collapsible.models.trained import Preprocessing
from collapsible.search.distillation import DistilTask, teacher_beside
from collapsible.training.classification import Classification
from collapsible.training.loop import Progress, train
from collapsible.training.recipes import Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CALIBRATION = 64
"""Training pictures that ranges are taken from."""
RATE, DISTIL = 2e-4, 0.5
OnPicture = Callable[[int, int], None]


@dataclass(frozen=True)
class Int8Report:
    """Top-1 in per cent, measured on ``pictures`` validation pictures: of the fp32 network, of the
    int8 file made of it as it is (``after``), and of the one made after ``steps`` of training in
    int8 form (``trained``; None without), which then is the one in ``file``.
    """

    fp32: float
    after: float
    trained: float | None
    steps: int
    pictures: int
    file: str

    def table(self) -> str:
        """The figures in a line for people."""
        more = "" if self.trained is None else f", trained {self.steps} steps {self.trained:.2f} %"
        return (
            f"int8         fp32 {self.fp32:.2f} %, int8 {self.after:.2f} %{more} "
            f"(measured, {self.pictures:,} pictures): {self.file}"
        )


def draw_calibration(task: Classification, count: int = CALIBRATION) -> list[NDArray[np.float32]]:
    """Evenly chosen training pictures of a task, prepared as for validation: [C, H, W] each."""
    from PIL import Image

    transform = task.preprocessing.transform()
    places = choose(range(len(task.pictures)), count)
    return [transform(Image.fromarray(task.pictures.read(place))).numpy() for place in places]


def score_file(
    path: str | Path,
    pictures: Labelled,
    steps: Preprocessing,
    *,
    on_picture: OnPicture | None = None,
) -> NDArray[np.bool_]:
    """For each picture, whether a ``.tflite`` classifier's highest score is its class.

    By the LiteRT interpreter, in whole numbers where the file is int8. Raises ``ExportError`` and
    ``PictureError`` where one cannot be read, ``MissingExtraError`` without the interpreter.
    """
    from PIL import Image

    transform, total = steps.transform(), len(pictures)
    right = np.zeros(total, np.bool_)

    def prepare(index: int) -> Tensor:
        return transform(Image.fromarray(pictures.read(index)))

    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for start in range(0, total, BATCH):
            places = range(start, min(start + BATCH, total))
            batch = torch.stack(list(pool.map(prepare, places))).numpy()
            scores = run_litert(path, batch)
            labels = np.array([pictures.label(place) for place in places])
            right[start : places.stop] = scores.argmax(1) == labels
            if on_picture is not None:
                on_picture(places.stop, total)
    return right


def train_int8(
    network: nn.Module,
    task: Classification,
    folder: str | Path,
    *,
    steps: int,
    teacher: nn.Module | None = None,
    calibration: int = CALIBRATION,
    rate: float = RATE,
    fabric: Fabric | None = None,
    resume: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> tuple[nn.Module, FakeQuantised]:
    """Fine-tune a network in its int8 form, and give back the plain network, ready for export.

    ``network`` is collapsed; without a ``teacher`` it is its own, as it was. The task's recipe
    says how to train, but for ``rate`` and ``steps``. Ranges move with the batches in the first
    half and are kept in the second. Returns the trained network without rounding and the one with.
    Raises ``UsageError`` for a network that cannot be traced and as ``train`` does.
    """
    if steps < 2:
        raise UsageError(f"steps={steps}: the least is 2")
    form = fake_quantise(network, draw_calibration(task, calibration))
    recipe = int8_recipe(task.recipe, steps, rate)
    teacher = teacher or copy.deepcopy(network).eval()

    wrapped = _Halfway(DistilTask(task, steps, DISTIL), form, steps // 2)
    with teacher_beside(form, teacher):
        report = train(
            form, wrapped, recipe, Path(folder), fabric=fabric, resume=resume, on_step=on_step
        )
    load_state(form, read_state(report.weights), str(report.weights))
    form = form.cpu().eval()
    return form.plain(), form


def int8_recipe(recipe: Recipe, steps: int, rate: float = RATE) -> Recipe:
    """A recipe for the last steps, in int8 form."""
    return replace(
        recipe,
        name="int8",
        steps=steps,
        optimiser=replace(recipe.optimiser, learning_rate=rate),
        average=min(recipe.average, 0.98),
        validate_every=steps,
        precision="fp32",
    )


class _Halfway(DistilTask):
    """The task, which keeps the ranges from the given step on."""

    def __init__(self, task: DistilTask, form: FakeQuantised, step: int) -> None:
        super().__init__(task.task, task.steps, task.distil)
        self.form, self.step = form, step

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if float(target[0, -1]) * self.steps >= self.step - 0.5:
            self.form.freeze()
        return super().loss(output, target)

    def validate(self, network: nn.Module) -> dict[str, float]:
        return {}


def make_int8(
    network: nn.Module,
    task: Classification,
    path: str | Path,
    *,
    steps: int = 0,
    teacher: nn.Module | None = None,
    calibration: int = CALIBRATION,
    fabric: Fabric | None = None,
    resume: bool = False,
    on_progress: Callable[[str, int, int, str], None] | None = None,
) -> Int8Report:
    """Write a collapsed classifier as an int8 ``.tflite`` file, calibrated on training pictures.

    With ``steps`` it is then trained in int8 form, below the folder of ``path``, and the file is
    of the trained one. Accuracies are measured on the task's first validation set.
    Raises ``UsageError`` for a task without one, ``ExportError`` where it cannot be converted.
    """
    require_packages(
        "int8 files", "litert_torch", "ai_edge_quantizer", "ai_edge_litert", extra="edge"
    )
    path, show = Path(path), on_progress or (lambda *_: None)
    pictures = next(iter(task.sets.values()), None)
    if pictures is None:
        raise UsageError("no validation pictures to measure the int8 file on")
    side = task.preprocessing.size
    arrays = draw_calibration(task, calibration)

    def write(one: nn.Module, to: Path) -> float:
        save_litert(one, to, (1, 3, side, side), calibration=arrays)
        hits = score_file(
            to, pictures, task.preprocessing, on_picture=lambda n, of: show("int8", n, of, to.name)
        )
        return 100 * float(hits.mean())

    path.parent.mkdir(parents=True, exist_ok=True)
    fp32 = 100 * float(score_pictures(network, pictures, task.preprocessing)[0].mean())
    after, trained = write(network, path), None
    if steps:
        tuned, _ = train_int8(
            network,
            task,
            path.parent / "int8",
            steps=steps,
            teacher=teacher,
            calibration=calibration,
            fabric=fabric,
            resume=resume,
            on_step=lambda now: show(
                "training in int8", now.step, now.steps, f"loss {now.loss:.3f}"
            ),
        )
        trained = write(tuned, path)
    return Int8Report(fp32, after, trained, steps, len(pictures), str(path))
