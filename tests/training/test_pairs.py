"""Pairs follow MATLAB's bicubic, are decoded once, and patches stay aligned."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from collapsible.errors import UsageError
from collapsible.imaging import rgb_to_y
from collapsible.training import pairs as pairs_module
from collapsible.training.pairs import LUMA_STEPS, PairedPictures, PatchSampler, to_unit


def test_low_resolution_is_the_fields(shared_data, tmp_path):
    """Set5 at x2 against the field's own LR files, away from the border rule's reach."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "butterfly.png").symlink_to(next((shared_data / "sr/Set5/HR").glob("butterfly*")))
    (pair,) = PairedPictures([folder], scale=2, colour="rgb").pairs
    field = np.asarray(Image.open(next((shared_data / "sr/Set5/LRx2").glob("butterfly*"))))
    assert pair.low.shape == field.shape
    assert np.array_equal(pair.low[4:-4, 4:-4], field[4:-4, 4:-4])
    (luma,) = PairedPictures([folder], scale=2, colour="y").pairs
    wanted = rgb_to_y(field.astype(np.float64))[4:-4, 4:-4]
    assert np.abs(luma.low[4:-4, 4:-4, 0] / LUMA_STEPS - wanted).max() <= 0.5 / LUMA_STEPS + 1e-4


def test_mixed_formats_are_decoded_once(pictures, monkeypatch):
    first = PairedPictures([pictures], scale=2, colour="y", rescale=(1.0, 0.5))
    assert [p.name for p in first.pairs] == [
        f"{name}@{factor}" for name in "abcd" for factor in ("1", "0.5")
    ]

    def refuse(*_args, **_named):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pairs_module, "read_picture", refuse)
    again = PairedPictures([pictures], scale=2, colour="y", rescale=(1.0, 0.5))
    for a, b in zip(first.pairs, again.pairs, strict=True):
        assert np.array_equal(a.high, b.high)
        assert np.array_equal(a.low, b.low)
    with pytest.raises(AssertionError, match="decoded again"):
        PairedPictures([pictures], scale=3, colour="y")


def test_unreadable_pictures_are_named_and_left_out(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    pictures = PairedPictures([tmp_path], scale=2, colour="rgb")
    assert [p.name for p in pictures.pairs] == ["good@1"]
    ((path, reason),) = pictures.skipped
    assert path.endswith("bad.png")
    assert "bad.png" in reason


def test_nothing_to_train_on_is_said(tmp_path):
    with pytest.raises(UsageError, match="no folder of pictures"):
        PairedPictures([tmp_path / "none"], scale=2, colour="y")
    with pytest.raises(UsageError, match=r"\(0 files\)"):
        PairedPictures([tmp_path], scale=2, colour="y")
    Image.new("RGB", (30, 30)).save(tmp_path / "small.png")
    with pytest.raises(UsageError, match="at least 64 pixels a side"):
        PairedPictures([tmp_path], scale=2, colour="y", smallest=32)


def test_patches_are_aligned_and_take_all_symmetries(pictures):
    source = PairedPictures([pictures], scale=2, colour="rgb", smallest=16)
    sampler = PatchSampler(source, patch=16, seed=5)
    low, high = sampler.draw(0, range(64))
    assert low.shape == (64, 3, 16, 16)
    assert high.shape == (64, 3, 32, 32)
    # Bicubic reduction keeps local means, so the 2x2 means of the high patch follow the low one.
    means = high.reshape(64, 3, 16, 2, 16, 2).mean((3, 5))
    assert np.abs(means - low).mean() < 0.03
    assert np.abs(means[:, :, ::-1] - low).mean() > 0.05
    seen = set()
    for chosen, patch in zip(range(64), low, strict=True):
        random = np.random.default_rng((5, 0, chosen))
        random.random()
        plain = None
        for pair in source.pairs:
            windows = np.lib.stride_tricks.sliding_window_view(to_unit(pair.low), (16, 16), (0, 1))
            for symmetry in range(8):
                candidate = np.rot90(patch, symmetry % 4, (1, 2))
                candidate = candidate[:, :, ::-1] if symmetry >= 4 else candidate
                hits = np.abs(windows - candidate).max((2, 3, 4)) < 1e-6
                if hits.any():
                    plain = symmetry
        assert plain is not None, "a patch that is nowhere in the pictures"
        seen.add(plain)
    assert seen == set(range(8))


def test_draws_depend_on_seed_step_and_place_alone(pictures):
    source = PairedPictures([pictures], scale=2, colour="y", smallest=16)
    sampler = PatchSampler(source, patch=16, seed=1)
    whole = sampler.draw(7, range(8))
    parts = [sampler.draw(7, range(0, 4)), sampler.draw(7, range(4, 8))]
    for side in (0, 1):
        assert np.array_equal(whole[side], np.concatenate([p[side] for p in parts]))
    assert not np.array_equal(whole[0], sampler.draw(8, range(8))[0])
    other = PatchSampler(source, patch=16, seed=2)
    assert not np.array_equal(whole[0], other.draw(7, range(8))[0])


def test_patches_reach_beyond_the_border_by_mirroring(tmp_path):
    """``outside`` pixels beyond the picture, as NumPy's symmetric padding has them."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (40, 36, 3), np.uint8))
    image.save(tmp_path / "one.png")
    source = PairedPictures([tmp_path], scale=2, colour="y", smallest=16)
    sampler = PatchSampler(source, patch=16, seed=3, outside=4)
    (pair,) = source.pairs
    wide, wide_high = (
        np.pad(planes, ((n, n), (n, n), (0, 0)), mode="symmetric")
        for planes, n in ((pair.low, 4), (pair.high, 8))
    )
    windows = np.lib.stride_tricks.sliding_window_view(to_unit(wide), (16, 16), (0, 1))[:, :, 0]
    places = set()
    for low, high in zip(*sampler.draw(0, range(256)), strict=True):
        for symmetry in range(8):
            turned, turned_high = (
                np.rot90(patch[0], symmetry % 4)[:, :: -1 if symmetry >= 4 else 1]
                for patch in (low, high)
            )
            hits = np.argwhere(np.abs(windows - turned).max((2, 3)) == 0)
            if len(hits):
                break
        top, left = hits[0]
        wanted = to_unit(wide_high)[2 * top : 2 * top + 32, 2 * left : 2 * left + 32, 0]
        np.testing.assert_array_equal(turned_high, wanted)
        places.add((int(top), int(left)))
    tops, lefts = ({place[axis] for place in places} for axis in (0, 1))
    assert tops == set(range(20 + 8 - 16 + 1))
    assert lefts == set(range(18 + 8 - 16 + 1))
