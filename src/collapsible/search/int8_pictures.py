"""Training a network for pictures in its int8 form (quantisation-aware)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsible.deploy.quantise import QuantisedLayers, choose_codes
from collapsible.deploy.rounded_picture import RoundedPicture
from collapsible.errors import UsageError
from collapsible.imaging import RGB_TO_YCBCR
from collapsible.models.registry import load_state, read_state
from collapsible.training.loop import Progress, train
from collapsible.training.recipes import (
    DataSpec,
    NetworkSpec,
    OptimiserSpec,
    Recipe,
    ScheduleSpec,
)
from collapsible.training.super_resolution import SuperResolution

if TYPE_CHECKING:
    from lightning.fabric import Fabric

RATE = 2e-4
# Low-resolution pixels a side that the loss sees. Those nearer to the patch's border than the
# receptive radius see zeros, which the ranges are not made for, and which a graph in use never
# sees: pictures are mirrored at their borders.
PART = 32


def int8_picture_recipe(network: nn.Module, steps: int, rate: float = RATE) -> Recipe:
    """How ``train_picture_int8`` trains a collapsed network of ``scale`` on pictures."""
    scale, radius = (getattr(network, key, None) for key in ("scale", "receptive_radius"))
    if not isinstance(scale, int) or not isinstance(radius, int):
        raise UsageError(f"{type(network).__name__} does not say its scale and receptive radius")
    return Recipe(
        name="int8",
        task="super-resolution",
        network=NetworkSpec(type(network).__name__, scale, {"colour": "rgb"}),
        steps=steps,
        data=DataSpec(patch=2 * radius + PART, batch=16, rescale=(1.0, 0.6), crop=radius),
        optimiser=OptimiserSpec(kind="adam", learning_rate=rate),
        schedule=ScheduleSpec(kind="cosine", warmup=0.05),
        precision="fp32",
        loss="l1",
        average=0.99,
        checkpoint_every=250,
        validate_every=steps,
    )


class AsInFloat(SuperResolution):
    """RGB patches, and as what is wanted of them what the float graph makes; the loss on luma.

    Not the pictures themselves: they would draw the network towards what is typical of them, which
    costs other pictures more than rounding does.
    """

    def __init__(self, recipe: Recipe, data: list[Path], form: RoundedPicture) -> None:
        super().__init__(recipe, data, {})
        self.teacher = copy.deepcopy(form).eval().requires_grad_(False)
        self.teacher.rounding = False
        self.row = torch.from_numpy(np.float32(RGB_TO_YCBCR[0])).reshape(1, 3, 1, 1)

    @torch.no_grad()
    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        low, _ = super().batch(step, places)
        return low, self.teacher(low)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        row = self.row.to(output)
        luma = ((one.float() * row).sum(1, keepdim=True) for one in (output, target))
        return super().loss(*luma)


def train_picture_int8(
    network: nn.Module,
    calibration: Sequence[NDArray[np.uint8]],
    data: Sequence[str | Path],
    folder: str | Path,
    *,
    steps: int,
    rate: float = RATE,
    fabric: Fabric | None = None,
    resume: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> QuantisedLayers:
    """Fine-tune a SESR or FSRCNN network in the form of its int8 graph.

    ``calibration`` gives steps and ranges as for ``quantise_picture_graph``, which stay; ``data``
    are folders of pictures. Kernels, biases and slopes learn to give what the float graph does, the
    loss (L1) on luma. Checkpoints go below ``folder``, and with ``resume`` it goes on from there.
    ``.graph(name)`` of what comes back is the int8 graph.
    Raises ``UsageError`` as ``quantise_picture_graph`` and ``train`` do.
    """
    form = RoundedPicture(choose_codes(network, calibration))
    recipe = int8_picture_recipe(network, steps, rate)
    task = AsInFloat(recipe, [Path(one) for one in data], form)
    report = train(form, task, recipe, Path(folder), fabric=fabric, resume=resume, on_step=on_step)
    load_state(form, read_state(report.weights), str(report.weights))
    return form.cpu().eval().layers()
