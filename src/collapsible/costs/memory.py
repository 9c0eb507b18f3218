"""How long each map lives, and the most memory that is needed at once."""

from __future__ import annotations

from dataclasses import dataclass

from collapsible.costs.trace import Storage, Trace


@dataclass(frozen=True)
class Life:
    """One piece of memory: needed from step ``born`` to step ``last``, both included."""

    storage: int
    elements: int
    born: int
    last: int
    size: int


def bytes_of(storage: Storage, element_bytes: int) -> int:
    """Real numbers take ``element_bytes`` each; indices and masks what they take in PyTorch."""
    return storage.elements * (element_bytes if storage.floating else storage.width)


def lives(trace: Trace, element_bytes: int) -> list[Life]:
    """The lives of all memory that a run makes, weights aside, in order of birth.

    Memory lives from the step that makes it to the last that reads or changes it or a view of
    it; the input from the start and the outputs to the end. Side results that nothing reads (the
    indices of a max pooling) are not counted: a runtime does not make them.
    """
    end = len(trace.steps)
    born = {value.storage: 0 for value in trace.inputs}
    last = dict(born)
    side: dict[int, int] = {}
    for number, step in enumerate(trace.steps):
        for value in step.inputs:
            last[value.storage] = number
            side.pop(value.storage, None)
        for place, value in enumerate(step.outputs):
            if value.storage in trace.weights:
                continue
            if value.storage not in born:
                born[value.storage] = number
                if place:
                    side[value.storage] = number
            last[value.storage] = number
    for value in trace.outputs:
        last[value.storage] = end
        side.pop(value.storage, None)
    return [
        Life(
            storage,
            trace.storages[storage].elements,
            start,
            last[storage],
            bytes_of(trace.storages[storage], element_bytes),
        )
        for storage, start in born.items()
        if storage not in side and storage not in trace.weights
    ]


def peak(trace: Trace, element_bytes: int) -> tuple[int, int]:
    """The most bytes alive at once and the first step where they are."""
    change = [0] * (len(trace.steps) + 2)
    for life in lives(trace, element_bytes):
        change[life.born] += life.size
        change[life.last + 1] -= life.size
    most, where, now = 0, 0, 0
    for number, delta in enumerate(change):
        now += delta
        if now > most:
            most, where = now, number
    return most, min(where, max(len(trace.steps) - 1, 0))
