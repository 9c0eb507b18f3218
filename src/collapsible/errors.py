"""Every error that the package raises on purpose.

A message says what was given and what would be accepted. The command line turns
``UsageError`` into exit code 2 and any other ``CollapsibleError`` into exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class CollapsibleError(Exception):
    """The work failed; the message is one line that a user can act on."""


class UsageError(CollapsibleError):
    """The request itself is wrong: an unknown name, an impossible option, a bad value."""


class UnknownNameError(UsageError):
    """A name that is not in its registry; the message offers the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(known) or 'none'}")
        self.name = name
        self.nearest = near[0] if near else None


class MissingExtraError(CollapsibleError):
    """A feature needs a package that the base install leaves out."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs {package}, which is not installed: pip install 'collapsible[{extra}]'"
        )


def require_packages(feature: str, *packages: str, extra: str) -> None:
    """Raise ``MissingExtraError`` for the first package that is missing, before an import fails."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(feature, package, extra)


class PictureError(CollapsibleError):
    """A picture that cannot be read, written or processed."""


class WeightsError(CollapsibleError):
    """A weights file that is missing, damaged, or belongs to another network."""


class TrainingError(CollapsibleError):
    """Training cannot go on; the message names the last good checkpoint if there is one."""


class ExportError(CollapsibleError):
    """A network that cannot be written for another runtime, or a file that it does not run."""


class BudgetError(UsageError):
    """A budget that nothing meets; the message has the smallest that there is."""
