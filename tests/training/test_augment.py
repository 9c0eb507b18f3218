"""Augmentation follows torchvision's and timm's laws, draws from its own generator alone."""

from __future__ import annotations

import random as python_random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from collapsible.errors import UsageError
from collapsible.models import Preprocessing
from collapsible.training.augment import Augmenter, Mix, draw_crop, draw_mix, erase, mix_pairs
from collapsible.training.recipes import AugmentSpec

STEPS = Preprocessing(size=32)
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def test_crops_have_torchvisions_distribution():
    spec = AugmentSpec(scale=(0.2, 1.0))
    generator = np.random.default_rng(3)
    ours = np.array([draw_crop((60, 90), spec, generator) for _ in range(1500)])
    torch.manual_seed(5)
    picture = torch.zeros(3, 60, 90)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(picture, list(spec.scale), list(spec.ratio))
            for _ in range(1500)
        ]
    )
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2] <= 60).all()
    assert (ours[:, 1] + ours[:, 3] <= 90).all()


def test_a_shape_that_never_fits_falls_back_to_the_centre():
    top, left, height, width = draw_crop((10, 500), AugmentSpec(), np.random.default_rng(0))
    assert (top, left, height, width) == (0, 243, 10, 13)


def test_erased_areas_have_timms_distribution():
    def area(values: np.ndarray) -> int:
        return int((values[0] != 7).sum())

    generator = np.random.default_rng(1)
    ours = []
    for _ in range(600):
        values = np.full((3, 40, 40), 7, np.float32)
        erase(values, generator)
        ours.append(area(values))
    python_random.seed(2)
    torch.manual_seed(2)
    eraser = RandomErasing(probability=1, mode="pixel", device="cpu")
    theirs = [area(eraser(torch.full((3, 40, 40), 7.0)).numpy()) for _ in range(600)]
    assert ks_2samp(ours, theirs).pvalue > 1e-3


def test_draws_leave_the_processes_generators_alone():
    augment = Augmenter(AugmentSpec(rand_augment="rand-m9-mstd0.5-inc1", erasing=1.0), STEPS, 32)
    python_random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = python_random.random(), np.random.rand(), torch.rand(1).item()
    python_random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = augment(PIXELS, np.random.default_rng(9))
    assert (python_random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert np.array_equal(first, augment(PIXELS, np.random.default_rng(9)))
    assert not np.array_equal(first, augment(PIXELS, np.random.default_rng(10)))


def test_plain_crops_are_normalised_pictures():
    spec = AugmentSpec(scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=0.0)
    values = Augmenter(spec, STEPS, 32)(PIXELS, np.random.default_rng(0))
    assert values.shape == (3, 32, 32)
    means = values.mean((1, 2)) * np.array(STEPS.std) + np.array(STEPS.mean)
    assert means == pytest.approx(PIXELS.mean((0, 1)) / 255, abs=0.01)
    flipped = Augmenter(AugmentSpec(scale=(1.0, 1.0), ratio=(1.5, 1.5), flip=1.0), STEPS, 32)(
        PIXELS, np.random.default_rng(0)
    )
    assert np.allclose(flipped[:, :, ::-1], values)


def test_randaugment_changes_pictures_and_its_name_is_checked():
    base = AugmentSpec(scale=(1.0, 1.0), flip=0.0)
    plain = Augmenter(base, STEPS, 32)(PIXELS, np.random.default_rng(4))
    spec = AugmentSpec(scale=(1.0, 1.0), flip=0.0, rand_augment="rand-m9-mstd0.5-inc1")
    varied = Augmenter(spec, STEPS, 32)
    changed = [
        not np.allclose(varied(PIXELS, np.random.default_rng(seed)), plain) for seed in range(100)
    ]
    # Two operations, each applied with probability one half; a few change nothing here.
    assert 60 < sum(changed) < 90
    with pytest.raises(UsageError, match="expected the form rand-m9"):
        Augmenter(AugmentSpec(rand_augment="strong"), STEPS, 32)


@pytest.mark.parametrize("form", ["rand-m10-inc1", "rand-m10-inc0", "rand-m0-inc1"])
def test_randaugment_works_at_the_ends_of_its_range(form):
    """timm asks Pillow for 0 bits at the strongest posterising, which Pillow refuses."""
    varied = Augmenter(AugmentSpec(rand_augment=form), Preprocessing(size=8), 8)
    for seed in range(300):
        assert np.isfinite(varied(PIXELS, np.random.default_rng(seed))).all()


def test_mixing_is_exact():
    inputs = torch.rand(6, 3, 32, 32)
    targets = torch.eye(6)
    mixed, shares = mix_pairs(inputs, targets, Mix(0.3))
    torch.testing.assert_close(mixed[2], 0.3 * inputs[2] + 0.7 * inputs[3])
    torch.testing.assert_close(shares[3], 0.3 * targets[3] + 0.7 * targets[2])
    for seed in range(50):
        mix = draw_mix(AugmentSpec(cutmix=1.0), 32, np.random.default_rng(seed))
        mixed, shares = mix_pairs(inputs, targets, mix)
        own = (mixed[0] == inputs[0]).all(0)
        assert torch.equal(mixed[0][:, ~own], inputs[1][:, ~own])
        assert float(own.float().mean()) == pytest.approx(mix.share, abs=1e-6)
        assert float(shares[0, 0]) == pytest.approx(mix.share, abs=1e-6)


def test_shares_follow_their_beta_and_both_take_turns():
    spec = AugmentSpec(mixup=0.8, cutmix=1.0)
    mixes = [draw_mix(spec, 32, np.random.default_rng((7, step))) for step in range(2000)]
    cuts = [mix for mix in mixes if mix.box is not None]
    assert len(cuts) == pytest.approx(1000, abs=100)
    shares = [mix.share for mix in mixes if mix.box is None]
    beta = np.random.default_rng(1).beta(0.8, 0.8, 5000)
    assert ks_2samp(shares, beta).pvalue > 1e-3
    assert draw_mix(AugmentSpec(), 32, np.random.default_rng(0)) == Mix(1.0)
