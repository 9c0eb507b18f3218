"""Distillation: targets are the pictures with a share of what a shipped network makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import collapsible.defence
from collapsible.errors import UnknownNameError, UsageError
from collapsible.evaluation.measure import evaluate_luma
from collapsible.evaluation.networks import luma_function
from collapsible.evaluation.pairs import read_pairs
from collapsible.training.pairs import LUMA_STEPS, PairedPictures, to_unit
from collapsible.training.recipes import NetworkSpec, TeacherSpec, parse_recipe
from collapsible.training.super_resolution import SuperResolution
from collapsible.training.teacher import Teacher
from collapsible.weights import find_card, list_cards, sha256

TEACHERS = Path(__file__).parents[2] / "teachers"
DEFENCE_WEIGHTS = Path(collapsible.defence.__file__).parent / "weights"
STUDENT = NetworkSpec("sesr_m2", 2)
RECIPE = {
    "name": "n",
    "task": "super-resolution",
    "steps": 1,
    "network": {"name": "sesr_m2", "scale": 2},
    "data": {"patch": 16, "batch": 2, "crop": 2},
}


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(TeacherSpec("sesr-m3", 0.75), STUDENT)


def test_its_output_is_the_mean_over_the_eight_symmetries(teacher):
    """Against evaluation's own function of the same network, on pictures turned by NumPy."""
    grey = np.random.default_rng(0).integers(0, 256, (18, 23), dtype=np.uint8)
    enlarge = luma_function(teacher.network)
    wanted = []
    for turns in range(4):
        turned = np.rot90(grey, turns)
        wanted.append(np.rot90(enlarge(turned[..., None].copy()), -turns))
        mirrored = enlarge(turned[:, ::-1, None].copy())
        wanted.append(np.rot90(mirrored[:, ::-1], -turns))
    got = teacher.output(grey[..., None].astype(np.float32) / 255)
    assert got.shape == (36, 46, 1)
    assert np.abs(np.clip(np.mean(wanted, 0), 0, 255) - got[..., 0] * 255).max() < 1e-2


def test_targets_are_mixed_and_cached_apart(pictures, teacher):
    plain = PairedPictures([pictures], scale=2, colour="y")
    mixed = PairedPictures([pictures], scale=2, colour="y", teacher=teacher)
    again = PairedPictures([pictures], scale=2, colour="y")
    for a, b, c in zip(plain.pairs, mixed.pairs, again.pairs, strict=True):
        assert np.array_equal(a.low, b.low)
        assert np.array_equal(a.high, c.high)
        made = teacher.output(to_unit(a.low))
        wanted = 0.25 * to_unit(a.high) + 0.75 * made
        assert np.abs(wanted - to_unit(b.high)).max() < 1 / (255 * LUMA_STEPS)
        assert not np.array_equal(a.high, b.high)


def test_what_was_taught_before_a_run_was_killed_is_not_made_again(pictures, tmp_path, monkeypatch):
    def killed(done: int, of: int) -> None:
        assert of > 1
        if done == 1:
            raise KeyboardInterrupt

    def build(cache: str, on_picture=None) -> tuple[PairedPictures, int]:
        teacher = Teacher(TeacherSpec("sesr-m3"), STUDENT, cache=tmp_path / cache)
        calls = []
        teacher.network.register_forward_hook(lambda *_: calls.append(1))
        made = PairedPictures(
            [pictures],
            scale=2,
            colour="y",
            teacher=teacher,
            cache=tmp_path / cache,
            on_picture=on_picture,
        )
        return made, len(calls)

    with pytest.raises(KeyboardInterrupt):
        build("killed", killed)
    rest, calls = build("killed")
    whole, all_calls = build("whole")
    assert calls == all_calls - 8
    for a, b in zip(rest.pairs, whole.pairs, strict=True):
        assert np.array_equal(a.high, b.high)
    monkeypatch.setattr("collapsible.training.teacher.load_network", None)
    teacher = Teacher(TeacherSpec("sesr-m3"), STUDENT, cache=tmp_path / "whole")
    PairedPictures([pictures], scale=2, colour="y", teacher=teacher, cache=tmp_path / "whole")


