"""A classifier behind pre-processing, as one module on pixels in [0, 1]."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.defence.integers import (
    IntegerForm,
    calibrate_integers,
    integer_forms,
    use_integers,
)
from collapsible.defence.preprocessing import create_defence
from collapsible.defence.preprocessing_scaling import Resize, SuperResolution
from collapsible.defence.stages import Form, Pipeline, Surrogate
from collapsible.errors import UsageError

Triple = Sequence[float]


class DefendedClassifier(nn.Module):
    """Pre-processing, normalisation and a classifier: pixels in, scores out.

    Maps RGB pictures float [N, 3, H, W] in [0, 1] to scores [N, classes]. The value range and the
    normalisation belong to it, so attacks work on pixels and nothing is normalised twice.

    Args:
        classifier: any module from normalised [N, 3, H', W'] to scores, such as timm's and
            torchvision's; used as it is (not copied), in evaluation mode.
        defence: a name for ``create_defence`` or a pipeline made by it; ``"none"`` for none.
        mean, std: of the three channels in [0, 1] that the classifier expects to be subtracted
            and divided by. Left out, they are taken from ``transforms``, else from what timm
            attached to its network. A classifier that wants plain pixels says (0, 0, 0), (1, 1, 1).
        transforms: torchvision's, ``Weights.transforms()`` or the weights' enumeration.
        resize: side in pixels to which the defended picture is brought before the classifier, for
            those with a fixed input size; None leaves it.
        weights: files for the defence's networks, as for ``create_defence``.

    The stages compute their exact forms, with stand-ins for the gradient in the backward pass (see
    ``Stage``); ``exportable()`` gives the form in torch alone.
    Raises ``UsageError`` where the normalisation is unknown or would be done twice, and, when
    called, where the classifier does not take the picture's size.
    """

    def __init__(
        self,
        classifier: nn.Module,
        defence: str | Pipeline = "none",
        *,
        mean: Triple | None = None,
        std: Triple | None = None,
        transforms: Any = None,
        resize: int | None = None,
        weights: Mapping[str, str | Path] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(classifier, DefendedClassifier):
            raise UsageError("the classifier is defended already: give the one inside it")
        if (mean is None) != (std is None):
            raise UsageError("mean and std go together: give both or neither")
        pair = (mean, std) if mean is not None and std is not None else None
        mean, std = pair or _known_normalisation(classifier, transforms)
        _check_normalisation(classifier, mean, std)
        pipeline = (
            defence if isinstance(defence, Pipeline) else create_defence(defence, weights=weights)
        )
        self.defence = pipeline
        self.resize = None if resize is None else Resize(resize)
        self.classifier = classifier.eval()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(tuple(mean)).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).reshape(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        anchor = next(classifier.parameters(), None)
        if anchor is not None:
            self.to(anchor.device)

    @property
    def name(self) -> str:
        """The defence's name, with the resize if there is one."""
        return self.defence.name + (f"+{self.resize.name}" if self.resize else "")

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, classes] of pictures [N, 3, H, W] in [0, 1]."""
        x = self.preprocess(x)
        normalised = (x - self.mean.to(x)) / self.std.to(x)
        if torch.compiler.is_compiling():
            return self.classifier(normalised)
        try:
            return self.classifier(normalised)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise self._unfit(error, x) or error from error

    def preprocess(self, x: Tensor) -> Tensor:
        """What the classifier sees, before normalisation: [N, 3, H', W'] in [0, 1]."""
        x = self.defence(x)
        return x if self.resize is None else self.resize(x)

    def set_form(self, form: Form, surrogate: Surrogate = "smooth") -> DefendedClassifier:
        """Set how the stages compute (see ``Stage``); returns itself."""
        self.defence.set_form(form, surrogate)
        return self

    def exportable(self) -> DefendedClassifier:
        """A copy in torch operations alone, for torch.export, ONNX and LiteRT.

        JPEG and wavelet denoising are then within the tolerances that their stages state.
        """
        twin = copy.deepcopy(self)
        return twin.set_form("torch").eval()

    def integers(self, pictures: Tensor) -> DefendedClassifier:
        """A copy whose super-resolution and classifier run as int8 LiteRT files.

        ``pictures`` float [N, 3, H, W] in [0, 1] calibrate it, and it takes pictures of their size
        alone. JPEG and wavelet denoising stay as they are: they run on the CPU. Gradients are those
        of fp32 (see ``IntegerForm``).
        Raises ``MissingExtraError`` without the converter, ``ExportError`` for a network that it
        does not take, and ``UsageError`` where a network runs in int8 already.
        """
        if integer_forms(self):
            raise UsageError("a network of this classifier runs in int8 already")
        twin = copy.deepcopy(self)
        twin.classifier = IntegerForm(twin.classifier)
        stages = [
            use_integers(stage) if isinstance(stage, SuperResolution) else stage
            for stage in twin.defence.stages
        ]
        twin.defence.name = "+".join(str(stage.name) for stage in stages) or twin.defence.name
        calibrate_integers(twin, pictures)
        with torch.no_grad():
            twin(pictures[:1])
        return twin

    def _unfit(self, error: Exception, x: Tensor) -> UsageError | None:
        """Whether the classifier failed for the picture's size, and not memory or the like."""
        wanted = fixed_size(self.classifier)
        height, width = x.shape[2:]
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error).lower():
            return None
        if wanted is None and not isinstance(error, AssertionError):
            text = str(error)
            if not any(word in text for word in ("shape", "size", "dimension")):
                return None
        if wanted == (height, width):
            return None
        size = wanted[0] if wanted else "PIXELS"
        reason = " ".join(str(error).split())
        return UsageError(
            f"{type(self.classifier).__name__} does not take pictures of {width}x{height}"
            + (f", its size is fixed at {wanted[1]}x{wanted[0]}" if wanted else "")
            + f": give resize={size} ({reason})"
        )


