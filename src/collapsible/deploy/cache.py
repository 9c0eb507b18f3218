"""Where results that take long to make are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from collapsible.errors import CollapsibleError


def cache_folder() -> Path:
    """``$COLLAPSIBLE_CACHE``, or ``collapsible`` in the user's cache folder; it may not exist."""
    given = os.environ.get("COLLAPSIBLE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "collapsible"


def make_cache_folder(folder: Path) -> None:
    """Make a folder below the cache; raises ``CollapsibleError`` where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> CollapsibleError:
    """What to say of a cache that cannot be written to."""
    return CollapsibleError(
        f"cannot write to the cache {folder}: {error.strerror or error} "
        "(set COLLAPSIBLE_CACHE to a folder that can be written)"
    )
