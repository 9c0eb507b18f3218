"""Top-1 and top-5 of a classifier on labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from collapsible.errors import UsageError, WeightsError, require_packages
from collapsible.evaluation.labelled import LabelledPictures, find_labelled, find_part
from collapsible.weights import list_cards, normalise_name

if TYPE_CHECKING:
    from torch import nn

    from collapsible.models.trained import Preprocessing

BATCH = 50
TOP = 5


class Labelled(Protocol):
    """Pictures with labels, however they are kept."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class ClassScore:
    """One class: how many pictures it has and the percentage classified as it."""

    name: str
    pictures: int
    top1: float | None


@dataclass(frozen=True)
class ClassificationReport:
    """Measured percentages: the right class is the first (``top1``) or among the first five.

    ``outputs`` is how many classes the network chooses among, which may be more than the data
    have.
    """

    model: str
    data: str
    pictures: int
    outputs: int
    size: int
    top1: float
    top5: float
    protocol: str
    classes: tuple[ClassScore, ...]

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    def table(self) -> str:
        """The report as lines of text for people."""
        width = max(5, *(len(score.name) for score in self.classes))
        lines = [
            f"{self.model} on {self.data}: {self.pictures:,} pictures at {self.size}x{self.size}, "
            f"best of {self.outputs} classes; measured",
            f"top-1  {self.top1:6.2f} %",
            f"top-5  {self.top5:6.2f} %",
            f"{'class':{width}}  {'pictures':>8}  {'top-1':>6}",
        ]
        lines += [
            f"{score.name:{width}}  {score.pictures:8,}  "
            + (f"{'-':>6}" if score.top1 is None else f"{score.top1:6.2f}")
            for score in self.classes
        ]
        return "\n".join(lines)


def is_classifier(model: str | Path) -> bool:
    """Whether a model, as the command line names it, is a classifier rather than an upscaler."""
    if str(model).startswith("timm:"):
        return True
    path = Path(model)
    shipped = {card.architecture for card in list_cards()}
    if str(model).lower() == "bicubic" or normalise_name(str(model)) in shipped:
        return False
    if find_spec("torch") is None:
        return False
    from collapsible.models.trained import has_classifier_card

    if path.suffix == ".safetensors":
        return has_classifier_card(path)
    return _registered_classifier(str(model))


def _registered_classifier(name: str) -> bool:
    import torch

    from collapsible.models import create_model, list_models

    if normalise_name(name) not in list_models():
        return False
    with torch.device("meta"):
        return hasattr(create_model(name), "num_classes")


def evaluate_classifier(
    model: str | Path,
    data: str | Path,
    *,
    weights: str | Path | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> ClassificationReport:
    """Measure a classifier: the field's top-1 and top-5, one centre crop, in fp32.

    ``model`` is the safetensors file of a trained classifier (its card beside it), or a name:
    ``timm:NAME`` or one of ours, with ``weights``. ``data`` is a folder of class folders or tar
    shards, or one with ``val`` (or ``validation``, ``test``) inside. Pictures are prepared as the
    classifier's card or timm's data configuration says. Where the folder has fewer classes than
    the network, they are found by name: in the card, or among ImageNet's wnids.
    Raises ``UsageError``, ``UnknownNameError``, ``WeightsError``, ``PictureError`` and
    ``MissingExtraError``.
    """
    require_packages(
        "evaluating a classifier", "torch", "timm", "torchvision", "safetensors", extra="train"
    )
    import torch

    from collapsible.models.trained import (
        check_classifier,
        has_classifier_card,
        load_classifier,
        load_named_classifier,
        read_classifier_card,
    )

    folder = Path(data)
    pictures = find_labelled(find_part(folder, "val") or folder)
    known: tuple[str, ...] = ()
    if Path(model).suffix == ".safetensors":
        if weights is not None:
            raise UsageError(f"{model} is a file of weights already: --weights goes with a name")
        network, card = load_classifier(model)
        known, steps = card.classes, card.preprocessing
        outputs = len(known)
    elif weights is None:
        raise UsageError(f"{model}: no weights are shipped for it; give a file of them (--weights)")
    else:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"no weights at {path}")
        network, steps, found = load_named_classifier(str(model), path)
        if has_classifier_card(path):
            card = read_classifier_card(path)
            known, steps = card.classes, card.preprocessing
        outputs = len(known) or found or int(getattr(network, "num_classes", 0))
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    places = match_classes(pictures, known, outputs)
    check_classifier(network, str(model), outputs, steps.size)
    first, among = score_pictures(network, pictures, steps, places=places, on_picture=on_picture)
    return ClassificationReport(
        model=str(model),
        data=str(pictures.root),
        pictures=len(pictures),
        outputs=outputs,
        size=steps.size,
        top1=100 * float(first.mean()),
        top5=100 * float(among.mean()),
        protocol=f"one {steps.crop_mode} crop, {steps.interpolation}, short side to "
        f"{int(steps.size / steps.crop)}, fp32; top-{min(TOP, outputs)} of {outputs} classes",
        classes=_by_class(pictures, first),
    )