def fixed_size(classifier: nn.Module) -> tuple[int, int] | None:
    """The one (height, width) that a classifier says it takes, or None."""
    patches = getattr(classifier, "patch_embed", None)
    size = getattr(patches, "img_size", None)
    if size is not None and getattr(patches, "strict_img_size", True):
        return (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (size, size)
    size = getattr(classifier, "image_size", None)
    if isinstance(size, int):
        return size, size
    config = getattr(classifier, "pretrained_cfg", None) or {}
    if isinstance(config, Mapping) and config.get("fixed_input_size"):
        return tuple(config["input_size"][1:])  # type: ignore[return-value]
    return None


def _known_normalisation(classifier: nn.Module, transforms: Any) -> tuple[Triple, Triple]:
    if transforms is not None:
        made: Any = transforms
        if hasattr(made, "transforms") and not hasattr(made, "mean"):
            made = made.transforms
        # An enumeration holds the class of its transforms, to be called.
        if not hasattr(made, "mean") and callable(made):
            made = made()
        if not hasattr(made, "mean") or not hasattr(made, "std"):
            raise UsageError("transforms: torchvision's Weights.transforms() are accepted")
        return made.mean, made.std
    config = getattr(classifier, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config.get("mean") and config.get("std"):
        return config["mean"], config["std"]
    raise UsageError(
        f"{type(classifier).__name__} does not say how its input is normalised: give mean and std "
        "((0, 0, 0) and (1, 1, 1) for plain pixels), or torchvision's transforms"
    )


def _check_normalisation(classifier: nn.Module, mean: Triple, std: Triple) -> None:
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UsageError(f"mean {mean} and std {std}: three values each, std positive")
    first = next(classifier.children(), None)
    plain = not any(mean) and all(value == 1 for value in std)
    if isinstance(classifier, nn.Sequential) and first is not None and not plain:
        kind = type(first).__name__
        if kind in ("Normalize", "Normalise") or (
            hasattr(first, "mean") and hasattr(first, "std") and not list(first.parameters())
        ):
            raise UsageError(
                f"the classifier begins with {kind} and would be normalised twice: "
                "give mean=(0, 0, 0), std=(1, 1, 1), or the classifier without it"
            )
