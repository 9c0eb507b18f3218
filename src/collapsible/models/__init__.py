"""The networks: one file per family, one registry (floor 3, torch)."""

from collapsible.models.fsrcnn import FSRCNN
from collapsible.models.registry import create_model, list_models, register
from collapsible.models.sesr import SESR

__all__ = ["FSRCNN", "SESR", "create_model", "list_models", "register"]
