"""Attacks: pictures within a budget of the given ones that a classifier gets wrong."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from collapsible.defence.attacks.apgd import APGD
from collapsible.defence.attacks.base import Attack
from collapsible.defence.attacks.bpda import BPDA, bpda
from collapsible.defence.attacks.diverse import DI2FGSM
from collapsible.defence.attacks.errors import AttackError, NonFiniteError
from collapsible.defence.attacks.iterative import BIM, FGSM, PGD
from collapsible.defence.attacks.momentum import MIFGSM
from collapsible.defence.attacks.objective import Model
from collapsible.defence.attacks.square import Square
from collapsible.errors import UnknownNameError

# A class and the settings that its name stands for.
_ATTACKS: dict[str, tuple[type[Attack], dict[str, Any]]] = {
    "fgsm": (FGSM, {}),
    "bim": (BIM, {}),
    "pgd": (PGD, {}),
    "mi-fgsm": (MIFGSM, {}),
    "di2-fgsm": (DI2FGSM, {}),
    "apgd-ce": (APGD, {"loss": "ce"}),
    "apgd-dlr": (APGD, {"loss": "dlr"}),
    "apgd-t": (APGD, {"loss": "dlr", "classes_tried": 9}),
    "square": (Square, {}),
}


def list_attacks() -> list[str]:
    """The names that ``create_attack`` takes."""
    return sorted(_ATTACKS)


def create_attack(name: str, epsilon: float = 8 / 255, **settings: Any) -> Attack:
    """An attack by name, ``_`` and ``-`` and capitals being alike.

    ``epsilon`` and ``norm`` ("linf", "l2") are the budget (see ``Attack``); other settings are the
    attack's own. Raises ``UnknownNameError``, which offers the nearest, for a name or a setting
    that is not known, and ``UsageError`` for a value that cannot be.
    """
    key = name.lower().replace("_", "-")
    if key not in _ATTACKS:
        raise UnknownNameError("attack", name, _ATTACKS)
    kind, preset = _ATTACKS[key]
    known = {field.name for field in fields(kind)} - {"name"}
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of {key}", setting, known)
    return kind(name=key, epsilon=epsilon, **{**preset, **settings})


__all__ = [
    "APGD",
    "BIM",
    "BPDA",
    "DI2FGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "Attack",
    "AttackError",
    "Model",
    "NonFiniteError",
    "Square",
    "bpda",
    "create_attack",
    "list_attacks",
]
