"""Tasks around a task: learning from the original network, and a search's gates.

The training loop knows batches and a loss of output and target. Everything else rides on these:
the teacher's scores on the output, by a hook; the place in the run on the target, as a last column.
So a run resumes, and runs in several processes, as any other does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from collapsible.errors import UsageError
from collapsible.training.loop import Task

TEMPERATURE = 2.0


@contextmanager
def teacher_beside(network: nn.Module, teacher: nn.Module | None) -> Iterator[None]:
    """While training, the network's scores [N, K] have the teacher's beside them, [N, 2 K]."""
    if teacher is None:
        yield
        return
    known_by = copy.deepcopy(teacher).eval()

    def beside(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not module.training:
            return None
        with torch.no_grad():
            known = known_by.to(output.device)(given[0])
        return torch.cat([output, known.to(output.dtype)], 1)

    hook = network.register_forward_hook(beside)
    try:
        yield
    finally:
        hook.remove()


class DistilTask:
    """A task of scores [N, K] and probabilities [N, K], with what the restructuring adds.

    ``distil`` in [0, 1] is the share of the loss that is the distance from the teacher's
    probabilities (Hinton et al., arXiv 1503.02531: temperature 2, times its square).
    ``pressure(progress)`` is added to the loss; progress goes from 0 to 1 in ``steps``.
    """

    def __init__(
        self,
        task: Task,
        steps: int,
        distil: float = 0.0,
        pressure: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not 0 <= distil <= 1:
            raise UsageError(f"distil={distil}: a share from 0 to 1 is accepted")
        self.task, self.steps, self.distil, self.pressure = task, steps, distil, pressure

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        inputs, target = self.task.batch(step, places)
        if target.ndim != 2:
            raise UsageError(
                f"targets of shape {tuple(target.shape)}: probabilities [N, K] are accepted"
            )
        progress = torch.full((len(target), 1), step / self.steps, dtype=target.dtype)
        return inputs, torch.cat([target, progress], 1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        target, progress = target[:, :-1], target[0, -1]
        scores, known = output[:, : target.shape[1]], output[:, target.shape[1] :]
        loss = self.task.loss(scores, target)
        if self.distil and known.shape[1]:
            ours = (scores.float() / TEMPERATURE).log_softmax(1)
            theirs = (known.float() / TEMPERATURE).log_softmax(1)
            distance = nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
            loss = (1 - self.distil) * loss + self.distil * TEMPERATURE**2 * distance
        return loss if self.pressure is None else loss + self.pressure(progress)

    def validate(self, network: nn.Module) -> dict[str, float]:
        return self.task.validate(network)
