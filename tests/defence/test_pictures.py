"""Pictures of many sizes, and labels that match or do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from collapsible.defence.pictures import (
    LabelledPictures,
    find_labelled_pictures,
    match_labels,
    read_batch,
    read_classes,
)
from collapsible.errors import PictureError, UsageError
from collapsible.imaging import write_picture


def make(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        pixels = np.full((5, 7 + i, 3), 20 * i, np.uint8)
        write_picture(folder / name / "a.png", pixels)
    return folder


@pytest.mark.parametrize(
    "shape", [(50, 90, 3), (90, 41, 3), (20, 20, 3), (300, 33, 1), (64, 64, 4)]
)
def test_sizes_and_channels_become_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_picture(tmp_path / "a.png", pixels)
    found = read_batch([tmp_path / "a.png"], 32)
    assert found.shape == (1, 3, 32, 32)
    assert found.min() >= 0
    assert found.max() <= 1


def test_preparation_is_torchvisions(shared_data: Path) -> None:
    file = shared_data / "cls" / "imagenet100" / "n01440764_tench.jpg"
    usual = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    )
    expected = usual(Image.open(file))
    assert abs(read_batch([file], 224)[0] - expected).max() < 2 / 255


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(PictureError, match=r"a\.png"):
        read_batch([tmp_path / "a.png"], 32)


def test_folders_are_labels(tmp_path: Path) -> None:
    found = find_labelled_pictures(make(tmp_path, "cat", "ant"))
    assert found.names == ("ant", "cat")
    assert match_labels(found.names, 2) == (0, 1)


def test_the_list_of_imagenet100(shared_data: Path) -> None:
    """Its ``class_index``, checked by its makers, against timm's list of WordNet ids."""
    folder = shared_data / "cls" / "imagenet100"
    found = find_labelled_pictures(folder)
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index("class_index")
    expected = tuple(int(line.split(",")[place]) for line in lines[1:])
    assert match_labels(found.names, 1000) == expected


def test_numbers_and_a_file_of_classes(tmp_path: Path) -> None:
    assert match_labels(["7", "3"], 10) == (7, 3)
    for name, text in (
        ("a.json", '{"cat": 5, "ant": 2}'),
        ("b.csv", "cat,5\nant,2\n"),
        ("c.txt", "x\ny\nant\nz\nw\ncat\n"),
        ("d.json", '["x", "y", "ant", "z", "w", "cat"]'),
    ):
        (tmp_path / name).write_text(text)
        assert match_labels(["cat", "ant"], 6, read_classes(tmp_path / name)) == (5, 2)
    (tmp_path / "e.json").write_text("3")
    for bad in ("e.json", "missing.csv"):
        with pytest.raises(UsageError, match=bad):
            read_classes(tmp_path / bad)


@pytest.mark.parametrize(
    ("names", "outputs", "classes"),
    [
        (["cat", "ant"], 1000, None),
        (["n99999999"], 1000, None),
        (["7", "12"], 10, None),
        (["cat", "dog"], 10, {"cat": 1}),
        (["cat"], 10, {"cat": 11}),
        (["a", "b", "c"], 2, None),
    ],
)
def test_labels_that_do_not_match(
    names: list[str], outputs: int, classes: dict[str, int] | None
) -> None:
    with pytest.raises(UsageError, match="labels do not match"):
        match_labels(names, outputs, classes)


def test_folders_without_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        find_labelled_pictures(tmp_path / "none")
    write_picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="no labelled pictures"):
        find_labelled_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("file,wnid\na.png,n01440764\n")
    with pytest.raises(UsageError, match="columns filename"):
        find_labelled_pictures(tmp_path)
    (tmp_path / "labels.csv").write_text("filename,wnid\nb.png,n01440764\n")
    with pytest.raises(UsageError, match=r"not there: b\.png"):
        find_labelled_pictures(tmp_path)


@given(st.integers(1, 200), st.integers(1, 250))
def test_a_limit_takes_distinct_pictures_in_order(total: int, limit: int) -> None:
    files = tuple(Path(str(i)) for i in range(total))
    taken = LabelledPictures("", files, ("",) * total).take(limit).files
    assert len(taken) == min(limit, total)
    assert list(taken) == sorted(set(taken), key=lambda p: int(p.name))
