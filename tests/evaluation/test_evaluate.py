"""Evaluation against the field's published and measured figures, and against itself by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from collapsible.deploy import ship
from collapsible.errors import MissingExtraError, PictureError, UnknownNameError, UsageError
from collapsible.evaluation import (
    PicturePair,
    evaluate,
    evaluate_luma,
    evaluate_pictures,
    read_pairs,
)
from collapsible.evaluation.pairs import luma, luma_middles, luma_pair, read_pair
from collapsible.imaging import resize, write_picture
from collapsible.models import create_model


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


# Measured with independent code; the data's README states them to two digits, and the SESR paper
# (arXiv 2103.09404, table 1) has 33.68 and 30.24 at x2.
@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("Set5", 2, 33.67),
        ("Set5", 3, 30.40),
        ("Set5", 4, 28.43),
        ("Set14", 2, 30.23),
        ("Set14", 3, 27.54),
        ("Set14", 4, 25.99),
    ],
)
def test_bicubic_baseline(shared_data: Path, name: str, scale: int, expected: float) -> None:
    report = evaluate("bicubic", shared_data / "sr" / name / "HR", scale=scale)
    assert report.low.startswith("MATLAB")
    assert report.psnr_picture is not None
    assert round(report.psnr_picture, 2) == expected


# SESR, arXiv 2103.09404, tables 1 and 2; by 8-bit pictures Set14 has 30.23 and 25.99.
@pytest.mark.parametrize(
    ("name", "scale", "published"),
    [
        ("Set5", 2, 33.68),
        ("Set14", 2, 30.24),
        ("Set5", 4, 28.43),
        ("Set14", 4, 26.00),
        pytest.param("B100", 2, 29.56, marks=pytest.mark.slow),
        pytest.param("B100", 4, 25.96, marks=pytest.mark.slow),
    ],
)
def test_reduced_luma_is_the_protocol_of_published_tables(
    shared_data: Path, name: str, scale: int, published: float
) -> None:
    report = evaluate("bicubic", shared_data / "sr" / name, scale=scale, low="luma")
    assert report.low.startswith("8-bit luma")
    assert report.psnr is not None
    assert round(report.psnr, 2) == published
    assert report.psnr_picture is None


def test_luma_pairs_are_rounded_once(pictures: Path) -> None:
    """Reduced at x2 by the kernel's weights, on the mirrored luma."""
    taps = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    for path in sorted(pictures.iterdir()):
        pair = luma_pair(path, 2)
        wanted = np.rint(luma(read_pair(path, None, 2).high))
        np.testing.assert_array_equal(pair.high[..., 0], wanted)
        for axis in (0, 1):
            pad = [(3, 3) if a == axis else (0, 0) for a in (0, 1)]
            wide = np.pad(wanted, pad, mode="symmetric")
            windows = np.lib.stride_tricks.sliding_window_view(wide, 8, axis)
            wanted = windows.take(range(0, windows.shape[axis], 2), axis) @ taps
        np.testing.assert_allclose(pair.low[..., 0], wanted, atol=1e-9)


def test_unknown_forms_of_low_are_refused(pictures: Path) -> None:
    with pytest.raises(UsageError, match="'picture' and 'luma' are accepted"):
        evaluate("bicubic", pictures, low="chroma")
    with pytest.raises(UsageError, match="no unrounded luma"):
        evaluate("bicubic", pictures, low="luma", jpeg=50)


@pytest.mark.slow
def test_bicubic_baseline_of_b100(shared_data: Path) -> None:
    report = evaluate("bicubic", shared_data / "sr" / "B100" / "HR", scale=2)
    assert len(report.pictures) == 100
    assert report.psnr_picture is not None
    assert round(report.psnr_picture, 2) == 29.56


def test_given_low_pictures_are_used(tmp_path: Path) -> None:
    high = noise(40, 48)
    for folder in ("HR", "LRx2"):
        (tmp_path / folder).mkdir()
    write_picture(tmp_path / "HR" / "a.png", high)
    black = np.zeros((20, 24, 3), np.uint8)
    write_picture(tmp_path / "LRx2" / "a.bmp", black)
    (pair,) = read_pairs(tmp_path, 2)
    assert np.array_equal(pair.low, black)
    # At x4 there are none, so they are made.
    (pair,) = read_pairs(tmp_path, 4)
    assert np.array_equal(pair.low, resize(high, scale=0.25))
    assert evaluate("bicubic", tmp_path, scale=2).low == "LRx2"


