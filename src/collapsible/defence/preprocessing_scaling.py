"""Stages that change the values' grid or the picture's size: bits, nearest, bicubic, networks."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsible.defence.stages import (
    DifferentiableStage,
    passing_clamp,
    passing_round,
)
from collapsible.errors import UsageError, WeightsError
from collapsible.imaging import RGB_TO_YCBCR, YCBCR_OFFSET, YCBCR_TO_RGB, resize

# Networks on RGB for pictures that a classifier sees, short in training: not for people's pictures.
WEIGHTS = Path(__file__).parent / "weights"
RGB = "_rgb"
# A network may look further than this; its own zeros that far outside no longer matter, and the
# margin is most of the work on small pictures.
WIDEST_MARGIN = 16


class Bits(DifferentiableStage):
    """Round values to ``2**bits`` levels from 0 to 1; the gradient passes (straight through)."""

    def __init__(self, bits: int = 5) -> None:
        super().__init__()
        if not 1 <= bits <= 16:
            raise UsageError(f"bits:{bits}: from 1 to 16 are accepted")
        self.bits = bits
        self.name = f"bits:{bits}"

    def smooth(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return passing_round(passing_clamp(x) * top) / top


class Nearest(DifferentiableStage):
    """Twice the size, each pixel four times."""

    name = "nearest"
    keeps_size = False

    def smooth(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


class Bicubic(DifferentiableStage):
    """Twice the size by MATLAB's bicubic, equal to ``imaging.resize`` on floats, then clipped."""

    name = "bicubic"
    keeps_size = False

    def smooth(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return passing_clamp(resample(x, 2 * height, 2 * width))


class Resize(DifferentiableStage):
    """To ``size`` x ``size`` by MATLAB's bicubic with antialiasing, then clipped."""

    keeps_size = False

    def __init__(self, size: int = 224) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"resize:{size}: a positive size in pixels is accepted")
        self.size = size
        self.name = f"resize:{size}"

    def smooth(self, x: Tensor) -> Tensor:
        return passing_clamp(resample(x, self.size, self.size))


def resample(x: Tensor, height: int, width: int) -> Tensor:
    """[N, C, H, W] at another size, as ``imaging.resize`` does it: one matrix a side."""
    rows = x.new_tensor(_matrix(x.shape[2], height))
    columns = x.new_tensor(_matrix(x.shape[3], width))
    return rows @ x @ columns.T


@lru_cache(maxsize=16)
def _matrix(length: int, new_length: int) -> NDArray[np.float64]:
    """The linear map [new_length, length] of one side, from what it makes of each unit vector."""
    return resize(np.eye(length), size=(new_length, length))


class SuperResolution(DifferentiableStage):
    """Enlarge by a network on RGB, or on luma with bicubic chroma; then clipped.

    The picture is extended by replication by the receptive radius, at most ``WIDEST_MARGIN``, and
    the result cropped, which is what the shipped graph and its tiles compute, in fp32 and without
    rounding to 8 bits.
    ``network`` says its ``scale``, ``colour`` and ``receptive_radius`` as SESR and FSRCNN do; it is
    used as it is, with gradients through it and none for its weights.
    """

    keeps_size = False

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        facts = [getattr(network, key, None) for key in ("scale", "receptive_radius", "colour")]
        if not isinstance(facts[0], int) or not isinstance(facts[1], int):
            raise UsageError(f"{name} does not say its scale and receptive radius, as SESR does")
        self.scale, self.radius = facts[0], facts[1]
        self.colour = facts[2] or "y"
        self.name = name
        # Nearly twice as fast on CPUs.
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SuperResolution:
        """The network stays as it is deployed."""
        super().train(mode)
        self.network.eval()
        return self

    def smooth(self, x: Tensor) -> Tensor:
        if self.colour == "rgb":
            return passing_clamp(self._enlarge(x))
        to_ycc = x.new_tensor(RGB_TO_YCBCR)[:, :, None, None]
        offset = x.new_tensor(YCBCR_OFFSET / 255)
        planes = F.conv2d(x, to_ycc, offset)
        height, width = x.shape[2:]
        chroma = resample(planes[:, 1:], self.scale * height, self.scale * width)
        luma = self._enlarge(planes[:, :1])
        back = x.new_tensor(YCBCR_TO_RGB)[:, :, None, None]
        return passing_clamp(F.conv2d(torch.cat([luma, chroma], 1) - offset[:, None, None], back))

    def _enlarge(self, x: Tensor) -> Tensor:
        r, s = min(self.radius, WIDEST_MARGIN), self.scale
        y = self.network(F.pad(x, (r, r, r, r), mode="replicate"))
        return y[:, :, r * s : y.shape[2] - r * s, r * s : y.shape[3] - r * s]


def load_upscaler(name: str, weights: str | Path | None = None) -> SuperResolution:
    """The collapsed x2 network of a name, with the shipped weights or those of a file.

    ``sesr-m5-rgb`` has the weights on RGB that ship with this room; ``sesr-m5`` those on luma that
    ship for pictures, or where there are none those on RGB. A file's options (colour, activation,
    expansion) are those of the card beside it, else those with which it fits.
    Raises ``UnknownNameError``, ``UsageError`` where nothing is shipped and no file is given,
    ``WeightsError`` where a file does not fit.
    """
    from collapsible.evaluation.networks import load_network
    from collapsible.weights import find_card, list_cards, normalise_name

    asked = normalise_name(name)
    key = asked.removesuffix(RGB)
    shown = asked.replace("_", "-")
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"no weights for {name} at {path}")
        return SuperResolution(_fitting(path, key), shown)
    if key == asked and any(c.architecture == key and c.scale == 2 for c in list_cards()):
        card = find_card(name, 2)
        network = load_network(card.safetensors_path, key, 2, card.options)
        return SuperResolution(network, shown)
    path = WEIGHTS / f"{key}{RGB}_x2.safetensors"
    if not path.is_file():
        luma = {card.name for card in list_cards() if card.scale == 2}
        raise UsageError(
            f"no x2 weights are shipped for {name} (there are for: "
            f"{', '.join(sorted(luma | set(list_rgb_weights())))}); "
            f"give a file of them: weights {name}=FILE.safetensors"
        )
    return SuperResolution(_fitting(path, key), shown)


def list_rgb_weights() -> list[str]:
    """Names of the x2 networks on RGB whose weights ship with this room."""
    names = (path.stem.removesuffix("_x2") for path in WEIGHTS.glob("*.safetensors"))
    return sorted(name.replace("_", "-") for name in names)


def _fitting(path: Path, key: str) -> nn.Module:
    from collapsible.evaluation.networks import load_network

    first: WeightsError | None = None
    for options in _candidates(path):
        try:
            return load_network(path, key, 2, options)
        except WeightsError as error:
            first = first or error
    assert first is not None
    raise first


def _candidates(path: Path) -> list[dict[str, Any]]:
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return [dict(record["options"])]
    except (OSError, ValueError, KeyError, TypeError):
        return [{"colour": c, "act": a} for c in ("rgb", "y") for a in ("prelu", "relu")]
