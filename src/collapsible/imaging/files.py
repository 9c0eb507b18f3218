"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from collapsible.errors import PictureError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file beside its target and put it in place only once it is complete.

    Yields a binary file open for reading, writing and seeking. On any failure, Ctrl-C included,
    the unfinished file is removed and an older target stays as it was.

    Raises:
        PictureError: the folder is missing or not writable, the disk is full, or the target is
            a folder; one line that names the target.
    """
    # Through a symbolic link, as opening the path for writing would go.
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if target.is_dir():
            raise PictureError(f"cannot write {path}: it is a folder; a file name is accepted")
        with partial.open("x+b") as file:
            yield file
        partial.replace(target)
    except OSError as error:
        _remove(partial)
        raise PictureError(f"cannot write {path}: {_reason(error, target)}") from error
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    # Whatever hinders this (a folder that vanished, say) must not hide the first error.
    with suppress(OSError):
        path.unlink()


def _reason(error: OSError, target: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the folder {target.parent} does not exist"
    return error.strerror or str(error)
