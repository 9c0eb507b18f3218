"""From a trained network to files that run elsewhere (floor 4, torch and onnx)."""

from collapsible.deploy.picture_graph import build_picture_graph, save_graph

__all__ = ["build_picture_graph", "save_graph"]
