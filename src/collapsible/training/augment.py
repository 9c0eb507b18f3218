"""Augmentation of classified pictures, every draw a function of seed, step and place."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from collapsible.errors import UsageError
from collapsible.models.trained import Preprocessing
from collapsible.training.recipes import AugmentSpec

# timm's RandAugment draws from the process's own generators; two threads must not share them.
_GLOBAL_DRAWS = Lock()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators from a seed, and back as they were."""
    with _GLOBAL_DRAWS:
        before = python_random.getstate(), np.random.get_state()
        python_random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            python_random.setstate(before[0])
            np.random.set_state(before[1])


def _resampling(name: str) -> Image.Resampling:
    try:
        return Image.Resampling[name.upper()]
    except KeyError:
        raise UsageError(f"unknown interpolation {name!r}: bilinear, bicubic, lanczos") from None


class Augmenter:
    """From a picture to a training input: crop, flip, RandAugment, normalise, erase.

    The random resized crop and its limits are Inception's, as in torchvision and timm; RandAugment
    is timm's; erasing fills with normal noise (timm's ``pixel`` mode).
    """

    def __init__(self, spec: AugmentSpec, steps: Preprocessing, size: int) -> None:
        self.spec, self.size = spec, size
        self.mean = np.asarray(steps.mean, np.float32)[:, None, None]
        self.std = np.asarray(steps.std, np.float32)[:, None, None]
        self.resampling = _resampling(steps.interpolation)
        self.policy = self._policy(steps) if spec.rand_augment else None

    def _policy(self, steps: Preprocessing) -> Callable[[Image.Image], Image.Image]:
        from timm.data.auto_augment import rand_augment_transform

        settings: dict[str, Any] = {
            "translate_const": int(self.size * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in steps.mean),
            "interpolation": self.resampling,
        }
        try:
            policy = rand_augment_transform(self.spec.rand_augment, settings)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(
                f"augment.rand_augment = {self.spec.rand_augment!r}: expected the form "
                f"rand-m9-mstd0.5-inc1 ({error})"
            ) from error
        # The strongest posterising keeps 0 bits in timm, which Pillow refuses; keep one.
        for op in policy.ops:
            if op.name.startswith("Posterize"):
                op.level_fn = partial(_one_bit_at_least, op.level_fn)
        return policy

    def __call__(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Picture uint8 [H, W, 3] to a normalised input float32 [3, size, size]."""
        top, left, height, width = draw_crop(pixels.shape[:2], self.spec, random)
        crop = Image.fromarray(pixels[top : top + height, left : left + width])
        picture = crop.resize((self.size, self.size), self.resampling)
        if random.random() < self.spec.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.policy is not None:
            with _seeded(int(random.integers(2**63))):
                picture = self.policy(picture)
        values = np.asarray(picture, np.float32).transpose(2, 0, 1) / np.float32(255)
        values = (values - self.mean) / self.std
        if random.random() < self.spec.erasing:
            erase(values, random)
        return values


def _one_bit_at_least(bits: Callable[..., tuple[int]], *arguments: Any) -> tuple[int]:
    return (max(1, bits(*arguments)[0]),)


def draw_crop(
    shape: tuple[int, ...], spec: AugmentSpec, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop whose area and shape are drawn.

    The area is uniform in ``spec.scale`` of the picture's, the width over the height log-uniform
    in ``spec.ratio``; after ten crops that do not fit, the largest centred one of an allowed shape
    (Szegedy et al., "Going deeper with convolutions", section 6, as torchvision has it).
    """
    height, width = shape
    low, high = np.log(spec.ratio[0]), np.log(spec.ratio[1])
    for _ in range(10):
        area = height * width * random.uniform(spec.scale[0], spec.scale[1])
        ratio = np.exp(random.uniform(low, high))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            return int(top), int(left), int(h), int(w)
    h = min(height, round(width / spec.ratio[0]))
    w = min(width, round(height * spec.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def erase(values: np.ndarray, random: np.random.Generator) -> None:
    """Fill a rectangle of 2 to 33 % of the area with normal noise, in place.

    Zhong et al., "Random erasing data augmentation", with timm's limits.
    """
    height, width = values.shape[1:]
    for _ in range(10):
        area = height * width * random.uniform(0.02, 1 / 3)
        ratio = np.exp(random.uniform(np.log(0.3), np.log(1 / 0.3)))
        h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = random.integers(height - h + 1), random.integers(width - w + 1)
            noise = random.standard_normal((3, h, w), dtype=np.float32)
            values[:, top : top + h, left : left + w] = noise
            return


@dataclass(frozen=True)
class Mix:
    """How the two pictures of a pair are put together, the same for a whole step.

    ``share`` is the first one's part. ``box`` (top, bottom, left, right) is the rectangle that
    comes from the other picture in CutMix, None in mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(spec: AugmentSpec, size: int, random: np.random.Generator) -> Mix:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) for one step, an even choice of the
    two where both are on; the share is drawn from Beta(a, a), CutMix's then corrected to the
    rectangle's true area."""
    cut = spec.cutmix > 0 and (spec.mixup == 0 or random.random() < 0.5)
    strength = spec.cutmix if cut else spec.mixup
    if strength == 0:
        return Mix(1.0)
    share = float(random.beta(strength, strength))
    if not cut:
        return Mix(share)
    side = int(size * np.sqrt(1 - share))
    middle = random.integers(size, size=2)
    top, left = np.clip(middle - side // 2, 0, size)
    bottom, right = np.clip(middle + side // 2, 0, size)
    box = int(top), int(bottom), int(left), int(right)
    return Mix(1 - (box[1] - box[0]) * (box[3] - box[2]) / size**2, box)


def mix_pairs(inputs: Tensor, targets: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix each picture with its neighbour (0 with 1, 2 with 3, ...).

    ``inputs`` [N, 3, S, S], ``targets`` [N, K] probabilities; N is even. Neighbours stay in one
    process, so that a batch divided among processes is mixed as the whole would be.
    """
    if mix.share == 1 and mix.box is None:
        return inputs, targets
    order = [place ^ 1 for place in range(len(inputs))]
    targets = mix.share * targets + (1 - mix.share) * targets[order]
    if mix.box is None:
        return mix.share * inputs + (1 - mix.share) * inputs[order], targets
    top, bottom, left, right = mix.box
    mixed = inputs.clone()
    mixed[:, :, top:bottom, left:right] = inputs[order][:, :, top:bottom, left:right]
    return mixed, targets
