"""The classification task: labelled pictures, the ConvNeXt recipe's parts, top-1 and top-5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from collapsible.errors import UsageError
from collapsible.evaluation.classification import score_pictures
from collapsible.evaluation.labelled import LabelledPictures, find_labelled, find_part
from collapsible.models.registry import load_state, read_state
from collapsible.models.trained import (
    ClassifierCard,
    Preprocessing,
    check_classifier,
    count_outputs,
    create_classifier,
    describe_classes,
    has_classifier_card,
    preprocessing_of,
    read_classifier_card,
    write_card,
)
from collapsible.training.augment import Augmenter, draw_mix, mix_pairs
from collapsible.training.decoded import DEFAULT_BOUND, DecodedPictures
from collapsible.training.loop import Progress, TrainingReport, train
from collapsible.training.recipes import NetworkSpec, Recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# Told apart from the draws of single pictures, whose last number is a place.
_MIX = 1 << 40


class Classification:
    """Draws batches, computes the loss and validates, for one recipe on labelled pictures.

    ``recipe`` is the one given with the classes and their number filled in, so that a run knows
    them when it is resumed. ``validation`` maps names to folders; without it, the data folder's
    own ``val`` is taken where there is one. The network's own normalisation is used; ``network`` is
    one that no name stands for.
    Raises ``UsageError`` and ``PictureError`` as ``find_labelled`` and ``DecodedPictures`` do.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        validation: Mapping[str, Path] | None = None,
        *,
        strict: bool = False,
        bound: int = DEFAULT_BOUND,
        on_picture: Callable[[int, int], None] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        source = find_labelled(find_part(data, "train") or data, recipe.data.classes)
        self.pictures = DecodedPictures(source, bound=bound, strict=strict, on_picture=on_picture)
        self.skipped = self.pictures.skipped
        self.recipe = complete_recipe(recipe, source.classes)
        own = find_part(data, "val")
        folders = dict(validation or ({"val": own} if own else {}))
        self.sets = {
            name: _all_readable(find_labelled(find_part(folder, "val") or folder, source.classes))
            for name, folder in folders.items()
        }
        network = network or build_classifier(self.recipe)
        self.preprocessing = chosen_preprocessing(self.recipe, network)
        self.augment = Augmenter(recipe.augment, self.preprocessing, recipe.data.size)
        self.mixes = recipe.augment.mixup > 0 or recipe.augment.cutmix > 0

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        """Inputs float32 [N, 3, S, S], normalised, and the classes' probabilities [N, K]."""
        if self.mixes and (places.start % 2 or len(places) % 2):
            raise UsageError(f"mixup and cutmix pair pictures: {len(places)} a process is odd")
        drawn = [self._one(step, place) for place in places]
        inputs = torch.from_numpy(np.stack([values for values, _ in drawn]))
        labels = torch.tensor([label for _, label in drawn])
        targets = nn.functional.one_hot(labels, len(self.pictures.classes)).float()
        if self.mixes:
            random = np.random.default_rng((self.recipe.seed, step, _MIX))
            mix = draw_mix(self.recipe.augment, self.recipe.data.size, random)
            inputs, targets = mix_pairs(inputs, targets, mix)
        return inputs, targets

    def _one(self, step: int, place: int) -> tuple[np.ndarray, int]:
        # Epochs without replacement: each is a permutation of its own.
        count = len(self.pictures)
        epoch, rest = divmod(step * self.recipe.data.batch + place, count)
        index = int(_order(self.recipe.seed, epoch, count)[rest])
        random = np.random.default_rng((self.recipe.seed, step, place))
        return self.augment(self.pictures.read(index), random), self.pictures.label(index)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in fp32 against the mixed, smoothed probabilities."""
        return nn.functional.cross_entropy(
            output.float(), target, label_smoothing=self.recipe.augment.smoothing
        )

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 in per cent of each validation set, as ``collapsible evaluate`` has."""
        result = {}
        for name, pictures in self.sets.items():
            first, among = score_pictures(network, pictures, self.preprocessing)
            result[f"{name}/top1"] = 100 * float(first.mean())
            result[f"{name}/top5"] = 100 * float(among.mean())
        return result

    def describe(self, network: nn.Module, report: TrainingReport) -> ClassifierCard:
        """Write the card beside a finished run's weights, and return it."""
        spec = self.recipe.network
        card = ClassifierCard(
            architecture=spec.name,
            classes=self.pictures.classes,
            preprocessing=self.preprocessing,
            options=dict(spec.options),
            metrics=report.metrics,
            recipe=self.recipe.name,
            training_data=f"{self.pictures.source.root.resolve().parent.name}/"
            f"{self.pictures.source.root.name}, {len(self.pictures)} pictures",
        )
        write_card(network, card, report.weights)
        return card


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, _MIX, epoch)).permutation(count)