def _by_class(pictures: LabelledPictures, first: NDArray[np.bool_]) -> tuple[ClassScore, ...]:
    labels = np.array([picture.label for picture in pictures.pictures])
    return tuple(
        ClassScore(name, int(chosen.sum()), 100 * float(first[chosen].mean()))
        if (chosen := labels == place).any()
        else ClassScore(name, 0, None)
        for place, name in enumerate(pictures.classes)
    )


def match_classes(pictures: LabelledPictures, known: Sequence[str], outputs: int) -> list[int]:
    """Which output of a network stands for each class of the data.

    ``known`` are the names of the outputs, if there are any. Raises ``UsageError`` where the
    classes cannot be matched.
    """
    classes = pictures.classes
    if not pictures.named and len(classes) <= outputs:
        return list(range(len(classes)))
    if not known and outputs == 1000:
        from timm.data.imagenet_info import ImageNetInfo

        names = ImageNetInfo("imagenet-1k").label_names()
        known = names if set(classes) <= set(names) else ()
    if known and pictures.named:
        at = {name: place for place, name in enumerate(known)}
        missing = [name for name in classes if name not in at]
        if missing:
            raise UsageError(
                f"the classifier does not know {', '.join(missing[:5])} of {pictures.root}; "
                f"its {len(known)} classes are {', '.join(known[:5])}, ..."
            )
        return [at[name] for name in classes]
    if len(classes) != outputs:
        raise UsageError(
            f"the network has {outputs} classes and {pictures.root} has {len(classes)}, "
            "and nothing says which is which"
        )
    return list(range(outputs))


def score_pictures(
    network: nn.Module,
    pictures: Labelled,
    steps: Preprocessing,
    *,
    places: Sequence[int] | None = None,
    threads: int | None = None,
    on_picture: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per picture, whether its class is the network's first, and whether among its first five.

    ``places`` maps the pictures' labels to the network's outputs. Pictures are prepared in
    ``threads`` (by default as many as torch computes with), one batch ahead.
    Raises ``PictureError`` for a picture that cannot be read.
    """
    import torch
    from PIL import Image

    transform = steps.transform()
    device = next(network.parameters()).device

    def prepare(index: int) -> Any:
        return transform(Image.fromarray(pictures.read(index)))

    total = len(pictures)
    labels = np.array([pictures.label(index) for index in range(total)], dtype=np.int64)
    wanted = labels if places is None else np.asarray(places, dtype=np.int64)[labels]
    first, among = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
    was = network.training
    network.eval()
    pool = ThreadPoolExecutor(threads or max(1, torch.get_num_threads()))
    try:
        ahead = [pool.submit(prepare, index) for index in range(min(BATCH, total))]
        for start in range(0, total, BATCH):
            batch = torch.stack([item.result() for item in ahead])
            end = start + len(ahead)
            ahead = [pool.submit(prepare, i) for i in range(end, min(end + BATCH, total))]
            with torch.inference_mode():
                batch = batch.to(device, memory_format=torch.channels_last)
                scores = network(batch).float().cpu()
            best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices.numpy()
            hits = best == wanted[start:end, None]
            first[start:end], among[start:end] = hits[:, 0], hits.any(1)
            if on_picture is not None:
                on_picture(end, total)
    finally:
        pool.shutdown(cancel_futures=True)
        network.train(was)
    return first, among
