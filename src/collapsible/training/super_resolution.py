"""The super-resolution task: which pictures, which loss, which measure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from collapsible.errors import UsageError, WeightsError
from collapsible.imaging import extend, psnr
from collapsible.models import create_model
from collapsible.models.registry import load_weights
from collapsible.models.sesr import SESR
from collapsible.training.pairs import PairedPictures, PatchSampler, to_unit
from collapsible.training.recipes import NetworkSpec, Recipe
from collapsible.training.teacher import Teacher

SESR_BY_DEPTH = ("sesr_m2", "sesr_m3", "sesr_m5", "sesr_m7", "sesr_m11")


def build_network(recipe: Recipe, start: Path | None = None) -> nn.Module:
    """The recipe's network, new or started from another run's weights.

    ``start`` is a safetensors file of the same network, of its form at a smaller scale (then the
    shared blocks are taken over and the last one continues from it; SESR, section 4), of an SESR
    of its scale and another depth, as M5 for M11 (further blocks start as the identity) or for M3
    (which takes three of the five), or of the same SESR with PReLU for one with ReLU (whose
    kernels it takes) and the other way round (with slopes of nought: the same function).
    Weights are drawn from the recipe's seed.
    """
    torch.manual_seed(recipe.seed)
    spec = recipe.network
    network = create_model(spec.name, scale=spec.scale, **spec.options)
    if start is None:
        return network
    if not start.is_file():
        raise UsageError(f"no weights to start from at {start}")
    try:
        load_weights(network, start)
    except WeightsError:
        if not isinstance(network, SESR) or not (
            _start_from_smaller(network, spec, start)
            or _start_from_twin(network, spec, start)
            or _start_from_other_depth(network, spec, start)
            or _start_from_half_width(network, spec, start)
        ):
            raise
    return network


def _begun(begin: Callable[[SESR], None], other: nn.Module, start: Path) -> bool:
    """Whether the file fits ``other``; if so, ``begin`` has gone on from it."""
    assert isinstance(other, SESR)
    with suppress(WeightsError):
        load_weights(other, start)
        begin(other)
        return True
    return False


def _start_from_smaller(network: SESR, spec: NetworkSpec, start: Path) -> bool:
    return any(
        _begun(network.start_from, create_model(spec.name, scale=scale, **spec.options), start)
        for scale in range(2, spec.scale)
    )


def _start_from_twin(network: SESR, spec: NetworkSpec, start: Path) -> bool:
    """With PReLU from ReLU (a slope of nought), or the other way round (slopes dropped)."""
    slopes = any(name.endswith("act.weight") for name in network.state_dict())
    act = "relu" if slopes else "prelu"
    other = create_model(spec.name, scale=spec.scale, **{**spec.options, "act": act})

    def begin(other: SESR) -> None:
        wanted = network.state_dict()
        same = {k: v for k, v in other.state_dict().items() if k in wanted}
        missing = {k: torch.zeros_like(v) for k, v in wanted.items() if k not in same}
        network.load_state_dict({**same, **missing})

    return _begun(begin, other, start)


def _start_from_other_depth(network: SESR, spec: NetworkSpec, start: Path) -> bool:
    for name in SESR_BY_DEPTH:
        other = create_model(name, scale=spec.scale, **spec.options)
        assert isinstance(other, SESR)
        if len(other.blocks) == len(network.blocks) or other.features != network.features:
            continue
        if _begun(network.start_from_depth, other, start):
            return True
    return False


def _start_from_half_width(network: SESR, spec: NetworkSpec, start: Path) -> bool:
    """From two copies of one with half the features, as M11 for XL."""
    if network.features % 2:
        return False
    options = {**spec.options, "features": network.features // 2}
    other = create_model(spec.name, scale=spec.scale, **options)
    return _begun(network.start_from_width, other, start)


class SuperResolution:
    """Draws batches, computes the loss and validates, for one recipe on one set of folders."""

    def __init__(
        self,
        recipe: Recipe,
        data: list[Path],
        validation: dict[str, Path],
        *,
        on_picture: Callable[[int, int], None] | None = None,
    ) -> None:
        scale = recipe.network.scale
        colour = str(recipe.network.options.get("colour", "y"))
        self.recipe = recipe
        teacher = None
        if recipe.teacher.model:
            teacher = Teacher(recipe.teacher, recipe.network, precision=recipe.precision)
        pictures = PairedPictures(
            data,
            scale=scale,
            colour=colour,
            rescale=recipe.data.rescale,
            smallest=recipe.data.patch,
            teacher=teacher,
            on_picture=on_picture,
        )
        self.skipped = pictures.skipped
        self.count = len(pictures.pairs)
        self.sampler = PatchSampler(
            pictures,
            patch=recipe.data.patch,
            outside=recipe.data.crop,
            seed=recipe.seed,
            spec=recipe.degrade,
        )
        self.sets = {
            name: PairedPictures([folder], scale=scale, colour=colour, grey_is_luma=True).pairs
            for name, folder in validation.items()
        }

    def batch(self, step: int, places: range) -> tuple[Tensor, Tensor]:
        """Low [N, C, p, p] and high [N, C, s p, s p] patches in [0, 1]."""
        low, high = self.sampler.draw(step, places)
        return torch.from_numpy(low), torch.from_numpy(high)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The recipe's loss, computed in fp32, away from the patch's border."""
        edge = self.recipe.data.crop * self.recipe.network.scale
        if edge:
            output, target = (
                output[..., edge:-edge, edge:-edge],
                target[..., edge:-edge, edge:-edge],
            )
        difference = output.float() - target
        if self.recipe.loss == "l2":
            return difference.square().mean()
        if self.recipe.loss == "psnr":
            # The measure itself is a mean of logarithms over pictures. The constant (40 dB) keeps
            # patches that are nearly flat, and so nearly perfect, from taking over. What a teacher
            # takes from the error it takes from the constant, or all patches would count alike.
            teacher = self.recipe.teacher
            own = max(1 - teacher.share, 0.1) if teacher.model else 1.0
            error = difference.square().mean((1, 2, 3)) + 1e-4 * own**2
            return error.log10().mul(10).mean()
        if self.recipe.loss == "charbonnier":
            return (difference.square() + 1e-6).sqrt().mean()
        return difference.abs().mean()

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean PSNR in dB of each validation set, on the network's own planes.

        Output clipped, not rounded; borders of ``scale`` pixels cropped; the picture is extended
        by mirroring so that the network's zero padding is never seen, as when deployed.
        """
        scale = self.recipe.network.scale
        radius = int(getattr(network, "receptive_radius", 16))
        device = next(network.parameters()).device
        result = {}
        for name, pairs in self.sets.items():
            values = []
            for pair in pairs:
                low = to_unit(extend(pair.low, radius)).transpose(2, 0, 1)[None]
                edge = radius * scale
                output = network(torch.from_numpy(low).to(device))[0, :, edge:-edge, edge:-edge]
                planes = output.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
                got = planes.astype(np.float64) * 255
                wanted = to_unit(pair.high).astype(np.float64) * 255
                values.append(psnr(wanted, got, crop=scale))
            result[name] = float(np.mean(values))
        return result
