"""Where results that take long to make are kept between runs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collapsible.errors import CollapsibleError

_DRAFT = ".building-"
_ABANDONED = 2 * 24 * 3600
"""Seconds after which a draft is taken for that of a run that was killed."""


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


@contextmanager
def built_folder(target: Path, last: str) -> Iterator[Path]:
    """A new folder to write into, which becomes ``target`` when the block ends without an error.

    ``last`` is a file that every whole ``target`` has. Where another run was first, its folder
    stays, for both hold the same bytes. What killed runs left beside it two days ago is removed.
    Raises ``CollapsibleError`` where the folder above cannot be written to.
    """
    make_cache_folder(target.parent)
    for left in target.parent.glob(f"{_DRAFT}*"):
        # Another run may finish its draft, and so move it, at this moment.
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
    try:
        draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=target.parent))
    except OSError as error:
        raise unwritable(target.parent, error) from error
    try:
        yield draft
        try:
            draft.rename(target)
        except OSError:
            if not (target / last).is_file():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> CollapsibleError:
    """What to say of a cache that cannot be written to."""
    return CollapsibleError(
        f"cannot write to the cache {folder}: {error.strerror or error} "
        "(set COLLAPSIBLE_CACHE to a folder that can be written)"
    )
