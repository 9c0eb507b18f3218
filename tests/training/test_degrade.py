"""Degraded patches: against SciPy and Pillow, and what the sampler makes of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from collapsible.errors import UsageError
from collapsible.imaging import code_jpeg, rgb_to_y, write_picture
from collapsible.training.degrade import degrade, gaussian_blur, margin
from collapsible.training.pairs import LUMA_STEPS, PairedPictures, PatchSampler
from collapsible.training.recipes import DegradeSpec, parse_recipe, read_recipe


def scene(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours with edges, uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / random.uniform(2, 9) + y / random.uniform(2, 9)) for _ in range(channels)]
    picture = 128 + 70 * np.stack(waves, -1) + 40 * ((x // 11 + y // 7) % 2)[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def jpeg_by_pillow(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def random() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3])
def test_the_blur_is_scipys(sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    values = scene(20, 31).astype(np.float32)
    radius = max(1, int(np.ceil(3 * sigma)))
    wanted = ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="reflect", radius=radius)
    np.testing.assert_allclose(gaussian_blur(values, sigma), wanted, atol=1e-3)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_colour_is_compressed_as_pillow_does(quality: int) -> None:
    picture = scene(33, 47)
    spec = DegradeSpec(1.0, jpeg=(quality, quality))
    wanted = jpeg_by_pillow(picture, quality)
    np.testing.assert_array_equal(degrade(picture, spec, random()), wanted)
    np.testing.assert_array_equal(code_jpeg(picture, quality), wanted)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_luma_is_what_a_colour_file_gives(quality: int) -> None:
    # A grey picture's file in colour: its luma is coded by the same table.
    grey = scene(40, 40, 1)
    colour = np.repeat(grey, 3, 2)
    luma = np.rint(rgb_to_y(colour.astype(np.float32)) * LUMA_STEPS).astype(np.uint16)[..., None]
    spec = DegradeSpec(1.0, jpeg=(quality, quality))
    found = degrade(luma, spec, random(), steps=LUMA_STEPS)[..., 0] / LUMA_STEPS
    wanted = rgb_to_y(jpeg_by_pillow(colour, quality).astype(np.float32))
    before = np.abs(wanted - luma[..., 0] / LUMA_STEPS).mean()
    assert np.abs(found - wanted).mean() < 0.05 * before + 0.02
    assert found.min() >= 16 - 1 / LUMA_STEPS
    assert found.max() <= 235 + 1 / LUMA_STEPS


def test_noise_has_the_spread_asked_for() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    found = degrade(grey, DegradeSpec(1.0, noise=(4.0, 4.0)), random()).astype(float) - 128
    # Rounding to levels adds a twelfth to the variance.
    assert found.std() == pytest.approx(np.sqrt(16 + 1 / 12), rel=0.02)
    assert abs(found.mean()) < 0.05


def test_nothing_asked_for_changes_nothing() -> None:
    picture = scene(16, 16)
    np.testing.assert_array_equal(degrade(picture, DegradeSpec(1.0), random()), picture)
    assert margin(DegradeSpec(1.0)) == 0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_picture(tmp_path / "set" / f"{number}.png", scene(90, 110, seed=number))
    return tmp_path


def sampler(folder, spec: DegradeSpec, colour: str = "rgb") -> PatchSampler:
    pictures = PairedPictures([folder / "set"], scale=2, colour=colour, cache=folder / "cache")
    return PatchSampler(pictures, patch=16, seed=3, spec=spec)


def test_patches_without_a_share_are_those_of_old(folder) -> None:
    plain, off = sampler(folder, DegradeSpec()), sampler(folder, DegradeSpec(0.0, jpeg=(30, 40)))
    for ours, theirs in zip(plain.draw(5, range(6)), off.draw(5, range(6)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_degraded_patch_is_cut_from_the_degraded_picture(folder) -> None:
    """Blur alone is the same wherever it is cut, but at the picture's border."""
    spec = DegradeSpec(1.0, blur=(1.0, 1.0))
    made = sampler(folder, spec)
    low = made.pairs[0].low
    whole = np.rint(gaussian_blur(low.astype(np.float32), 1.0)).astype(np.uint8)
    for top, left in ((0, 0), (9, 13), (29, 39)):
        found = made._degraded(low, top, left, random())
        np.testing.assert_array_equal(found, whole[top : top + 16, left : left + 16])


@pytest.mark.parametrize("colour", ["y", "rgb"])
def test_the_low_patch_alone_suffers_and_draws_repeat(folder, colour: str) -> None:
    spec = DegradeSpec(0.5, blur=(0.2, 0.8), noise=(1.0, 4.0), jpeg=(30, 90))
    made, clean = sampler(folder, spec, colour), sampler(folder, DegradeSpec(), colour)
    low, high = made.draw(2, range(40))
    again, _ = made.draw(2, range(40))
    np.testing.assert_array_equal(low, again)
    assert low.shape == clean.draw(2, range(40))[0].shape
    assert high.shape == clean.draw(2, range(40))[1].shape
    assert 0 <= low.min() <= low.max() <= 1


def test_blocks_lie_on_any_grid(folder) -> None:
    """Seen from the patch, block borders are at every place, or a network would learn where."""
    spec = DegradeSpec(1.0, jpeg=(5, 5))
    made = sampler(folder, spec, "y")
    picture = made.pairs[0].low
    places = set()
    for seed in range(60):
        patch = made._degraded(picture, 12, 12, np.random.default_rng(seed))[..., 0].astype(int)
        steps = np.abs(np.diff(patch, axis=1)).mean(0)
        places.add(int(steps.argmax()) % 8)
    assert len(places) >= 5


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"share": 1.5}, "degrade.share"),
        ({"jpeg": [90, 40]}, "degrade.jpeg"),
        ({"jpeg": [0, 40]}, "from 1 to 100"),
        ({"blur": [0.5]}, "degrade.blur"),
        ({"noise": [-1, 3]}, "degrade.noise"),
        ({"grain": [1, 2]}, "degrade.grain"),
    ],
)
def test_specs_that_cannot_be(table: dict, said: str) -> None:
    whole = {"name": "a", "task": "super-resolution", "steps": 1, "network": {"name": "sesr_m3"}}
    with pytest.raises(UsageError, match=said):
        parse_recipe({**whole, "degrade": table})


def test_the_web_recipes_are_read_and_others_refuse_it() -> None:
    assert read_recipe("sesr-m11-web-x2").degrade.jpeg == (35.0, 95.0)
    table = {"name": "a", "task": "classification", "steps": 1, "network": {"name": "ran_i_pico"}}
    with pytest.raises(UsageError, match="degrade"):
        parse_recipe({**table, "degrade": {"share": 0.5}})
