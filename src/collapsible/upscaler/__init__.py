"""The main job: enlarging pictures with shipped graphs (floor 1, NumPy and a runtime)."""

from collapsible.upscaler.engines import ENGINES, PRECISIONS, Engine, open_engine
from collapsible.upscaler.graph_file import GraphFile, find_graph, read_graph_file
from collapsible.upscaler.upscaler import Band, Upscaler, upscale

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Band",
    "Engine",
    "GraphFile",
    "Upscaler",
    "find_graph",
    "open_engine",
    "read_graph_file",
    "upscale",
]
