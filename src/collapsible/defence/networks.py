"""Classifiers by name or from a TOML file, with their weights, padding and normalisation."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.defence.integers import INT8, IntegerForm
from collapsible.errors import UnknownNameError, UsageError, WeightsError, require_packages
from collapsible.models import create_model
from collapsible.models.registry import load_state, read_state
from collapsible.models.trained import read_classifier_card

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PADDINGS = ("torch", "same")
PRECISIONS = ("fp32", INT8)


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier, its weights and what it expects.

    ``network`` is ``timm:NAME``, ``torchvision:NAME`` or one of ``list_models()``; ``weights`` a
    file of them (safetensors, or a torch file of tensors). ``mean`` and ``std`` are of channels in
    [0, 1]; left out, they are what timm or torchvision say. ``padding="same"`` pads strided
    convolutions as TensorFlow does, for weights that were trained there. ``classes`` is a file
    that names the outputs (see ``read_classes``), ``outputs`` their names in order.
    ``precision="int8"`` runs it as an int8 LiteRT file, calibrated with the plan's pictures.
    ``options`` go to the network's constructor. ``resize`` as for ``DefendedClassifier``.
    """

    name: str
    network: str
    weights: str
    num_classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    padding: str = "torch"
    classes: str | None = None
    resize: int | None = None
    outputs: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    precision: str = "fp32"


@dataclass(frozen=True, eq=False)
class LoadedClassifier:
    """A classifier in evaluation mode with what ``DefendedClassifier`` needs to know."""

    spec: ClassifierSpec
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: int


def read_classifier(text: str | Path) -> ClassifierSpec:
    """A classifier as the command line names it.

    ``NETWORK@WEIGHTS``; or a TOML file with the keys of ``ClassifierSpec``, whose paths are
    relative to the file and whose ``name`` is the file's own unless given; or a safetensors file
    with the card that training leaves beside it, named by the run's folder.
    Raises ``UsageError``, ``UnknownNameError`` and ``WeightsError``.
    """
    text = str(text)
    if text.endswith(".toml"):
        return _read_file(Path(text))
    if text.endswith(".safetensors") and "@" not in text:
        return _read_card(Path(text))
    network, at, weights = text.partition("@")
    if not at or not weights:
        raise UsageError(
            f"classifier {text!r}: give NETWORK@WEIGHTS, such as timm:resnet18@resnet18.safetensors"
            ", a TOML file, or the weights.safetensors of a training run (nothing is downloaded)"
        )
    name = network.partition(":")[2] or network
    return ClassifierSpec(name, network, weights)


def _read_card(path: Path) -> ClassifierSpec:
    card = read_classifier_card(path)
    return ClassifierSpec(
        name=path.parent.name if path.stem == "weights" else path.stem,
        network=card.architecture,
        weights=str(path),
        num_classes=len(card.classes),
        mean=card.preprocessing.mean,
        std=card.preprocessing.std,
        outputs=card.classes,
        options=tuple(sorted((k, v) for k, v in card.options.items() if k != "num_classes")),
    )


def _read_file(path: Path) -> ClassifierSpec:
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the classifier {path}: {error}") from error
    known = [field.name for field in fields(ClassifierSpec)]
    for key in record:
        if key not in known:
            raise UnknownNameError(f"key of {path.name}", key, known)
    for key in ("network", "weights"):
        if not isinstance(record.get(key), str):
            raise UsageError(f"{path}: {key} is needed")
    for key in ("weights", "classes"):
        if key in record:
            record[key] = str(path.parent / record[key])
    for key in ("mean", "std"):
        if key in record:
            record[key] = tuple(float(v) for v in record[key])
    if "outputs" in record:
        record["outputs"] = tuple(map(str, record["outputs"]))
    if "options" in record:
        record["options"] = tuple(sorted(record["options"].items()))
    spec = ClassifierSpec(**{"name": path.stem, **record})
    if spec.padding not in PADDINGS:
        raise UsageError(f"{path}: padding {spec.padding!r}: {' and '.join(PADDINGS)} are accepted")
    if spec.precision not in PRECISIONS:
        raise UsageError(
            f"{path}: precision {spec.precision!r}: {' and '.join(PRECISIONS)} are accepted"
        )
    return spec


