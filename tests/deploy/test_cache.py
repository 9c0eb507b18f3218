"""Folders in the cache: whole or absent, whoever else is at work or was killed."""

import os
import time
from pathlib import Path

import pytest

from collapsible.deploy.cache import built_folder
from collapsible.errors import CollapsibleError


def test_a_folder_appears_whole(tmp_path: Path):
    target = tmp_path / "cache" / "folder"
    with built_folder(target, "last") as draft:
        (draft / "first").write_text("1")
        (draft / "last").write_text("2")
        assert not target.exists()
    assert sorted(p.name for p in target.iterdir()) == ["first", "last"]
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


def test_an_error_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with built_folder(tmp_path / "folder", "last") as draft:
            (draft / "first").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_who_was_first_stays(tmp_path: Path):
    target = tmp_path / "folder"
    with built_folder(target, "last") as slow:
        (slow / "last").write_text("slow")
        with built_folder(target, "last") as quick:
            (quick / "last").write_text("quick")
    assert (target / "last").read_text() == "quick"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_something_else_in_its_place_is_an_error(tmp_path: Path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "mine").write_text("")
    with pytest.raises(OSError, match="folder"), built_folder(target, "last") as draft:
        (draft / "last").write_text("")
    assert [p.name for p in target.iterdir()] == ["mine"]


def test_what_killed_runs_left_goes_when_it_is_old(tmp_path: Path):
    for name, days in ((".building-old", 3), (".building-new", 1), ("other", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pixels.bin").write_text("")
        then = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (then, then))
    with built_folder(tmp_path / "folder", "last") as draft:
        (draft / "last").write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".building-new", "folder", "other"]


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CollapsibleError, match="COLLAPSIBLE_CACHE"):
        built_folder(tmp_path / "file" / "folder", "last").__enter__()
