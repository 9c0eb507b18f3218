"""Training: one loop, its tasks, their data and recipes (floor 6)."""

from collapsible.training.classification import (
    Classification,
    build_classifier,
    train_classifier,
)
from collapsible.training.detection import Detection, build_detector, train_detector
from collapsible.training.loop import Progress, TrainingReport, start_fabric, train
from collapsible.training.recipes import Recipe, list_recipes, read_recipe
from collapsible.training.super_resolution import SuperResolution, build_network

__all__ = [
    "Classification",
    "Detection",
    "Progress",
    "Recipe",
    "SuperResolution",
    "TrainingReport",
    "build_classifier",
    "build_detector",
    "build_network",
    "list_recipes",
    "read_recipe",
    "start_fabric",
    "train",
    "train_classifier",
    "train_detector",
]
