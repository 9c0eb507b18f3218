"""From the training form to the deployed one, exactly (floor 2, torch)."""

from collapsible.folding.collapse import collapse
from collapsible.folding.report import CollapseReport, Left, MapError, Rewritten

__all__ = ["CollapseReport", "Left", "MapError", "Rewritten", "collapse"]
