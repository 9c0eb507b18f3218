"""From a trained network to files that run elsewhere (floor 4, torch and onnx)."""

from collapsible.deploy.picture_graph import build_picture_graph, save_graph
from collapsible.deploy.quantise import quantise_picture_graph
from collapsible.deploy.ship import count_weights, ship, write_card

__all__ = [
    "build_picture_graph",
    "count_weights",
    "quantise_picture_graph",
    "save_graph",
    "ship",
    "write_card",
]
