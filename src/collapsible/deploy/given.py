"""What every exporter is given: one fixed input size, calibration arrays, a network to copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from collapsible.errors import ExportError, UsageError

Array = NDArray[np.float32]
InputSize = tuple[int, int, int, int]
"""Batch, channels, height, width: torch's order."""


def check_size(input_size: Sequence[int]) -> InputSize:
    """Four fixed positive sizes; raises ``UsageError`` for anything else, dynamic ones too."""
    size = tuple(input_size)
    if len(size) != 4 or any(not isinstance(n, int) or n < 1 for n in size):
        raise UsageError(
            f"input size {','.join(map(str, size))}: a file is for one fixed size; accepted are "
            "four numbers from 1: batch, channels, height, width"
        )
    return size[0], size[1], size[2], size[3]


def check_calibration(calibration: Sequence[Array], input_size: Sequence[int]) -> list[Array]:
    """Calibration arrays as float32 batches of the file's own shape.

    Arrays [N, C, H, W] are taken apart and put together to the file's batch, the last picture
    repeated where it does not come out even. Raises ``UsageError`` for arrays of another shape,
    with values that are not finite, or none at all.
    """
    batch, *shape = check_size(input_size)
    single: list[Array] = []
    for number, given in enumerate(calibration):
        array = np.asarray(given)
        if list(array.shape[-3:]) != shape or array.ndim not in (3, 4):
            raise UsageError(
                f"calibration array {number} has shape {list(array.shape)}: "
                f"{shape} or [N, {', '.join(map(str, shape))}] is accepted"
            )
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise UsageError(f"calibration array {number}: finite real numbers are accepted")
        single += list(array.astype(np.float32).reshape(-1, *shape))
    if not single:
        raise UsageError("no calibration pictures: int8 needs at least one")
    return batches(single, batch)


def batches(single: Sequence[Array], batch: int) -> list[Array]:
    """Arrays [C, H, W] stacked by ``batch``, the last one repeated where it is not even."""
    full = [*single, *([single[-1]] * (-len(single) % batch))]
    return [np.stack(full[i : i + batch]) for i in range(0, len(full), batch)]


def run_torch(network: nn.Module, inputs: Array) -> Array:
    """A network's output on the CPU for float32 inputs; raises ``ExportError`` if not a tensor."""
    with torch.no_grad():
        output = network(torch.from_numpy(np.ascontiguousarray(inputs)))
    if not isinstance(output, torch.Tensor):
        raise ExportError(
            f"{type(network).__name__} gives {type(output).__name__}; one tensor is accepted"
        )
    return output.numpy()


def prepare(network: nn.Module, input_size: Sequence[int]) -> tuple[nn.Module, Array]:
    """A float32 copy on the CPU in evaluation mode, and its output on random input.

    Raises ``UsageError`` where the network does not take input of this size.
    """
    size = check_size(input_size)
    ready = copy.deepcopy(network).to(device="cpu", dtype=torch.float32).eval()
    # litert-torch 0.10 misreads weights that lie channels-last, and says nothing.
    ready = ready.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    probe = torch.rand(size, generator=torch.Generator().manual_seed(0))
    try:
        return ready, run_torch(ready, probe.numpy())
    except ExportError:
        raise
    except Exception as error:
        raise UsageError(
            f"{type(network).__name__} does not take input {list(size)}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything, short enough to read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
