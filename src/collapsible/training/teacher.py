"""A better network's output mixed into the pictures that a smaller one learns (distillation)."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from collapsible.deploy.cache import cache_folder, make_cache_folder
from collapsible.errors import UsageError
from collapsible.evaluation.networks import find_network, load_network
from collapsible.imaging import atomic_write, extend
from collapsible.training.precision import usable_precision
from collapsible.training.recipes import NetworkSpec, TeacherSpec
from collapsible.weights import sha256

_LEVELS = 65535
"""Of the outputs that are kept: the same on every run, made or read."""


class Teacher:
    """Makes targets of pictures: ``share`` of what the network makes of them, the rest themselves.

    Of a high-resolution picture most of the detail cannot be told from the reduced one: to the one
    who learns, it is noise. The teacher's output has none of it, so that the mixture has less, and
    the gradient too. The teacher's own error is what that costs. Its output is the mean over the
    eight symmetries of a square (self-ensemble; arXiv 1707.02921, section 3.3).
    With the mean square error as the loss a mixed target is the same as two losses with these
    shares, but for a constant; and it costs nothing a step, for it is made once and cached: picture
    by picture, so that a run that was killed meanwhile, or is given more pictures, makes the rest.
    ``cache`` is the folder for it, by default the user's.
    Raises ``UnknownNameError`` for a name that did not ship, ``UsageError`` if the network is not
    of this scale or has other colours.
    """

    def __init__(
        self,
        spec: TeacherSpec,
        student: NetworkSpec,
        *,
        precision: str = "fp32",
        cache: Path | None = None,
    ) -> None:
        if spec.model.endswith(".safetensors") and not Path(spec.model).is_file():
            raise UsageError(f"teacher.model: no weights at {spec.model}")
        path, architecture, own = find_network(spec.model, student.scale)
        colours = [str(options.get("colour", "y")) for options in (own, student.options)]
        if colours[0] != colours[1]:
            raise UsageError(
                f"teacher.model = {spec.model!r} enlarges {colours[0]}, not {colours[1]}"
            )
        self.share, self.scale = spec.share, student.scale
        precision = usable_precision(precision, "cpu")
        self.bf16 = precision == "bf16"
        self._described = (path, architecture, student.scale, own)
        made_by = sha256(path)
        self.kept = (cache or cache_folder()) / f"taught-{made_by[:24]}-{precision}"
        """The folder of its outputs."""
        self.key = (made_by, spec.share, precision)
        """What the targets depend on besides the pictures."""

    @cached_property
    def network(self) -> nn.Module:
        """Loaded when first asked for: a run whose targets are all cached does without."""
        return load_network(*self._described).to(memory_format=torch.channels_last)

    def output(self, low: np.ndarray) -> np.ndarray:
        """Float32 [s * H, s * W, C] in [0, 1], to 16 bits, of a picture float32 [H, W, C]."""
        content = hashlib.sha256(repr(low.shape).encode() + low.tobytes()).hexdigest()
        file = self.kept / f"{content[:32]}.npy"
        if file.is_file():
            made = np.load(file)
        else:
            made = np.rint(self._ensemble(low) * np.float32(_LEVELS)).astype(np.uint16)
            make_cache_folder(self.kept)
            with atomic_write(file) as stream:
                np.save(stream, made)
        return made.astype(np.float32) / np.float32(_LEVELS)

    @torch.inference_mode()
    def _ensemble(self, low: np.ndarray) -> np.ndarray:
        radius = int(getattr(self.network, "receptive_radius", 16))
        edge = radius * self.scale
        around = torch.from_numpy(extend(low, radius).transpose(2, 0, 1)[None].copy())
        total = torch.zeros(())
        for turns in range(4):
            for flip in (False, True):
                x = torch.rot90(around, turns, (2, 3))
                x = (x.flip(3) if flip else x).contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                    y = self.network(x).float()
                total = total + torch.rot90(y.flip(3) if flip else y, -turns, (2, 3))
        mean = (total / 8)[0, :, edge:-edge, edge:-edge]
        return mean.clamp(0, 1).permute(1, 2, 0).numpy()

    def target(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The mixture, float32 in [0, 1], for a pair of such pictures."""
        return high + np.float32(self.share) * (self.output(low) - high)
