"""What can go wrong in an attack that is not the caller's request."""

from __future__ import annotations

from collapsible.defence.errors import DefenceError


class AttackError(DefenceError):
    """An attack cannot work on this model; the message says what would make it work."""


class NonFiniteError(AttackError):
    """Gradients or logits that are not finite: a result would say nothing about the model.

    ``pictures`` of the ``total`` in the batch are concerned.
    """

    def __init__(self, attack: str, what: str, pictures: int, total: int) -> None:
        super().__init__(
            f"{attack}: the {what} of {pictures} of {total} pictures "
            f"{'is' if what == 'gradient' else 'are'} not finite; "
            "look for a division by zero, a square root of zero or an overflow in the model"
        )
        self.pictures = pictures
        self.total = total
