"""Where results that take long to make are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$COLLAPSIBLE_CACHE``, or ``collapsible`` in the user's cache folder; it may not exist."""
    given = os.environ.get("COLLAPSIBLE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "collapsible"
