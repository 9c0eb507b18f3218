"""The laboratory's own weights on RGB are what their cards say, and are found by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from collapsible.defence import create_defence
from collapsible.defence.preprocessing_scaling import WEIGHTS, list_rgb_weights, load_upscaler
from collapsible.errors import UsageError
from collapsible.evaluation.measure import evaluate_luma
from collapsible.evaluation.networks import luma_function
from collapsible.evaluation.pairs import find_pairs, read_pair
from collapsible.weights import read_card, sha256

CARDS = [read_card(path) for path in sorted(WEIGHTS.glob("*.json"))]
# The weights of each, published (arXiv 2112.14340's comparison; M7 and M11 by the same count).
PUBLISHED = {
    "fsrcnn": 24_336,
    "sesr_m2": 10_608,
    "sesr_m3": 12_912,
    "sesr_m5": 17_520,
    "sesr_xl": 113_376,
}


def test_every_file_has_its_card() -> None:
    names = {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert names == {f"{card.architecture}_rgb_x2" for card in CARDS}
    assert {card.architecture for card in CARDS} >= set(PUBLISHED) | {"edsr_base"}
    for card in CARDS:
        file = WEIGHTS / f"{card.architecture}_rgb_x2.safetensors"
        assert card.sha256["safetensors"] == sha256(file)
        assert card.parameters == PUBLISHED.get(card.architecture, card.parameters)
        assert card.training_data
        assert card.recipe
        assert card.licence


def test_the_large_one_is_ten_times_xl() -> None:
    sizes = {card.architecture: card.parameters for card in CARDS}
    assert sizes["edsr_base"] >= 10 * sizes["sesr_xl"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.architecture)
def test_psnr_is_the_cards(shared_data: Path, card) -> None:
    stage = load_upscaler(f"{card.architecture}-rgb")
    assert stage.colour == "rgb"
    pairs = [read_pair(high, low, 2) for high, low in find_pairs(shared_data / "sr" / "Set5", 2)]
    with torch.inference_mode():
        scores = evaluate_luma(luma_function(stage.network), pairs, 2)
    mean = float(np.mean([psnr for psnr, _ in scores]))
    assert mean == pytest.approx(card.metrics["Set5"]["psnr"], abs=0.002)


def test_names_say_which_weights() -> None:
    assert "sesr-m2-rgb" in list_rgb_weights()
    assert create_defence("sesr-m5").stages[0].colour == "y"
    assert create_defence("sesr-m5-rgb").stages[0].colour == "rgb"
    # FSRCNN has none on luma, so that its plain name takes those on RGB.
    only_rgb, same = create_defence("fsrcnn"), create_defence("fsrcnn-rgb")
    x = torch.rand(1, 3, 12, 10)
    assert torch.equal(only_rgb(x), same(x))
    assert only_rgb(x).shape == (1, 3, 24, 20)
    with pytest.raises(UsageError, match=r"sesr-m2-rgb.*give a file"):
        load_upscaler("sesr-m99")
