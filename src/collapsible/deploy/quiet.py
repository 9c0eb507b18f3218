"""Silence around converters that talk: Python's own streams, C++ logs and known warnings."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard output or standard error, warnings and logging included, while inside.

    Converters log from C++, which only the file descriptor can stop; the lines go to a file that
    is thrown away. Errors are raised as ever.
    """
    disabled = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(_descriptor_to_nowhere())
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, disabled)
        yield


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while."""
    old = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if old is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = old


@contextlib.contextmanager
def _descriptor_to_nowhere() -> Iterator[None]:
    """Redirect descriptor 2; where there is none (a process without a terminal), do nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.__stderr__.flush()  # type: ignore[union-attr]
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