def test_compressed_low_pictures_are_those_of_files(tmp_path: Path, pictures: Path) -> None:
    """With ``jpeg`` as with low-resolution files that were compressed by Pillow."""
    from PIL import Image

    for folder in ("HR", "LRx2"):
        (tmp_path / folder).mkdir()
    for pair in read_pairs(pictures, 2):
        write_picture(tmp_path / "HR" / f"{pair.name}.png", pair.high)
        low = pair.low[..., 0] if pair.low.shape[2] == 1 else pair.low
        Image.fromarray(low).save(tmp_path / "LRx2" / f"{pair.name}.jpg", quality=40)
    given = evaluate("bicubic", tmp_path, scale=2)
    made = evaluate("bicubic", pictures, scale=2, jpeg=40)
    assert made.psnr == given.psnr
    assert made.psnr_picture == given.psnr_picture
    assert made.low.endswith("then JPEG of quality 40")
    clean = evaluate("bicubic", pictures, scale=2)
    assert clean.psnr is not None
    assert made.psnr is not None
    assert made.psnr < clean.psnr
    with pytest.raises(UsageError, match="jpeg=0"):
        evaluate("bicubic", pictures, jpeg=0)


def test_high_pictures_are_cropped_to_the_scale_and_lose_alpha(tmp_path: Path) -> None:
    high = noise(41, 47, 4)
    write_picture(tmp_path / "a.png", high)
    (pair,) = read_pairs(tmp_path, 2)
    assert np.array_equal(pair.high, high[:40, :46, :3])
    assert pair.low.shape == (20, 23, 3)


