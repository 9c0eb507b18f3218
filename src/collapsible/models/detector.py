"""Detectors: torchvision's Faster R-CNN (arXiv 1506.01497) behind any timm backbone.

``single`` is the form of RAN-i (arXiv 2208.08562, its published code): the last feature map alone,
five anchor sizes of three shapes at each place, two layers of 512. ``fpn`` has a feature pyramid
(arXiv 1612.03144) over all maps of stride 4 and more, one anchor size a level.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.errors import UnknownNameError, UsageError, WeightsError, require_packages
from collapsible.models.cards import (
    card_path,
    has_trained_card,
    read_trained_card,
    write_trained_card,
)
from collapsible.models.ran_i import convert_keys
from collapsible.models.registry import load_state, read_state, save_weights
from collapsible.models.trained import preprocessing_of

TASK = "detection"
FORMS = ("single", "fpn")
SIZES = (32, 64, 128, 256, 512)
SHAPES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class DetectorCard:
    """What a trained detector is.

    ``classes`` are the names of labels 1, 2, ...; the short side of a picture is resized to
    ``size`` pixels, its long one to ``max_size`` at most; ``options`` are ``create_detector``'s
    others; ``metrics`` maps such as ``val/mAP`` to a percentage.
    """

    backbone: str
    form: str
    classes: tuple[str, ...]
    size: int
    max_size: int
    options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    recipe: str = ""
    training_data: str = ""
    parameters: int = 0
    sha256: str = ""


class Backbone(nn.Module):
    """Pictures [N, 3, H, W] to named float32 maps: ``0`` alone, or the pyramid's ``0``, ``1``, ...

    ``lowered`` is the type that it computes in where that is another (a detector sets it).
    """

    def __init__(self, body: nn.Module, channels: list[int], width: int | None) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import (
            FeaturePyramidNetwork,
            LastLevelMaxPool,
        )

        self.body = body
        self.lowered: torch.dtype | None = None
        self.out_channels = width or channels[-1]
        self.fpn = (
            FeaturePyramidNetwork(channels, width, LastLevelMaxPool()) if width else nn.Identity()
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        with torch.autocast(x.device.type, self.lowered, enabled=self.lowered is not None):
            maps = self.fpn(OrderedDict((str(i), value) for i, value in enumerate(self.body(x))))
        return OrderedDict((name, value.float()) for name, value in maps.items())


class Detector(nn.Module):
    """Faster R-CNN in the shape that the training loop and the measurements take.

    In training, ``forward(pictures, targets)`` is the sum of its four losses. ``pictures``
    [N, 3, H, W] in [0, 1] are padded at the right and bottom; ``targets`` [N, 1 + M, 5] has the
    true height and width first, then label, x1, y1, x2, y2 of each box, label 0 for none. In
    evaluation ``forward(pictures)`` takes a list of [3, H, W] and gives a dictionary for each:
    ``boxes`` [K, 4] in that picture's pixels, ``labels`` [K], ``scores`` [K], best first.

    Under autocast the backbone alone computes in the lower precision: corners in bfloat16 would be
    off by pixels.
    """

    def __init__(self, rcnn: nn.Module) -> None:
        super().__init__()
        self.rcnn = rcnn

    def forward(self, pictures: Any, targets: Tensor | None = None) -> Any:
        kind = pictures[0].device.type
        lowered = torch.is_autocast_enabled(kind)
        trunk: Any = self.rcnn.backbone
        trunk.lowered = torch.get_autocast_dtype(kind) if lowered else None
        with torch.autocast(kind, enabled=False):
            return self._run(pictures, targets)

    def _run(self, pictures: Any, targets: Tensor | None) -> Any:
        if not self.training:
            return self.rcnn(list(pictures))
        if targets is None:
            raise UsageError("a detector in training needs targets")
        images, notes = [], []
        for picture, target in zip(pictures, targets.float(), strict=True):
            height, width = int(target[0, 0]), int(target[0, 1])
            boxes = target[1:][target[1:, 0] > 0]
            images.append(picture[:, :height, :width])
            notes.append({"boxes": boxes[:, 1:], "labels": boxes[:, 0].long()})
        losses: dict[str, Tensor] = self.rcnn(images, notes)
        return torch.stack([value.float() for value in losses.values()]).sum()


def create_detector(
    backbone: str,
    classes: int,
    *,
    form: str = "fpn",
    size: int = 800,
    max_size: int = 1200,
    width: int = 0,
    fpn_width: int = 256,
    anchors: tuple[int, ...] | list[int] = SIZES,
    regions: int = 1000,
    samples: int = 512,
    **options: Any,
) -> Detector:
    """A newly drawn detector of ``classes`` classes, the background not counted.

    ``backbone`` is any timm name with features (``timm:`` before it or not), ``options`` its own.
    ``width`` is that of the two layers behind the regions (0: 512 for ``single``, 1024 for
    ``fpn``), ``fpn_width`` the pyramid's. ``anchors`` are sides in pixels of the resized picture;
    the pyramid takes one for each of its levels. ``regions`` are the candidates of a picture that
    reach those two layers (twice as many in training, of which ``samples`` are drawn), of up to
    twice as many in each level before overlaps are dropped: what a picture with few objects can
    save, as the layers run once for each.
    Raises ``UnknownNameError`` and ``UsageError`` for what does not exist or fit.
    """
    require_packages("detection", "timm", "torchvision", extra="detect")
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import (
        FasterRCNN,
        FastRCNNPredictor,
        TwoMLPHead,
    )
    from torchvision.ops import MultiScaleRoIAlign

    if form not in FORMS:
        raise UnknownNameError("form of a detector", form, FORMS)
    if classes < 1 or size < 32 or max_size < size or regions < 1 or samples < 1:
        raise UsageError(
            f"classes={classes}, size={size}, max_size={max_size}, regions={regions}, "
            f"samples={samples}: at least one class, region and sample, 32 pixels, and max_size "
            "no less than size"
        )
    body, channels, mean, std = _features(backbone, form, options)
    trunk = Backbone(body, channels, fpn_width if form == "fpn" else None)
    levels = len(channels) + 1 if form == "fpn" else 1
    sides = tuple(anchors)
    if form == "fpn" and len(sides) != levels:
        raise UsageError(f"anchors={list(sides)}: the pyramid has {levels} levels, one for each")
    sizes = tuple((s,) for s in sides) if form == "fpn" else (sides,)
    names = [str(i) for i in range(len(channels) if form == "fpn" else 1)]
    width = width or (1024 if form == "fpn" else 512)
    rcnn = FasterRCNN(
        trunk,
        min_size=size,
        max_size=max_size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=AnchorGenerator(sizes, (SHAPES,) * levels),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
        box_head=TwoMLPHead(trunk.out_channels * 49, width),
        box_predictor=FastRCNNPredictor(width, classes + 1),
        # Of each level; torchvision's own defaults at most, which suit a thousand regions.
        rpn_pre_nms_top_n_test=min(1000, 2 * regions),
        rpn_pre_nms_top_n_train=min(2000, 4 * regions),
        rpn_post_nms_top_n_test=regions,
        rpn_post_nms_top_n_train=2 * regions,
        box_batch_size_per_image=samples,
    )
    return Detector(rcnn)


def _features(
    name: str, form: str, options: Mapping[str, Any]
) -> tuple[nn.Module, list[int], tuple[float, ...], tuple[float, ...]]:
    import timm

    import collapsible.models.timm_names  # noqa: F401

    plain = name.removeprefix("timm:")
    if not timm.is_model(plain):
        known = timm.list_models(f"*{plain[:4]}*") or timm.list_models()[:8]
        raise UnknownNameError("backbone", name, known)
    try:
        body: Any = timm.create_model(plain, pretrained=False, features_only=True, **options)
        reductions = body.feature_info.reduction()
        keep = [i for i, r in enumerate(reductions) if r >= 4] if form == "fpn" else [-1]
        keep = [i % len(reductions) for i in keep]
        body = timm.create_model(
            plain, pretrained=False, features_only=True, out_indices=tuple(keep), **options
        )
        channels = [int(c) for c in body.feature_info.channels()]
        norms = preprocessing_of(timm.create_model(plain, pretrained=False, **options))
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{name} cannot be a backbone with {dict(options)}: {error}") from error
    return body, channels, norms.mean, norms.std


def load_backbone(detector: Detector, path: Path) -> None:
    """Load a classifier's weights into a detector's backbone, in place; its head is not needed.

    Checkpoints of the ConvNeXt reference code do too (see ``read_state`` and ``convert_keys``).
    Raises ``WeightsError`` where a tensor of the backbone is missing or of another shape.
    """
    trunk: Any = detector.rcnn.backbone
    body: nn.Module = trunk.body
    known = convert_keys(read_state(path))
    given = {key.replace(".", "_"): value for key, value in known.items()}
    wanted = body.state_dict()
    state, bad = {}, []
    for key, value in wanted.items():
        found = given.get(key.replace(".", "_"))
        if found is None or found.shape != value.shape:
            have = "nothing" if found is None else f"{tuple(found.shape)}"
            bad.append(f"{key} of {tuple(value.shape)} (the file has {have})")
        else:
            state[key] = found
    if bad:
        raise WeightsError(
            f"{path} is of another backbone: {len(bad)} of {len(wanted)} tensors do not fit, "
            f"the first {bad[0]}"
        )
    body.load_state_dict(state)


def write_detector_card(network: nn.Module, card: DetectorCard, path: Path) -> None:
    """Write the card of weights that lie at ``path`` already, whole or not at all."""
    write_trained_card(network, card, path, TASK)


def save_detector(network: nn.Module, card: DetectorCard, path: Path) -> None:
    """Write ``path`` (safetensors), then the card beside it; each whole or not at all."""
    save_weights(network, path)
    write_detector_card(network, card, path)


def has_detector_card(weights: Path) -> bool:
    """Whether the file has a detector's card beside it."""
    return has_trained_card(weights, TASK)


def read_detector_card(weights: Path) -> DetectorCard:
    """The card beside a weights file; raises ``WeightsError`` if it is missing or none."""
    return read_trained_card(
        weights, DetectorCard, TASK, lambda record: {"classes": tuple(record["classes"])}
    )


def load_detector(path: str | Path) -> tuple[Detector, DetectorCard]:
    """A trained detector from its safetensors file and the card beside it, in evaluation mode.

    Raises ``WeightsError`` where a file is missing, damaged or does not belong to its card.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no detector at {path}")
    card = read_detector_card(path)
    if card.sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != card.sha256:
        raise WeightsError(f"{path} is not the file that {card_path(path).name} describes")
    network = create_detector(
        card.backbone,
        len(card.classes),
        form=card.form,
        size=card.size,
        max_size=card.max_size,
        **card.options,
    )
    load_state(network, read_state(path), str(path))
    network.float().eval()
    return network, card


def to_input(pixels: Any) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)
