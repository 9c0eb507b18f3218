"""Cards of trained networks: JSON beside a file of weights, saying for which task and of what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from collapsible.errors import WeightsError

Card = TypeVar("Card")
# A network that does a task, in words.
NOUNS = {"classification": "classifier", "detection": "detector"}


def card_path(weights: Path) -> Path:
    """Where the card of a weights file lies."""
    return weights.with_suffix(".json")


def write_trained_card(network: nn.Module, card: Any, path: Path, task: str) -> None:
    """Write the card of weights that lie at ``path`` already, whole or not at all."""
    record = asdict(card) | {
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    draft = path.with_name(f".{card_path(path).name}.draft")
    try:
        draft.write_text(json.dumps({"task": task, **record}, indent=2) + "\n", encoding="utf-8")
        draft.replace(card_path(path))
    except OSError as error:
        raise WeightsError(f"cannot write {card_path(path)}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def has_trained_card(weights: Path, task: str) -> bool:
    """Whether the file has a card of a task beside it."""
    try:
        record = json.loads(card_path(weights).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("task") == task


def read_trained_card(
    weights: Path, kind: type[Card], task: str, restore: Callable[[dict[str, Any]], dict[str, Any]]
) -> Card:
    """The card beside a weights file, a ``kind`` made of its record.

    ``restore`` gives the fields that JSON does not keep as they were.
    Raises ``WeightsError`` if the card is missing or none of the task.
    """
    path, noun = card_path(weights), NOUNS[task]
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.pop("task", None) != task:
            raise WeightsError(f"{path}: not a {noun}'s card")
        unknown = set(record) - {f.name for f in fields(kind)}  # type: ignore[arg-type]
        if unknown:
            raise WeightsError(f"{path}: unknown keys {sorted(unknown)}")
        return kind(**record | restore(record))
    except OSError as error:
        raise WeightsError(
            f"no card at {path} says which {noun} {weights.name} is: {error.strerror or error}"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: not a {noun}'s card: {error}") from error
