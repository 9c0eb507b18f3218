"""The shipped weights: for each network and scale a card, a safetensors file and an ONNX graph.

Files live beside this module: ``<architecture>_x<scale>.json`` (the card), ``.safetensors``
(collapsed weights), ``.onnx`` (one graph, uint8 RGB to uint8 RGB) and, where there is one,
``_int8.onnx`` (the same quantised). Nothing here imports NumPy or an engine, so that listing is
instant.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from collapsible.errors import UnknownNameError, UsageError, WeightsError

__all__ = [
    "DEFAULT_MODEL",
    "Card",
    "find_card",
    "list_cards",
    "normalise_name",
    "read_card",
    "sha256",
]

FOLDER = Path(__file__).parent
DEFAULT_MODEL = "sesr-cpu"
"""What enlarges where no model is named: better than SESR-M5, and faster on CPUs."""


def normalise_name(name: str) -> str:
    """``SESR-M5`` and ``sesr_m5`` name the same network; the registry form is ``sesr_m5``."""
    return name.strip().lower().replace("-", "_")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Card:
    """What a weights file is, where it comes from and how good it is.

    ``metrics`` maps a set's name (``Set5``) to ``{"psnr", "ssim", "psnr_picture", "ssim_picture"}``
    in dB and [0, 1], by the protocol that ``protocol`` states, and to ``psnr_luma`` in dB, by that
    of the published tables; ``metrics_int8`` the former four of the int8 graph, which exists if
    ``sha256`` has ``"int8"``. ``receptive_radius`` is in input pixels:
    an output pixel depends on inputs at most that far from its own place.
    """

    architecture: str
    scale: int
    parameters: int
    receptive_radius: int
    options: dict[str, Any] = field(default_factory=dict)
    training_data: str = ""
    recipe: str = ""
    protocol: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    metrics_int8: dict[str, dict[str, float]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    folder: Path = FOLDER

    @cached_property
    def stem(self) -> str:
        return f"{self.architecture}_x{self.scale}"

    @property
    def name(self) -> str:
        """The name as people type it, such as ``sesr-m5``."""
        return self.architecture.replace("_", "-")

    @property
    def onnx_path(self) -> Path:
        return self.folder / f"{self.stem}.onnx"

    @property
    def int8_path(self) -> Path:
        return self.folder / f"{self.stem}_int8.onnx"

    @property
    def has_int8(self) -> bool:
        return "int8" in self.sha256

    @property
    def safetensors_path(self) -> Path:
        return self.folder / f"{self.stem}.safetensors"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stem}.json"

    def to_json(self) -> str:
        record = asdict(self)
        del record["folder"]
        return json.dumps(record, indent=2) + "\n"


def read_card(path: Path) -> Card:
    """Read one card; raises ``WeightsError`` if it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Card)} - {"folder"}
        unknown = set(record) - known
        if unknown:
            raise WeightsError(f"{path.name}: unknown keys {sorted(unknown)}")
        return Card(**record, folder=path.parent)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a weights card: {error}") from error


def list_cards(folder: Path = FOLDER) -> tuple[Card, ...]:
    """Cards of all shipped weights, by architecture and scale."""
    cards = (read_card(path) for path in folder.glob("*.json"))
    return tuple(sorted(cards, key=lambda card: (card.architecture, card.scale)))


def find_card(model: str, scale: int, folder: Path = FOLDER) -> Card:
    """The card of a network's weights; ``-`` and ``_`` in the name are alike.

    Raises ``UnknownNameError`` for a network with no weights, and ``UsageError`` that lists the
    scales there are when only this scale is missing.
    """
    wanted = normalise_name(model)
    cards = list_cards(folder)
    scales = [card.scale for card in cards if card.architecture == wanted]
    if not scales:
        raise UnknownNameError("model", model, {card.name for card in cards})
    if scale not in scales:
        raise UsageError(
            f"no x{scale} weights for {model!r}: there are x{', x'.join(map(str, scales))}"
        )
    return next(card for card in cards if card.architecture == wanted and card.scale == scale)
