"""Pre-processing before a classifier, attacks on both, and an honest audit (floor 7, torch)."""

from collapsible.defence.classifier import DefendedClassifier
from collapsible.defence.errors import DefenceError
from collapsible.defence.preprocessing import create_defence, list_stages
from collapsible.defence.stages import Pipeline, Stage

__all__ = [
    "DefenceError",
    "DefendedClassifier",
    "Pipeline",
    "Stage",
    "create_defence",
    "list_stages",
]
