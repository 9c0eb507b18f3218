"""Checkpoints: whole or absent, never half; safetensors for weights, no pickle is ever run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from collapsible.errors import WeightsError

PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: weights, their running mean, optimiser.

    There is no random state: every draw is a function of the recipe's seed and the step.
    """

    step: int
    recipe: str
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimiser: dict[str, Any]


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write ``folder/step-N``, then drop all but the ``keep`` newest.

    Everything is written into a folder beside the final one, flushed, and renamed; a run that is
    killed at any moment leaves either the whole checkpoint or none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{checkpoint.step:08d}"
    draft = folder / f".draft-{checkpoint.step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file(_contiguous(checkpoint.model), draft / "model.safetensors")
    save_file(_contiguous(checkpoint.average), draft / "average.safetensors")
    torch.save({"optimiser": checkpoint.optimiser}, draft / "state.pt")
    facts = {"step": checkpoint.step, "recipe": checkpoint.recipe}
    (draft / "facts.json").write_text(json.dumps(facts))
    for file in draft.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a run's folder, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / "facts.json").is_file())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises ``WeightsError`` for one that is damaged."""
    try:
        facts = json.loads((path / "facts.json").read_text())
        state = torch.load(path / "state.pt", weights_only=True)
        return Checkpoint(
            step=facts["step"],
            recipe=facts["recipe"],
            model=load_file(path / "model.safetensors"),
            average=load_file(path / "average.safetensors"),
            optimiser=state["optimiser"],
        )
    except Exception as error:  # every reader here has its own kinds of failure
        raise WeightsError(f"{path}: not a usable checkpoint: {error}") from error
