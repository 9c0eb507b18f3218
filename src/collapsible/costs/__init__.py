"""What a network costs: counts, memory, receptive field (floor 3, torch)."""

from collapsible.costs.cost import CostReport, LayerCost, cost
from collapsible.costs.receptive import ReceptiveField

__all__ = ["CostReport", "LayerCost", "ReceptiveField", "cost"]
