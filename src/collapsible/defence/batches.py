"""Work in batches that grow smaller when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from collapsible.defence.errors import DefenceError
from collapsible.errors import UsageError

Result = TypeVar("Result")
SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def in_batches(
    work: Callable[[int, int], Result], total: int, batch: int
) -> Iterator[tuple[int, int, Result]]:
    """Do ``work(start, stop)`` for all of ``total`` in order, at most ``batch`` at a time.

    Where memory runs out, the batch is halved, from there on. Yields (start, stop, result).
    Raises ``DefenceError`` where it runs out with one picture, ``UsageError`` for a batch below 1.
    """
    if batch < 1:
        raise UsageError(f"batch {batch}: at least 1 is accepted")
    start = 0
    while start < total:
        stop = min(start + batch, total)
        found: list[Result] = []
        try:
            found.append(work(start, stop))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if stop - start == 1:
                raise DefenceError(
                    "out of memory with a single picture: use smaller pictures, a smaller "
                    f"classifier, fewer stages or a device with more memory ({_short(error)})"
                ) from error
        if found:
            yield start, stop, found[0]
            start = stop
            continue
        # Outside the handler, which would keep the failed step's tensors alive.
        batch = (stop - start) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
