"""Smaller batches by themselves where memory runs out, then a clear error."""

from __future__ import annotations

import pytest
import torch

from collapsible.defence import DefenceError
from collapsible.defence.batches import in_batches, is_out_of_memory
from collapsible.errors import UsageError

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("room", "batch"), [(1, 8), (3, 8), (8, 8), (3, 100)])
def test_batches_shrink_until_they_fit(error: Exception, room: int, batch: int) -> None:
    def work(start: int, stop: int) -> list[int]:
        if stop - start > room:
            raise error
        return list(range(start, stop))

    done = list(in_batches(work, 11, batch))
    assert [i for _, _, part in done for i in part] == list(range(11))
    assert all(stop - start <= room for start, stop, _ in done)


def test_one_picture_that_does_not_fit_is_an_error() -> None:
    def work(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DefenceError, match="out of memory with a single picture"):
        list(in_batches(work, 3, 8))


def test_other_errors_are_not_hidden() -> None:
    def work(start: int, stop: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(in_batches(work, 3, 8))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(UsageError, match="at least 1"):
        list(in_batches(work, 3, 0))
