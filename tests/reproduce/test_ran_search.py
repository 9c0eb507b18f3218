"""``reproduce ran/search``: the chain of the RAN-e search, as small as it goes."""

from __future__ import annotations

import pytest

from collapsible.errors import UsageError
from collapsible.reproduce import Request, reproduce
from collapsible.reproduce.ran_search import draw_pictures


@pytest.mark.slow
def test_the_small_form_holds_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSIBLE_CACHE", str(tmp_path / "cache"))
    request = Request(runs=tmp_path / "runs", steps=4)
    result = reproduce("ran/search", request)
    assert all(check.holds for check in result.checks), result.table()
    base, found = result.row("base").values, result.row("searched").values
    assert found["ms"] < base["ms"]
    assert len(result.sections[1].rows) == 17
    assert (tmp_path / "runs" / "ran-search-small" / "ran-e" / "plan.toml").is_file()
    again = reproduce("ran/search", request)
    assert again.row("searched").values == found


def test_the_full_form_says_what_it_needs(tmp_path):
    with pytest.raises(UsageError, match="--data is needed"):
        reproduce("ran/search", Request(full=True, runs=tmp_path))


def test_drawn_pictures_are_the_same_each_time(tmp_path):
    one, two = (draw_pictures(tmp_path / name, 16) for name in ("a", "b"))
    files = sorted(p.relative_to(one) for p in one.rglob("*.png"))
    assert len(files) == 3 * (40 + 16)
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
