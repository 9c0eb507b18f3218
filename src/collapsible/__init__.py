"""Collapsible: train wide, deploy narrow.

Networks are trained in one form and deployed in another, and the map between the two is exact.
Public names are resolved when first used, so importing the package is instant and only what a
program uses needs to be installed: ``upscale`` never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collapsible.costs import CostReport, cost
    from collapsible.defence import DefendedClassifier
    from collapsible.deploy.estimate import EstimateReport, estimate
    from collapsible.deploy.export import ExportReport, export
    from collapsible.deploy.legalise import LegaliseReport, legalise
    from collapsible.errors import CollapsibleError
    from collapsible.folding import CollapseReport, collapse
    from collapsible.models import create_model, list_models
    from collapsible.search import nn_mass, scale
    from collapsible.search.restructure import restructure
    from collapsible.upscaler import Upscaler, upscale

    __version__: str

# Where each public name lives.
_HOMES = {
    "CollapseReport": "collapsible.folding",
    "CollapsibleError": "collapsible.errors",
    "CostReport": "collapsible.costs",
    "DefendedClassifier": "collapsible.defence",
    "EstimateReport": "collapsible.deploy.estimate",
    "ExportReport": "collapsible.deploy.export",
    "LegaliseReport": "collapsible.deploy.legalise",
    "Upscaler": "collapsible.upscaler",
    "collapse": "collapsible.folding",
    "cost": "collapsible.costs",
    "create_model": "collapsible.models",
    "estimate": "collapsible.deploy.estimate",
    "export": "collapsible.deploy.export",
    "legalise": "collapsible.deploy.legalise",
    "list_models": "collapsible.models",
    "nn_mass": "collapsible.search",
    "restructure": "collapsible.search.restructure",
    "scale": "collapsible.search",
    "upscale": "collapsible.upscaler",
}

__all__ = [
    "CollapseReport",
    "CollapsibleError",
    "CostReport",
    "DefendedClassifier",
    "EstimateReport",
    "ExportReport",
    "LegaliseReport",
    "Upscaler",
    "__version__",
    "collapse",
    "cost",
    "create_model",
    "estimate",
    "export",
    "legalise",
    "list_models",
    "nn_mass",
    "restructure",
    "scale",
    "upscale",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("collapsible")
    if name not in _HOMES:
        raise AttributeError(f"module 'collapsible' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"torch", "safetensors"}:
            from collapsible.errors import MissingExtraError

            raise MissingExtraError(f"collapsible.{name}", package, "train") from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
