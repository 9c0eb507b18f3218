"""Pictures as inputs, beside torchvision's transforms and by hand; labels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from collapsible.deploy.samples import (
    Preparation,
    choose,
    prepare_picture,
    read_inputs,
    read_labelled,
)
from collapsible.errors import PictureError, UsageError

RGB = Preparation(3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop=0.875)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / 9 + i) * np.cos(y / 11 - i) for i in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def test_a_classifier_s_cut_is_torchvision_s():
    transforms = pytest.importorskip("torchvision.transforms")
    picture = smooth(200, 150)
    theirs = transforms.Compose(
        [
            transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize(RGB.mean, RGB.std),
        ]
    )(Image.fromarray(picture)).numpy()
    ours = prepare_picture(picture, RGB, (56, 56))
    assert ours.dtype == np.float32
    # Half a level of rounding by Pillow, and where MATLAB and Pillow place the last row of 85.3.
    assert np.abs(ours - theirs).max() < 0.15
    assert np.abs(ours - theirs).mean() < 0.02


def test_luma_is_the_standard_s():
    picture = np.array([[[255, 255, 255], [0, 0, 0]], [[255, 0, 0], [0, 0, 255]]], np.uint8)
    found = prepare_picture(picture, Preparation(1)) * 255
    # BT.601: white 235, black 16, red 16 + 65.481, blue 16 + 24.966.
    assert found[0] == pytest.approx(np.array([[235, 16], [81.481, 40.966]]), abs=1e-4)


def test_grey_alpha_and_sixteen_bits():
    grey = np.full((2, 2, 1), 51, np.uint8)
    assert prepare_picture(grey, Preparation(3)) == pytest.approx(np.full((3, 2, 2), 0.2))
    assert prepare_picture(grey, Preparation(1)) == pytest.approx(np.full((1, 2, 2), 0.2))
    deep = np.full((2, 2, 4), 51 * 257, np.uint16)
    assert prepare_picture(deep, Preparation(3)) == pytest.approx(np.full((3, 2, 2), 0.2))


def test_a_small_picture_is_extended_and_a_large_one_cut():
    small = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    found = np.rint(prepare_picture(small, Preparation(1), (5, 2)) * 255)[0]
    assert found.tolist() == [[1, 2], [1, 2], [5, 6], [9, 10], [9, 10]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 4},
        {"channels": 3, "mean": (0.1, 0.2)},
        {"channels": 3, "std": (0.0,)},
        {"channels": 3, "crop": 1.5},
    ],
)
def test_wrong_preparations(wrong):
    with pytest.raises(UsageError):
        Preparation(**wrong)


def picture(path, value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)


def test_labels_from_folders_and_tables(tmp_path):
    for name, value in (("cat", 10), ("dog", 20)):
        picture(tmp_path / "named" / name / "a.png", value)
    inputs, labels = read_labelled(tmp_path / "named", Preparation(3), (8, 8), 2)
    assert labels == [0, 1]
    assert inputs[1].max() == pytest.approx(20 / 255)
    picture(tmp_path / "numbered" / "7" / "a.png")
    assert read_labelled(tmp_path / "numbered", Preparation(3), (8, 8), 10)[1] == [7]
    for name in ("n01440764", "n03888257"):
        picture(tmp_path / "imagenet" / name / "a.png")
    # Tench and parachute: ImageNet's classes 0 and 701.
    assert read_labelled(tmp_path / "imagenet", Preparation(3), (8, 8), 1000)[1] == [0, 701]
    picture(tmp_path / "table" / "x.png")
    (tmp_path / "table" / "labels.csv").write_text("filename,class_index\nx.png,3\n")
    assert read_labelled(tmp_path / "table", Preparation(3), (8, 8), 4)[1] == [3]


def test_labels_that_do_not_fit(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / name / "a.png")
    with pytest.raises(UsageError, match="2 folders for a network of 3 classes"):
        read_labelled(tmp_path, Preparation(3), (8, 8), 3)
    picture(tmp_path / "loose.png")
    with pytest.raises(UsageError, match=r"no labels\.csv"):
        read_labelled(tmp_path, Preparation(3), (8, 8), 2)
    table = tmp_path / "labels.csv"
    for text, said in (
        ("filename,class_index\nloose.png,9\n", "class 9"),
        ("filename,class_index\nloose.png,cat\n", "class_index"),
        ("name\nloose.png\n", "filename and class_index"),
        ("filename,class_index\n", "empty"),
    ):
        table.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_labelled(tmp_path, Preparation(3), (8, 8), 2)


def test_folders_of_no_use(tmp_path):
    with pytest.raises(UsageError, match="no pictures"):
        read_inputs(tmp_path, Preparation(3), (8, 8))
    with pytest.raises(UsageError, match="no folder"):
        read_inputs(tmp_path / "none", Preparation(3), (8, 8))
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(PictureError, match=r"bad\.png"):
        read_inputs(tmp_path, Preparation(3), (8, 8))


def test_an_even_choice():
    assert choose(range(10), 5) == [0, 2, 4, 6, 8]
    assert choose(range(3), 5) == [0, 1, 2]
    assert choose(range(3), None) == [0, 1, 2]
