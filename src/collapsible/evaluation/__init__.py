"""How good a network is, by the field's protocol (floor 5; torch only inside functions)."""

from collapsible.evaluation.classification import (
    ClassificationReport,
    evaluate_classifier,
    is_classifier,
)
from collapsible.evaluation.detection import (
    DetectionReport,
    evaluate_detector,
    is_detector,
)
from collapsible.evaluation.evaluate import evaluate
from collapsible.evaluation.measure import (
    PROTOCOL,
    EvaluationReport,
    PictureScore,
    evaluate_luma,
    evaluate_pictures,
)
from collapsible.evaluation.pairs import PicturePair, read_pairs

__all__ = [
    "PROTOCOL",
    "ClassificationReport",
    "DetectionReport",
    "EvaluationReport",
    "PicturePair",
    "PictureScore",
    "evaluate",
    "evaluate_classifier",
    "evaluate_detector",
    "evaluate_luma",
    "evaluate_pictures",
    "is_classifier",
    "is_detector",
    "read_pairs",
]