def load_classifier(spec: ClassifierSpec) -> LoadedClassifier:
    """Build a classifier and load its weights.

    Raises ``UnknownNameError`` for the network, ``WeightsError`` where the file is missing or does
    not fit, ``UsageError`` where the normalisation is not known.
    """
    path = Path(spec.weights)
    if not path.is_file():
        raise WeightsError(f"no weights for {spec.name} at {path}")
    state = read_state(path)
    network = _create(spec.network, spec.num_classes, spec.options)
    given = _outputs_of(network, state) if spec.num_classes is None else None
    if given is not None:
        network = _create(spec.network, given, spec.options)
    load_state(network, state, str(path))
    mean, std = _normalisation(spec, network)
    if spec.padding == "same":
        _pad_as_tensorflow(network)
    network = network.float().eval().requires_grad_(False)
    outputs = _last_layer(network)[1]
    made = IntegerForm(network) if spec.precision == INT8 else network
    return LoadedClassifier(spec, made, mean, std, outputs)


def _create(name: str, classes: int | None, given: tuple[tuple[str, Any], ...]) -> nn.Module:
    options: dict[str, Any] = dict(given)
    if classes is not None:
        options["num_classes"] = classes
    kind, colon, rest = name.partition(":")
    if kind == "torchvision" and colon:
        require_packages("torchvision's classifiers", "torchvision", extra="train")
        from torchvision import models

        if rest not in models.list_models(module=models):
            raise UnknownNameError("torchvision network", rest, models.list_models(module=models))
        # Drawn weights are replaced at once, and some networks warn that they draw slowly.
        if rest in ("googlenet", "inception_v3"):
            options |= {"init_weights": False}
        return models.get_model(rest, weights=None, **options)
    return create_model(name, **options)


def _last_layer(network: nn.Module) -> tuple[str, int]:
    """The last layer with weights of two or four dimensions, which gives the scores."""
    found: tuple[str, int] | None = None
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            found = name, module.out_features
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and found is None:
            found = name, module.out_channels
    if found is None:
        raise UsageError(f"{type(network).__name__} has no last linear layer: not a classifier")
    return found


def _outputs_of(network: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The number of classes of a file, where it is not the network's own."""
    name, outputs = _last_layer(network)
    weight = state.get(f"{name}.weight")
    return int(weight.shape[0]) if weight is not None and weight.shape[0] != outputs else None


def _normalisation(
    spec: ClassifierSpec, network: nn.Module
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if spec.mean is not None and spec.std is not None:
        return spec.mean, spec.std
    if spec.network.startswith("torchvision:"):
        from torchvision import models

        weights = models.get_model_weights(spec.network.partition(":")[2])
        made = next(iter(weights)).transforms()
        return tuple(made.mean), tuple(made.std)
    config = getattr(network, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        raise UsageError(
            f"{spec.name}: nothing says how its input is normalised; give mean and std in a TOML "
            "file of the classifier"
        )
    return tuple(config["mean"]), tuple(config["std"])


def _pad_as_tensorflow(network: nn.Module) -> None:
    """Strided convolutions pad at the bottom and right first (TensorFlow's SAME), in place."""
    require_packages("padding as TensorFlow does", "timm", extra="train")
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or conv.stride == (1, 1) or conv.padding == (0, 0):
                continue
            with torch.device("meta"):
                made = Conv2dSame(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,  # type: ignore[arg-type]
                    conv.stride,  # type: ignore[arg-type]
                    dilation=conv.dilation,  # type: ignore[arg-type]
                    groups=conv.groups,
                    bias=conv.bias is not None,
                )
            made.weight = conv.weight
            if isinstance(conv.bias, nn.Parameter):
                made.bias = conv.bias
            setattr(parent, name, made)
