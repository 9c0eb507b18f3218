"""The detection task: pictures with boxes, Faster R-CNN's own losses, average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from collapsible.errors import UsageError, WeightsError
from collapsible.evaluation.boxed import BoxedPictures, find_boxed, has_part
from collapsible.evaluation.detection import detect_all, score_boxes
from collapsible.models.detector import (
    Detector,
    DetectorCard,
    create_detector,
    has_detector_card,
    load_backbone,
    read_detector_card,
    to_input,
    write_detector_card,
)
from collapsible.models.registry import load_state, read_state
from collapsible.training.loop import Progress, TrainingReport, train
from collapsible.training.recipes import NetworkSpec, Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_ORDER = 1 << 41


class Detection:
    """Draws batches and validates, for one recipe on pictures with boxes (see ``find_boxed``).

    ``recipe`` is the one given with the classes filled in. Pictures are flipped from left to
    right with the probability ``augment.flip``, and nothing else. ``skipped`` names the pictures
    that were left out and the boxes that were clipped or dropped.
    """

    feeds_targets = True

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        validation: Mapping[str, Path] | None = None,
        *,
        strict: bool = False,
    ) -> None:
        part = "train" if data.is_dir() and has_part(data, "train") else ""
        self.pictures = find_boxed(data, part, recipe.data.classes, strict=strict)
        given = recipe.network.options.get("classes", len(self.pictures.classes))
        if given != len(self.pictures.classes):
            raise UsageError(
                f"{recipe.name}: network.options.classes = {given}, but the data have "
                f"{len(self.pictures.classes)} ({', '.join(self.pictures.classes[:5])})"
            )
        self.recipe = complete_recipe(recipe, self.pictures.classes)
        folders = dict(validation or ({"val": data} if part and has_part(data, "val") else {}))
        self.sets: dict[str, BoxedPictures] = {}
        for name, folder in folders.items():
            own = "val" if folder.is_dir() and has_part(folder, "val") else ""
            classes = self.pictures.classes
            self.sets[name] = find_boxed(folder, own, classes, strict=strict)
        known = (self.pictures, *self.sets.values())
        self.skipped = [note for one in known for note in (*one.skipped, *one.faults)]

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        """Pictures [N, 3, H, W] and targets [N, 1 + M, 5] as ``Detector`` takes them."""
        drawn = [self._one(step, place) for place in places]
        height = max(image.shape[1] for image, _ in drawn)
        width = max(image.shape[2] for image, _ in drawn)
        pictures = torch.zeros(len(drawn), 3, height, width)
        targets = torch.zeros(len(drawn), max(len(t) for _, t in drawn), 5)
        for number, (image, target) in enumerate(drawn):
            pictures[number, :, : image.shape[1], : image.shape[2]] = image
            targets[number, : len(target)] = target
        return pictures, targets

    def _one(self, step: int, place: int) -> tuple[Tensor, Tensor]:
        count = len(self.pictures)
        epoch, rest = divmod(step * self.recipe.data.batch + place, count)
        picture = self.pictures.pictures[int(_order(self.recipe.seed, epoch, count)[rest])]
        random = np.random.default_rng((self.recipe.seed, step, place))
        image = to_input(picture.read())
        real = ~picture.crowd
        boxes, labels = (
            torch.from_numpy(picture.boxes[real]),
            torch.from_numpy(picture.labels[real]),
        )
        if random.random() < self.recipe.augment.flip:
            image = image.flip(2)
            boxes = boxes[:, [2, 1, 0, 3]]
            boxes[:, [0, 2]] = picture.width - boxes[:, [0, 2]]
        target = torch.zeros(1 + len(boxes), 5)
        target[0, :2] = torch.tensor([picture.height, picture.width])
        target[1:, 0], target[1:, 1:] = labels, boxes
        return image, target

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The network's own: the sum of the proposals' two losses and the regions' two."""
        return output

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Average precision in per cent of each validation set."""
        result = {}
        for name, pictures in self.sets.items():
            scores = score_boxes(pictures, detect_all(network, pictures))
            result[f"{name}/mAP"] = scores.map or 0.0
            result[f"{name}/mAP50"] = scores.map50 or 0.0
        return result

    def describe(self, network: nn.Module, report: TrainingReport) -> DetectorCard:
        """Write the card beside a finished run's weights, and return it."""
        options = _options(self.recipe)
        card = DetectorCard(
            backbone=self.recipe.network.name,
            form=options.pop("form", "fpn"),
            classes=self.pictures.classes,
            size=self.recipe.data.size,
            max_size=options.pop("max_size", _longest(self.recipe)),
            options=options,
            metrics=report.metrics,
            recipe=self.recipe.name,
            training_data=f"{self.pictures.root.name}, {len(self.pictures)} pictures",
        )
        write_detector_card(network, card, report.weights)
        return card


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


def _longest(recipe: Recipe) -> int:
    # The paper's 800 and 1200.
    return recipe.data.size * 3 // 2


def _options(recipe: Recipe) -> dict:
    return {key: value for key, value in recipe.network.options.items() if key != "classes"}


def complete_recipe(recipe: Recipe, classes: tuple[str, ...]) -> Recipe:
    """The recipe with its classes and their number."""
    spec = recipe.network
    network = NetworkSpec(spec.name, spec.scale, {**spec.options, "classes": len(classes)})
    return replace(recipe, network=network, data=replace(recipe.data, classes=classes))


def build_detector(recipe: Recipe, start: Path | None = None) -> Detector:
    """The network of a completed recipe, drawn from its seed.

    ``start`` is a detector's file of weights, or a classifier's, whose backbone is then taken.
    Raises ``UsageError`` where a detector is of other classes, ``WeightsError`` where weights are
    of another network.
    """
    torch.manual_seed(recipe.seed)
    classes = int(recipe.network.options["classes"])
    options = {"max_size": _longest(recipe), **_options(recipe)}
    network = create_detector(recipe.network.name, classes, size=recipe.data.size, **options)
    if start is None:
        return network
    if not start.is_file():
        raise UsageError(f"no weights to start from at {start}")
    if not has_detector_card(start):
        load_backbone(network, start)
        return network
    card = read_detector_card(start)
    if card.classes != recipe.data.classes:
        raise UsageError(
            f"{start} knows {len(card.classes)} classes ({', '.join(card.classes[:5])}); the data "
            f"have {len(recipe.data.classes)} ({', '.join(recipe.data.classes[:5])})"
        )
    if card.backbone != recipe.network.name:
        raise WeightsError(f"{start} is of {card.backbone}, the recipe of {recipe.network.name}")
    load_state(network, read_state(start), str(start))
    return network


def train_detector(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    validation: Mapping[str, Path] | None = None,
    start: Path | None = None,
    strict: bool = False,
    fabric: Fabric | None = None,
    resume: bool = False,
    workers: int = 0,
    on_step: Callable[[Progress], None] | None = None,
    stop_after: int | None = None,
) -> tuple[TrainingReport, Detection]:
    """Train a detector: pictures, network, loop, and the card beside the finished weights.

    ``load_detector(folder / "weights.safetensors")`` then gives it back. Arguments and errors are
    those of ``Detection``, ``build_detector`` and ``train``.
    """
    task = Detection(recipe, data, validation, strict=strict)
    network = build_detector(task.recipe, start)
    report = train(
        network,
        task,
        task.recipe,
        folder,
        fabric=fabric,
        resume=resume,
        workers=workers,
        on_step=on_step,
        stop_after=stop_after,
    )
    if fabric is None or fabric.is_global_zero:
        task.describe(network, report)
    return report, task