def test_scores_agree_with_scikit_image() -> None:
    pair = PicturePair("p", noise(40, 44), noise(20, 22))
    large = noise(40, 44, seed=1)
    ((psnr, ssim),) = evaluate_pictures(lambda low: large, [pair], 2)
    weights = np.array([65.481, 128.553, 24.966]) / 255
    truth, got = (16 + picture.astype(np.float64) @ weights for picture in (pair.high, large))
    assert psnr == pytest.approx(
        peak_signal_noise_ratio(truth[2:-2, 2:-2], got[2:-2, 2:-2], data_range=255), abs=1e-9
    )
    _, full = structural_similarity(
        truth[2:-2, 2:-2],
        got[2:-2, 2:-2],
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


def test_own_luma_is_clipped_and_not_rounded() -> None:
    high = np.full((30, 30, 1), 255, np.uint8)
    pair = PicturePair("white", high, high[:15, :15])
    ((clipped, _),) = evaluate_luma(lambda low: np.full((30, 30), 300.0), [pair], 2)
    assert math.isinf(clipped)
    ((near, _),) = evaluate_luma(lambda low: np.full((30, 30), 254.75), [pair], 2)
    assert near == pytest.approx(20 * math.log10(255 / 0.25))


def test_grey_pictures_are_their_own_luma() -> None:
    grey = noise(5, 6, 1)
    assert np.array_equal(luma(grey), grey[..., 0])
    assert luma(np.repeat(grey, 3, axis=2)).max() <= 235


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows, columns = np.mgrid[:60, :66]
    waves = 128 + 60 * np.sin(rows / 6)[..., None] + 50 * np.cos(columns[..., None] / (3, 4, 5))
    write_picture(folder / "colour.png", waves.astype(np.uint8))
    write_picture(folder / "grey.png", waves[..., :1].astype(np.uint8))
    return folder


def test_a_checkpoint_and_its_collapsed_form_measure_alike(tmp_path: Path, pictures: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = create_model("sesr_m2", scale=2, expansion=16)
    save_file(network.state_dict(), tmp_path / "wide.safetensors")
    options = {"expansion": 16}
    card = ship(network, architecture="sesr_m2", scale=2, folder=tmp_path, options=options)
    narrow = evaluate(card.safetensors_path, pictures, precision="fp32")
    spec = {"network": {"name": "sesr_m2", "options": options, "scale": 2}}
    (tmp_path / "facts.json").write_text(json.dumps({"recipe": json.dumps(spec)}))
    wide = evaluate(tmp_path / "wide.safetensors", pictures, precision="fp32")
    for name, value in narrow.means.items():
        assert wide.means[name] == pytest.approx(value, abs=2e-3)
    colour = narrow.pictures[0]
    assert colour.psnr is not None
    # Rounding to 8 bits costs little, and at 20 dB nothing else does.
    assert colour.psnr_picture == pytest.approx(colour.psnr, abs=0.06)


def test_the_network_sees_mirrored_borders(tmp_path: Path) -> None:
    """The figures must not change when the picture is extended by hand and the result cropped."""
    from collapsible.evaluation.networks import luma_function

    torch.manual_seed(0)
    network = create_model("sesr_m2", scale=2).eval()
    low = noise(14, 15)
    more = 8
    padded = np.pad(low, ((more, more), (more, more), (0, 0)), mode="symmetric")
    enlarge = luma_function(network)
    edge = slice(2 * more, -2 * more)
    np.testing.assert_allclose(enlarge(padded)[edge, edge], enlarge(low), atol=1e-3)


def test_rgb_networks_are_measured_on_the_luma_of_their_colours(pictures: Path) -> None:
    from collapsible.evaluation.networks import luma_function

    network = create_model("sesr_m2", scale=2, colour="rgb").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    # All zero but the input residual: nearest neighbour.
    low = noise(14, 15)
    nearest = low.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(luma_function(network)(low), luma(nearest), atol=1e-3)
    grey = noise(14, 15, 1)
    nearest = grey.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(luma_function(network)(grey), nearest[..., 0], atol=1e-3)


def test_report_as_json_and_table(pictures: Path) -> None:
    report = evaluate("bicubic", pictures, scale=2)
    record = json.loads(report.json())
    assert list(record)[:3] == ["model", "scale", "data"]
    for key in ("protocol", "psnr", "ssim", "psnr_picture", "ssim_picture"):
        assert key in record
    assert [entry["name"] for entry in record["pictures"]] == ["colour", "grey"]
    assert record["psnr"] == pytest.approx(np.mean([entry["psnr"] for entry in record["pictures"]]))
    assert record["psnr"] == report.means["psnr"]
    lines = report.table().splitlines()
    assert len(lines) == 2 + 2 + 1
    assert f"{report.psnr:.3f}" in lines[-1]


def test_equal_pictures_give_null_in_json(tmp_path: Path) -> None:
    write_picture(tmp_path / "flat.png", np.full((30, 30, 3), 77, np.uint8))
    record = json.loads(evaluate("bicubic", tmp_path).json())
    assert record["psnr_picture"] is None


def test_bad_requests_are_named(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        evaluate("bicubic", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures"):
        evaluate("bicubic", tmp_path / "empty")
    with pytest.raises(UnknownNameError):
        evaluate("no-such-model", pictures)
    (tmp_path / "lone.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="give architecture"):
        evaluate(tmp_path / "lone.safetensors", pictures)


def test_pairs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for folder in ("HR", "LRx2"):
        (tmp_path / folder).mkdir()
    write_picture(tmp_path / "HR" / "a.png", noise(40, 40))
    with pytest.raises(UsageError, match="no pictures"):
        read_pairs(tmp_path, 2)
    write_picture(tmp_path / "LRx2" / "b.png", noise(20, 20))
    with pytest.raises(PictureError, match=r"lacks a\.png"):
        read_pairs(tmp_path, 2)
    write_picture(tmp_path / "LRx2" / "a.png", noise(20, 19))
    with pytest.raises(PictureError, match="must be 20x20"):
        read_pairs(tmp_path, 2)


def test_a_picture_too_small_to_measure_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "tiny.png", noise(12, 12))
    with pytest.raises(PictureError, match="tiny"):
        evaluate("bicubic", tmp_path)


def test_without_torch_the_extra_is_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("collapsible.errors.find_spec", lambda name: None if name == "torch" else 1)
    with pytest.raises(MissingExtraError, match=r"collapsible\[train\]"):
        evaluate("sesr-m5", pictures)


def test_middles_of_pairs_cover_the_same_place_and_small_pairs_are_left_out():
    low = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12, 1)
    pairs = [
        PicturePair("a", low.repeat(2, 0).repeat(2, 1), low),
        PicturePair("b", low[:6, :6], low[:3, :3]),
    ]
    of_low, of_high = luma_middles(pairs, 2, 4)
    assert of_low.shape == (1, 1, 4, 4)
    assert np.array_equal(of_high[0, 0, ::2, 1::2], of_low[0, 0])
    assert np.allclose(of_low[0, 0, 0] * 255, low[2, 4:8, 0])
    with pytest.raises(UsageError, match="20 pixels"):
        luma_middles(pairs, 2, 10)
