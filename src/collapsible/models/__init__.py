"""The networks: one file per family, one registry (floor 3, torch)."""

from importlib.util import find_spec

from collapsible.models.detector import (
    DetectorCard,
    create_detector,
    load_detector,
    save_detector,
)
from collapsible.models.edsr import EDSR
from collapsible.models.fsrcnn import FSRCNN
from collapsible.models.ran_e import RanE
from collapsible.models.ran_i import ConvNeXt
from collapsible.models.registry import create_model, list_models, register
from collapsible.models.sesr import SESR
from collapsible.models.trained import (
    ClassifierCard,
    Preprocessing,
    create_classifier,
    load_classifier,
    save_classifier,
)

if find_spec("timm") is not None:
    import collapsible.models.timm_names  # noqa: F401

__all__ = [
    "EDSR",
    "FSRCNN",
    "SESR",
    "ClassifierCard",
    "ConvNeXt",
    "DetectorCard",
    "Preprocessing",
    "RanE",
    "create_classifier",
    "create_detector",
    "create_model",
    "list_models",
    "load_classifier",
    "load_detector",
    "register",
    "save_classifier",
    "save_detector",
]
