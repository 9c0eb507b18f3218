"""From the training form to the deployed one, exactly (floor 2, torch)."""

from collapsible.folding.collapse import CollapseReport, collapse

__all__ = ["CollapseReport", "collapse"]
