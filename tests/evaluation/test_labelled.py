"""Class folders and tar shards give the same pictures; other layouts are refused with a reason."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from collapsible.errors import PictureError, UsageError
from collapsible.evaluation.labelled import find_labelled, find_part


def encode(place: int, number: int, kind: str) -> bytes:
    random = np.random.default_rng((place, number))
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    for place, name in enumerate(("b", "a")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.jpg").write_bytes(encode(place, number, "JPEG"))
    (root / ".hidden").mkdir()
    return root


def write_shard(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_class_folders_are_torchvisions(folder):
    theirs_folder = folder.parent / "theirs"
    theirs_folder.mkdir()
    for name in ("a", "b"):
        (theirs_folder / name).symlink_to(folder / name)
    theirs = ImageFolder(str(theirs_folder))
    ours = find_labelled(folder)
    assert list(ours.classes) == theirs.classes
    assert [ours.label(i) for i in range(len(ours))] == theirs.targets
    for index in range(len(ours)):
        assert np.array_equal(ours.read(index), np.asarray(theirs[index][0]))


def test_shards_give_the_pixels_of_their_members(tmp_path):
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(3):
            key = f"sub.dir/{shard}{number}"
            members[f"{key}.jpg"] = encode(shard, number, "JPEG")
            members[f"{key}.cls"] = b"%d" % number
            members[f"{key}.json"] = b'{"caption": "x"}'
        write_shard(tmp_path / "shards" / f"train-{shard:06d}.tar", members)
    pictures = find_labelled(tmp_path / "shards")
    assert pictures.classes == ("0", "1", "2")
    assert not pictures.named
    assert [pictures.label(i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    for index in range(6):
        wanted = Image.open(io.BytesIO(encode(index // 3, index % 3, "JPEG")))
        assert np.array_equal(pictures.read(index), np.asarray(wanted))
    (tmp_path / "shards" / "classes.txt").write_text("ant\nbee\ncat\n")
    assert find_labelled(tmp_path / "shards").classes == ("ant", "bee", "cat")
    with pytest.raises(UsageError, match="class number 2, but only x, y are known"):
        find_labelled(tmp_path / "shards", ("x", "y"))


def test_a_bad_member_is_named(tmp_path):
    members = {"one.png": encode(0, 0, "PNG")[:50], "one.cls": b"0"}
    write_shard(tmp_path / "shards" / "a.tar", members)
    with pytest.raises(PictureError, match=r"a\.tar: one\.png"):
        find_labelled(tmp_path / "shards").read(0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"one.jpg": b"x"}, r"no one\.cls says the class of one\.jpg"),
        ({"one.jpg": b"x", "one.cls": b"cat"}, r"one\.cls: expected the number of a class"),
        ({"one.jpg": b"x", "one.cls": b"-1"}, r"expected the number of a class"),
        ({"one.txt": b"x"}, "hold no pictures"),
    ],
)
def test_shards_that_say_too_little(tmp_path, members, message):
    write_shard(tmp_path / "shards" / "a.tar", members)
    with pytest.raises(UsageError, match=message):
        find_labelled(tmp_path / "shards")


def test_packed_and_damaged_shards_are_refused(tmp_path):
    write_shard(tmp_path / "packed" / "a.tar.gz", {"one.cls": b"0"}, "w:gz")
    with pytest.raises(UsageError, match="is compressed"):
        find_labelled(tmp_path / "packed")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.tar").write_bytes(b"nothing of a tar" * 100)
    with pytest.raises(UsageError, match="not a readable tar shard"):
        find_labelled(tmp_path / "damaged")


def test_shards_of_both_parts_in_one_folder_are_refused(tmp_path):
    """Or a network would be trained on what it is measured on."""
    for name in ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"):
        write_shard(tmp_path / name, {"a.cls": b"0", "a.jpg": encode(0, 0, "JPEG")})
    with pytest.raises(UsageError, match=r"both parts .*train-0000.*validation-00.*sub-folders"):
        find_labelled(tmp_path)


def test_grey_alpha_and_16_bits_become_rgb(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    grey = random.integers(0, 256, (9, 8), np.uint8)
    deep = random.integers(0, 65536, (9, 8)).astype(np.uint16)
    alpha = random.integers(0, 256, (9, 8, 4), np.uint8)
    for name, pixels in (("1", grey), ("2", deep), ("3", alpha)):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{name}.png")
    pictures = find_labelled(tmp_path)
    assert np.array_equal(pictures.read(0), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(pictures.read(1)[..., 0], np.rint(deep / 257.0).astype(np.uint8))
    assert np.array_equal(pictures.read(2), alpha[..., :3])


def test_parts_are_found_by_their_usual_names(tmp_path):
    assert find_part(tmp_path, "val") is None
    (tmp_path / "test").mkdir()
    assert find_part(tmp_path, "val") == tmp_path / "test"
    (tmp_path / "val").mkdir()
    assert find_part(tmp_path, "val") == tmp_path / "val"