def test_a_recipe_asks_for_it_and_validation_does_not(pictures):
    recipe = parse_recipe({**RECIPE, "teacher": {"model": "sesr-m3", "share": 0.5}})
    plain = SuperResolution(parse_recipe(RECIPE), [pictures], {"all": pictures})
    taught = SuperResolution(recipe, [pictures], {"all": pictures})
    (low, high), (same, other) = (task.batch(3, range(2)) for task in (plain, taught))
    assert low.equal(same)
    assert not high.equal(other)
    for a, b in zip(plain.sets["all"], taught.sets["all"], strict=True):
        assert np.array_equal(a.high, b.high)


def test_patches_count_as_they_do_without_a_teacher(pictures):
    """Of a student as good as its teacher, share by share: the loss differs by a constant."""
    plain = parse_recipe({**RECIPE, "loss": "psnr"})
    taught = parse_recipe({**RECIPE, "loss": "psnr", "teacher": {"model": "sesr-m3", "share": 0.7}})
    losses = []
    for recipe, part in ((plain, 1.0), (taught, 0.3)):
        task = SuperResolution(recipe, [pictures], {})
        for error in (0.001, 0.01, 0.1):
            made = torch.full((1, 1, 32, 32), 0.5)
            losses.append(float(task.loss(made, made + part * error)))
    assert losses[0] - losses[1] == pytest.approx(losses[3] - losses[4], abs=1e-3)
    assert losses[1] - losses[2] == pytest.approx(losses[4] - losses[5], abs=1e-3)


def test_a_file_of_weights_teaches_colour(tmp_path):
    Image.new("L", (48, 32), 77).save(tmp_path / "flat.png")
    spec = NetworkSpec("edsr_base", 2, {"colour": "rgb"})
    teacher = Teacher(TeacherSpec(str(DEFENCE_WEIGHTS / "edsr_base_rgb_x2.safetensors")), spec)
    (pair,) = PairedPictures([tmp_path], scale=2, colour="rgb", teacher=teacher).pairs
    assert pair.high.dtype == np.uint8
    assert np.abs(pair.high.astype(int) - 77).max() <= 2


@pytest.mark.parametrize("card", list_cards(TEACHERS), ids=lambda card: f"x{card.scale}")
def test_the_wide_teachers_are_what_their_cards_say(shared_data, card):
    """Those of SESR-XL, beside the package: better than what they teach, by their cards too."""
    assert sha256(card.safetensors_path) == card.sha256["safetensors"]
    student = NetworkSpec("sesr_xl", card.scale, {"block": "narrow"})
    teacher = Teacher(TeacherSpec(str(card.safetensors_path)), student)
    assert sum(p.numel() for p in teacher.network.parameters() if p.ndim == 4) == card.parameters
    taught = find_card("sesr-xl", card.scale).metrics
    assert all(card.metrics[name]["psnr"] > taught[name]["psnr"] for name in taught)
    own = luma_function(teacher.network)
    scores = evaluate_luma(own, read_pairs(shared_data / "sr" / "Set5", card.scale), card.scale)
    psnr, _ = np.mean(scores, axis=0)
    assert psnr == pytest.approx(card.metrics["Set5"]["psnr"], abs=1e-3)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    rgb = NetworkSpec("sesr_m2", 2, {"colour": "rgb"})
    for model, student, message in (
        ("sesr-m3", rgb, "'sesr-m3' enlarges y, not rgb"),
        ("sesr-m3", NetworkSpec("sesr_m2", 3), "x3"),
        (str(tmp_path / "none.safetensors"), STUDENT, "no weights at"),
    ):
        with pytest.raises(UsageError, match=message):
            Teacher(TeacherSpec(model), student)
    with pytest.raises(UnknownNameError, match="sesr-m4"):
        Teacher(TeacherSpec("sesr-m4"), STUDENT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"model": "sesr-m3", "share": 0}}, r"teacher\.share = 0\.0: expected above 0"),
        ({"teacher": {"model": "sesr-m3", "share": 1.5}}, r"teacher\.share = 1\.5"),
        ({"teacher": {"name": "sesr-m3"}}, r"unknown key teacher\.name"),
        (
            {"task": "classification", "teacher": {"model": "sesr-m3"}},
            "teacher: it is for the targets of super-resolution",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe({**RECIPE, **change})
