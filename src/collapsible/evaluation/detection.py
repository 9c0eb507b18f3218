"""How good a detector is: average precision as COCO defines it, by faster-coco-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collapsible.errors import UsageError, require_packages
from collapsible.evaluation.boxed import BoxedPictures, find_boxed, has_part

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class DetectionScores:
    """Average precision in per cent, of all classes; None where there is nothing to find.

    ``map`` is the mean over intersection over union 0.50, 0.55, ..., 0.95; ``map50`` and
    ``map75`` at one of them; ``small`` is below 32x32 pixels, ``large`` above 96x96.
    """

    map: float | None
    map50: float | None
    map75: float | None
    small: float | None
    medium: float | None
    large: float | None


@dataclass(frozen=True)
class DetectionReport:
    """What was measured, on what; boxes left out or clipped are counted."""

    model: str
    data: str
    pictures: int
    boxes: int
    classes: tuple[str, ...]
    size: int
    scores: DetectionScores
    skipped: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    protocol: str = "COCO boxes, 101 recall points, 100 detections a picture, fp32"

    def json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """The report as lines of text for people."""
        names = {"map": "mAP", "map50": "mAP50", "map75": "mAP75"}
        lines = [f"{self.model} on {self.data}: {self.pictures} pictures, {self.boxes} boxes"]
        for key, value in asdict(self.scores).items():
            text = "-" if value is None else f"{value:.2f} %"
            lines.append(f"  {names.get(key, f'mAP {key}'):<11} {text} (measured)")
        lines.append(f"  {self.protocol}")
        if self.skipped or self.faults:
            lines.append(
                f"  {len(self.skipped)} pictures left out, "
                f"{len(self.faults)} boxes clipped or dropped"
            )
        return "\n".join(lines)


def score_boxes(pictures: BoxedPictures, found: Sequence[Mapping[str, Any]]) -> DetectionScores:
    """Average precision of detections, a mapping for each picture in order.

    Each has ``boxes`` [K, 4] (x1, y1, x2, y2 in pixels), ``labels`` [K] (from 1) and ``scores``
    [K], as sequences or arrays.
    """
    require_packages("measuring a detector", "faster_coco_eval", extra="detect")
    from faster_coco_eval import COCO, COCOeval_faster

    images, notes, results = [], [], []
    for number, picture in enumerate(pictures.pictures, 1):
        images.append({"id": number, "width": picture.width, "height": picture.height})
        kinds = zip(picture.boxes, picture.labels, picture.crowd, strict=True)
        for (x1, y1, x2, y2), label, crowd in kinds:
            box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(crowd),
                }
            )
        one = found[number - 1]
        for (x1, y1, x2, y2), label, score in zip(
            one["boxes"], one["labels"], one["scores"], strict=True
        ):
            results.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    "score": float(score),
                }
            )
    if not notes:
        raise UsageError(f"{pictures.root} has no boxes to find")
    names = [{"id": place, "name": name} for place, name in enumerate(pictures.classes, 1)]
    truth = COCO({"images": images, "annotations": notes, "categories": names})
    measured = COCOeval_faster(
        truth, truth.loadRes(results), "bbox", print_function=lambda *_, **__: None
    )
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    stats = measured.stats_as_dict

    def per_cent(key: str) -> float | None:
        value = float(stats[key])
        return None if value < 0 else 100 * value

    return DetectionScores(
        *(per_cent(f"AP_{key}") for key in ("all", "50", "75", "small", "medium", "large"))
    )


def detect_all(
    network: nn.Module,
    pictures: BoxedPictures,
    on_picture: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """What a detector finds in each picture, on the processor that it lies on."""
    import torch

    from collapsible.models.detector import to_input

    device = next(network.parameters()).device
    was, found = network.training, []
    network.eval()
    try:
        with torch.inference_mode():
            for number, picture in enumerate(pictures.pictures, 1):
                result = network([to_input(picture.read()).to(device)])[0]
                found.append({key: value.float().cpu().numpy() for key, value in result.items()})
                if on_picture is not None:
                    on_picture(number, len(pictures))
    finally:
        network.train(was)
    return found


def is_detector(model: str | Path) -> bool:
    """Whether this is a file of weights with a detector's card beside it."""
    path = Path(model)
    if not path.is_file():
        return False
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("task") == "detection"


def evaluate_detector(
    model: str | Path,
    data: Path,
    *,
    part: str = "",
    strict: bool = False,
    on_picture: Callable[[int, int], None] | None = None,
) -> DetectionReport:
    """Average precision of a trained detector on pictures with boxes (see ``find_boxed``).

    ``part`` is such as ``test``; empty takes the data set's own ``val`` where it has one.
    Raises ``UsageError`` where the data have classes that the detector does not know.
    """
    require_packages("measuring a detector", "torch", "torchvision", "timm", extra="detect")
    require_packages("measuring a detector", "faster_coco_eval", extra="detect")
    import torch

    from collapsible.models.detector import load_detector

    network, card = load_detector(model)
    if not part and Path(data).is_dir() and has_part(Path(data), "val"):
        part = "val"
    pictures = find_boxed(Path(data), part, card.classes, strict=strict)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = score_boxes(pictures, detect_all(network, pictures, on_picture))
    return DetectionReport(
        model=str(model),
        data=f"{pictures.root.name}{f' ({part})' if part else ''}",
        pictures=len(pictures),
        boxes=pictures.boxes,
        classes=card.classes,
        size=card.size,
        scores=scores,
        skipped=tuple(f"{path}: {reason}" for path, reason in pictures.skipped),
        faults=tuple(f"{path}: {reason}" for path, reason in pictures.faults),
    )
