"""What can go wrong in the laboratory while it works."""

from __future__ import annotations

from collapsible.errors import CollapsibleError


class DefenceError(CollapsibleError):
    """An attack, a defence or a classifier did not do its part; the message says which."""
