"""Classifiers by name, and trained ones as files: safetensors with a card beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError, WeightsError, require_packages
from collapsible.models.cards import (
    card_path,
    has_trained_card,
    read_trained_card,
    write_trained_card,
)
from collapsible.models.registry import create_model, load_state, read_state, save_weights

TASK = "classification"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a classifier's input, in the terms of timm's data configuration.

    The short side is resized to ``size / crop`` pixels, the centre ``size`` x ``size`` cut out,
    values divided by 255, ``mean`` subtracted and the result divided by ``std`` per RGB channel.
    ``crop_mode`` is ``center``, ``squash`` (both sides to the size) or ``border``.
    """

    size: int = 224
    crop: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"

    def transform(self) -> Callable[[Any], Tensor]:
        """From a Pillow RGB picture to the input float32 [3, size, size]; timm's own transform."""
        require_packages("classification", "timm", "torchvision", extra="train")
        from timm.data.transforms_factory import create_transform

        made: Any = create_transform(
            (3, self.size, self.size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop,
            crop_mode=self.crop_mode,
        )
        return made


@dataclass(frozen=True)
class ClassifierCard:
    """What a trained classifier is.

    ``classes`` are the names of its outputs, in order; ``metrics`` maps such as ``val/top1`` to a
    percentage; ``recipe`` is the name of the recipe; ``sha256`` that of the weights file.
    """

    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    recipe: str = ""
    training_data: str = ""
    parameters: int = 0
    sha256: str = ""


def create_classifier(name: str, classes: int | None = None, **options: Any) -> nn.Module:
    """A newly drawn classifier: ``timm:NAME`` or one of ``list_models()`` that classifies.

    ``classes`` is the number of outputs (None: the network's own). The network maps
    [N, 3, H, W] to scores [N, classes].
    Raises ``UnknownNameError`` for a name that nobody has and ``UsageError`` for options that the
    network does not take.
    """
    if classes is not None:
        options = {**options, "num_classes": classes}
    try:
        return create_model(name, **options)
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise UsageError(f"{name} cannot be built with {options}: {error}") from error


def check_classifier(network: nn.Module, name: str, classes: int, size: int) -> None:
    """Run two empty pictures through a network; raises ``UsageError`` unless scores come out."""
    was = network.training
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            scores = network.eval()(torch.zeros(2, 3, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UsageError(f"{name} does not take {size}x{size} RGB pictures: {error}") from error
    finally:
        network.train(was)
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if shape != (2, classes):
        raise UsageError(f"{name} is no classifier of {classes} classes: its output is {shape}")


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """What timm says of its network's input; ImageNet's usual values where it says nothing."""
    if not hasattr(network, "pretrained_cfg") and not hasattr(network, "default_cfg"):
        return Preprocessing()
    from timm.data.config import resolve_model_data_config

    found = resolve_model_data_config(network)
    channels, height, width = found["input_size"]
    if channels != 3 or height != width:
        raise UsageError(f"a classifier of square RGB pictures is accepted, not {(height, width)}")
    return Preprocessing(
        size=height,
        crop=float(found["crop_pct"]),
        interpolation=str(found["interpolation"]),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        crop_mode=str(found["crop_mode"]),
    )


def count_outputs(network: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many classes weights have, by the network's last layer; None if that is not known."""
    find_head = getattr(network, "get_classifier", None)
    head = find_head() if callable(find_head) else None
    name = next((name for name, module in network.named_modules() if module is head), "")
    weight = state.get(f"{name}.weight")
    return None if weight is None or weight.ndim < 2 else int(weight.shape[0])


def load_named_classifier(
    name: str, path: Path, **options: Any
) -> tuple[nn.Module, Preprocessing, int | None]:
    """A classifier by name with a file's weights, in evaluation mode; what it wants as input.

    The number of classes is the file's, which is the last value returned where it can be told.
    Raises ``WeightsError`` for a file of another network.
    """
    state = read_state(path)
    network = create_classifier(name, **options)
    found = count_outputs(network, state)
    if found is not None and "num_classes" not in options:
        network = create_classifier(name, found, **options)
    load_state(network, state, str(path))
    return network.float().eval(), preprocessing_of(network), found


def save_classifier(network: nn.Module, card: ClassifierCard, path: Path) -> None:
    """Write ``path`` (safetensors), then the card beside it; each whole or not at all."""
    save_weights(network, path)
    write_card(network, card, path)


def write_card(network: nn.Module, card: ClassifierCard, path: Path) -> None:
    """Write the card of weights that lie at ``path`` already."""
    write_trained_card(network, card, path, TASK)


def has_classifier_card(weights: Path) -> bool:
    """Whether the file has a classifier's card beside it."""
    return has_trained_card(weights, TASK)


def read_classifier_card(weights: Path) -> ClassifierCard:
    """The card beside a weights file; raises ``WeightsError`` if it is missing or none."""

    def restore(record: dict[str, Any]) -> dict[str, Any]:
        steps = dict(record["preprocessing"])
        steps |= {key: tuple(steps[key]) for key in ("mean", "std")}
        return {"preprocessing": Preprocessing(**steps), "classes": tuple(record["classes"])}

    return read_trained_card(weights, ClassifierCard, TASK, restore)


def load_classifier(path: str | Path) -> tuple[nn.Module, ClassifierCard]:
    """A trained classifier from its safetensors file and the card beside it.

    The network is in evaluation mode, fp32, and maps RGB pictures prepared as
    ``card.preprocessing`` says, [N, 3, size, size], to scores [N, len(card.classes)].
    Raises ``WeightsError`` where a file is missing, damaged or does not belong to its card.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no classifier at {path}")
    card = read_classifier_card(path)
    if card.sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256:
        raise WeightsError(f"{path} is not the file that {card_path(path).name} describes")
    network = create_classifier(card.architecture, len(card.classes), **_options(card))
    load_state(network, read_state(path), str(path))
    return network.float().eval(), card


def _options(card: ClassifierCard) -> dict[str, Any]:
    return {key: value for key, value in card.options.items() if key != "num_classes"}


def describe_classes(classes: Sequence[str]) -> str:
    """``10 classes (a, b, c, ...)``."""
    few = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{len(classes)} class{'es' if len(classes) != 1 else ''} ({few})"