def _all_readable(pictures: LabelledPictures) -> DecodedPictures:
    return DecodedPictures(pictures, strict=True)


def complete_recipe(recipe: Recipe, classes: tuple[str, ...]) -> Recipe:
    """The recipe with its classes and their number; ``UsageError`` if it says another number."""
    options = dict(recipe.network.options)
    given = options.setdefault("num_classes", len(classes))
    if given != len(classes):
        raise UsageError(
            f"{recipe.name}: network.options.num_classes = {given}, "
            f"but the data have {describe_classes(classes)}"
        )
    network = NetworkSpec(recipe.network.name, recipe.network.scale, options)
    return replace(recipe, network=network, data=replace(recipe.data, classes=classes))


def chosen_preprocessing(recipe: Recipe, network: nn.Module) -> Preprocessing:
    """The network's own normalisation with the recipe's sizes and resampling."""
    data = recipe.data
    return replace(
        preprocessing_of(network),
        size=data.test_size or data.size,
        crop=data.test_crop,
        interpolation=data.interpolation,
        crop_mode="center",
    )


def build_classifier(recipe: Recipe, start: Path | None = None) -> nn.Module:
    """The network of a completed recipe, drawn from its seed or started from weights.

    Raises ``UsageError`` where the weights are of other classes, and ``WeightsError`` where they
    are of another network.
    """
    torch.manual_seed(recipe.seed)
    spec = recipe.network
    network = create_classifier(spec.name, **spec.options)
    classes = int(spec.options["num_classes"])
    check_classifier(network, spec.name, classes, recipe.data.size)
    if start is None:
        return network
    if not start.is_file():
        raise UsageError(f"no weights to start from at {start}")
    if has_classifier_card(start):
        known = read_classifier_card(start).classes
        if recipe.data.classes and known != recipe.data.classes:
            raise UsageError(
                f"{start} knows {describe_classes(known)}; "
                f"the data have {describe_classes(recipe.data.classes)}"
            )
    state = read_state(start)
    found = count_outputs(network, state)
    if found not in (None, classes):
        raise UsageError(f"{start} is a classifier of {found} classes; the data have {classes}")
    load_state(network, state, str(start))
    return network


def train_classifier(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    validation: Mapping[str, Path] | None = None,
    start: Path | None = None,
    strict: bool = False,
    bound: int = DEFAULT_BOUND,
    fabric: Fabric | None = None,
    resume: bool = False,
    workers: int = 0,
    on_step: Callable[[Progress], None] | None = None,
    on_picture: Callable[[int, int], None] | None = None,
    stop_after: int | None = None,
) -> tuple[TrainingReport, Classification]:
    """Train a classifier: pictures, network, loop, and the card beside the finished weights.

    ``load_classifier(folder / "weights.safetensors")`` then gives it back. Arguments and errors
    are those of ``Classification``, ``build_classifier`` and ``train``.
    """
    task = Classification(
        recipe, data, validation, strict=strict, bound=bound, on_picture=on_picture
    )
    network = build_classifier(task.recipe, start)
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
